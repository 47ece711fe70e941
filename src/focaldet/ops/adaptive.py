"""Adaptive assignment of anchors to objects: ATSS (Zhang et al. 2020, algorithm 1).

Axes: A anchors of all levels, G ground-truth boxes, C candidates of a box, over all levels.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from focaldet.ops.boxes import pairwise_iou

TABLE_ELEMENTS = 1 << 22  # pairs of boxes and anchors looked at together


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
    bounds = torch.tensor([0, *level_sizes]).cumsum(0).tolist()
    rows = max(1, TABLE_ELEMENTS // max(1, len(anchors)))  # the table of all pairs is never whole in memory
    blocks = [slice(start, start + rows) for start in range(0, len(boxes), rows)]
    near = torch.cat([_nearest(middles[block], centers, bounds=bounds, candidates=candidates) for block in blocks])
    fit = torch.cat([pairwise_iou(boxes[block], anchors).gather(1, near[block]) for block in blocks])
    threshold = fit.mean(1, keepdim=True) + fit.std(1, correction=min(1, fit.shape[1] - 1), keepdim=True)
    inside = (centers[near] > boxes[:, None, :2]).all(-1) & (centers[near] < boxes[:, None, 2:]).all(-1)
    chosen = (fit >= threshold) & inside
    # Of several objects the best overlap wins, but the only anchor of an object is taken from nobody.
    alone = ~chosen.any(1, keepdim=True)
    forced = alone & (fit == fit.amax(1, keepdim=True)) & (fit > 0)
    claims = torch.where(forced, 1 + fit, torch.where(chosen, fit, -1.0))
    best = fit.new_full((len(anchors),), -1.0).scatter_reduce(0, near.flatten(), claims.flatten(), "amax")
    wins = claims == best[near]
    owners = torch.arange(len(boxes), device=near.device)[:, None].expand_as(near)
    first = torch.full((len(anchors),), len(boxes), device=near.device)
    box_index = first.scatter_reduce(0, near[wins], owners[wins], "amin")
    foreground = best >= 0
    return AdaptiveMatches(torch.where(foreground, box_index, 0), foreground)


def _nearest(
    middles: Float[Tensor, "G 2"], centers: Float[Tensor, "A 2"], *, bounds: list[int], candidates: int
) -> Int64[Tensor, "G C"]:
    """The anchors of each level whose centers lie nearest to each of the `middles`."""
    distance = torch.cdist(middles, centers, compute_mode="donot_use_mm_for_euclid_dist")
    levels = [
        distance[:, start:stop].topk(min(candidates, stop - start), largest=False).indices + start
        for start, stop in pairwise(bounds)
    ]
    return torch.cat(levels, dim=1)
