"""Whether an exported file answers as the detector that it was made from: both on the same real images.

Axes: D detections of one image.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from focaldet.ops.boxes import pairwise_iou
from focaldet.types import Detections

ExportPrecision = Literal["fp32", "fp16", "int8"]
MATCHED_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an exported file may differ from its detector.

    `px` and `score` bound the largest difference of a matched pair, `unmatched` the fraction of detections without a
    partner. Only detections with at least `least_score` count. So few as `spared` without a partner are never too many,
    as long as there are as many pairs: of 100 detections one decision that tips over leaves two of them alone.
    """

    px: float
    score: float
    unmatched: float
    least_score: float
    spared: int = 0


# fp32: sums in another order, and now and then a decision of NMS or of a threshold that this tips over. int8: rounding
# moves every box a little and every score by some per cent; what counts there is the AP.
LIMITS: dict[ExportPrecision, Limits] = {
    "fp32": Limits(px=0.5, score=0.005, unmatched=0.01, least_score=0.0, spared=2),
    "fp16": Limits(px=2.0, score=0.02, unmatched=0.03, least_score=0.05, spared=2),
    "int8": Limits(px=float("inf"), score=float("inf"), unmatched=0.25, least_score=0.3),
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Detections of a detector and of a file made from it, on the same images.

    `largest_px` and `largest_score` are over the `matched` pairs (same class, IoU of .5 and more); `unmatched` counts
    those of both sides that have no partner.
    """

    num_images: int
    num_detections: int
    matched: int
    unmatched: int
    largest_px: float
    largest_score: float
    least_score: float

    @property
    def unmatched_fraction(self) -> float:
        """Of the detections of both sides those without a partner, in [0, 1]."""
        return self.unmatched / max(1, self.unmatched + 2 * self.matched)

    def reasons(self, limits: Limits) -> tuple[str, ...]:
        """In what respects the limits are passed; empty where the file is as good as the detector."""
        checks = [
            (self.largest_px, limits.px, "px between boxes"),
            (self.largest_score, limits.score, "between scores"),
        ]
        if self.unmatched > min(limits.spared, self.matched):
            checks.append((self.unmatched_fraction, limits.unmatched, "of the detections unmatched"))
        return tuple(
            f"{value:.3g} {what}, at most {limit:g} is allowed" for value, limit, what in checks if value > limit
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the file holds them."""
        return asdict(self)


def compare_detections(
    before: Sequence[Detections], after: Sequence[Detections], *, least_score: float = 0.0
) -> Agreement:
    """Compare image by image; a detection counts with `least_score` on either side."""
    px, score, matched, unmatched, total = 0.0, 0.0, 0, 0, 0
    for left, right in zip(before, after, strict=True):
        pairs = match_detections(left, right)
        pairs = pairs[(torch.maximum(left.scores[pairs[:, 0]], right.scores[pairs[:, 1]])) >= least_score]
        first, second = left[pairs[:, 0]], right[pairs[:, 1]]
        matched += len(pairs)
        for side, members in ((left, pairs[:, 0]), (right, pairs[:, 1])):
            is_single = torch.ones(len(side), dtype=torch.bool).index_fill(0, members, False)
            unmatched += int((is_single & (side.scores >= least_score)).sum())
        total += int((left.scores >= least_score).sum())
        if len(pairs):
            px = max(px, float((first.boxes - second.boxes).abs().max()))
            score = max(score, float((first.scores - second.scores).abs().max()))
    return Agreement(len(before), total, matched, unmatched, px, score, least_score)


def match_detections(left: Detections, right: Detections) -> Int64[Tensor, "M 2"]:
    """Pairs of indices: each of `left`, best first, takes the free one of `right` of its class it overlaps most."""
    distance = (left.boxes[:, None] - right.boxes).abs().amax(2)
    # Boxes without area, which clipping leaves, overlap nothing: they match where they lie within half a pixel.
    overlap = torch.maximum(pairwise_iou(left.boxes.float(), right.boxes.float()), 1 - distance)
    overlap[left.labels[:, None] != right.labels] = -1.0
    pairs = []
    for row in range(len(left) if len(right) else 0):
        best = int(overlap[row].argmax())
        if overlap[row, best] >= MATCHED_IOU:
            pairs.append((row, best))
            overlap[:, best] = -1.0
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
