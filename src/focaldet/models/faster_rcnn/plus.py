"""What "+++" adds to Faster R-CNN (He et al. 2015, appendix B): box refinement, global context, multi-scale testing.

Axes: B images, R regions of all images, K classes, V = K + 1 class values, D width of a region's vector, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from focaldet.config import Fraction, validate_fields
from focaldet.ops.boxes import areas
from focaldet.ops.proposals import MIN_REGION_SIDE_PX, clip_to_frame, has_sides

ScaleFactor = Annotated[float, Field(gt=0, le=8)]
NUM_SCALES = 2  # "two adjacent scales" of each region (appendix B; Ren et al. 2015, NoC)


@validate_fields
@dataclass(frozen=True, slots=True)
class RefineConfig:
    """Box refinement: detected boxes go through the second stage once more, as regions.

    These are the box of the most probable class of each region, or with `every_class` those of all classes more
    probable than `least_score`. The detections of both passes go into NMS at `nms_iou` (that of `detect` has no effect
    then), and a kept box becomes the mean of all boxes of its class that overlap it by `vote_iou`, weighted by scores.
    """

    boxes: Literal["best_class", "every_class"] = "best_class"
    least_score: Fraction = 0.05
    nms_iou: Fraction = 0.3
    vote_iou: Fraction = 0.5


@validate_fields
@dataclass(frozen=True, slots=True)
class PlusConfig:
    """The three additions, each by itself.

    `refine` and `scales` belong to prediction alone; a trained detector takes them without more training. `context` is
    the global context: the vector of the whole image beside that of each region; it is trained. `scales` are factors on
    the image, each with maps that regions are pooled from; proposals come from the image as it is.
    """

    refine: RefineConfig | None = None
    context: bool = False
    scales: Annotated[tuple[ScaleFactor, ...], Field(max_length=8)] = ()


class ScaledMaps(NamedTuple):
    """The feature maps of a batch at one scale; `scale` is the factor (x, y) on the coordinates of the batch."""

    levels: Sequence[Tensor]
    frame_px: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)

    def scale_regions(self, regions: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
        """The regions in the pixels of this scale."""
        return regions * regions.new_tensor([*self.scale, *self.scale])


def scale_maps(
    x: Float[Tensor, "B 3 H W"],
    levels: Sequence[Tensor],
    *,
    scales: Sequence[float],
    levels_of: Callable[[Float[Tensor, "B 3 h w"]], Sequence[Tensor]],
) -> tuple[ScaledMaps, ...]:
    """The maps of normalized images at every one of `scales`; `levels` are those at scale 1."""
    height, width = x.shape[-2:]
    maps = []
    for factor in scales:
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        if size == (height, width):
            maps.append(ScaledMaps(levels, size))
            continue
        larger = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        maps.append(ScaledMaps(levels_of(larger), size, (size[1] / width, size[0] / height)))
    return tuple(maps)


def nearest_scales(
    regions: Float[Tensor, "R 4"], maps: Sequence[ScaledMaps], *, canonical_px: int
) -> Int64[Tensor, "R two"]:
    """Of each region the two scales at which the root of its area is nearest to `canonical_px`, by their ratio.

    Sorted by scale the two are neighbors: the ratio falls up to the nearest and grows from there.
    """
    sides = torch.stack([areas(scaled.scale_regions(regions)).sqrt() for scaled in maps], 1)
    distance = (sides.clamp(min=MIN_REGION_SIDE_PX) / canonical_px).log().abs()
    return distance.topk(min(NUM_SCALES, len(maps)), dim=1, largest=False).indices


def max_over_scales(
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    maps: Sequence[ScaledMaps],
    head: Callable[[ScaledMaps, Tensor, Tensor], Float[Tensor, "r D"]],
    *,
    canonical_px: int,
) -> Float[Tensor, "R D"]:
    """The vectors that `head(maps, regions, image_index)` makes, their elementwise maximum over two nearest scales."""
    if len(maps) == 1:
        return head(maps[0], maps[0].scale_regions(regions), image_index)
    chosen = nearest_scales(regions, maps, canonical_px=canonical_px)
    parts: list[tuple[Tensor, Tensor]] = []
    for number, scaled in enumerate(maps):
        rows = (chosen == number).any(1).nonzero().squeeze(1)
        parts.append((rows, head(scaled, scaled.scale_regions(regions[rows]), image_index[rows])))
    vectors = parts[0][1]
    largest = vectors.new_full((len(regions), vectors.shape[1]), -torch.inf)
    for rows, vectors in parts:
        largest = largest.index_copy(0, rows, torch.maximum(largest[rows], vectors))
    return largest


def append_whole_images(
    regions: Float[Tensor, "R 4"], image_index: Int64[Tensor, " R"], *, image_sizes: Float[Tensor, "B 2"]
) -> tuple[Float[Tensor, "R+B 4"], Int64[Tensor, "R+B"]]:
    """The regions, and behind them each whole image as one more.

    The head gets both in one pass: in two, BatchNorm would learn from the statistics of each and keep a mixture that is
    true of neither.
    """
    whole = torch.cat([torch.zeros_like(image_sizes), image_sizes.flip(1)], 1)
    images = torch.arange(len(image_sizes), device=image_sizes.device)
    return torch.cat([regions, whole]), torch.cat([image_index, images])


@torch.no_grad()
def boxes_to_refine(
    boxes: Float[Tensor, "R K 4"],
    probabilities: Float[Tensor, "R K"],
    image_index: Int64[Tensor, " R"],
    *,
    image_sizes: Float[Tensor, "B 2"],
    config: RefineConfig,
) -> tuple[Float[Tensor, "r 4"], Int64[Tensor, " r"]]:
    """The regions of the second pass and the image of each: decoded boxes, clipped to the image, without empty ones."""
    if config.boxes == "best_class":
        best = probabilities.argmax(1)
        region = torch.arange(len(best), device=best.device)
    else:
        region, best = (probabilities > config.least_score).nonzero().unbind(1)
    index = image_index[region]
    clipped = clip_to_frame(boxes[region, best], image_sizes[index])
    is_kept = has_sides(clipped, least_px=MIN_REGION_SIDE_PX)
    return clipped[is_kept], index[is_kept]
