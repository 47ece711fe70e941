"""From the answers of a second stage to boxes: decoded, cut to the picture, the best of each place.

Axes: R regions of all images, N regions of one image, K classes, V = K + 1 class values,
D detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from focaldet.config import Fraction, validated
from focaldet.models.faster_rcnn.plus import RefineConfig
from focaldet.ops.boxes import clip, decode
from focaldet.ops.nms import class_nms, vote
from focaldet.ops.proposals import has_sides
from focaldet.types import ImageSize

MIN_DETECTION_SIDE_PX = 1e-2  # detections that the image's border cut to nothing are none; torchvision's number


@validated
@dataclass(frozen=True, slots=True)
class RegionDetectConfig:
    """From the second stage to detections: threshold, NMS per class, the best of all."""

    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05
    nms_iou: Fraction = 0.5
    max_detections: PositiveInt = 100


def answers(
    regions: Float[Tensor, "R 4"],
    logits: Float[Tensor, "R V"],
    deltas: Float[Tensor, "R K 4"],
    *,
    weights: Sequence[float],
) -> tuple[Float[Tensor, "R K 4"], Float[Tensor, "R K"]]:
    """Box and probability of every class at every region; `weights` are those that encoded boxes are multiplied by."""
    boxes = decode(deltas / deltas.new_tensor(weights), regions[:, None].expand_as(deltas))
    return boxes, logits.softmax(-1)[:, :-1]


def best_boxes(
    boxes: Float[Tensor, "N K 4"],
    likely: Float[Tensor, "N K"],
    *,
    size: ImageSize,
    config: RegionDetectConfig,
    refine: RefineConfig | None,
) -> tuple[Float[Tensor, "D 4"], Float[Tensor, " D"], Int64[Tensor, " D"]]:
    """Boxes, scores and classes of one image, best first; with `refine` by its NMS, and its vote."""
    clipped = clip(boxes, height=size.height, width=size.width)
    wanted = (likely > config.score_threshold) & has_sides(clipped, least_px=MIN_DETECTION_SIDE_PX)
    region, label = wanted.nonzero().unbind(1)
    found, scores = clipped[region, label], likely[region, label]
    iou = config.nms_iou if refine is None else refine.nms_iou
    keep = class_nms(found, scores, label, iou=iou, most=config.max_detections)
    kept = found[keep]
    if refine is not None:  # a mean of boxes in the picture may leave it by the last digit
        voted = vote(found, scores, label, kept=keep, iou=refine.vote_iou)
        kept = clip(voted, height=size.height, width=size.width)
    return kept, scores[keep], label[keep]
