"""The page of the hard-outcome explorer: data, style and script in one file, beside it only the images."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from focaldet.data.dataset import Dataset
from focaldet.data.formats.text import quantity
from focaldet.evaluation.error_kinds import OUTCOME_KINDS, Outcome
from focaldet.files import to_json_text
from focaldet.report.page import write_page
from focaldet.study.suspects import SUSPECT_KINDS, LabeledBox, Suspect, image_name

MEDIUM_AREA, LARGE_AREA = 32**2, 96**2  # COCO's bounds, square pixels of the original image

IMAGE_FOLDER = "pictures"  # as version 0.1 called it; the page's script has the same name


def write_hard_page(
    path: Path,
    dataset: Dataset,
    outcomes: Sequence[Sequence[Outcome]],
    suspects: Sequence[Suspect],
    *,
    score: float,
    model: str,
) -> None:
    """Write the explorer as HTML. It expects image i at `<i>.jpg` in the folder `IMAGE_FOLDER` beside it.

    Args:
        path: the file.
        dataset: the images.
        outcomes: those of each image, in the dataset's order.
        suspects: suspected label errors, the strongest first.
        score: that from which on detections count.
        model: the name of the detector.
    """
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "classes": dataset.classes.names,
        "categories": dataset.classes.category_ids,
        "kinds": OUTCOME_KINDS,
        "problems": SUSPECT_KINDS,
        "score": score,
        "images": [_image_row(dataset, index, several) for index, several in enumerate(outcomes)],
        "suspects": [_suspect_row(suspect) for suspect in suspects],
    }
    text = to_json_text(data, separators=(",", ":"))
    text = text.replace("</", "<\\/").replace("<!--", "<\\u0021--")
    folder = files("focaldet.study")
    html, style, script = (
        folder.joinpath(f"hard_page.{ending}").read_text(encoding="utf-8") for ending in ("html", "css", "js")
    )
    texts = {"SPLIT": dataset.name, "MODEL": model, "COUNT": quantity(len(dataset), "image"), "SCORE": f"{score:.2f}"}
    for name, value in texts.items():
        html = html.replace(f"{{{name}}}", escape(value))
    html += f'<script type="application/json" id="data">{text}</script>\n'
    write_page(path, f"Easy and hard in {dataset.name} · focaldet", html, style=style, script=script)


def _image_row(dataset: Dataset, index: int, outcomes: Sequence[Outcome]) -> list[Any]:
    """File, id, width, height, and the rows of the outcomes."""
    height, width = dataset.size(index)
    first = int(dataset.offsets[index])
    rows = []
    for one in outcomes:
        x1, y1, x2, y2 = one.box
        area = (x2 - x1) * (y2 - y1) if one.index is None else float(dataset.areas[first + one.index])
        shown = one.detection
        detection = None if shown is None else [shown.label, round(shown.score, 3), _round_box(shown.box)]
        size = (area >= MEDIUM_AREA) + (area >= LARGE_AREA)
        losses = round(one.class_loss, 3), round(one.box_loss, 3)
        kind = OUTCOME_KINDS.index(one.kind)
        rows.append([kind, int(one.index is not None), one.label, _round_box(one.box), size, *losses, detection])
    return [image_name(dataset, index), int(dataset.image_ids[index]), width, height, rows]


def _suspect_row(suspect: Suspect) -> list[Any]:
    """Image, problem, suspicion, and class and box in the file and as proposed."""
    boxes = [_labeled_box_row(box) for box in (suspect.annotated, suspect.proposed)]
    return [suspect.image, SUSPECT_KINDS.index(suspect.problem), round(suspect.suspicion, 4), *boxes]


def _labeled_box_row(labeled: LabeledBox | None) -> list[Any] | None:
    return None if labeled is None else [labeled.label, _round_box(labeled.box)]


def _round_box(box: Sequence[float]) -> list[float]:
    return [round(side, 1) for side in box]
