"""`report.html`: a training run on one page that needs no network, no script and no other file."""

import csv
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch

from focaldet import config as configs
from focaldet import draw
from focaldet.data.dataset import Dataset, ImageSource
from focaldet.data.formats.text import quantity
from focaldet.evaluation.coco import HEADLINES, Metrics, evaluate_detections, percent
from focaldet.evaluation.results import ResultRows, read_results
from focaldet.files import read_utf8, to_json_text
from focaldet.report.charts import Chart, Curve, chart_section
from focaldet.report.page import embed_image, header, section, table, write_page
from focaldet.types import Detections, Target

NUM_IMAGES = 12
LONGEST_SIDE_PX = 440  # of an image on the page: twelve pairs stay near one megabyte
CARDS = ("ap", "ap50", "ap75", "ar100")
CLASS_COLUMNS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


def write_report(
    run: Path,
    source: ImageSource,
    *,
    metrics: Metrics | None = None,
    predictions: Path | None = None,
    score: float = 0.3,
) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page has the COCO numbers over all classes and per class, the curves of `metrics.csv`, twelve images with ground
    truth and detections, the problems of the data, and the settings. Parts whose file the folder lacks are skipped.

    Args:
        run: the run folder.
        source: the images that were evaluated; they are loaded as in epoch 0.
        metrics: the numbers; computed from `predictions` by default.
        predictions: the COCO result file of these images; `predictions.json` in the run folder by default.
        score: detections below it are not drawn.

    Raises:
        DataError: `predictions` cannot be read or is of other images, or an image cannot be read.
    """
    dataset = source.dataset
    rows = read_results(
        predictions or run / "predictions.json", image_ids=dataset.image_ids.tolist(), classes=dataset.classes
    )
    detections = detections_per_image(rows, dataset)
    metrics = metrics or evaluate_detections(dataset, dict(enumerate(detections)))
    settings = configs.read_mapping(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    name, path = run.absolute().name, run / "report.html"
    write_page(
        path,
        f"{name} · focaldet report",
        header(name, _summary_html(dataset, metrics), model=str(settings.get("model") or ""), notes=metrics.notes),
        _headline_cards(metrics),
        section("Phases", _phase_list(settings.get("phases"))),
        _metric_curves(run / "metrics.csv"),
        section(
            "The twelve COCO numbers",
            table(
                ["Number", "%", "Meaning"],
                [[name, percent(getattr(metrics, field)), text] for field, (name, text) in HEADLINES.items()],
                text_columns=[2],
            ),
            "<p>A dash: the ground truth has no box of that size.</p>",
        ),
        section("Per class", _class_table(metrics)),
        section("Images", *_image_pairs(source, detections, score=score)),
        section("Data", _problem_list(dataset)),
        section("Settings", *(_file_block(run / name) for name in ("config.yaml", "environment.json"))),
    )
    return path


def detections_per_image(rows: ResultRows, dataset: Dataset) -> list[Detections]:
    """The rows of a result file as one `Detections` per image of `dataset`, best first."""
    boxes = torch.from_numpy(rows.xywh).float()
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    scores, labels, positions = (torch.from_numpy(column) for column in (rows.scores, rows.labels, rows.image_indices))
    order = torch.argsort(scores, descending=True, stable=True)
    by_image = order[torch.argsort(positions[order], stable=True)]
    counts = torch.bincount(positions, minlength=len(dataset)).tolist()
    return [
        Detections(boxes[chosen], scores[chosen].float(), labels[chosen], dataset.classes.names)
        for chosen in torch.split(by_image, counts)
    ]


def target_as_detections(target: Target, names: tuple[str, ...]) -> Detections:
    """Ground truth in the form that `draw.boxes` takes; the names of ignored boxes say so."""
    labels = target.labels + target.ignored * len(names)
    return Detections(target.boxes, torch.ones(len(labels)), labels, (*names, *(f"{name} (ignored)" for name in names)))


def _summary_html(dataset: Dataset, metrics: Metrics) -> str:
    return (
        f"Evaluated on <b>{escape(dataset.name)}</b>: {quantity(metrics.num_images, 'image')}, "
        f"{quantity(metrics.num_boxes, 'box', 'boxes')} of {quantity(len(metrics.per_class), 'class', 'classes')}, "
        f"{quantity(metrics.num_detections, 'detection')}."
    )


def _headline_cards(metrics: Metrics) -> str:
    cards = [(HEADLINES[field][0], percent(getattr(metrics, field)), HEADLINES[field][1]) for field in CARDS]
    if metrics.milliseconds_per_image is not None:
        cards.append(("Speed", f"{metrics.milliseconds_per_image:.1f}", "milliseconds per image"))
    html = "".join(
        f'<div class="card"><h2>{name}</h2><p class="value">{value}</p><p>{meaning}</p></div>'
        for name, value, meaning in cards
    )
    return f'<section aria-label="Headline numbers" class="cards">{html}</section>\n'


def _phase_list(phases: object) -> str:
    """The phases of the run with the settings of each; nothing where there are none."""
    if not isinstance(phases, list) or not phases:
        return ""
    items, begin = [], 1
    for phase in phases:
        changes = {name: value for name, value in phase.items() if name != "epochs"}
        text = to_json_text(changes) if changes else "as the run"
        items.append(f"<li>epochs {begin} to {begin + phase['epochs'] - 1}: <code>{escape(text)}</code></li>")
        begin += phase["epochs"]
    return f"<ol>{''.join(items)}</ol>"


def _metric_curves(path: Path) -> str:
    """Losses by step and AP by epoch; nothing where there is no `metrics.csv`."""
    if not path.is_file():
        return ""
    rows = list(csv.DictReader(io.StringIO(read_utf8(path), newline="")))
    steps, evaluations = ([row for row in rows if row.get("kind") == kind] for kind in ("step", "evaluation"))
    parts = [name for name in (steps[0] if steps else {}) if name.endswith("_loss")]
    losses = [
        _csv_curve(steps, "step", name, name.removesuffix("_loss").replace("_", " ")).smooth()
        for name in ("loss", *parts)
    ]
    precisions = [_csv_curve(evaluations, "epoch", name, HEADLINES[name][0], 100.0) for name in ("ap50", "ap", "ap75")]
    charts = []
    if steps:
        charts.append(Chart("Training loss", losses, x_label="step", y_label="loss"))
    if evaluations:
        ap = Chart("Average precision", precisions, x_label="epoch", y_label="AP, %", y_range=(0.0, 100.0), dots=True)
        charts.append(ap)
    return chart_section("Curves", charts)


def _csv_curve(rows: Sequence[dict[str, str]], x: str, y: str, name: str, factor: float = 1.0) -> Curve:
    return Curve(name, [_csv_number(row.get(x)) for row in rows], [factor * _csv_number(row.get(y)) for row in rows])


def _csv_number(text: str | None) -> float:
    """The number in a cell of metrics.csv; NaN, which is not drawn, where the cell is missing or damaged."""
    try:
        return float(text or math.nan)
    except ValueError:
        return math.nan


def _class_table(metrics: Metrics) -> str:
    """The numbers of each class, the best first, with AP as a bar too."""
    rows = []
    for row in sorted(metrics.per_class, key=lambda row: (row.ap is None, -(row.ap or 0.0))):
        bar = f'<div class="bar" style="--length:{100 * (row.ap or 0):.1f}%">{percent(row.ap)}</div>'
        values = [percent(getattr(row, column)) for column in CLASS_COLUMNS[1:]]
        rows.append([escape(row.name), f"{row.num_boxes:,}", bar, *values])
    return table(["Class", "Boxes", *(HEADLINES[column][0] for column in CLASS_COLUMNS)], rows)


def _image_pairs(source: ImageSource, detections: Sequence[Detections], *, score: float) -> list[str]:
    """Images at even distances through the split: chosen before anybody saw how good they are."""
    count = min(NUM_IMAGES, len(source.dataset))
    indices = [number * len(source.dataset) // count for number in range(count)]
    text = (
        f"<p>Ground truth on the left, detections with a score of at least {score:g} on the right. The images stand at "
        "even distances in the split; they were not selected.</p>"
    )
    return [text, *(_image_pair(source, index, detections[index].above(score)) for index in indices)]


def _image_pair(source: ImageSource, index: int, detections: Detections) -> str:
    image, target = source.load(index, epoch=0)
    truth = target_as_detections(target, source.dataset.classes.names)
    name = source.dataset.path(index).name
    texts = f"ground truth: {_count_classes(truth)}", f"detections: {_count_classes(detections)}"
    left = _embed_drawing(image, truth, show_scores=False, alt=f"{name}: {texts[0]}")
    right = _embed_drawing(image, detections, show_scores=True, alt=f"{name}: {texts[1]}")
    caption = escape(f"{name}: {'; '.join(texts)}")
    return f'<figure class="pair"><div>{left}{right}</div><figcaption>{caption}</figcaption></figure>'


def _embed_drawing(image: draw.AnyImage, detections: Detections, *, show_scores: bool, alt: str) -> str:
    full = draw.to_image(image)
    scale = min(1.0, LONGEST_SIDE_PX / max(full.size))
    small = full.resize((max(1, round(full.width * scale)), max(1, round(full.height * scale))))
    resized = detections.scale(small.width / full.width, small.height / full.height)
    return embed_image(draw.boxes(small, resized, show_scores=show_scores), alt=alt)


def _count_classes(detections: Detections) -> str:
    """For example `12 cell, 1 dog`."""
    names = detections.names
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"


def _problem_list(dataset: Dataset) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in dataset.problems.lines())
    return f"<ul>{items}</ul>" if items else "<p>No problems in the annotations.</p>"


def _file_block(path: Path) -> str:
    """The text of a file behind its name; nothing where there is no such file."""
    if not path.is_file():
        return ""
    state, text = " open" if path.name == "config.yaml" else "", escape(read_utf8(path))
    return f'<details{state}><summary>{path.name}</summary><pre tabindex="0">{text}</pre></details>'
