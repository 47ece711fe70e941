"""Features of a region, cut out of a map and brought to one size: RoIPool, RoIAlign and crop-and-resize.

Axes: B images, C channels, H W cells of a map, R regions of all images, S cells of a region's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from focaldet.config import validate_fields
from focaldet.errors import ConfigError
from focaldet.ops.roi_align import align_levels
from focaldet.ranges import Cells, LayerCount, SidePx

CANONICAL_LEVEL = 4  # an object of `canonical_px`, ImageNet's usual size, is read from the map of stride 16
LEVEL_EPS = 1e-6  # Detectron's: a region of exactly 224 px belongs to the upper of the two levels


@validate_fields
@dataclass(frozen=True, slots=True)
class PoolConfig:
    """How the features of a region become `size` × `size` cells.

    `align` is RoIAlign (He et al. 2017) with pixel centers at half-integers, `align_legacy` its first form, half a cell
    too far to the lower right; both average `sampling_ratio`² bilinear samples a cell, 0 for as many as the cell is
    large. `max` is RoIPool (Girshick 2015), which rounds to whole cells. `crop_resize` takes one bilinear sample a
    cell, the outer ones on the corners of the region, as the TF Object Detection API does. A region with sides of
    `canonical_px` is read from the pyramid level of stride 16.
    """

    kind: Literal["align", "align_legacy", "max", "crop_resize"] = "align"
    size: Cells = 7
    sampling_ratio: LayerCount = 2
    canonical_px: SidePx = 224


def region_levels(
    regions: Float[Tensor, "R 4"], *, finest: int, coarsest: int, canonical_px: int = 224
) -> Int64[Tensor, " R"]:
    """The pyramid level in [`finest`, `coarsest`] that each region is read from (FPN paper, eq. 1).

    k = ⌊4 + log2(√(w h) / `canonical_px` + 1e-6)⌋. A region without area belongs to the finest.
    """
    sides = (regions[:, 2:] - regions[:, :2]).clamp(min=0).prod(1).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(sides / canonical_px + LEVEL_EPS))
    return level.clamp(finest, coarsest).long()


def pool_pyramid(
    levels: Sequence[Tensor],
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    *,
    finest: int,
    frame_px: tuple[int, int],
    config: PoolConfig,
) -> Float[Tensor, "R C S S"]:
    """The features of each region from the level of its size; the first of `levels` has the number `finest`.

    A level's stride is 2^number. Levels without a region take part with nothing, so that their gradient is 0 and not
    absent.
    """
    coarsest = finest + len(levels) - 1
    level = region_levels(regions, finest=finest, coarsest=coarsest, canonical_px=config.canonical_px) - finest
    if _sums_rows(levels[0], config):
        strides = [2 ** (finest + number) for number in range(len(levels))]
        return _align(levels, regions, image_index, level, strides_px=strides, config=config)
    if len(levels) == 1:
        stride_px = 2**finest
        return pool(levels[0], regions, image_index, stride_px=stride_px, frame_px=frame_px, config=config)
    members = [(level == number).nonzero().squeeze(1) for number in range(len(levels))]
    pooled = [
        pool(features, regions[of], image_index[of], stride_px=2 ** (finest + number), frame_px=frame_px, config=config)
        for number, (features, of) in enumerate(zip(levels, members, strict=True))
    ]
    return torch.cat(pooled)[torch.cat(members).argsort()]


def pool(
    features: Float[Tensor, "B C H W"],
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    *,
    stride_px: int,
    frame_px: tuple[int, int],
    config: PoolConfig,
) -> Float[Tensor, "R C S S"]:
    """The features of each region of one map, in fp32 or above; `frame_px` is (height, width) of the padded image.

    Only the features have a gradient: where a region lies is not learned through them.

    Raises:
        ConfigError: `max` while it learns on CUDA in deterministic mode, where torchvision has no gradient of it.
    """
    if _sums_rows(features, config):
        level = torch.zeros_like(image_index)
        return _align([features], regions, image_index, level, strides_px=[stride_px], config=config)
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    boxes = regions.detach().to(features.dtype)
    if config.kind == "crop_resize":
        return crop_and_resize(features, boxes, image_index, size=config.size, frame_px=frame_px)
    rows = torch.cat([image_index[:, None].to(boxes.dtype), boxes], dim=1)
    if config.kind == "max":
        if features.is_cuda and features.requires_grad and torch.are_deterministic_algorithms_enabled():
            raise ConfigError("pooling.kind: max cannot learn on CUDA with --deterministic; align can")
        largest: Tensor = roi_pool(features, rows, config.size, 1 / stride_px)
        return largest
    samples, is_aligned = config.sampling_ratio or -1, config.kind == "align"
    mean: Tensor = roi_align(features, rows, config.size, 1 / stride_px, samples, aligned=is_aligned)
    return mean


def _sums_rows(features: Float[Tensor, "B C H W"], config: PoolConfig) -> bool:
    """Whether RoIAlign is computed by `align_levels`: on the CPU, of a known number of samples, and outside of export,
    whose formats know torchvision's operator."""
    is_align = config.kind in ("align", "align_legacy") and config.sampling_ratio > 0
    return is_align and features.device.type == "cpu" and not torch.compiler.is_exporting()


