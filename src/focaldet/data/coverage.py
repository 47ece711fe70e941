"""How well anchors fit boxes, without laying out the anchors.

Axes: M boxes, S anchors per cell, L levels. The overlap of a box with an anchor of fixed shape only shrinks with the
distance of their centres, along x and along y alike. So the best anchor of a level lies, for each shape, in the cell
nearest to the box, and M × L × S overlaps say exactly what all anchors of all images would.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from focaldet.data.index import Index
from focaldet.nets.necks import STRIDES_PX
from focaldet.ops.anchors import AnchorConfig, cell_anchors
from focaldet.ops.boxes import areas
from focaldet.types import Preprocessing, Resize

FOREGROUND_IOU = 0.5


def best_overlaps(
    boxes: Float[Tensor, "M 4"],
    images: Int64[Tensor, "M 2"],
    anchors: AnchorConfig,
    *,
    strides_px: tuple[int, ...] = STRIDES_PX,
) -> Float[Tensor, "M L"]:
    """IoU of each box with its best anchor on each level, in [0, 1].

    `images` are the height and width of the picture of each box in the frame of the boxes; feature maps belong to the
    picture padded to multiples of `Preprocessing.size_divisor`.
    """
    divisor = Preprocessing().size_divisor
    padded = (images + divisor - 1) // divisor * divisor
    levels = [
        _level_overlaps(boxes, -(-padded // stride), cell_anchors(anchors, stride_px=stride), stride)
        for stride in strides_px
    ]
    return torch.stack(levels, dim=1)


def _level_overlaps(
    boxes: Float[Tensor, "M 4"], cells: Int64[Tensor, "M 2"], shapes: Float[Tensor, "S 4"], stride_px: int
) -> Float[Tensor, " M"]:
    """IoU of each box with its best anchor of one level, whose map has `cells` rows and columns."""
    shapes = shapes.to(boxes.dtype)
    center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    size = boxes[:, None, 2:] - boxes[:, None, :2]
    anchor_center, anchor_size = (shapes[:, :2] + shapes[:, 2:]) / 2, shapes[:, 2:] - shapes[:, :2]
    last = (cells.flip(1) - 1)[:, None].to(boxes.dtype)
    cell = ((center - anchor_center) / stride_px).round().clamp(min=0).minimum(last)
    distance = (center - anchor_center - cell * stride_px).abs()
    shared = ((size + anchor_size) / 2 - distance).minimum(size).minimum(anchor_size).clamp(min=0).prod(-1)
    union = size.prod(-1) + anchor_size.prod(-1) - shared
    return (shared / union).amax(1)


def smallest_area(anchors: AnchorConfig, *, strides_px: tuple[int, ...] = STRIDES_PX) -> float:
    """The area of the smallest anchor in square pixels."""
    return float(areas(cell_anchors(anchors, stride_px=min(strides_px))).min())


def resized_boxes(index: Index, resize: Resize) -> tuple[Float[Tensor, "M 4"], Int64[Tensor, "M 2"]]:
    """The boxes that training looks for (no ignored ones) in the network's frame, and the sizes of their pictures."""
    sizes = [index.size(i) for i in range(len(index))]
    placed = [(*resize.target(size), *resize.content(size), *resize.corner(size)) for size in sizes]
    owners = torch.arange(len(index)).repeat_interleave(index.offsets.diff())
    counted = index.flags == 0
    images, contents, corners = torch.split(
        torch.tensor(placed, dtype=torch.int64).reshape(-1, 6)[owners][counted], 2, dim=1
    )
    scale = contents.double() / index.sizes[owners][counted].double()
    return index.boxes[counted] * scale.flip(1).repeat(1, 2) + corners.repeat(1, 2), images
