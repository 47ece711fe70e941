"""RoIAlign (He et al. 2017) of all levels of a pyramid as one weighted sum, for the CPU.

A cell of a region is the mean of N × N bilinear samples, so the sum of 4 N² cells of its map, each with a weight. Where
the channels of a cell lie side by side in memory that is what `embedding_bag` computes: one row of the table for each
cell of all maps, one bag for each cell of all regions.

Axes: B images, C channels, H W cells of a map, R regions of all images, S cells of a region's side, N samples of a
cell's side, L levels, P = 4 N² pairs of a map's cell and its weight.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def align_levels(
    levels: Sequence[Tensor],
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    level: Int64[Tensor, " R"],
    *,
    strides_px: Sequence[int],
    size: int,
    samples: int,
    is_aligned: bool,
) -> Float[Tensor, "R C S S"]:
    """The features of each region from its `level`, an index into `levels`, in fp32 or above.

    The same as torchvision's `roi_align` with `samples` > 0 on each level, up to the rounding of a sum of P numbers.
    Maps are best with their channels last in memory, as the result has them; others are copied. Only the maps have a
    gradient.
    """
    channels = levels[0].shape[1]
    wide = torch.float64 if levels[0].dtype == torch.float64 else torch.float32
    rows = [features.permute(0, 2, 3, 1).reshape(-1, channels).to(wide) for features in levels]
    table = torch.cat(rows) if len(rows) > 1 else rows[0]
    with torch.no_grad():
        shapes = [tuple(features.shape) for features in levels]
        index, weights = _pairs(
            regions.to(wide),
            image_index,
            torch.tensor([[height, width] for _, _, height, width in shapes])[level],
            torch.tensor([0, *(batch * height * width for batch, _, height, width in shapes[:-1])]).cumsum(0)[level],
            1 / torch.tensor(strides_px, dtype=wide)[level],
            size=size,
            samples=samples,
            is_aligned=is_aligned,
        )
    sums = F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)
    return sums.view(len(regions), size, size, channels).permute(0, 3, 1, 2)


def _pairs(
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    shape: Int64[Tensor, "R 2"],
    first_row: Int64[Tensor, " R"],
    scale: Float[Tensor, " R"],
    *,
    size: int,
    samples: int,
    is_aligned: bool,
) -> tuple[Int64[Tensor, "bags P"], Float[Tensor, "bags P"]]:
    """The rows of the table that make up each cell of each region, and their weights.

    `shape` is (height, width) of the map that a region is read from, `first_row` the row of that map's first cell,
    `scale` cells for a pixel.
    """
    corners = regions * scale[:, None] - (0.5 if is_aligned else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    if not is_aligned:
        extent = extent.clamp(min=1)
    height, width = shape.unbind(1)
    y, weight_y = _bilinear(corners[:, 1], extent[:, 1], height, size=size, samples=samples)
    x, weight_x = _bilinear(corners[:, 0], extent[:, 0], width, size=size, samples=samples)
    row = (first_row + image_index * height * width)[:, None, None] + y * width[:, None, None]
    index = row[:, :, None, :, None] + x[:, None, :, None, :]
    weights = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :] / samples**2
    num_pairs = (2 * samples) ** 2
    return index.reshape(-1, num_pairs), weights.reshape(-1, num_pairs)


def _bilinear(
    start: Float[Tensor, " R"], extent: Float[Tensor, " R"], cells: Int64[Tensor, " R"], *, size: int, samples: int
) -> tuple[Int64[Tensor, "R S N2"], Float[Tensor, "R S N2"]]:
    """The two cells of the map beside each sample along one axis, and their weights; 0 more than a cell outside.

    The arithmetic is torchvision's step by step, so that the weights are the same to the last bit.
    """
    step = (extent / size)[:, None, None]
    cell = torch.arange(size, dtype=start.dtype)[:, None] * step
    position = start[:, None, None] + cell + (torch.arange(samples, dtype=start.dtype) + 0.5) * step / samples
    last = cells[:, None, None] - 1
    is_outside = (position < -1) | (position > cells[:, None, None])
    position = torch.where(is_outside, 0, position.clamp(min=0))
    low = position.long().minimum(last)
    upper = torch.where(low < last, position - low, 0)
    weights = torch.stack([1 - upper, upper], -1) * ~is_outside[..., None]
    return torch.stack([low, (low + 1).minimum(last)], -1).flatten(2), weights.flatten(2)
