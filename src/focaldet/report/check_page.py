"""The page of `focaldet check --html`: the splits, and every kind of problem with images that show it."""

from html import escape
from pathlib import Path

import torch

from focaldet import draw
from focaldet.check.findings import Exhibit
from focaldet.check.kinds import MEANINGS
from focaldet.check.report import Report
from focaldet.config import make_folder
from focaldet.data.formats.text import quantity
from focaldet.data.images import read_reduced
from focaldet.data.problems import Problem, Severity
from focaldet.errors import DataError
from focaldet.report.page import embed_image, header, section, table, write_page
from focaldet.types import Detections, Resize

LISTED = 8  # problems of a kind that are named
SHOT_PX = 420
ORDER: tuple[Severity, ...] = ("error", "warning", "note")
KIND_STYLE = """
.kind { background: var(--sheet); border: 1px solid var(--rule); border-left: 5px solid var(--c5); border-radius: 10px;
  padding: 14px 18px; margin-top: 18px; }
.kind h3 { margin: 0; font-size: 1.05rem; }
.kind.error { border-left-color: var(--c3); } .kind.warning { border-left-color: var(--c1); }
.kind .count { color: var(--soft); font-weight: 400; }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr)); gap: 12px; }
.shots { margin-top: 12px; }
.shots img { display: block; width: 100%; height: auto; border-radius: 6px; }
.shots figcaption, .places { color: var(--soft); font-size: .88rem; overflow-wrap: anywhere; }
"""


def write_check_page(report: Report, path: Path) -> None:
    """Write the report as one HTML file that needs no other.

    Raises:
        ConfigError: the folder cannot be made.
    """
    make_folder(path.parent)
    counts = [quantity(report.problems.count(severity), severity) for severity in ORDER]
    paragraphs = [escape(report.chosen), escape(", ".join(counts))]
    if report.advice is not None:
        paragraphs += [escape(line) for line in report.advice.lines()]
    write_page(
        path,
        f"check of {report.source}",
        header("What is in the data", *paragraphs, model=report.source),
        section("Splits", _split_table(report)),
        section("Fit of the anchors", _size_table(report)),
        section("Problems", *[_kind_block(report, *key) for key in _kinds_in_order(report)] or ["<p>None.</p>"]),
        style=KIND_STYLE,
    )


def _kinds_in_order(report: Report) -> list[tuple[Severity, str]]:
    return sorted(report.problems.counts, key=lambda key: (ORDER.index(key[0]), key[1]))


def _split_table(report: Report) -> str:
    heads = ["Split", "Images", "Without boxes", "Boxes", "Ignored", "Classes with boxes", "Imbalance"]
    rows = []
    for split in report.splits:
        present = sum(number > 0 for number in split.boxes_per_class.values())
        numbers = (split.images, split.background_images, split.boxes, split.ignored, present)
        rows.append([escape(split.name), *map(str, numbers), f"{split.imbalance:.1f} : 1"])
    return table(heads, rows)


def _size_table(report: Report) -> str:
    """The fraction of the boxes that have an anchor, by size; empty without advice."""
    if report.advice is None:
        return ""
    rows = [
        [f"{size} px{' (advised)' if size == report.advice.used else ''}", f"{fraction:.1%}"]
        for size, fraction in report.advice.covered.items()
    ]
    return table(["Long side", "Boxes with an anchor"], rows)


def _kind_block(report: Report, severity: Severity, kind: str) -> str:
    """A kind of problem: what it means, images, and where the first ones are."""
    number = report.problems.counts[severity, kind]
    same = [problem for problem in report.problems if (problem.severity, problem.kind) == (severity, kind)]
    meaning = MEANINGS.get(kind, "")
    shots = "".join(map(_shot, report.exhibits.get(kind, ())))
    places = "".join(f"<li>{escape(_describe_problem(problem))}</li>" for problem in same[:LISTED])
    more = f"<li>… and {number - LISTED} more: --list</li>" if number > LISTED else ""
    return (
        f'<div class="kind {severity}"><h3>{escape(kind)} <span class="count">{severity}, {number}</span></h3>'
        f"<p>{escape(meaning)}</p>"
        + (f'<div class="shots">{shots}</div>' if shots else "")
        + f'<ul class="places">{places}{more}</ul></div>\n'
    )


def _describe_problem(problem: Problem) -> str:
    where = " · ".join(part for part in (problem.file, problem.record, problem.field) if part)
    return f"{where}: {problem.message}"


def _shot(exhibit: Exhibit) -> str:
    """A small image with the boxes in question; its name alone where it cannot be read."""
    name = escape(exhibit.path.name)
    try:
        pixels, size = read_reduced(exhibit.path)
    except DataError:
        return f"<figure><figcaption>{name}: cannot be read</figcaption></figure>"
    boxes = torch.tensor(exhibit.boxes, dtype=torch.float32).reshape(-1, 4)
    image = draw.to_image(pixels)
    shown = Resize("long", min(SHOT_PX, max(size))).content(size)
    image = image.resize((shown.width, shown.height))
    detections = Detections(boxes, torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64), ("",))
    detections = detections.scale(shown.width / size.width, shown.height / size.height)
    drawn = draw.frames(image, detections)
    caption = escape(": ".join(filter(None, (exhibit.path.name, exhibit.text))))
    return f"<figure>{embed_image(drawn, alt=exhibit.path.name)}<figcaption>{caption}</figcaption></figure>"
