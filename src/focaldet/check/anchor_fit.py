"""How well the anchors of a detector fit the boxes of a data set, without laying out the anchors.

Axes: M boxes, L levels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from focaldet.data.dataset import Dataset
from focaldet.models.base import DetectorConfig
from focaldet.ops.boxes import areas
from focaldet.ops.grids import best_overlaps, hold_centers
from focaldet.types import ImageSize, Preprocessing, Resize

FOREGROUND_IOU = 0.5


@dataclass(frozen=True, slots=True)
class AnchorReport:
    """How the anchors fit the boxes of one split at the size of the network; without ignored boxes.

    `covered` is the fraction of boxes with IoU ≥ 0.5 to some anchor, `covered_per_level` the same for each map alone,
    `average_iou` the mean over the boxes of the IoU with the best anchor. With `by_shape` all are IoUs of width and
    height at a common center. `resize` says the size.
    `too_small` counts boxes of less than half the area of the smallest anchor: no anchor can reach IoU 0.5 with them.
    With `by_center` (adaptive matching) a box is covered that has the center of an anchor inside, and too small if it
    is less than a cell of the finest map in area; `smallest_anchor_px` is then the side of that cell.
    """

    resize: str
    covered: float
    covered_per_level: dict[str, float]
    average_iou: float
    by_shape: bool
    by_center: bool
    too_small: int
    smallest_anchor_px: float

    @property
    def criterion(self) -> str:
        """What a covered box does, as the rest of a sentence."""
        if self.by_center:
            return "hold the center of an anchor"
        return f"reach IoU 0.5 {'in width and height ' if self.by_shape else ''}with an anchor"


def anchor_report(dataset: Dataset, detector: DetectorConfig, preprocessing: Preprocessing) -> AnchorReport | None:
    """How the anchors fit the boxes of a split that has any; None of a detector without anchors."""
    boxes, frames = _input_boxes(dataset, preprocessing)
    grids = detector.grids(ImageSize(*frames[0].tolist()))
    if not grids:
        return None
    fit = level_overlaps(boxes, frames, detector)
    by_center = all(grid.by_center for grid in grids)
    if by_center:
        covered = torch.stack([hold_centers(boxes, grid) for grid in grids], dim=1)
        smallest, limit = min(math.prod(grid.step_px) for grid in grids), 1.0
    else:
        covered = fit >= FOREGROUND_IOU
        smallest, limit = min(grid.smallest_area for grid in grids), FOREGROUND_IOU
    return AnchorReport(
        resize=str(preprocessing.resize),
        covered=float(covered.any(1).double().mean()),
        covered_per_level=dict(zip((grid.name for grid in grids), covered.double().mean(0).tolist(), strict=True)),
        average_iou=float(fit.amax(1).double().mean()),
        by_shape=all(grid.by_shape for grid in grids),
        by_center=by_center,
        too_small=int((areas(boxes) < limit * smallest).sum()),
        smallest_anchor_px=smallest**0.5,
    )


def overlap_coverage(dataset: Dataset, detector: DetectorConfig, preprocessing: Preprocessing) -> tuple[float, float]:
    """The fraction of the boxes, at least one, with IoU ≥ 0.5 to some anchor, and the mean IoU with the best one,
    whatever the rule that matches them.
    """
    best = level_overlaps(*_input_boxes(dataset, preprocessing), detector).amax(1).double()
    return float((best >= FOREGROUND_IOU).double().mean()), float(best.mean())


def _input_boxes(dataset: Dataset, preprocessing: Preprocessing) -> tuple[Float[Tensor, "M 4"], Int64[Tensor, "M 2"]]:
    """The boxes of a split in pixels of the input that each lies in, and the sizes of these inputs with padding."""
    boxes, images = resize_boxes(dataset, preprocessing.resize)
    step = preprocessing.size_divisor
    return boxes, (images + step - 1) // step * step


def level_overlaps(
    boxes: Float[Tensor, "M 4"], frames: Int64[Tensor, "M 2"], detector: DetectorConfig
) -> Float[Tensor, "M L"]:
    """IoU, in [0, 1], of each box with its best anchor on each level. `frames` are the height and width of the input
    that each box lies in, padding included; there must be a box.
    """
    sizes, owners = torch.unique(frames, dim=0, return_inverse=True)
    fit = boxes.new_zeros(len(boxes), len(detector.grids(ImageSize(*sizes[0].tolist()))))
    for number, size in enumerate(sizes.tolist()):
        rows = (owners == number).nonzero().squeeze(1)
        levels = [best_overlaps(boxes[rows], grid) for grid in detector.grids(ImageSize(*size))]
        fit[rows] = torch.stack(levels, dim=1)
    return fit


def resize_boxes(dataset: Dataset, resize: Resize) -> tuple[Float[Tensor, "M 4"], Int64[Tensor, "M 2"]]:
    """The boxes of a split, without ignored ones, in pixels of the resized images, and the sizes of these images."""
    sizes, kinds = torch.unique(dataset.sizes, dim=0, return_inverse=True)
    originals = [ImageSize(*size) for size in sizes.tolist()]
    placed = [(*resize.target(size), *resize.content(size), *resize.corner(size)) for size in originals]
    owners = torch.arange(len(dataset)).repeat_interleave(dataset.offsets.diff())
    counted = dataset.flags == 0
    images, contents, corners = torch.split(
        torch.tensor(placed, dtype=torch.int64).reshape(-1, 6)[kinds[owners]][counted], 2, dim=1
    )
    scale = contents.double() / dataset.sizes[owners][counted].double()
    return dataset.boxes[counted] * scale.flip(1).repeat(1, 2) + corners.repeat(1, 2), images
