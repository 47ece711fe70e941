"""Result files in COCO's format: read with every record checked, and written.

Axes: D detections.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from jaxtyping import Float64, Int64

from focaldet.data.dataset import Classes, Dataset
from focaldet.data.formats.text import brief
from focaldet.errors import DataError
from focaldet.types import Detections

FIELDS = ("image_id", "category_id", "bbox", "score")
LARGEST_PX = 1e9  # beyond any image; keeps areas and IoU finite


class ResultRows(NamedTuple):
    """Detections of many images as columns; `positions` and `labels` count as in the dataset they belong to."""

    positions: Int64[numpy.ndarray, " D"]
    labels: Int64[numpy.ndarray, " D"]
    xywh: Float64[numpy.ndarray, "D 4"]
    scores: Float64[numpy.ndarray, " D"]


def result_rows(detections: Mapping[int, Detections]) -> ResultRows:
    """The columns of detections given by position, images in rising order."""
    ordered = [(position, detections[position].cpu()) for position in sorted(detections)]
    counts = [len(found) for _, found in ordered]
    boxes = _joined([found.boxes for _, found in ordered], (0, 4))
    return ResultRows(
        positions=numpy.repeat(numpy.array([position for position, _ in ordered], dtype=numpy.int64), counts),
        labels=_joined([found.labels for _, found in ordered], (0,)).astype(numpy.int64),
        xywh=numpy.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        scores=_joined([found.scores for _, found in ordered], (0,)),
    )


def read_results(path: Path, *, image_ids: Sequence[int], classes: Classes) -> ResultRows:
    """The detections of a COCO result file; its ids become places in `image_ids` and labels of `classes` (`own_ids`).

    Raises:
        DataError: no JSON list, or a record that lacks a field, has one of a wrong type or out of range, or names an
            unknown image or category; it names the record (counted from 0) and the field.
    """
    positions = {image_id: position for position, image_id in enumerate(image_ids)}
    labels = {own: label for label, own in enumerate(classes.own_ids) if own is not None}
    rows = []
    for number, record in enumerate(_read_list(path)):
        try:
            rows.append(_row(record, positions, labels))
        except _Refused as refused:
            raise DataError(refused.problem, file=path, record=f"[{number}]", field=refused.field) from None
    table = numpy.array(rows, dtype=numpy.float64).reshape(-1, 7)
    return ResultRows(table[:, 0].astype(numpy.int64), table[:, 1].astype(numpy.int64), table[:, 2:6], table[:, 6])


def write_results(path: Path, dataset: Dataset, detections: Mapping[int, Detections]) -> None:
    """Write `detections` (by position in `dataset`) as a COCO result file with the file's own image and category ids.

    Detections of a class that the file lacks, and that only the training split has, are left out: no id names them, and
    they have no part in the metrics. Numbers are written in full, so that reading them back gives the same metrics to
    the last digit.
    """
    image_ids, own_ids = dataset.image_ids.tolist(), dataset.classes.own_ids
    labels = tuple(range(len(own_ids)))
    lines = [
        json.dumps(record | {"category_id": own})
        for position in sorted(detections)
        for record in detections[position].to_coco(image_id=image_ids[position], category_ids=labels)
        if (own := own_ids[record["category_id"]]) is not None
    ]
    path.write_text("[" + ",\n".join(lines) + "]\n", encoding="utf-8")


class _Refused(Exception):  # noqa: N818  never leaves this file
    def __init__(self, field: str | None, problem: str) -> None:
        self.field, self.problem = field, problem


def _read_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no valid JSON: {error}", file=path) from None
    if not isinstance(content, list):
        hint = "; these are annotations, not results" if isinstance(content, dict) and "annotations" in content else ""
        raise DataError(f"must hold a list of detections, found {brief(content)}{hint}", file=path)
    return content


def _row(record: Any, positions: Mapping[int, int], labels: Mapping[int, int]) -> tuple[int | float, ...]:
    """Position, label, x, y, width, height and score of one record."""
    if type(record) is not dict:
        raise _Refused(None, f"must be an object with {', '.join(FIELDS)}, found {brief(record)}")
    for field in FIELDS:
        if field not in record:
            raise _Refused(
                field, f"is missing (the record has: {', '.join(map(brief, list(record)[:8])) or 'nothing'})"
            )
    position = _known(record["image_id"], positions, "image_id", "image")
    label = _known(record["category_id"], labels, "category_id", "category")
    bbox = record["bbox"]
    if type(bbox) is not list or len(bbox) != 4:
        raise _Refused("bbox", f"must be four numbers [x, y, width, height], found {brief(bbox)}")
    x, y, width, height = (_number(value, "bbox") for value in bbox)
    if width < 0 or height < 0:
        raise _Refused("bbox", f"width and height must be ≥ 0, found {brief(bbox)}")
    return position, label, x, y, width, height, _number(record["score"], "score")


def _known(value: Any, known: Mapping[int, int], field: str, thing: str) -> int:
    if type(value) is not int:
        raise _Refused(field, f"must be a whole number, found {brief(value)}")
    place = known.get(value)
    if place is None:
        allowed = ", ".join(map(str, list(known)[:5])) + (", …" if len(known) > 5 else "")
        raise _Refused(field, f"{brief(value)} is no {thing} of the ground truth (it has {len(known)}: {allowed})")
    return place


def _number(value: Any, field: str) -> float:
    # NaN fails the comparison too; true and false are no numbers.
    if type(value) not in (float, int) or not -LARGEST_PX <= value <= LARGEST_PX:
        raise _Refused(field, f"must be a number within {-LARGEST_PX:g}…{LARGEST_PX:g}, found {brief(value)}")
    return float(value)


def _joined(tensors: list[torch.Tensor], empty: tuple[int, ...]) -> Float64[numpy.ndarray, "..."]:
    return torch.cat(tensors).detach().double().numpy() if tensors else numpy.zeros(empty)
