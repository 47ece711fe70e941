"""The assignment of anchors to objects: that of the focal-loss paper (section 4) and its variants.

Axes: A anchors, G ground-truth boxes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor

from focaldet.config import Fraction, validate_fields
from focaldet.errors import ConfigError
from focaldet.ops.adaptive import match_adaptively
from focaldet.ops.boxes import pairwise_coverage, pairwise_iou

PositiveFraction = Annotated[float, Field(gt=0, le=1)]
NO_OVERLAP = 1e-6  # Caffe's bipartite matching passes over pairs that overlap no more than this


@validate_fields
@dataclass(frozen=True, slots=True)
class MatchConfig:
    """Foreground from `foreground_iou` on, background below `background_iou`, between them the anchor is ignored.

    `low_quality` gives an object without such an anchor its best ones (ties included): `none` as the paper's text says;
    `above_background` only where their IoU is at least `background_iou` (Detectron); `any` always (detectron2,
    torchvision). The anchor is still assigned to the object it overlaps most.

    `bipartite` is SSD's rule: before anything else the pair of object and anchor with the highest IoU of all is made,
    then the highest of the objects and anchors that are left, and so on; such an anchor is assigned to its object. Of
    equal pairs the one with the first anchor comes first, then that with the first object, as in Caffe.

    With `rule` adaptive all this gives way to ATSS (`ops.adaptive`): of the `candidates` anchors of every level that
    are nearest to an object those whose IoU stands out among them, whatever it is.

    Raises:
        ConfigError: `background_iou` is above `foreground_iou`.
    """

    rule: Literal["iou", "adaptive"] = "iou"
    candidates: PositiveInt = 9
    foreground_iou: PositiveFraction = 0.5
    background_iou: Fraction = 0.4
    low_quality: Literal["none", "above_background", "any", "bipartite"] = "none"
    ignore_coverage: PositiveFraction = 0.5

    def __post_init__(self) -> None:
        if self.background_iou > self.foreground_iou:
            raise ConfigError(
                f"background_iou: must be at most foreground_iou, which is {self.foreground_iou}, "
                f"got {self.background_iou}"
            )


class Matches(NamedTuple):
    """For each anchor: the index of its object, whether it is foreground, whether the loss ignores it."""

    box_index: Int64[Tensor, " A"]
    foreground: Bool[Tensor, " A"]
    ignored: Bool[Tensor, " A"]

    def labels(self, box_labels: Int64[Tensor, " G"], *, background: int) -> Int64[Tensor, " A"]:
        """The class of each anchor: that of its object, or `background`."""
        everywhere = torch.full_like(self.box_index, background)
        return torch.where(self.foreground, box_labels[self.box_index], everywhere) if len(box_labels) else everywhere


def match(
    anchors: Float[Tensor, "A 4"],
    boxes: Float[Tensor, "G 4"],
    ignored_boxes: Bool[Tensor, " G"],
    config: MatchConfig,
    *,
    level_sizes: tuple[int, ...] | None = None,
) -> Matches:
    """Assign every anchor to an object, to the background, or to neither.

    Boxes marked in `ignored_boxes` (crowds, difficult objects) attract no anchor. An anchor that is not foreground is
    ignored where at least `ignore_coverage` of it lies inside such a box, and where it would not be background if
    such boxes were objects: a box too small to cover half of any anchor is not trained as background either.
    `box_index` counts in `boxes` and is 0 where there is none. Without boxes all anchors are background.
    `level_sizes` is the number of anchors of each level for the adaptive rule; None: they are all of one level.
    """
    levels = level_sizes or (anchors.shape[0],)
    count = anchors.shape[0]
    regular = (~ignored_boxes).nonzero().squeeze(1)
    if regular.numel() and count:
        matches = _assign(anchors, boxes[regular], config, levels)
        matches = matches._replace(box_index=regular[matches.box_index])
    else:
        nothing = torch.zeros(count, dtype=torch.bool, device=anchors.device)
        matches = Matches(torch.zeros(count, dtype=torch.int64, device=anchors.device), nothing, nothing)
    if regular.numel() == boxes.shape[0] or not count:
        return matches
    apart = boxes[ignored_boxes]
    hidden = (pairwise_coverage(anchors, apart) >= config.ignore_coverage).any(dim=1)
    as_objects = _assign(anchors, apart, config, levels)
    skipped = hidden | as_objects.foreground | as_objects.ignored
    return matches._replace(ignored=matches.ignored | (skipped & ~matches.foreground))


def _assign(
    anchors: Float[Tensor, "A 4"], boxes: Float[Tensor, "G 4"], config: MatchConfig, level_sizes: tuple[int, ...]
) -> Matches:
    """The rule of `MatchConfig` for boxes that are all objects; at least one."""
    if config.rule == "adaptive":
        box_index, foreground = match_adaptively(anchors, boxes, level_sizes=level_sizes, candidates=config.candidates)
        return Matches(box_index, foreground, torch.zeros_like(foreground))
    iou = pairwise_iou(boxes, anchors)
    best, box_index = iou.max(dim=0)
    foreground = best >= config.foreground_iou
    if config.low_quality == "bipartite":
        objects, chosen = _best_pairs(iou)
        box_index = box_index.index_put((chosen,), objects)
        foreground = foreground.index_fill(0, chosen, value=True)
    elif config.low_quality != "none":
        forced = ((iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)).any(dim=0)
        if config.low_quality == "above_background":
            forced &= best >= config.background_iou
        foreground |= forced
    return Matches(box_index, foreground, (best >= config.background_iou) & ~foreground)


def _best_pairs(iou: Float[Tensor, "G A"]) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """Objects and anchors of the greedy matching without replacement; pairs that do not meet are not made."""
    left = iou.clone()
    best, anchor_index = left.max(dim=1)
    pairs = []
    for _ in range(min(iou.shape)):
        top = best.max()
        if top <= NO_OVERLAP:
            break
        row = int(torch.where(best == top, anchor_index, iou.shape[1]).argmin())
        column = int(anchor_index[row])
        pairs.append((row, column))
        left[:, column] = -1.0
        left[row] = -1.0
        stale = (anchor_index == column).nonzero().squeeze(1)
        best[stale], anchor_index[stale] = left[stale].max(dim=1)
    index_pairs = torch.tensor(pairs, dtype=torch.int64, device=iou.device).reshape(-1, 2)
    return index_pairs[:, 0], index_pairs[:, 1]
