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

from focaldet.config import Fraction, validated
from focaldet.ops.boxes import areas
from focaldet.ops.proposals import MIN_SIDE_PX, clip_to_frame, has_sides

Factor = Annotated[float, Field(gt=0, le=8)]
NUM_SCALES = 2  # "two adjacent scales" of each region (appendix B; Ren et al. 2015, NoC)


@validated
@dataclass(frozen=True, slots=True)
class RefineConfig:
    """A second look at the boxes of the first one; both answers together go into NMS at `nms_iou`, then vote. The
    `nms_iou` of `detect` has no effect then.

    The second look is at the box of the likeliest class of each region, or with `every_class` at those of all classes
    that are likelier than `least_score`. A kept box becomes the mean of all boxes of its class that overlap it by
    `vote_iou`, weighted by their scores.
    """

    boxes: Literal["best_class", "every_class"] = "best_class"
    least_score: Fraction = 0.05
    nms_iou: Fraction = 0.3
    vote_iou: Fraction = 0.5


@validated
@dataclass(frozen=True, slots=True)
class PlusConfig:
    """The three additions, each by itself.

    `refine` and `scales` belong to prediction alone; a trained detector takes them without more training. `context`
    puts the vector of the whole picture beside that of each region, and is trained. `scales` are those of the maps that
    regions are cut from, as factors on the picture; proposals come from the picture as it is.
    """

    refine: RefineConfig | None = None
    context: bool = False
    scales: Annotated[tuple[Factor, ...], Field(max_length=8)] = ()


class View(NamedTuple):
    """The levels of the batch at one scale; `scale` is the factor (x, y) on the coordinates of the batch."""

    levels: Sequence[Tensor]
    frame_px: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)

    def regions(self, regions: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
        """The regions in the pixels of this scale."""
        return regions * regions.new_tensor([*self.scale, *self.scale])


def views_of(
    x: Float[Tensor, "B 3 H W"],
    levels: Sequence[Tensor],
    *,
    scales: Sequence[float],
    levels_of: Callable[[Float[Tensor, "B 3 h w"]], Sequence[Tensor]],
) -> tuple[View, ...]:
    """Normalised images at every one of `scales`; `levels` are those of the images as they are, scale 1."""
    height, width = x.shape[-2:]
    views = []
    for factor in scales:
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        if size == (height, width):
            views.append(View(levels, size))
            continue
        larger = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        views.append(View(levels_of(larger), size, (size[1] / width, size[0] / height)))
    return tuple(views)


def scales_of(regions: Float[Tensor, "R 4"], views: Sequence[View], *, canonical_px: int) -> Int64[Tensor, "R two"]:
    """Of each region the two views in which the root of its area is nearest to `canonical_px`, by their ratio.

    Sorted by scale the two are neighbours: the ratio falls up to the nearest and grows from there.
    """
    sides = torch.stack([areas(view.regions(regions)).sqrt() for view in views], 1)
    distance = (sides.clamp(min=MIN_SIDE_PX) / canonical_px).log().abs()
    return distance.topk(min(NUM_SCALES, len(views)), dim=1, largest=False).indices


def largest_of_scales(
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    views: Sequence[View],
    look: Callable[[View, Tensor, Tensor], Float[Tensor, "r D"]],
    *,
    canonical_px: int,
) -> Float[Tensor, "R D"]:
    """The vectors that `look(view, regions, image_index)` gives; of two views the larger value in each place."""
    if len(views) == 1:
        return look(views[0], views[0].regions(regions), image_index)
    chosen = scales_of(regions, views, canonical_px=canonical_px)
    found: list[tuple[Tensor, Tensor]] = []
    for number, view in enumerate(views):
        rows = (chosen == number).any(1).nonzero().squeeze(1)
        found.append((rows, look(view, view.regions(regions[rows]), image_index[rows])))
    vectors = found[0][1]
    largest = vectors.new_full((len(regions), vectors.shape[1]), -torch.inf)
    for rows, seen in found:
        largest = largest.index_copy(0, rows, torch.maximum(largest[rows], seen))
    return largest


def with_pictures(
    regions: Float[Tensor, "R 4"], image_index: Int64[Tensor, " R"], *, frames: Float[Tensor, "B 2"]
) -> tuple[Float[Tensor, "R+B 4"], Int64[Tensor, "R+B"]]:
    """The regions, and behind them each picture as one more.

    The head looks at both in one pass: were they two, BatchNorm would learn from each by its own statistics and answer
    with a mixture that is true of neither.
    """
    pictures = torch.cat([torch.zeros_like(frames), frames.flip(1)], 1)
    places = torch.arange(len(frames), device=frames.device)
    return torch.cat([regions, pictures]), torch.cat([image_index, places])


@torch.no_grad()
def second_look(
    boxes: Float[Tensor, "R K 4"],
    likely: Float[Tensor, "R K"],
    image_index: Int64[Tensor, " R"],
    *,
    frames: Float[Tensor, "B 2"],
    config: RefineConfig,
) -> tuple[Float[Tensor, "r 4"], Int64[Tensor, " r"]]:
    """The regions to look at again and the image of each: decoded boxes, cut to the picture, those without area left
    out.
    """
    if config.boxes == "best_class":
        best = likely.argmax(1)
        region = torch.arange(len(best), device=best.device)
    else:
        region, best = (likely > config.least_score).nonzero().unbind(1)
    index = image_index[region]
    again = clip_to_frame(boxes[region, best], frames[index])
    real = has_sides(again, least_px=MIN_SIDE_PX)
    return again[real], index[real]
