"""Which objects of an image a detector detects or misses and why, and its false positives.

Each object and each false positive becomes an `Outcome` with its kind of error, after Bolya et al. 2020 ("TIDE"), and
with its loss, which is small for easy ones and large for hard ones.

Axes: D detections, best first, G objects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from focaldet.ops.boxes import pairwise_coverage, pairwise_iou
from focaldet.types import Detections, Target

OutcomeKind = Literal["detected", "missed", "wrong class", "poor box", "duplicate", "background"]
OUTCOME_KINDS: tuple[OutcomeKind, ...] = get_args(OutcomeKind)
DETECTED: OutcomeKind = OUTCOME_KINDS[0]

RIGHT_IOU, NEAR_IOU = 0.5, 0.1  # a box fits from the first on; below the second it has nothing to do with the object
IGNORED_COVERAGE = 0.5
MIN_PROBABILITY = 0.01  # lower ones count as this one, and so does that of an object without a detection

Box = tuple[float, float, float, float]


class ScoredDetection(NamedTuple):
    """One detection: class, score in [0, 1], box in xyxy pixels, and IoU in [0, 1] with the object it is compared to.

    Of a false positive on the background it is the largest IoU with any object.
    """

    label: int
    score: float
    box: Box
    iou: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object, or one false positive.

    Attributes:
        kind: of an object `DETECTED`, or why it was not: a confident detection there has the `wrong class` or a `poor
            box`, or there is none (`missed`). Of a false positive: it repeats an object (`duplicate`), has the wrong
            class or a poor box, or lies on `background`.
        index: the index of the object among the boxes of its image; None for a false positive.
        label: the class of the object; of a false positive the class that it predicts.
        box: xyxy pixels.
        probability: p_t, the probability that the detector gives to the truth, in [0, 1]: the score of the detection
            that matches the object; for a false positive 1 − score.
        detection: the matching or wrong detection; None for an object without one.
    """

    kind: OutcomeKind
    index: int | None
    label: int
    box: Box
    probability: float
    detection: ScoredDetection | None

    @property
    def class_loss(self) -> float:
        """Cross entropy −log p_t (eq. 2). The focal loss sorts outcomes in the same order, whatever γ."""
        return -math.log(max(self.probability, MIN_PROBABILITY))

    @property
    def box_loss(self) -> float:
        """1 − IoU with the object, in [0, 1]; 0 for a false positive."""
        if self.index is None:
            return 0.0
        return 1.0 if self.detection is None else 1.0 - self.detection.iou

    @property
    def loss(self) -> float:
        """Class and box loss together."""
        return self.class_loss + self.box_loss


def classify_outcomes(
    detections: Detections, target: Target, *, score: float, least_score: float = MIN_PROBABILITY
) -> list[Outcome]:
    """The outcomes of the objects of an image that are not ignored, in their order, then its false positives.

    Detections match objects as in COCO's evaluation at IoU .5: best first, each the object of its class that it
    overlaps most of those still free. A detection without a match that lies on an ignored box has no outcome.

    Args:
        detections: those of the image, best first, also of low score.
        target: its objects, in the same pixels, with labels of the same classes.
        score: detections below it are not confident: an object that only such a one matches is missed.
        least_score: false positives below it are dropped.
    """
    objects = (~target.ignored).nonzero().squeeze(1)
    overlaps = _Overlaps(
        iou=pairwise_iou(detections.boxes, target.boxes[objects]).tolist(),
        predicted=detections.labels.tolist(),
        labels=target.labels[objects].tolist(),
    )
    matches = overlaps.match_objects()
    on_ignored = pairwise_coverage(detections.boxes, target.boxes[target.ignored]) >= IGNORED_COVERAGE
    no_error = set(matches.values()) | set(on_ignored.any(1).nonzero().squeeze(1).tolist())
    columns = zip(overlaps.predicted, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    scored = [ScoredDetection(label, value, _to_box(box), iou=0.0) for label, value, box in columns]
    false_positives: list[Outcome] = []
    errors: dict[int, list[tuple[OutcomeKind, ScoredDetection]]] = {}
    for row in range(len(scored)):
        if row in no_error or scored[row].score < least_score:
            continue
        kind, column, iou = overlaps.classify_error(row)
        detection = scored[row]._replace(iou=iou)
        false_positives.append(Outcome(kind, None, detection.label, detection.box, 1.0 - detection.score, detection))
        if column is not None and detection.score >= score:
            errors.setdefault(column, []).append((kind, detection))
    outcomes = []
    for column, index in enumerate(objects.tolist()):
        match = None
        if column in matches:
            match = scored[matches[column]]._replace(iou=overlaps.iou[matches[column]][column])
        where = index, overlaps.labels[column], _to_box(target.boxes[index].tolist())
        outcomes.append(_object_outcome(where, match, errors.get(column, []), score=score))
    return outcomes + false_positives


@dataclass(frozen=True, slots=True)
class _Overlaps:
    """IoU of each detection (row) with each object (column), the predicted and the true classes, as plain numbers."""

    iou: list[list[float]]
    predicted: list[int]
    labels: list[int]

    def match_objects(self) -> dict[int, int]:
        """The row of the detection that matches each object, for the objects that have one."""
        matches: dict[int, int] = {}
        for row, predicted in enumerate(self.predicted):
            free = [c for c, label in enumerate(self.labels) if label == predicted and c not in matches]
            column = max(free, key=lambda c: self.iou[row][c], default=None)
            if column is not None and self.iou[row][column] >= RIGHT_IOU:
                matches[column] = row
        return matches

    def classify_error(self, row: int) -> tuple[OutcomeKind, int | None, float]:
        """What is wrong with a detection that matches no object, the column of the object it is near, and their IoU."""
        overlaps, columns = self.iou[row], range(len(self.labels))
        same_class = [c for c in columns if self.labels[c] == self.predicted[row]]
        same = max(same_class, key=overlaps.__getitem__, default=None)
        best = max(columns, key=overlaps.__getitem__, default=None)
        if same is not None and overlaps[same] >= RIGHT_IOU:
            return "duplicate", same, overlaps[same]
        if best is not None and overlaps[best] >= RIGHT_IOU:
            return "wrong class", best, overlaps[best]
        if same is not None and overlaps[same] >= NEAR_IOU:
            return "poor box", same, overlaps[same]
        return "background", None, 0.0 if best is None else overlaps[best]


def _object_outcome(
    where: tuple[int, int, Box],
    match: ScoredDetection | None,
    errors: Sequence[tuple[OutcomeKind, ScoredDetection]],
    *,
    score: float,
) -> Outcome:
    """The outcome of an object from its match and the confident false positives near it, best first."""
    probability = match.score if match else 0.0
    if match and match.score >= score:
        return Outcome(DETECTED, *where, probability, match)
    for wanted in ("wrong class", "poor box"):
        for kind, detection in errors:
            if kind == wanted:
                return Outcome(kind, *where, probability, detection)
    return Outcome("missed", *where, probability, match)


def _to_box(sides: Sequence[float]) -> Box:
    x1, y1, x2, y2 = sides
    return x1, y1, x2, y2
