"""Anchor boxes: what every cell of a feature map proposes.

Axes: S anchors per cell, A anchors of a level or of all levels. Ratio = height / width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from focaldet.config import validate_fields
from focaldet.ops.constants import cache_constants
from focaldet.ranges import Factor, Shapes

Factors = Annotated[tuple[Factor, ...], Shapes]
Flavor = Literal["continuous", "torchvision", "detectron1"]


@validate_fields
@dataclass(frozen=True, slots=True)
class AnchorConfig:
    """Anchor shapes of a pyramid level: every scale with every ratio (Focal Loss paper, section 4).

    The base side of a level is `base_scale` × its stride: 32…512 px at P3…P7. `flavor` says how other programs round:
    `torchvision` truncates sizes and rounds corners to whole pixels; `detectron1` rounds at the base stride and centers
    cell 0 at (stride - 1) / 2. `order` is the order of the S anchors in the channels of the subnets.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"flavour": "flavor"}

    base_scale: Factor = 4.0
    scales: Factors = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    ratios: Factors = (0.5, 1.0, 2.0)
    flavor: Flavor = "continuous"
    order: Literal["ratio, scale", "scale, ratio"] = "ratio, scale"

    @property
    def per_cell(self) -> int:
        """S, the number of anchors of one cell."""
        return len(self.scales) * len(self.ratios)


def cell_anchors(config: AnchorConfig, *, stride_px: int) -> Float[Tensor, "S 4"]:
    """The anchors of one cell around (0, 0), or around the center of cell 0 for the `detectron1` flavor."""
    pairs = [(ratio, scale) for ratio in config.ratios for scale in config.scales]
    if config.order == "scale, ratio":
        pairs = [(ratio, scale) for scale in config.scales for ratio in config.ratios]
    if config.flavor == "detectron1":
        return torch.tensor([_detectron1(config, stride_px, ratio, scale) for ratio, scale in pairs])
    base = config.base_scale * stride_px
    if config.flavor == "torchvision":
        sizes = torch.tensor([float(int(base * scale)) for _, scale in pairs])
    else:
        sizes = torch.tensor([base * scale for _, scale in pairs])
    root = torch.tensor([ratio for ratio, _ in pairs]).sqrt()
    width, height = sizes * (1 / root), sizes * root
    anchors = torch.stack([-width, -height, width, height], dim=1) / 2
    return anchors.round() if config.flavor == "torchvision" else anchors


def _detectron1(config: AnchorConfig, stride_px: int, ratio: float, scale: float) -> list[float]:
    """One anchor by the rule of Detectron's generate_anchors.py, in continuous coordinates (its x2 + 1)."""
    center = (stride_px - 1) / 2
    width = round((stride_px * stride_px / ratio) ** 0.5)
    height = round(width * ratio)
    grow = config.base_scale * scale
    half_width, half_height = (width * grow - 1) / 2, (height * grow - 1) / 2
    return [center - half_width, center - half_height, center + half_width + 1, center + half_height + 1]


def level_anchors(
    config: AnchorConfig,
    *,
    stride_px: int,
    height: int,
    width: int,
    step_px: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "A 4"]:
    """The anchors of a `height` × `width` feature map, row by row, column by column, the S of a cell together.

    `stride_px` sets their size and, unless `step_px` (vertical, horizontal) says otherwise, the distance of the cells.
    """
    vertical, horizontal = step_px or (stride_px, stride_px)
    y = torch.arange(height, dtype=torch.float32, device=device) * vertical
    x = torch.arange(width, dtype=torch.float32, device=device) * horizontal
    centers = torch.cartesian_prod(y, x).flip(1).repeat(1, 2)[:, None]
    return (centers + cell_anchors(config, stride_px=stride_px).to(device)).reshape(-1, 4)


@cache_constants
def pyramid_anchors(
    config: AnchorConfig,
    *,
    strides_px: tuple[int, ...],
    shapes: tuple[tuple[int, int], ...],
    image: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Float[Tensor, "A 4"]:
    """The anchors of all levels, finest first. `shapes` are (height, width) of the feature maps, `image` of the input.

    torchvision divides the input by the map to get the distance of the cells, so its coarse levels drift by some
    pixels where the division leaves a rest; the `torchvision` flavor does the same. The answer is shared between
    calls: never write into it.
    """
    levels = []
    for stride, (height, width) in zip(strides_px, shapes, strict=True):
        step = (image[0] // height, image[1] // width) if config.flavor == "torchvision" else None
        levels.append(level_anchors(config, stride_px=stride, height=height, width=width, step_px=step, device=device))
    return torch.cat(levels)
