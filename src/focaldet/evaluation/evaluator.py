"""The ground truth of a split as columns, and hotcoco's evaluator of detections against it.

Axes: N images, K classes, G boxes, D detections.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy
from jaxtyping import Bool, Float64, Int64

from focaldet.data.dataset import OTHER_CLASS, Classes, Dataset
from focaldet.data.formats.coco import read_coco_file
from focaldet.evaluation.results import ResultRows

LOWER_LIMITS = (1, 10)
MAX_DETECTIONS = 100  # of each image and class, as COCO counts


class CocoGroundTruth(NamedTuple):
    """The boxes of all images, as columns; `image_indices` and `labels` are indices into `image_ids` and `classes`.

    `ignored` boxes need not be detected.
    """

    image_ids: Int64[numpy.ndarray, " N"]
    classes: Classes
    image_indices: Int64[numpy.ndarray, " G"]
    labels: Int64[numpy.ndarray, " G"]
    xywh: Float64[numpy.ndarray, "G 4"]
    areas: Float64[numpy.ndarray, " G"]
    ignored: Bool[numpy.ndarray, " G"]


def ground_truth_of(dataset: Dataset) -> CocoGroundTruth:
    """The boxes of a dataset as training uses them: inside their images, none of them empty.

    Boxes of classes that are not trained on are left out, since they say nothing on any other class.

    Sides that were not clipped are those of the file to the last digit, as in `read_ground_truth`.
    """
    dataset = dataset.select_boxes((dataset.flags & OTHER_CLASS) == 0)
    boxes = dataset.boxes.numpy()
    sides = boxes[:, 2:] - boxes[:, :2]
    if dataset.side_remainders is not None:
        sides += dataset.side_remainders.numpy()
    return CocoGroundTruth(
        image_ids=dataset.image_ids.numpy(),
        classes=dataset.classes,
        image_indices=numpy.repeat(numpy.arange(len(dataset)), numpy.diff(dataset.offsets.numpy())),
        labels=dataset.labels.numpy().astype(numpy.int64),
        xywh=numpy.concatenate([boxes[:, :2], sides], axis=1),
        areas=dataset.areas.numpy(),
        ignored=dataset.flags.numpy() != 0,
    )


def read_ground_truth(path: Path) -> CocoGroundTruth:
    """The boxes of a COCO annotation file exactly as it states them, as COCO's own tool takes them.

    Their sides do not come from corners: (x + w) − x is not w in floating point, and an IoU that lies on a threshold
    would fall on its other side. The image files need not exist.

    Raises:
        DataError: the file is not well-formed COCO json, or a box is not finite.
    """
    records = read_coco_file(path, name=path.stem, look_up=False)
    boxes, areas = records.boxes.numpy(), records.areas.numpy()
    if not numpy.isfinite(boxes).all():
        row = int(numpy.flatnonzero(~numpy.isfinite(boxes).all(axis=1))[0])
        raise records.box_location(row).error(f"must be four finite numbers, got {boxes[row].tolist()}")
    sides = boxes[:, 2:] - boxes[:, :2] if records.sides is None else records.sides.numpy()
    return CocoGroundTruth(
        image_ids=numpy.array(records.image_ids, dtype=numpy.int64),
        classes=records.classes,
        image_indices=records.owners.numpy(),
        labels=records.labels.numpy(),
        xywh=numpy.concatenate([boxes[:, :2], sides], axis=1),
        areas=numpy.where(numpy.isnan(areas), sides.prod(axis=1), areas),
        ignored=records.flags.numpy() != 0,
    )


def open_evaluator(
    truth: CocoGroundTruth, rows: ResultRows, *, max_detections: int = MAX_DETECTIONS, with_metrics: bool = True
) -> Any:
    """hotcoco's `COCOeval` of `rows` against `truth`, evaluated; it writes nothing to the terminal.

    Its image and category ids are ranks: COCO breaks ties between equal scores by the order of the image ids, and ranks
    keep that order whatever the ids are. The id of a detection is its row, from 1. Without `with_metrics` only the
    matches are computed, not the precision at every recall.
    """
    from hotcoco import COCO, COCOeval

    image_rank, class_rank = rank_images(truth), rank_classes(truth)
    ground_truth = COCO.from_arrays(
        [{"id": index} for index in range(len(truth.image_ids))],
        [{"id": label, "name": str(label)} for label in range(len(truth.classes))],
        image_rank[truth.image_indices],
        class_rank[truth.labels],
        truth.xywh,
        area=truth.areas,
        iscrowd=truth.ignored,
    )
    columns = image_rank[rows.image_indices], rows.xywh, rows.scores, class_rank[rows.labels]
    evaluator = COCOeval(ground_truth, ground_truth.load_res(numpy.column_stack(columns)), "bbox")
    evaluator.params.max_dets = [*LOWER_LIMITS, max_detections]
    evaluator.evaluate()
    if with_metrics:
        evaluator.accumulate()
        evaluator.summary_lines()
    return evaluator


def rank_images(truth: CocoGroundTruth) -> Int64[numpy.ndarray, " N"]:
    """The evaluator's image id of each image."""
    return rank_ids(truth.image_ids)


def rank_classes(truth: CocoGroundTruth) -> Int64[numpy.ndarray, " K"]:
    """The evaluator's category id of each label."""
    return rank_ids(numpy.array(truth.classes.category_ids, dtype=numpy.int64))


def rank_ids(ids: Int64[numpy.ndarray, " N"]) -> Int64[numpy.ndarray, " N"]:
    """The rank of every id in sorted order, from 0."""
    return numpy.argsort(numpy.argsort(ids, kind="stable"))
