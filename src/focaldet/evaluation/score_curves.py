"""Precision, recall and F1 of the detections from each score on, and the score with the largest F1.

At IoU .5, over all classes and for each. The matches are hotcoco's: best first, each with the object of its class that
it overlaps most, so that which detections match does not depend on where the scores are cut off.

Axes: D detections, P distinct scores, K classes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy
from jaxtyping import Bool, Float64

from focaldet.evaluation.evaluator import CocoGroundTruth
from focaldet.evaluation.results import ResultRows
from focaldet.weights.thresholds import ScoreThreshold, ScoreThresholds

MATCH_IOU = 0.5
DECIMALS = 4  # of a threshold, where so many tell it from the next score


@dataclass(frozen=True, slots=True, eq=False)
class ScoreCurve:
    """Precision and recall in [0, 1] of the detections of at least each of some scores.

    `scores` are distinct and fall; without any detection all three are empty. Ignored objects and detections that lie
    on them do not count. `num_boxes` is the number of objects.
    """

    num_boxes: int
    scores: Float64[numpy.ndarray, " P"]
    precision: Float64[numpy.ndarray, " P"]
    recall: Float64[numpy.ndarray, " P"]

    @property
    def f1(self) -> Float64[numpy.ndarray, " P"]:
        """2 · precision · recall / (precision + recall), 0 where nothing is right."""
        total = self.precision + self.recall
        f1: Float64[numpy.ndarray, " P"] = 2 * self.precision * self.recall / numpy.where(total > 0, total, 1.0)
        return f1

    def best(self, name: str | None = None) -> ScoreThreshold | None:
        """The score with the largest F1, between the lowest score it keeps and the next; None where nothing is right.

        Of several equal ones it is the highest. `name` is the class of the curve.
        """
        if not len(self.scores) or not (f1 := self.f1).any():
            return None
        row = int(f1.argmax())
        lower = self.scores[row + 1] if row + 1 < len(self.scores) else self.scores[row]
        score = float(self.scores[row] + lower) / 2
        short = math.floor(score * 10**DECIMALS) / 10**DECIMALS
        is_last = row + 1 == len(self.scores)
        return ScoreThreshold(
            name=name,
            score=short if is_last or short > lower else score,
            f1=float(f1[row]),
            precision=float(self.precision[row]),
            recall=float(self.recall[row]),
            num_boxes=self.num_boxes,
        )

    def best_range(self, *, loss: float = 0.01) -> tuple[float, float] | None:
        """The lowest and the highest score with an F1 of at least the largest less `loss`; None where none is above 0.

        The range is that around the best score: within it the choice hardly matters.
        """
        if not len(self.scores) or not (f1 := self.f1).any():
            return None
        low = high = int(f1.argmax())
        least = f1[low] - loss
        while high > 0 and f1[high - 1] >= least:
            high -= 1
        while low + 1 < len(f1) and f1[low + 1] >= least:
            low += 1
        return float(self.scores[low]), float(self.scores[high])


@dataclass(frozen=True, slots=True)
class ScoreCurves:
    """The curve over all classes, and that of each class by its name, in the order of the classes."""

    overall: ScoreCurve
    per_class: dict[str, ScoreCurve]

    def thresholds(self, data: str = "") -> ScoreThresholds | None:
        """The scores with the largest F1; None where no detection is right. `data` names what they were measured on."""
        overall = self.overall.best()
        best = (curve.best(name) for name, curve in self.per_class.items())
        return None if overall is None else ScoreThresholds(overall, tuple(filter(None, best)), data)


def measure_curves(evaluator: Any, truth: CocoGroundTruth, rows: ResultRows) -> ScoreCurves:
    """The curves of `rows` against `truth`, from the matches of an `open_evaluator` of both."""
    statuses = evaluator.image_diagnostics(iou_thr=MATCH_IOU)["dt_status"]
    is_right, is_wrong = numpy.zeros((2, len(rows.scores)), dtype=bool)
    for row, status in statuses.items():
        is_right[row - 1], is_wrong[row - 1] = status == "tp", status == "fp"
    counts = numpy.bincount(truth.labels[~truth.ignored], minlength=len(truth.classes)).tolist()

    def curve(chosen: Bool[numpy.ndarray, " D"], num_boxes: int) -> ScoreCurve:
        chosen = chosen & (is_right | is_wrong)
        return make_curve(rows.scores[chosen], is_right[chosen], num_boxes=num_boxes)

    names = truth.classes.names
    per_class = {name: curve(rows.labels == label, counts[label]) for label, name in enumerate(names)}
    return ScoreCurves(curve(numpy.ones(len(rows.scores), dtype=bool), sum(counts)), per_class)


def make_curve(
    scores: Float64[numpy.ndarray, " D"], is_right: Bool[numpy.ndarray, " D"], *, num_boxes: int
) -> ScoreCurve:
    """The curve of detections in any order, of which some are right, with `num_boxes` objects to be detected."""
    order = numpy.argsort(-scores, kind="stable")
    ordered, right = scores[order], numpy.cumsum(is_right[order])
    ends = numpy.flatnonzero(numpy.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else order
    right, num_kept = right[ends].astype(numpy.float64), (ends + 1).astype(numpy.float64)
    return ScoreCurve(num_boxes, ordered[ends], right / num_kept, right / max(1, num_boxes))
