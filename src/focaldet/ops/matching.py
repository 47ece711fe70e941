"""The assignment of anchors to objects: that of the focal-loss paper (section 4) and its variants.

The table of all overlaps is never whole in memory: an image with 1000 boxes would take gigabytes.

Axes: A anchors, G ground-truth boxes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from focaldet.config import Fraction, validate_fields
from focaldet.errors import ConfigError
from focaldet.ops.adaptive import match_adaptively
from focaldet.ops.boxes import pairwise_coverage, pairwise_iou
from focaldet.ranges import PositiveInt

PositiveFraction = Annotated[float, Field(gt=0, le=1)]
BLOCK_ELEMENTS = 1 << 22  # overlaps computed at a time; with what they are computed from 16 bytes each
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
    hidden = torch.empty(count, dtype=torch.bool, device=anchors.device)
    for block in _blocks(count, row_elements=len(apart)):
        hidden[block] = (pairwise_coverage(anchors[block], apart) >= config.ignore_coverage).any(dim=1)
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
    blocks = _blocks(len(anchors), row_elements=len(boxes))
    whole = pairwise_iou(boxes, anchors) if len(blocks) == 1 else None  # else computed twice rather than kept

    def overlaps(block: slice) -> Float[Tensor, "G a"]:
        return pairwise_iou(boxes, anchors[block]) if whole is None else whole

    by_box = config.low_quality != "none"
    # Made before the tables: small results between large ones would tear the memory into pieces too small for them.
    best, forced = anchors.new_empty(len(anchors)), torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    box_index = torch.empty(len(anchors), dtype=torch.int64, device=anchors.device)
    best_of_box, anchor_index = anchors.new_full((len(boxes),), -1.0), box_index.new_zeros(len(boxes))
    for block in blocks:
        iou = overlaps(block)
        best[block], box_index[block] = iou.max(dim=0)
        if by_box:
            top, index = iou.max(dim=1)
            better = top > best_of_box  # of equals the first stays
            best_of_box, anchor_index = (
                top.where(better, best_of_box),
                (index + block.start).where(better, anchor_index),
            )
        del iou
    foreground = best >= config.foreground_iou
    if config.low_quality == "bipartite":
        objects, chosen = _best_pairs(boxes, anchors, best_of_box, anchor_index)
        box_index = box_index.index_put((chosen,), objects)
        foreground = foreground.index_fill(0, chosen, value=True)
    elif by_box:
        for block in blocks:
            forced[block] = _reach(overlaps(block), best_of_box)
        if config.low_quality == "above_background":
            forced &= best >= config.background_iou
        foreground |= forced
    return Matches(box_index, foreground, (best >= config.background_iou) & ~foreground)


def _reach(iou: Float[Tensor, "G A"], best_of_box: Float[Tensor, " G"]) -> Bool[Tensor, " A"]:
    """Whether an anchor's IoU with some box is the best that this box has, and above 0."""
    return ((iou == best_of_box[:, None]) & (iou > 0)).any(dim=0)


def _best_pairs(
    boxes: Float[Tensor, "G 4"],
    anchors: Float[Tensor, "A 4"],
    best: Float[Tensor, " G"],
    anchor_index: Int64[Tensor, " G"],
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """Objects and anchors of the greedy matching without replacement; pairs that do not meet are not made.

    `best` and `anchor_index` are the best IoU of each box and its first anchor; both are overwritten.
    """
    taken = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    pairs = []
    for _ in range(min(len(boxes), len(anchors))):
        top = best.max()
        if top <= NO_OVERLAP:
            break
        row = int(torch.where(best == top, anchor_index, len(anchors)).argmin())
        column = int(anchor_index[row])
        pairs.append((row, column))
        taken[column], anchor_index[row], best[row] = True, -1, -1.0
        stale = (anchor_index == column).nonzero().squeeze(1)
        for rows in _blocks(len(stale), row_elements=len(anchors)):
            left = pairwise_iou(boxes[stale[rows]], anchors).masked_fill_(taken, -1.0)
            best[stale[rows]], anchor_index[stale[rows]] = left.max(dim=1)
    index_pairs = torch.tensor(pairs, dtype=torch.int64, device=anchors.device).reshape(-1, 2)
    return index_pairs[:, 0], index_pairs[:, 1]


def _blocks(count: int, *, row_elements: int) -> list[slice]:
    """Slices of `count` rows of a table whose rows are `row_elements` long, of `BLOCK_ELEMENTS` at most."""
    step = max(1, BLOCK_ELEMENTS // max(1, row_elements))
    return [slice(start, start + step) for start in range(0, count, step)]
