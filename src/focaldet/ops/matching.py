"""The assignment of anchors to objects: that of the focal-loss paper (section 4) and its variants.

A large table of overlaps is never whole in memory: an image with 1000 boxes would take gigabytes. It is made in blocks
that stay in the cache of a CPU, of anchors of one size that lie side by side, and only for the boxes that meet the
rectangle around such a block. The overlap with all others is 0.

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
from focaldet.ops.boxes import areas, columns, iou_of_columns, pairwise_coverage, pairwise_iou
from focaldet.ranges import PositiveInt

PositiveFraction = Annotated[float, Field(gt=0, le=1)]
BLOCK_ELEMENTS = 1 << 18  # overlaps computed at a time on the CPU: a megabyte of fp32
DEVICE_BLOCK_ELEMENTS = 1 << 22  # elsewhere, where a block must be large enough to be worth a start
BLOCK_ANCHORS = 512  # at most in a block: the more, the more boxes meet the rectangle around them
TILE = 4.0  # side of the square that anchors of a block come from, in the next lower power of 2 of their own
NO_OVERLAP = 1e-6  # Caffe's bipartite matching passes over pairs that overlap no more than this


class Best(NamedTuple):
    """The maxima of a table of overlaps.

    `iou` and `box_index` are of each anchor (index 0 where it overlaps none), `of_box` and `anchor_index` (the first
    one's) of each box; `reached` are the anchors whose IoU is the best, above 0, that some box has.
    """

    iou: Float[Tensor, " A"]
    box_index: Int64[Tensor, " A"]
    of_box: Float[Tensor, " G"]
    anchor_index: Int64[Tensor, " G"]
    reached: Bool[Tensor, " A"]


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

    With `rule` adaptive, which RetinaNet alone takes, all this gives way to ATSS (`ops.adaptive`): of the `candidates`
    anchors of every level that are nearest to an object those whose IoU stands out among them, whatever it is. The
    paper's 9 are for one anchor a cell; with S of them take 9 S.

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


def require_fixed_thresholds(config: MatchConfig, *, setting: str, detector: str) -> None:
    """Refuse the adaptive rule where there are no levels of anchors for it to choose from.

    Raises:
        ConfigError: names the setting and what takes the rule.
    """
    if config.rule == "adaptive":
        raise ConfigError(f"{setting}.rule: adaptive is for the anchors of RetinaNet; {detector} matches by iou")


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
    for block in _blocks(count, row_elements=len(apart), most=_block_elements(anchors)):
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
    by_box, is_small = config.low_quality != "none", len(anchors) * len(boxes) <= _block_elements(anchors)
    best = (best_of_table if is_small else best_in_blocks)(boxes, anchors, by_box=by_box)
    box_index, foreground = best.box_index, best.iou >= config.foreground_iou
    if config.low_quality == "bipartite":
        objects, chosen = _best_pairs(boxes, anchors, best.of_box, best.anchor_index)
        box_index = box_index.index_put((chosen,), objects)
        foreground = foreground.index_fill(0, chosen, value=True)
    elif config.low_quality == "above_background":
        foreground |= best.reached & (best.iou >= config.background_iou)
    else:
        foreground |= best.reached
    return Matches(box_index, foreground, (best.iou >= config.background_iou) & ~foreground)


def best_of_table(boxes: Float[Tensor, "G 4"], anchors: Float[Tensor, "A 4"], *, by_box: bool) -> Best:
    """The maxima of the whole table; with `by_box` also those of each box, else no anchor is `reached`."""
    iou = pairwise_iou(boxes, anchors)
    best, box_index = iou.max(dim=0)
    if not by_box:
        return Best(best, box_index, *_nothing_by_box(boxes, anchors))
    of_box, anchor_index = iou.max(dim=1)
    reached = ((iou == of_box[:, None]) & (iou > 0)).any(dim=0)
    return Best(best, box_index, of_box, anchor_index, reached)


def best_in_blocks(boxes: Float[Tensor, "G 4"], anchors: Float[Tensor, "A 4"], *, by_box: bool) -> Best:
    """As `best_of_table`, to the bit, without the table."""
    most = _block_elements(anchors)
    width = max(1, min(BLOCK_ANCHORS if anchors.device.type == "cpu" else most, most // len(boxes)))
    order = _order_by_tile(anchors)
    order = torch.cat([order, order[-1:].expand(-len(order) % width)]).view(-1, width)  # the last one several times
    grid, objects = columns(anchors[order.flatten()]).view(5, -1, width), columns(boxes)
    low, high = grid[:2].amin(2)[:, :, None], grid[2:4].amax(2)[:, :, None]
    block, near = ((low < objects[2:4, None]) & (high > objects[:2, None])).all(0).nonzero().unbind(1)
    counts = torch.bincount(block, minlength=len(order)).tolist()
    best, row, tops = grid.new_zeros(order.shape), torch.zeros_like(order), []
    for number, members in enumerate(torch.split(near, counts)):
        if not len(members):
            continue
        iou = iou_of_columns(objects[:, members, None], grid[:, None, number])
        torch.max(iou, dim=0, out=(best[number], row[number]))
        row[number] = members[row[number]]
        if by_box:
            tops.append(iou.amax(dim=1))
    iou_of_anchor, box_index = anchors.new_empty(len(anchors)), row.new_empty(len(anchors))
    iou_of_anchor[order] = best
    box_index[order] = torch.where(best > 0, row, 0)
    of_box, anchor_index, reached = _nothing_by_box(boxes, anchors)
    if tops:
        top = torch.cat(tops)
        of_box.scatter_reduce_(0, near, top, "amax")
        is_best = (top == of_box[near]) & (top > 0)
        anchor_index, reached = _find_reached(
            objects, grid, order, block=block[is_best], near=near[is_best], of_box=of_box, num_anchors=len(anchors)
        )
    return Best(iou_of_anchor, box_index, of_box, anchor_index, reached)


def _nothing_by_box(
    boxes: Float[Tensor, "G 4"], anchors: Float[Tensor, "A 4"]
) -> tuple[Float[Tensor, " G"], Int64[Tensor, " G"], Bool[Tensor, " A"]]:
    """`of_box`, `anchor_index` and `reached` of boxes that overlap no anchor."""
    reached = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    return anchors.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=anchors.device), reached


def _find_reached(
    objects: Float[Tensor, "5 G"],
    grid: Float[Tensor, "5 blocks width"],
    order: Int64[Tensor, "blocks width"],
    *,
    block: Int64[Tensor, " hits"],
    near: Int64[Tensor, " hits"],
    of_box: Float[Tensor, " G"],
    num_anchors: int,
) -> tuple[Int64[Tensor, " G"], Bool[Tensor, " A"]]:
    """`anchor_index` and `reached` of `Best`: the boxes `near` have their best IoU in these blocks.

    Only those pairs are computed a second time.
    """
    first = torch.full(of_box.shape, num_anchors, device=order.device)
    reached = torch.zeros(num_anchors, dtype=torch.bool, device=order.device)
    for rows in _blocks(len(near), row_elements=5 * order.shape[1], most=_block_elements(grid)):  # five columns
        box, anchor = near[rows], order[block[rows]]
        equal = iou_of_columns(objects[:, box, None], grid[:, block[rows]]) == of_box[box, None]
        reached[anchor[equal]] = True
        first.scatter_reduce_(0, box, torch.where(equal, anchor, num_anchors).amin(dim=1), "amin")
    return torch.where(first < num_anchors, first, 0), reached


def _order_by_tile(anchors: Float[Tensor, "A 4"]) -> Int64[Tensor, " A"]:
    """Anchors of like size one after another, and of these those of one square tile of the image."""
    size = areas(anchors).sqrt().clamp(min=1)
    level = torch.log2(size).floor()
    tile = (anchors[:, :2] + anchors[:, 2:]) / (2 * TILE * torch.exp2(level)[:, None])
    x, y = tile.clamp(-(2**14), 2**14).floor().long().unbind(1)
    return ((level.long() << 32) + (y << 16) + x).argsort(stable=True)


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
        for rows in _blocks(len(stale), row_elements=len(anchors), most=_block_elements(anchors)):
            left = pairwise_iou(boxes[stale[rows]], anchors).masked_fill_(taken, -1.0)
            best[stale[rows]], anchor_index[stale[rows]] = left.max(dim=1)
    index_pairs = torch.tensor(pairs, dtype=torch.int64, device=anchors.device).reshape(-1, 2)
    return index_pairs[:, 0], index_pairs[:, 1]


def _block_elements(tensor: Tensor) -> int:
    """The overlaps to compute at a time on the device of `tensor`."""
    return BLOCK_ELEMENTS if tensor.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS


def _blocks(count: int, *, row_elements: int, most: int) -> list[slice]:
    """Slices of `count` rows of a table whose rows are `row_elements` long, of `most` elements or of one row."""
    step = max(1, most // max(1, row_elements))
    return [slice(start, start + step) for start in range(0, count, step)]
