"""Result files in COCO's format: read with every record checked, and written.

Axes: D detections.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from jaxtyping import Float64, Int64

from focaldet.data.dataset import Classes, Dataset
from focaldet.data.formats.json_files import read_json
from focaldet.data.formats.text import brief
from focaldet.data.problems import Location
from focaldet.errors import DataError
from focaldet.files import to_json_text, write_text
from focaldet.types import Detections

FIELDS = ("image_id", "category_id", "bbox", "score")
LARGEST_PX = 1e9  # beyond any image; keeps areas and IoU finite


class ResultRows(NamedTuple):
    """Detections of many images as columns; `image_indices` and `labels` are indices into their dataset."""

    image_indices: Int64[numpy.ndarray, " D"]
    labels: Int64[numpy.ndarray, " D"]
    xywh: Float64[numpy.ndarray, "D 4"]
    scores: Float64[numpy.ndarray, " D"]


def result_rows(detections: Mapping[int, Detections]) -> ResultRows:
    """The columns of detections given by the index of their image, in rising order of the images."""
    indices = sorted(detections)
    ordered = [Detections.empty(), *(detections[index].cpu() for index in indices)]
    boxes = torch.cat([each.boxes for each in ordered]).detach().double().numpy()
    return ResultRows(
        image_indices=numpy.repeat(numpy.array(indices, dtype=numpy.int64), [len(each) for each in ordered[1:]]),
        labels=torch.cat([each.labels for each in ordered]).numpy(),
        xywh=numpy.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        scores=torch.cat([each.scores for each in ordered]).detach().double().numpy(),
    )


def read_results(path: Path, *, image_ids: Sequence[int], classes: Classes) -> ResultRows:
    """The detections of a COCO result file; its ids become indices into `image_ids` and labels of `classes`.

    Raises:
        DataError: not a JSON list, or a record that lacks a field, has one of a wrong type or out of range, or names an
            unknown image or category; it names the record (counted from 0) and the field.
    """
    indices = {image_id: index for index, image_id in enumerate(image_ids)}
    labels = {category: label for label, category in enumerate(classes.own_ids) if category is not None}
    records = enumerate(_read_list(path))
    rows = [_result_row(record, Location(path, f"[{number}]"), indices, labels) for number, record in records]
    table = numpy.array(rows, dtype=numpy.float64).reshape(-1, 7)
    return ResultRows(table[:, 0].astype(numpy.int64), table[:, 1].astype(numpy.int64), table[:, 2:6], table[:, 6])


def write_results(path: Path, dataset: Dataset, detections: Mapping[int, Detections]) -> None:
    """Write `detections` (by the index of their image) as a COCO result file with the ids of the dataset's file.

    Detections of a class that only the training split has are skipped: the file has no id for it, and they have no part
    in the metrics. Numbers are written in full, so that reading them back gives the same metrics to the last digit.
    """
    image_ids, category_ids = dataset.image_ids.tolist(), dataset.classes.own_ids
    labels = tuple(range(len(category_ids)))
    lines = [
        to_json_text(record | {"category_id": category})
        for index in sorted(detections)
        for record in detections[index].to_coco(image_id=image_ids[index], category_ids=labels)
        if (category := category_ids[record["category_id"]]) is not None
    ]
    write_text(path, "[" + ",\n".join(lines) + "]\n")


def _read_list(path: Path) -> list[Any]:
    content = read_json(path)
    if not isinstance(content, list):
        hint = "; these are annotations, not results" if isinstance(content, dict) and "annotations" in content else ""
        raise DataError(f"must be a list of detections, got {brief(content)}{hint}", file=path)
    return content


def _result_row(
    record: Any, location: Location, indices: Mapping[int, int], labels: Mapping[int, int]
) -> tuple[int | float, ...]:
    """Image index, label, x, y, width, height and score of one record."""
    if type(record) is not dict:
        raise location.error(f"must be an object with {', '.join(FIELDS)}, got {brief(record)}")
    for field in FIELDS:
        if field not in record:
            names = ", ".join(map(brief, list(record)[:8])) or "nothing"
            raise location._replace(field=field).error(f"is missing (the record has: {names})")
    index = _look_up(record["image_id"], indices, location, field="image_id", kind="an image")
    label = _look_up(record["category_id"], labels, location, field="category_id", kind="a category")
    bbox = record["bbox"]
    if type(bbox) is not list or len(bbox) != 4:
        raise location._replace(field="bbox").error(f"must be four numbers [x, y, width, height], got {brief(bbox)}")
    x, y, width, height = (_finite_number(value, location, field="bbox") for value in bbox)
    if width < 0 or height < 0:
        raise location._replace(field="bbox").error(f"width and height must be ≥ 0, got {brief(bbox)}")
    return index, label, x, y, width, height, _finite_number(record["score"], location, field="score")


def _look_up(value: Any, known: Mapping[int, int], location: Location, *, field: str, kind: str) -> int:
    """What an id of a record stands for."""
    if type(value) is not int:
        raise location._replace(field=field).error(f"must be a whole number, got {brief(value)}")
    if value not in known:
        some = ", ".join(map(str, list(known)[:5])) + (", …" if len(known) > 5 else "")
        problem = f"{brief(value)} is not {kind} of the ground truth (it has {len(known)}: {some})"
        raise location._replace(field=field).error(problem)
    return known[value]


def _finite_number(value: Any, location: Location, *, field: str) -> float:
    # NaN fails the comparison too; true and false are not numbers.
    if type(value) not in (float, int) or not -LARGEST_PX <= value <= LARGEST_PX:
        problem = f"must be a number within {-LARGEST_PX:g}…{LARGEST_PX:g}, got {brief(value)}"
        raise location._replace(field=field).error(problem)
    return float(value)
