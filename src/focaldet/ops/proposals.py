"""The regions of a second stage, made of objectness and decoded anchors, and the matching of a first ("Faster R-CNN").

Axes: A anchors of all levels, N candidates, R regions of one image, G ground-truth boxes.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from focaldet.config import Fraction, validate_fields
from focaldet.ops.boxes import decode
from focaldet.ops.matching import MatchConfig, Matches, match
from focaldet.ops.nms import class_nms
from focaldet.ranges import PositiveInt

MIN_REGION_SIDE_PX = 1e-3  # a region that the image's border cut to nothing shows nothing; torchvision's number


@validate_fields
@dataclass(frozen=True, slots=True)
class ProposalLimits:
    """The best `top_k` anchors of each level go into NMS, the best `keep` of all levels come out of it."""

    top_k: PositiveInt = 1000
    keep: PositiveInt = 1000


@validate_fields
@dataclass(frozen=True, slots=True)
class ProposalConfig:
    """How many regions of an image the second stage sees, or in training the sampler; NMS at `nms_iou` per level.

    In training the objects themselves are regions too, unless `objects_join` says no.
    """

    detect: ProposalLimits = field(default_factory=ProposalLimits)
    train: ProposalLimits = field(default_factory=lambda: ProposalLimits(top_k=2000, keep=2000))
    nms_iou: Fraction = 0.7
    objects_join: bool = True


@torch.no_grad()
def propose(
    objectness: Float[Tensor, " A"],
    deltas: Float[Tensor, "A 4"],
    anchors: Float[Tensor, "A 4"],
    *,
    level_sizes: tuple[int, ...],
    frame: Float[Tensor, " 2"],
    limits: ProposalLimits,
    nms_iou: float,
) -> Float[Tensor, "R 4"]:
    """The regions of one image, best first, clipped to `frame` (height, width); regions without area are dropped.

    `objectness` are logits. No gradient goes through the coordinates.
    """
    chosen, levels = [], []
    start = 0
    for number, size in enumerate(level_sizes):
        best = objectness[start : start + size].topk(min(limits.top_k, size)).indices
        chosen.append(best + start)
        levels.append(torch.full_like(best, number))
        start += size
    index, level = torch.cat(chosen), torch.cat(levels)
    boxes = clip_to_frame(decode(deltas[index], anchors[index]), frame)
    real = has_sides(boxes, least_px=MIN_REGION_SIDE_PX).nonzero().squeeze(1)
    keep = class_nms(boxes[real], objectness[index[real]], level[real], iou=nms_iou, most=limits.keep)
    return boxes[real[keep]]


def clip_to_frame(boxes: Float[Tensor, "*N 4"], frame: Float[Tensor, "*M 2"]) -> Float[Tensor, "*N 4"]:
    """The boxes cut to [0, width] × [0, height] of `frame` (height, width), one for all or one each; on the device."""
    limit = torch.cat([frame, frame], -1).flip(-1)
    return torch.minimum(boxes.clamp(min=0), limit)


def has_sides(boxes: Float[Tensor, "*N 4"], *, least_px: float) -> Bool[Tensor, "*N"]:
    """True where width and height are at least `least_px`."""
    return (boxes[..., 2:] - boxes[..., :2] >= least_px).all(-1)


def match_inside(
    anchors: Float[Tensor, "A 4"],
    boxes: Float[Tensor, "G 4"],
    ignored_boxes: Bool[Tensor, " G"],
    *,
    frame: Float[Tensor, " 2"],
    straddle_px: float | None,
    config: MatchConfig,
) -> Matches:
    """`match` of the anchors that cross the border of `frame` by at most `straddle_px`; the others are ignored.

    Who is the best anchor of an object is decided among those inside. None lets all anchors take part.
    """
    if straddle_px is None:
        return match(anchors, boxes, ignored_boxes, config)
    limit = frame.flip(0) + straddle_px
    inside = (anchors[:, :2] >= -straddle_px).all(1) & (anchors[:, 2:] <= limit).all(1)
    matches = match(anchors[inside], boxes, ignored_boxes, config)
    index = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    foreground, ignored = torch.zeros_like(inside), torch.ones_like(inside)
    index[inside], foreground[inside], ignored[inside] = matches
    return Matches(index, foreground, ignored)