def _align(
    levels: Sequence[Tensor],
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    level: Int64[Tensor, " R"],
    *,
    strides_px: Sequence[int],
    config: PoolConfig,
) -> Float[Tensor, "R C S S"]:
    is_aligned, samples = config.kind == "align", config.sampling_ratio
    return align_levels(
        levels,
        regions.detach(),
        image_index,
        level,
        strides_px=strides_px,
        size=config.size,
        samples=samples,
        is_aligned=is_aligned,
    )


def crop_and_resize(
    features: Float[Tensor, "B C H W"],
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    *,
    size: int,
    frame_px: tuple[int, int],
) -> Float[Tensor, "R C S S"]:
    """One bilinear sample a cell, in the manner of TensorFlow's operation of this name.

    With y1, y2 as fractions of the frame, row i is sampled at (y1 + i (y2 - y1) / (S - 1)) (H - 1), columns likewise;
    one cell alone is sampled in the middle. What lies outside of the map is 0, without a blend at its border.
    """
    height, width = features.shape[-2:]
    y, in_map_y = sample_positions(regions[:, 1], regions[:, 3], size, frame=frame_px[0], cells=height)
    x, in_map_x = sample_positions(regions[:, 0], regions[:, 2], size, frame=frame_px[1], cells=width)
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
    inside = in_map_y[:, :, None] & in_map_x[:, None, :]
    if features.device.type == "cpu" and not torch.compiler.is_exporting():
        return _sum_corners(features, grid, inside, image_index)
    members = [(image_index == image).nonzero().squeeze(1) for image in range(len(features))]
    crops = [_sample_grid(image[None], grid[of]) for image, of in zip(features, members, strict=True)]
    return torch.cat(crops)[torch.cat(members).argsort()] * inside[:, None]


def sample_positions(
    start: Float[Tensor, " R"], stop: Float[Tensor, " R"], size: int, *, frame: int, cells: int
) -> tuple[Float[Tensor, "R S"], Bool[Tensor, "R S"]]:
    """Where the samples along one axis lie, -1 in the middle of the first cell and 1 of the last; and if in the map."""
    steps = torch.linspace(0, 1, size, dtype=start.dtype, device=start.device) if size > 1 else start.new_tensor([0.5])
    fraction = (start[:, None] + steps * (stop - start)[:, None]) / frame
    # Compared in cells, as TensorFlow does: the last sample of a region that ends with the frame is inside.
    position = fraction * (cells - 1)
    return fraction * 2 - 1, (position >= 0) & (position <= cells - 1)


def _sample_grid(image: Float[Tensor, "1 C H W"], grid: Float[Tensor, "R S S 2"]) -> Float[Tensor, "R C S S"]:
    """The image at all points of the grid, in one call."""
    count, size = grid.shape[:2]
    if count == 0:
        return image[:0, :, :1, :1].expand(-1, -1, size, size)  # nothing, with the way back to the image
    if image.is_cuda and torch.are_deterministic_algorithms_enabled():
        return blend_corners(image[0], grid)  # the gradient of grid_sample adds up in any order there, and refuses
    crops = F.grid_sample(image, grid.reshape(1, -1, size, 2), padding_mode="border", align_corners=True)
    return crops.reshape(image.shape[1], count, size, size).transpose(0, 1)


def _sum_corners(
    features: Float[Tensor, "B C H W"],
    grid: Float[Tensor, "R S S 2"],
    inside: Bool[Tensor, "R S S"],
    image_index: Int64[Tensor, " R"],
) -> Float[Tensor, "R C S S"]:
    """Each region from its image, 0 where not `inside`: on the CPU one weighted sum of rows, as in `align_levels`."""
    channels, height, width = features.shape[1:]
    corners = _corners(grid.detach(), height, width)
    first = (image_index * height * width)[:, None, None]
    index = torch.stack([first + y * width + x for y, x, _ in corners], dim=-1)
    weights = torch.stack([weight for *_, weight in corners], dim=-1) * inside[..., None]
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    sums = F.embedding_bag(index.view(-1, 4), rows, mode="sum", per_sample_weights=weights.view(-1, 4))
    return sums.view(*grid.shape[:3], channels).permute(0, 3, 1, 2)


def blend_corners(image: Float[Tensor, "C H W"], grid: Float[Tensor, "R S S 2"]) -> Float[Tensor, "R C S S"]:
    """As `F.grid_sample` with corners aligned and the border repeated, of the four cells around each point by index."""
    corners = _corners(grid, image.shape[1], image.shape[2])
    return torch.stack([image[:, y, x] * weight for y, x, weight in corners]).sum(0).transpose(0, 1)


def _corners(grid: Float[Tensor, "R S S 2"], height: int, width: int) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Row, column and weight of each of the four cells around every point, those beyond the border on it."""
    last = grid.new_tensor([width - 1, height - 1])
    position = ((grid + 1) / 2 * last).minimum(last).clamp(min=0)
    low = position.floor()
    (right, below), (left, above) = (position - low).unbind(-1), (1 - (position - low)).unbind(-1)
    (x0, y0), (x1, y1) = low.long().unbind(-1), (low + 1).minimum(last).long().unbind(-1)
    return (y0, x0, above * left), (y0, x1, above * right), (y1, x0, below * left), (y1, x1, below * right)
