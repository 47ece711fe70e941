"""From the raw outputs of the second stage to detections: decoding, clipping, NMS.

Axes: R regions of all images, N regions of one image, K classes, V = K + 1 class values,
D detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from focaldet.config import Fraction, validate_fields
from focaldet.models.faster_rcnn.plus import RefineConfig
from focaldet.ops.boxes import clip, decode
from focaldet.ops.nms import class_nms, vote
from focaldet.ops.proposals import has_sides
from focaldet.ranges import PositiveInt
from focaldet.types import ImageSize

MIN_DETECTION_SIDE_PX = 1e-2  # boxes that clipping leaves without area are dropped; torchvision's number


@validate_fields
@dataclass(frozen=True, slots=True)
class FasterRCNNDetectConfig:
    """From the second stage to detections: threshold, NMS per class, the best of all.

    With `across_classes` a box suppresses those of all classes, so that one object has one answer where classes look
    alike.
    """

    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05
    nms_iou: Fraction = 0.5
    max_detections: PositiveInt = 100
    across_classes: bool = False


def decode_regions(
    regions: Float[Tensor, "R 4"],
    logits: Float[Tensor, "R V"],
    deltas: Float[Tensor, "R K 4"],
    *,
    weights: Sequence[float],
) -> tuple[Float[Tensor, "R K 4"], Float[Tensor, "R K"]]:
    """Box and probability of every class at every region; `weights` are those that encoded boxes are multiplied by."""
    boxes = decode(deltas / deltas.new_tensor(weights), regions[:, None].expand_as(deltas))
    return boxes, logits.softmax(-1)[:, :-1]


def select_detections(
    boxes: Float[Tensor, "N K 4"],
    probabilities: Float[Tensor, "N K"],
    *,
    size: ImageSize,
    config: FasterRCNNDetectConfig,
    refine: RefineConfig | None,
) -> tuple[Float[Tensor, "D 4"], Float[Tensor, " D"], Int64[Tensor, " D"]]:
    """Boxes, scores and classes of one image, best first; with `refine` after its NMS and box voting."""
    clipped = clip(boxes, height=size.height, width=size.width)
    candidates = (probabilities > config.score_threshold) & has_sides(clipped, least_px=MIN_DETECTION_SIDE_PX)
    region, label = candidates.nonzero().unbind(1)
    every_box, scores = clipped[region, label], probabilities[region, label]
    iou = config.nms_iou if refine is None else refine.nms_iou
    kinds = torch.zeros_like(label) if config.across_classes else label
    keep = class_nms(every_box, scores, kinds, iou=iou, most=config.max_detections)
    best = every_box[keep]
    if refine is not None:  # a mean of boxes in the image may leave it by the last digit
        voted = vote(every_box, scores, label, kept=keep, iou=refine.vote_iou)
        best = clip(voted, height=size.height, width=size.width)
    return best, scores[keep], label[keep]
