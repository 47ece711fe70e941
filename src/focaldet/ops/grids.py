"""Anchors as regular grids, and how well the best anchor of a grid fits a box without laying the grid out.

Axes: M boxes, S anchors per cell, L levels. The overlap of a box with an anchor of fixed shape only shrinks with the
distance of their centers, along x and along y alike. So the best anchor of a grid lies, for each shape, in the cell
nearest to the box, and M × S overlaps say exactly what all anchors would.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from focaldet.ops.anchors import AnchorConfig, cell_anchors
from focaldet.ops.boxes import areas
from focaldet.ops.priors import Priors, level_priors
from focaldet.types import ImageSize


class Grid(NamedTuple):
    """The anchors of one map: those of cell (0, 0) as xyxy pixels, the distance (x, y) of the cells in pixels, and the
    number of cells (rows, columns).

    With `by_shape` an object belongs to the cell of its center and its box may lie anywhere in it, as in YOLOv2: then
    only width and height decide how well an anchor fits. With `by_center` an object takes anchors whose centers lie in
    its box, whatever their shape, as adaptive matching does.
    """

    name: str
    first: Float[Tensor, "S 4"]
    step_px: tuple[float, float]
    cells: tuple[int, int]
    by_shape: bool = False
    by_center: bool = False

    @property
    def smallest_area(self) -> float:
        """The area of the smallest anchor in square pixels."""
        return float(areas(self.first).min())


def best_overlaps(boxes: Float[Tensor, "M 4"], grid: Grid) -> Float[Tensor, " M"]:
    """IoU of each box (xyxy pixels) with the best anchor of the grid, in [0, 1]; with `by_shape` at a common center."""
    first = grid.first.to(boxes.dtype)
    center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    size = boxes[:, None, 2:] - boxes[:, None, :2]
    anchor_center, anchor_size = (first[:, :2] + first[:, 2:]) / 2, first[:, 2:] - first[:, :2]
    distance = torch.zeros_like(center)
    if not grid.by_shape:
        step, last = first.new_tensor(grid.step_px), first.new_tensor([side - 1 for side in reversed(grid.cells)])
        cell = ((center - anchor_center) / step).round().clamp(min=0).minimum(last)
        distance = (center - anchor_center - cell * step).abs()
    shared = ((size + anchor_size) / 2 - distance).minimum(size).minimum(anchor_size).clamp(min=0).prod(-1)
    union = size.prod(-1) + anchor_size.prod(-1) - shared
    return (shared / union).amax(1)


def hold_centers(boxes: Float[Tensor, "M 4"], grid: Grid) -> Bool[Tensor, " M"]:
    """Whether each box (xyxy pixels) has the center of an anchor of the grid inside."""
    anchor = grid.first[0].to(boxes.dtype)
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    origin, step = (anchor[:2] + anchor[2:]) / 2, anchor.new_tensor(grid.step_px)
    last = anchor.new_tensor([side - 1 for side in reversed(grid.cells)])
    cell = ((center - origin) / step).round().clamp(min=0).minimum(last)
    return ((center - origin - cell * step).abs() < half).all(1)


def pyramid_grids(
    config: AnchorConfig, *, strides_px: tuple[int, ...], image: ImageSize, by_center: bool = False
) -> tuple[Grid, ...]:
    """The grids of a pyramid over an input of this size; torchvision's cells lie as far apart as the map divides it."""
    grids = []
    for stride in strides_px:
        rows, columns = (-(-side // stride) for side in image)
        is_divided = config.flavor == "torchvision"
        step = (image.width // columns, image.height // rows) if is_divided else (stride, stride)
        first = cell_anchors(config, stride_px=stride)
        grids.append(Grid(f"stride {stride}", first, step, (rows, columns), by_center=by_center))
    return tuple(grids)


def prior_grids(
    config: Priors,
    *,
    names: tuple[str, ...],
    strides_px: tuple[int, ...],
    cells: tuple[tuple[int, int], ...],
    image: ImageSize,
) -> tuple[Grid, ...]:
    """The grids of SSD's priors, read from the priors as they are laid out."""
    grids = []
    for level, (name, stride, shape) in enumerate(zip(names, strides_px, cells, strict=True)):
        priors = level_priors(config, level=level, stride_px=stride, cells=shape, image=image)
        laid = priors.reshape(*shape, config.counts[level], 4)
        rows, columns = shape
        x = float(laid[0, 1, 0, 0] - laid[0, 0, 0, 0]) if columns > 1 else float(image.width)
        y = float(laid[1, 0, 0, 1] - laid[0, 0, 0, 1]) if rows > 1 else float(image.height)
        grids.append(Grid(name, laid[0, 0], (x, y), shape))
    return tuple(grids)
