"""Prior boxes of SSD (Liu et al. 2016, section 2.2): shapes given as fractions of the image, on the cells of every map.

Axes: S priors per cell, A priors of a level or of all levels. Shapes are (width, height) pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from focaldet.config import validate_fields
from focaldet.errors import ConfigError
from focaldet.ops.constants import cache_constants
from focaldet.ranges import AnyFloat, Factor, PositiveFloat, Shapes

Percents = Annotated[tuple[PositiveFloat, ...], Field(min_length=2, max_length=17)]
Elongations = Annotated[tuple[Annotated[float, Field(gt=1, le=1000)], ...], Field(max_length=16)]


@validate_fields
@dataclass(frozen=True, slots=True)
class PriorConfig:
    """Priors of L levels.

    `percents` are L + 1 sizes in per cent of the image's side. Level l goes from its own to the next one: a square of
    the smaller side, one of their geometric mean, and for every r of `elongations` the smaller one stretched to width :
    height = r and to 1 : r. `whole_px` cuts the sizes to whole pixels before, as Caffe's prior_box_layer does.

    `starts_px` is the center of cell 0 of each level; the others follow at the level's stride. None spreads the cells
    evenly over the image. `centers` "offset" is the released program taken by its word, start as an offset in cells:
    (w + start) · step, which lies far outside; only for comparing weights with it.

    Raises:
        ConfigError: `percents` do not grow, or are not one more than `starts_px`.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"centres": "centers"}

    percents: Percents = (4.0, 10.0, 27.0, 44.0, 61.0, 78.0, 95.0, 112.0)
    elongations: Elongations = (1.6, 2.0, 3.0)
    whole_px: bool = True
    starts_px: Annotated[tuple[AnyFloat | None, ...], Field(max_length=16)] = (2.5, 2.5, 10.5, 26.5, 58.5, 122.5, None)
    centers: Literal["start", "offset"] = "start"

    def __post_init__(self) -> None:
        if len(self.percents) != len(self.starts_px) + 1:
            raise ConfigError(
                f"percents: must be one more than the {len(self.starts_px)} starts_px, got {len(self.percents)}"
            )
        if any(left >= right for left, right in pairwise(self.percents)):
            raise ConfigError(f"percents: must grow from level to level, got {self.percents}")

    @property
    def per_cell(self) -> int:
        """S, the number of priors of one cell."""
        return 2 + 2 * len(self.elongations)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of priors of one cell of each level."""
        return (self.per_cell,) * self.num_levels

    @property
    def num_levels(self) -> int:
        """L, the number of maps."""
        return len(self.starts_px)


@validate_fields
@dataclass(frozen=True, slots=True)
class ScalePriorConfig:
    """Priors of L levels as TensorFlow's Object Detection API lays them, on cells spread evenly over the image.

    Level l has the scale s_l, L of them evenly from `min_scale` to `max_scale` of the image's side, and behind them 1:
    of each of `ratios` (width / height) a box as large as the square of s_l, and last a square of √(s_l s_l+1). With
    `few_on_first` the first level has three: a square of `first_scale`, and its scale stretched to 2 : 1 and 1 : 2.

    Raises:
        ConfigError: `max_scale` is not above `min_scale`.
    """

    num_levels: Annotated[int, Field(ge=2, le=16)] = 6
    min_scale: Annotated[float, Field(gt=0, lt=1)] = 0.2
    max_scale: Annotated[float, Field(gt=0, le=1)] = 0.95
    ratios: Annotated[tuple[Factor, ...], Shapes] = (1.0, 2.0, 0.5, 3.0, 0.3333)
    few_on_first: bool = True
    first_scale: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        if self.max_scale <= self.min_scale:
            raise ConfigError(f"max_scale: must be above min_scale, {self.min_scale:g}, got {self.max_scale:g}")

    @property
    def starts_px(self) -> tuple[None, ...]:
        """None for each level: its cells are spread evenly."""
        return (None,) * self.num_levels

    @property
    def centers(self) -> Literal["start"]:
        """As in `PriorConfig`."""
        return "start"

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of priors of one cell of each level."""
        return tuple(len(self.ratios_of(level)) for level in range(self.num_levels))

    def ratios_of(self, level: int) -> list[tuple[float, float]]:
        """Scale and ratio (width / height) of every prior of a cell."""
        step = (self.max_scale - self.min_scale) / (self.num_levels - 1)
        scales = [*(self.min_scale + step * number for number in range(self.num_levels)), 1.0]
        scale, further = scales[level : level + 2]
        if level == 0 and self.few_on_first:
            return [(self.first_scale, 1.0), (scale, 2.0), (scale, 0.5)]
        return [*((scale, ratio) for ratio in self.ratios), ((scale * further) ** 0.5, 1.0)]


Priors = PriorConfig | ScalePriorConfig


def prior_shapes(config: Priors, *, level: int, side_px: int) -> Float[Tensor, "S 2"]:
    """The shapes of one level in an image `side_px` wide and high, in the order of the channels.

    Caffe's are min square, square of the geometric mean, then of each elongation the wide one and the high one.
    """
    if isinstance(config, ScalePriorConfig):
        rows = [(scale * ratio**0.5, scale / ratio**0.5) for scale, ratio in config.ratios_of(level)]
        return torch.tensor(rows, dtype=torch.float32) * side_px
    low, high = (side_px * percent / 100 for percent in config.percents[level : level + 2])
    if config.whole_px:
        low, high = max(1, int(low)), max(1, int(high))
    mean = (low * high) ** 0.5
    shapes = [(low, low), (mean, mean)]
    for ratio in config.elongations:
        long, short = low * ratio**0.5, low / ratio**0.5
        shapes += [(long, short), (short, long)]
    return torch.tensor(shapes, dtype=torch.float32)


def _centers(config: Priors, *, level: int, stride_px: int, cells: int, side_px: int) -> Float[Tensor, " cells"]:
    """Where the cells of one axis of a map lie, in pixels."""
    start, step = config.starts_px[level], float(stride_px)
    if start is None:
        step = side_px / cells
        start = step / 2
    index = torch.arange(cells, dtype=torch.float32)
    return start + index * step if config.centers == "start" else (index + start) * step


def level_priors(
    config: Priors, *, level: int, stride_px: int, cells: tuple[int, int], image: tuple[int, int]
) -> Float[Tensor, "A 4"]:
    """The priors (xyxy pixels) of a map of `cells` (rows, columns), row by row, column by column, the S of a cell
    together.

    In an `image` (height, width) that is not a square, widths are fractions of its width and heights of its height: the
    priors of the square, warped.
    """
    y, x = (
        _centers(config, level=level, stride_px=stride_px, cells=number, side_px=side)
        for number, side in zip(cells, image, strict=True)
    )
    of_height, of_width = (prior_shapes(config, level=level, side_px=side) for side in image)
    shapes = torch.stack([of_width[:, 0], of_height[:, 1]], dim=1)
    centers = torch.cartesian_prod(y, x).flip(1)[:, None]
    return torch.cat([centers - shapes / 2, centers + shapes / 2], dim=-1).reshape(-1, 4)


@cache_constants
def all_priors(
    config: Priors,
    *,
    strides_px: tuple[int, ...],
    cells: tuple[tuple[int, int], ...],
    image: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Float[Tensor, "A 4"]:
    """The priors of all levels, finest first. The answer is shared between calls: never write into it."""
    levels = [
        level_priors(config, level=level, stride_px=stride, cells=shape, image=image)
        for level, (stride, shape) in enumerate(zip(strides_px, cells, strict=True))
    ]
    return torch.cat(levels).to(device)
