"""What the errors of a detector are: confusion of classes, kinds of errors, calibration, and the worst images.

All are computed by hotcoco from an `open_evaluator`; at IoU .5.

Axes: K classes, N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from focaldet.evaluation.evaluator import (
    MAX_DETECTIONS,
    CocoGroundTruth,
    open_evaluator,
    rank_classes,
    rank_images,
)
from focaldet.evaluation.results import ResultRows
from focaldet.evaluation.score_curves import MATCH_IOU

NEAR_IOU = 0.1  # a box that overlaps every object by less lies on the background
NO_LIMIT = 2**31 - 1  # of detections in an image
CALIBRATION_BINS = 10  # of scores, each .1 wide
MOST_CONFUSION_CLASSES = 200  # of a confusion matrix: a larger one tells nobody anything
ERROR_MEANINGS: dict[str, str] = {
    "Cls": "right box, wrong class",
    "Loc": "right class, poor box (IoU .1 to .5)",
    "Both": "wrong class and poor box",
    "Dupe": "the object was detected already",
    "Bkg": "nothing there",
    "Miss": "no detection of the object at all",
}
"""TIDE's kinds of errors and what they mean."""


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """How often an object of one class (row) was detected as another (column), at IoU .5.

    The last row and column are the background: its column counts objects that no detection matches, its row detections
    that match no object. Only detections of at least `score` count; each matches at most one object, best first,
    whatever its class.
    """

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    score: float


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One of TIDE's kinds of errors: how many there are, and by how much AP50 would rise without them, in [0, 1]."""

    name: str
    count: int
    ap50_gain: float


@dataclass(frozen=True, slots=True)
class ScoreBin:
    """The detections with a score in [low, high]: how many, their mean score, and the fraction that is right."""

    low: float
    high: float
    count: int
    mean_score: float
    precision: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether a score of .8 means that 80 % of such detections are right.

    `ece` is the expected calibration error, the mean of |mean score − precision| over the bins, weighted by their
    counts, in [0, 1]; `per_class` has it by class name, where the class has detections. `bins` are those that are not
    empty.
    """

    ece: float
    bins: tuple[ScoreBin, ...]
    per_class: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The right detections, the wrong ones and the missed objects of an image, by its index, from some score on."""

    image: int
    right: int
    wrong: int
    missed: int

    @property
    def errors(self) -> int:
        """Wrong detections and missed objects together."""
        return self.wrong + self.missed


def count_confusion(evaluator: Any, truth: CocoGroundTruth, *, score: float) -> ConfusionMatrix | None:
    """The confusion matrix of the detections of at least `score`; None with very many classes.

    Ignored objects, and the detections that lie on one of their class, have no part in it.
    """
    names = truth.classes.names
    if not 0 < len(names) <= MOST_CONFUSION_CLASSES:
        return None
    result = drop_ignored(evaluator).confusion_matrix(iou_thr=MATCH_IOU, max_det=NO_LIMIT, min_score=score)
    order = [*(result["cat_ids"].index(rank) for rank in rank_classes(truth).tolist()), len(names)]
    matrix = numpy.asarray(result["matrix"], dtype=numpy.int64)[numpy.ix_(order, order)]
    return ConfusionMatrix(names, tuple(map(tuple, matrix.tolist())), score)


def count_error_kinds(evaluator: Any) -> tuple[ErrorKind, ...]:
    """TIDE's kinds of errors of all detections, in the order of `ERROR_MEANINGS`.

    Ignored objects, and the detections that lie on one of their class, have no part in them.
    """
    result = drop_ignored(evaluator).tide_errors(pos_thr=MATCH_IOU, bg_thr=NEAR_IOU)
    gains, counts = result["delta_ap"], result["counts"]
    return tuple(ErrorKind(name, int(counts[name]), float(gains[name])) for name in ERROR_MEANINGS)


def drop_ignored(evaluator: Any) -> Any:
    """An evaluator of the same without ignored objects and the detections that do not count because of them.

    hotcoco calls a detection that lies partly on an ignored object a poor box of it, and in the confusion matrix one
    that lies on it a detection of nothing. Without ignored objects it is the evaluator itself.
    """
    from hotcoco import COCO, COCOeval

    if not evaluator.coco_gt.get_ann_ids(iscrowd=True):
        return evaluator
    known = evaluator.coco_gt.dataset
    truth = COCO(known | {"annotations": [each for each in known["annotations"] if not each["iscrowd"]]})
    counted = evaluator.image_diagnostics(iou_thr=MATCH_IOU)["dt_status"]
    rows = [
        (each["image_id"], *each["bbox"], each["score"], each["category_id"])
        for each in evaluator.coco_dt.dataset["annotations"]
        if each["id"] in counted
    ]
    without = COCOeval(truth, truth.load_res(numpy.array(rows, dtype=numpy.float64).reshape(-1, 7)), "bbox")
    without.params.max_dets = evaluator.params.max_dets
    without.evaluate()
    return without


def measure_calibration(evaluator: Any, truth: CocoGroundTruth) -> Calibration:
    """How far the scores of all detections are from the fraction that is right."""
    result = evaluator.calibration(n_bins=CALIBRATION_BINS, iou_threshold=MATCH_IOU)
    bins = tuple(
        ScoreBin(each["bin_lower"], each["bin_upper"], each["count"], each["avg_confidence"], each["avg_accuracy"])
        for each in result["bins"]
        if each["count"]
    )
    names, positions = truth.classes.names, rank_classes(truth).tolist()
    known = result["per_category"]
    per_class = {name: known[str(rank)] for name, rank in zip(names, positions, strict=True) if str(rank) in known}
    return Calibration(result["ece"], bins, per_class)


def score_images(
    truth: CocoGroundTruth, rows: ResultRows, *, score: float, max_detections: int = MAX_DETECTIONS
) -> list[ImageScore]:
    """What is right, wrong and missed in each image, with the detections of at least `score` alone.

    Of these the best `max_detections` of each image and class count, as in the evaluation.
    """
    chosen = rows.scores >= score
    confident = ResultRows(*(column[chosen] for column in rows))
    evaluator = open_evaluator(truth, confident, max_detections=max_detections, with_metrics=False)
    summaries = evaluator.image_diagnostics(iou_thr=MATCH_IOU)["img_summary"]
    empty = {"tp": 0, "fp": 0, "fn": 0}
    per_image = (summaries.get(rank, empty) for rank in rank_images(truth).tolist())
    return [ImageScore(image, each["tp"], each["fp"], each["fn"]) for image, each in enumerate(per_image)]


def slice_ap(evaluator: Any, truth: CocoGroundTruth, slices: Mapping[str, Sequence[int]]) -> dict[str, float | None]:
    """AP in [0, 1] of each named group of images, given by their indices; None where the group has no object."""
    ranks = rank_images(truth)
    groups = {name: ranks[list(indices)].tolist() for name, indices in slices.items() if indices}
    results = evaluator.slice_by(groups)
    return {name: float(results[name]["AP"]) if results[name]["AP"] >= 0 else None for name in groups}
