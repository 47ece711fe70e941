"""Detections of a batch in tensors whose shapes depend on no number: what a graph can say.

The functions do what `ops/nms.py` and `ops/proposals.py` do image by image. Instead of a list that is as long as what
was detected they give a fixed number of candidates, the score 0 for those that do not count, and masks. A test compares
the two.

Axes: B images, A anchors of all levels, N candidates of an image, K classes, C classes or 1, P groups of candidates
whose boxes do not meet, L levels, R regions of an image, D detections of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import nms

from focaldet.ops.boxes import decode
from focaldet.ops.proposals import MIN_REGION_SIDE_PX, ProposalLimits, clip_to_frame, has_sides

ALL_ANCHORS = 100_000
"""From this `top_k` on all anchors of a level are taken, without choosing the best."""


class PaddedDetections(NamedTuple):
    """The detections of B images, best first: xyxy boxes in pixels, scores, class indices, and how many there are.

    Rows from an image's count on are 0.
    """

    boxes: Float[Tensor, "B D 4"]
    scores: Float[Tensor, "B D"]
    labels: Int64[Tensor, "B D"]
    counts: Int64[Tensor, " B"]


class NMSLimits(NamedTuple):
    """Boxes that overlap a better one by more than `iou` fall out; only scores above `least_score` take part, and of
    each class the best `most` are asked for.
    """

    iou: float
    least_score: float
    most: int


def mark_survivors(
    boxes: Float[Tensor, "P N 4"],
    scores: Float[Tensor, "P C N"],
    iou: float,
    least_score: float,
    most: int,  # noqa: ARG001  of which this one makes no use
) -> Bool[Tensor, "P C N"]:
    """True for the boxes that non-maximum suppression leaves, in each group and class by itself.

    Only scores above `least_score` take part. The best `most` of each class are marked at least; whether others are is
    open. In torch alone, all groups in one call: each is moved to a region of its own, in float64.
    """
    flat = scores.flatten()
    candidates = (flat > least_score).nonzero().squeeze(1)
    num_classes, count = scores.shape[1], scores.shape[2]
    group, row = candidates // count, candidates // (num_classes * count) * count + candidates % count
    exact = boxes.reshape(-1, 4).double()
    low = exact.amin()
    apart = exact[row] - low + (group * (exact.amax() - low + 1))[:, None]
    kept = candidates[nms(apart, flat[candidates].double(), iou)]
    return torch.zeros_like(flat, dtype=torch.bool).index_fill(0, kept, True).reshape(scores.shape)


@torch.library.custom_op("focaldet::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou: float, least_score: float, most: int) -> Tensor:
    """`mark_survivors` as one operation, which an exporter translates."""
    return mark_survivors(boxes, scores, iou, least_score, most)


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, least_score: float, most: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(scores, dtype=torch.bool)


def topk_padded(
    values: Float[Tensor, "B N"], count: int, *, fill: float
) -> tuple[Float[Tensor, "B count"], Int64[Tensor, "B count"]]:
    """The best `count` values and their indices, best first; where there are fewer, `fill` and the index 0."""
    number = values.shape[1]
    if not isinstance(number, int) or number < count:  # a number that is still open may be too small
        values = torch.cat([values, values.new_full((values.shape[0], count), fill)], 1)
    best, index = values.topk(count)
    return best, torch.where(best == fill, 0, index)


def take_rows(values: Float[Tensor, "B N 4"], index: Int64[Tensor, "B M"]) -> Float[Tensor, "B M 4"]:
    """The rows of each image at its indices."""
    return values.gather(1, index[..., None].expand(-1, -1, 4))


def nms_labeled(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N"],
    labels: Int64[Tensor, "B N"],
    limits: NMSLimits,
    *,
    num_classes: int,
) -> Bool[Tensor, "B N"]:
    """True for the candidates that survive those of their own class (or level), of candidates that have one each."""
    classes = torch.arange(num_classes, device=labels.device)
    by_class = torch.where(labels[:, None] == classes[:, None], scores[:, None], 0.0)
    kept: Tensor = nms_mask(boxes, by_class, *limits)
    return kept.any(1)


def select_best(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B C N"],
    kept: Bool[Tensor, "B C N"],
    *,
    most: int,
    labels: Int64[Tensor, "B N"] | None = None,
) -> PaddedDetections:
    """The best `most` of the candidates that are `kept`; their class is their row in C, or what `labels` say."""
    count = scores.shape[2]
    best, index = topk_padded(torch.where(kept, scores, 0.0).flatten(1), most, fill=0.0)
    row = index % count
    is_there = best > 0
    label = index // count if labels is None else labels.gather(1, row)
    return PaddedDetections(
        take_rows(boxes, row) * is_there[..., None],
        best,
        label * is_there,
        is_there.sum(1),
    )


def best_pairs(
    scores: Float[Tensor, "B A K"], count: int, *, fill: float
) -> tuple[Float[Tensor, "B count"], Int64[Tensor, "B count"], Int64[Tensor, "B count"]]:
    """The best `count` pairs of anchor and class: value, anchor, class; where there are fewer, `fill` and zeros."""
    values, index = topk_padded(scores.flatten(1), count, fill=fill)
    return values, index // scores.shape[2], index % scores.shape[2]


def clip_to_sizes(boxes: Float[Tensor, "B N 4"], sizes: Int64[Tensor, "B 2"]) -> Float[Tensor, "B N 4"]:
    """The boxes cut to the image (height, width) that each is of."""
    return clip_to_frame(boxes, sizes[:, None].to(boxes.dtype))


@torch.no_grad()
def propose_padded(
    objectness: Float[Tensor, "B A"],
    deltas: Float[Tensor, "B A 4"],
    anchors: Float[Tensor, "A 4"],
    *,
    level_sizes: Sequence[int],
    frames: Float[Tensor, "B 2"],
    limits: ProposalLimits,
    nms_iou: float,
) -> tuple[Float[Tensor, "B R 4"], Bool[Tensor, "B R"]]:
    """As `ops.proposals.propose` of every image: R = `limits.keep` regions, and which of them there are.

    NMS gets their rank instead of the logit, whose sign and size it would not take.
    """
    logits, boxes, levels = _best_of_levels(objectness, deltas, anchors, level_sizes=level_sizes, limits=limits)
    boxes = clip_to_frame(boxes, frames[:, None])
    real = has_sides(boxes, least_px=MIN_REGION_SIDE_PX) & (logits > -torch.inf)
    order = torch.where(real, logits, -torch.inf).sort(dim=1, descending=True).indices
    boxes, real, levels = take_rows(boxes, order), real.gather(1, order), levels[order]
    number = order.shape[1]
    rank = number - torch.arange(number, device=order.device, dtype=boxes.dtype)
    scores = torch.where(real, rank, 0.0)
    num_levels = len(level_sizes)
    kept = nms_labeled(boxes, scores, levels, NMSLimits(nms_iou, 0.0, limits.keep), num_classes=num_levels)
    best, index = topk_padded(torch.where(kept, scores, 0.0), limits.keep, fill=0.0)
    is_there = best > 0
    return take_rows(boxes, index) * is_there[..., None], is_there


def _best_of_levels(
    objectness: Float[Tensor, "B A"],
    deltas: Float[Tensor, "B A 4"],
    anchors: Float[Tensor, "A 4"],
    *,
    level_sizes: Sequence[int],
    limits: ProposalLimits,
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N 4"], Int64[Tensor, " N"]]:
    """Logit and box of the best anchors of each level, and the number of the level."""
    if limits.top_k >= ALL_ANCHORS and len(level_sizes) == 1:
        boxes = decode(deltas, anchors.expand_as(deltas))
        return objectness, boxes, torch.zeros_like(objectness[0], dtype=torch.int64)
    start, values, indices = 0, [], []
    for size in level_sizes:
        best, index = topk_padded(objectness[:, start : start + size], limits.top_k, fill=-torch.inf)
        values.append(best)
        indices.append(index + start)
        start = start + size
    index = torch.cat(indices, 1)
    levels = torch.arange(len(level_sizes), device=index.device).repeat_interleave(limits.top_k)
    return torch.cat(values, 1), decode(take_rows(deltas, index), anchors[index]), levels
