"""Adaptive assignment of anchors to objects: ATSS (Zhang et al. 2020, algorithm 1).

Axes: A anchors of all levels, G ground-truth boxes, C candidates of a box, over all levels.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from focaldet.ops.boxes import pairwise_iou


class AdaptiveMatches(NamedTuple):
    """For each anchor: the index of its object (0 where there is none), and whether it has one."""

    box_index: Int64[Tensor, " A"]
    foreground: Bool[Tensor, " A"]


def match_adaptively(
    anchors: Float[Tensor, "A 4"],
    boxes: Float[Tensor, "G 4"],
    *,
    level_sizes: tuple[int, ...],
    candidates: int,
) -> AdaptiveMatches:
    """Give every object the anchors that stand out among those near it; at least one box.

    The `candidates` anchors of each level whose centers lie nearest to the center of the box are looked at. Those
    whose IoU reaches the mean plus the standard deviation of all of them, and whose center is inside the box, are
    foreground. So the threshold follows the anchors: they may fit badly and the object still gets some. Unlike the
    paper, an object that would get none takes the best of its candidates. An anchor that several objects want goes to
    the one it overlaps most.

    `level_sizes` is the number of anchors of each level, in the order of `anchors`; they add up to A.
    """
    centers, middles = ((both[:, :2] + both[:, 2:]) / 2 for both in (anchors, boxes))
    distance = torch.cdist(middles, centers, compute_mode="donot_use_mm_for_euclid_dist")
    bounds = torch.tensor([0, *level_sizes]).cumsum(0).tolist()
    near = torch.cat(
        [
            distance[:, start:stop].topk(min(candidates, stop - start), largest=False).indices + start
            for start, stop in pairwise(bounds)
        ],
        dim=1,
    )
    iou = pairwise_iou(boxes, anchors)
    fit = iou.gather(1, near)
    threshold = fit.mean(1, keepdim=True) + fit.std(1, correction=min(1, fit.shape[1] - 1), keepdim=True)
    inside = (centers[near] > boxes[:, None, :2]).all(-1) & (centers[near] < boxes[:, None, 2:]).all(-1)
    chosen = (fit >= threshold) & inside
    # Of several objects the best overlap wins, but the only anchor of an object is taken from nobody.
    alone = ~chosen.any(1, keepdim=True)
    forced = alone & (fit == fit.amax(1, keepdim=True)) & (fit > 0)
    claims = torch.full_like(iou, -1.0)
    claims.scatter_(1, near, torch.where(forced, 1 + fit, torch.where(chosen, fit, -1.0)))
    best, box_index = claims.max(dim=0)
    foreground = best >= 0
    return AdaptiveMatches(torch.where(foreground, box_index, 0), foreground)
