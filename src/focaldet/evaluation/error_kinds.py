"""What a detector did with every object of an image, and what it found where there is none.

Each object and each false positive becomes an `Outcome` with its kind of error, after Bolya et al. 2020 ("TIDE"), and
with its loss, which tells easy from hard.

Axes: D detections, best first, G objects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from focaldet.ops.boxes import pairwise_coverage, pairwise_iou
from focaldet.types import Detections, Target

OutcomeKind = Literal["found", "missed", "wrong class", "poor box", "duplicate", "background"]
OUTCOME_KINDS: tuple[OutcomeKind, ...] = ("found", "missed", "wrong class", "poor box", "duplicate", "background")

RIGHT_IOU, NEAR_IOU = 0.5, 0.1  # a box fits from the first on; below the second it has nothing to do with the object
IGNORED_COVERAGE = 0.5
MIN_PROBABILITY = 0.01  # the least probability that is told apart; an object the detector says nothing of has this one

Box = tuple[float, float, float, float]


class ScoredDetection(NamedTuple):
    """A detection that an example is about: class, score in [0, 1], box in xyxy pixels, IoU with the object in [0, 1].

    Of a false positive on the background it is the largest IoU with any object.
    """

    label: int
    score: float
    box: Box
    iou: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """An object, or a detection where there is no such object.

    Attributes:
        kind: of an object `found`, or why it was not: a confident detection there has the `wrong class` or a `poor
            box`, or there is none (`missed`). Of a false positive: it repeats an object (`duplicate`), has the wrong
            class or a poor box, or lies on `background`.
        place: the object's place among the boxes of its image; None for a false positive.
        label: the class of the object; of a false positive the class it claims.
        box: xyxy pixels.
        probability: p_t, what the detector gives to the truth, in [0, 1]: the score of the detection that found the
            object; for a false positive 1 − score.
        finding: the detection behind it; None for an object with none.
    """

    kind: OutcomeKind
    index: int | None
    label: int
    box: Box
    probability: float
    detection: ScoredDetection | None

    @property
    def class_loss(self) -> float:
        """Cross entropy −log p_t (eq. 2). Whatever γ, the focal loss brings examples into the same order."""
        return -math.log(max(self.probability, MIN_PROBABILITY))

    @property
    def box_loss(self) -> float:
        """1 − IoU with the object, in [0, 1]; 0 for what is no object."""
        if self.index is None:
            return 0.0
        return 1.0 if self.detection is None else 1.0 - self.detection.iou

    @property
    def loss(self) -> float:
        """Class and box loss together."""
        return self.class_loss + self.box_loss


def classify_outcomes(
    found: Detections, target: Target, *, score: float, least_score: float = MIN_PROBABILITY
) -> list[Outcome]:
    """The objects of an image that are not ignored, in their order, then its false positives, best first.

    Detections take objects as in COCO's evaluation at IoU .5: best first, each the object of its class that it overlaps
    most of those still free. What is left and lies on an ignored box is no example.

    Args:
        found: detections of the image, best first, also those of low score.
        target: its objects, in the same pixels, with labels of the same classes.
        score: from here on a detection counts as the detector's answer: an object whose own has less is not found.
        least_score: false positives below it are left out.
    """
    places = (~target.ignored).nonzero().squeeze(1)
    overlaps = _Overlaps(
        iou=pairwise_iou(found.boxes, target.boxes[places]).tolist(),
        claimed=found.labels.tolist(),
        labels=target.labels[places].tolist(),
    )
    own = overlaps.matches()
    on_ignored = pairwise_coverage(found.boxes, target.boxes[target.ignored]) >= IGNORED_COVERAGE
    taken = set(own.values()) | set(on_ignored.any(1).nonzero().squeeze(1).tolist())
    findings = [
        _Detection(label, value, _box(box))
        for label, value, box in zip(overlaps.claimed, found.scores.tolist(), found.boxes.tolist(), strict=True)
    ]
    wrong: list[Outcome] = []
    answers: dict[int, list[tuple[OutcomeKind, ScoredDetection]]] = {}
    for row, one in enumerate(findings):
        if row in taken or one.score < least_score:
            continue
        kind, column, iou = overlaps.error(row)
        finding = ScoredDetection(*one, iou)
        wrong.append(Outcome(kind, None, one.label, one.box, 1.0 - one.score, finding))
        if column is not None and one.score >= score:
            answers.setdefault(column, []).append((kind, finding))
    objects = []
    for column, place in enumerate(places.tolist()):
        match = ScoredDetection(*findings[own[column]], overlaps.iou[own[column]][column]) if column in own else None
        where = place, overlaps.labels[column], _box(target.boxes[place].tolist())
        objects.append(_object(where, match, answers.get(column, []), score=score))
    return objects + wrong


class _Detection(NamedTuple):
    label: int
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class _Overlaps:
    """IoU of each detection with each object, the classes claimed and the true ones, as plain numbers."""

    iou: list[list[float]]
    claimed: list[int]
    labels: list[int]

    def matches(self) -> dict[int, int]:
        """The detection that found each object, for those that were found."""
        found: dict[int, int] = {}
        for row, claimed in enumerate(self.claimed):
            free = [c for c, label in enumerate(self.labels) if label == claimed and c not in found]
            column = max(free, key=lambda c: self.iou[row][c], default=None)
            if column is not None and self.iou[row][column] >= RIGHT_IOU:
                found[column] = row
        return found

    def error(self, row: int) -> tuple[OutcomeKind, int | None, float]:
        """What is wrong with a detection that found nothing, the object it means, and their IoU."""
        overlaps, columns = self.iou[row], range(len(self.labels))
        same = max((c for c in columns if self.labels[c] == self.claimed[row]), key=overlaps.__getitem__, default=None)
        best = max(columns, key=overlaps.__getitem__, default=None)
        if same is not None and overlaps[same] >= RIGHT_IOU:
            return "duplicate", same, overlaps[same]
        if best is not None and overlaps[best] >= RIGHT_IOU:
            return "wrong class", best, overlaps[best]
        if same is not None and overlaps[same] >= NEAR_IOU:
            return "poor box", same, overlaps[same]
        return "background", None, 0.0 if best is None else overlaps[best]


def _object(
    where: tuple[int, int, Box],
    match: ScoredDetection | None,
    answers: Sequence[tuple[OutcomeKind, ScoredDetection]],
    *,
    score: float,
) -> Outcome:
    """The example of an object; `answers` are the confident false positives that mean it, best first."""
    probability = match.score if match else 0.0
    if match and match.score >= score:
        return Outcome("found", *where, probability, match)
    for wanted in ("wrong class", "poor box"):
        for kind, finding in answers:
            if kind == wanted:
                return Outcome(kind, *where, probability, finding)
    return Outcome("missed", *where, probability, match)


def _box(sides: Sequence[float]) -> Box:
    x1, y1, x2, y2 = sides
    return x1, y1, x2, y2
