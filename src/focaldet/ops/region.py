"""Boxes that a grid of cells predicts around its own anchors ("YOLO9000", section 2), and their assignment to objects.

Axes: S anchors per cell, A anchors of all cells, G ground-truth boxes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from focaldet.ops.boxes import pairwise_coverage, pairwise_iou
from focaldet.ops.matching import Matches

MAX_LOG_GROWTH = 20.0  # keeps infinities out; darknet has no bound, and nobody sees boxes of 1e9 px


def grid_anchors(
    sizes: Sequence[tuple[float, float]],
    *,
    stride_px: int,
    height: int,
    width: int,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "A 4"]:
    """A box of every size (width, height in cells) in the middle of every cell, in pixels.

    Row by row, column by column, the S of a cell together.
    """
    y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
    center = torch.cartesian_prod(y, x).flip(1)[:, None]
    half = torch.tensor([list(size) for size in sizes], device=device) / 2
    return torch.cat([center - half, center + half], dim=-1).reshape(-1, 4) * stride_px


def decode_in_cells(
    deltas: Float[Tensor, "*A 4"], anchors: Float[Tensor, "*A 4"], *, stride_px: int
) -> Float[Tensor, "*A 4"]:
    """The boxes b = (σ(tx) + cx, σ(ty) + cy, pw e^tw, ph e^th) in pixels; their centers never leave their cell."""
    size = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + size / 2 + (deltas[..., :2].sigmoid() - 0.5) * stride_px
    half = deltas[..., 2:].clamp(max=MAX_LOG_GROWTH).exp() * size / 2
    return torch.cat([center - half, center + half], dim=-1)


def encode_in_cells(
    boxes: Float[Tensor, "*A 4"], anchors: Float[Tensor, "*A 4"], *, stride_px: int
) -> Float[Tensor, "*A 4"]:
    """(σ(tx), σ(ty), tw, th) with which `decode_in_cells` gives these boxes; sides must be positive.

    The first two are in [0, 1] where the box has its center in the anchor's cell.
    """
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + size / 2 - anchors[..., :2] - anchor_size / 2) / stride_px
    return torch.cat([shift + 0.5, (size / anchor_size).log()], dim=-1)


def responsible_anchors(
    boxes: Float[Tensor, "G 4"],
    sizes: Sequence[tuple[float, float]],
    *,
    stride_px: int,
    height: int,
    width: int,
) -> Int64[Tensor, " G"]:
    """The index of the anchor of each box: in the cell of its center, the one whose width and height fit best.

    The fit is the IoU of both at a common center; of equal ones the first counts. Two boxes may meet at one anchor.
    """
    extent = (boxes[:, 2:] - boxes[:, :2]) / stride_px
    cell = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride_px).floor().long()
    column, row = cell[:, 0].clamp(0, width - 1), cell[:, 1].clamp(0, height - 1)
    shapes = boxes.new_tensor([list(size) for size in sizes])
    fit = pairwise_iou(torch.cat([-extent, extent], 1) / 2, torch.cat([-shapes, shapes], 1) / 2)
    return (row * width + column) * len(sizes) + fit.argmax(1)


def match_cells(
    predicted: Float[Tensor, "A 4"],
    responsible: Int64[Tensor, " G"],
    boxes: Float[Tensor, "G 4"],
    ignored_boxes: Bool[Tensor, " G"],
    *,
    ignore_iou: float,
    ignore_coverage: float,
) -> Matches:
    """Assign every anchor to an object, to the background, or, as its box overlaps one by > `ignore_iou`, to neither.

    Of several objects at one anchor the last counts, as in darknet. Boxes marked in `ignored_boxes` (crowds, difficult
    objects) have no anchor; ignored is what would not be background if they were objects, and what lies in one of them
    by at least `ignore_coverage` of its area. `box_index` is 0 for an anchor without an object.
    """
    regular = ~ignored_boxes
    box_index = torch.full((len(predicted),), -1, dtype=torch.int64, device=boxes.device)
    box_index = box_index.scatter_reduce(0, responsible[regular], regular.nonzero().squeeze(1), "amax")
    foreground = box_index >= 0
    ignored = (pairwise_iou(predicted, boxes) > ignore_iou).any(1)
    if not bool(regular.all()):
        ignored |= (pairwise_coverage(predicted, boxes[ignored_boxes]) >= ignore_coverage).any(1)
        ignored[responsible[ignored_boxes]] = True
    return Matches(box_index.clamp(min=0), foreground, ignored & ~foreground)
