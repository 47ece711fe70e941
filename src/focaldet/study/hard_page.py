"""The page of the hard-example explorer: data, style and script in one file; only the pictures lie beside it."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from focaldet.data.dataset import Dataset
from focaldet.evaluation.error_kinds import OUTCOME_KINDS, Outcome
from focaldet.report.page import whole_page
from focaldet.study.suspects import PROBLEMS, Labelled, Suspect

MEDIUM_AREA, LARGE_AREA = 32**2, 96**2  # COCO's bounds, square pixels of the original image


def hard_page(
    dataset: Dataset, examples: Sequence[Sequence[Outcome]], suspects: Sequence[Suspect], *, score: float, model: str
) -> str:
    """The explorer as HTML. It expects the picture of image i at `pictures/<i>.jpg`.

    Args:
        dataset: the images.
        examples: those of each image, by its position.
        suspects: suspected label errors, the strongest first.
        score: where the slider for false positives stands at first.
        model: what the detector is called.
    """
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "classes": dataset.classes.names,
        "categories": dataset.classes.category_ids,
        "kinds": OUTCOME_KINDS,
        "problems": PROBLEMS,
        "score": score,
        "images": [_image(dataset, place, several) for place, several in enumerate(examples)],
        "suspects": [_suspect(one) for one in suspects],
    }
    text = (
        json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/").replace("<!--", "<\\u0021--")
    )
    folder = files("focaldet.study")
    body = (folder / "hard_page.html").read_text(encoding="utf-8")
    for name, value in (("SPLIT", dataset.name), ("MODEL", model), ("COUNT", f"{len(dataset):,}")):
        body = body.replace(f"{{{name}}}", escape(value))
    return whole_page(
        f"Easy and hard in {dataset.name} · focaldet",
        f'{body}<script type="application/json" id="data">{text}</script>\n',
        style=(folder / "hard_page.css").read_text(encoding="utf-8"),
        script=(folder / "hard_page.js").read_text(encoding="utf-8"),
    )


def _image(dataset: Dataset, place: int, examples: Sequence[Outcome]) -> list[Any]:
    """File, id, width, height, and the rows of the examples."""
    height, width = dataset.size(place)
    first = int(dataset.offsets[place])
    rows = []
    for one in examples:
        x1, y1, x2, y2 = one.box
        area = (x2 - x1) * (y2 - y1) if one.index is None else float(dataset.areas[first + one.index])
        finding = (
            [one.detection.label, round(one.detection.score, 3), _sides(one.detection.box)] if one.detection else None
        )
        size = (area >= MEDIUM_AREA) + (area >= LARGE_AREA)
        losses = round(one.class_loss, 3), round(one.box_loss, 3)
        kind = OUTCOME_KINDS.index(one.kind)
        rows.append([kind, int(one.index is not None), one.label, _sides(one.box), size, *losses, finding])
    name = dataset.path(place).relative_to(dataset.root).as_posix()
    return [name, int(dataset.image_ids[place]), width, height, rows]


def _suspect(one: Suspect) -> list[Any]:
    """Image, problem, suspicion, and class and box in the file and as proposed."""
    return [
        one.image,
        PROBLEMS.index(one.problem),
        round(one.suspicion, 4),
        _labelled(one.annotated),
        _labelled(one.proposed),
    ]


def _labelled(one: Labelled | None) -> list[Any] | None:
    return None if one is None else [one.label, _sides(one.box)]


def _sides(box: Sequence[float]) -> list[float]:
    return [round(side, 1) for side in box]
