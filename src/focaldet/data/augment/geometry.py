"""Resizing, flipping and cropping of an image together with its boxes.

Everything but resizing without antialiasing runs on uint8 through torchvision's transforms. Boxes stay whole on the
way and are cut only at the end, because the rule on what to keep compares what is visible with the whole box.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, functional

from focaldet.data.augment.config import KeepBoxes
from focaldet.ops.boxes import areas, clip
from focaldet.types import LETTERBOX_GRAY, ImageSize, Resize, Target

MIN_VISIBLE_FRACTION = 0.25
MIN_BOX_SIDE_PX = 1.0
MIN_FRAME_FRACTION = 0.001  # darknet's data.c

# Kind and antialiasing, for OpenCV's five that SSD draws of: nearest (there half a pixel aside), linear and cubic;
# linear with antialiasing instead of the mean over areas, cubic with antialiasing instead of Lanczos.
INTERPOLATIONS = (
    (InterpolationMode.NEAREST_EXACT, False),
    (InterpolationMode.BILINEAR, False),
    (InterpolationMode.BILINEAR, True),
    (InterpolationMode.BICUBIC, False),
    (InterpolationMode.BICUBIC, True),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image (RGB, 0…255) and its ground truth, boxes in pixels of the image."""

    image: UInt8[Tensor, "3 H W"] | Float[Tensor, "3 H W"]
    target: Target

    @property
    def size(self) -> ImageSize:
        return ImageSize(*self.image.shape[-2:])


@dataclass(frozen=True, slots=True)
class ImageView:
    """A window of an image (whole pixels), and the size `shown` and corner (x, y) at which it appears in a frame."""

    top: int
    left: int
    window: ImageSize
    shown: ImageSize
    x: int
    y: int

    def part_of(self, frame: Tensor) -> Tensor:
        """The pixels of a frame in which the view appears, to be written to."""
        return frame[:, self.y : self.y + self.shown.height, self.x : self.x + self.shown.width]


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of whole pixels in the coordinates of an image; it may reach beyond the image."""

    top: int
    left: int
    size: ImageSize


def resize_sample(sample: Sample, resize: Resize) -> Sample:
    """The sample resized to the network's input; every box is kept, however small."""
    view = _whole(sample.size, resize)
    target = shift_target(target_in_view(sample, view), x=view.x, y=view.y)
    return Sample(resize_image(sample.image, resize), target)


def resize_image(
    image: UInt8[Tensor, "3 H W"], resize: Resize, *, original: ImageSize | None = None
) -> UInt8[Tensor, "3 h w"] | Float[Tensor, "3 h w"]:
    """The image resized to the network's input, between its bars where that is a letterbox.

    With antialiasing it stays in bytes, as in training. Without, it is interpolated in floating point, as torchvision's
    own detectors do it: rounding to bytes would change their logits by more than 1e-4. An image that was read reduced
    gets the size that its `original` would have got.
    """
    size = original or ImageSize(*image.shape[1:])
    view = replace(_whole(size, resize), window=ImageSize(*image.shape[1:]))
    if resize.antialias:
        shown = resample_window(image, view=view, antialias=True)
    else:
        shown = _interpolate(image, view.shown, align_corners=resize.align_corners)
    frame = resize.target(size)
    if frame == view.shown:
        return shown
    gray = LETTERBOX_GRAY if shown.is_floating_point() else round(LETTERBOX_GRAY)
    canvas = shown.new_full((3, *frame), gray)
    view.part_of(canvas)[:] = shown
    return canvas


def _interpolate(image: UInt8[Tensor, "3 H W"], size: ImageSize, *, align_corners: bool) -> Float[Tensor, "3 h w"]:
    # Distances between points are not round numbers: in fp32 positions in a wide image would be off by 1e-4 px.
    pixels = image[None].double() if align_corners else image[None].float()
    return interpolate(pixels, size=tuple(size), mode="bilinear", align_corners=align_corners)[0].float()


def flip_horizontal(sample: Sample) -> Sample:
    """The sample with left and right exchanged; its own inverse."""
    return _flip_sample(sample, functional.horizontal_flip)


def flip_vertical(sample: Sample) -> Sample:
    """The sample with top and bottom exchanged; its own inverse."""
    return _flip_sample(sample, functional.vertical_flip)


def _flip_sample(sample: Sample, flip: Callable[[Tensor], Tensor]) -> Sample:
    boxes = _plain(flip(_bounding_boxes(sample.target.boxes, sample.size)))
    return Sample(_plain(flip(tv_tensors.Image(sample.image))), replace(sample.target, boxes=boxes))


def resample_window(
    image: UInt8[Tensor, "3 H W"],
    *,
    view: ImageView,
    antialias: bool,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> UInt8[Tensor, "3 h w"]:
    """The window of a view, resampled to the size at which it is shown; it is cut first, so that nothing else is."""
    (height, width), shown = view.window, list(view.shown)
    # With the channels last in memory, as decoders write them, torch takes a third of the time; and with the channels
    # first, torch 2.14 stops with an internal error when the result is 1 × 1.
    interleaved = tv_tensors.Image(image.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    resampled = functional.resized_crop(
        interleaved, view.top, view.left, height, width, size=shown, interpolation=interpolation, antialias=antialias
    )
    return _plain(resampled)


def part_in_image(view: ImageView, window: Window, *, size: ImageSize) -> ImageView | None:
    """The part of a view of `window` that lies in an image of `size`, as a view of the image; None if there is none.

    Beyond the image there is nothing to sample, so the canvas of an expansion is never built. Where the image ends
    within the view, its edge falls on a whole pixel of the frame; boxes follow the returned view and stay on their
    objects.
    """
    rows = _part_of_side(window.top + view.top, view.window.height, view.shown.height, size.height)
    columns = _part_of_side(window.left + view.left, view.window.width, view.shown.width, size.width)
    if rows is None or columns is None:
        return None
    (top, height, shown_height, y), (left, width, shown_width, x) = rows, columns
    part, shown = ImageSize(height, width), ImageSize(shown_height, shown_width)
    return ImageView(top=top, left=left, window=part, shown=shown, x=view.x + x, y=view.y + y)


def _part_of_side(start: int, length: int, shown: int, limit: int) -> tuple[int, int, int, int] | None:
    """One axis: start and length of the part in 0…`limit`, its length and start in the frame; None if there is none."""
    first, last = max(start, 0), min(start + length, limit)
    if first >= last:
        return None
    begin, end = (round((edge - start) * shown / length) for edge in (first, last))
    if begin == end:  # Less than a pixel of the frame: the pixel that it lies in.
        begin = (first - start) * shown // length
        end = begin + 1
    return first, last - first, end - begin, begin


def boxes_in_view(boxes: Float[Tensor, "G 4"], *, view: ImageView, size: ImageSize) -> Float[Tensor, "G 4"]:
    """Boxes of an image of `size` in pixels of the view as it is shown; they may reach beyond its edges."""
    (height, width), shown = view.window, list(view.shown)
    wrapped = _bounding_boxes(boxes, size)
    return _plain(functional.resized_crop(wrapped, view.top, view.left, height, width, size=shown))


def target_in_view(sample: Sample, view: ImageView) -> Target:
    """The target of a sample in pixels of the view as it is shown; all boxes, also those beyond its edges."""
    return replace(sample.target, boxes=boxes_in_view(sample.target.boxes, view=view, size=sample.size))


def visible_fractions(boxes: Float[Tensor, "G 4"], *, size: ImageSize) -> Float[Tensor, " G"]:
    """The fraction in [0, 1] of each box's area that lies inside an image of `size`; 0 for a box without area."""
    cut = clip(boxes, height=size.height, width=size.width)
    return areas(cut) / areas(boxes).clamp(min=torch.finfo(boxes.dtype).tiny)


def visible_part(
    target: Target, *, size: ImageSize, keep: KeepBoxes = "visible", frame: ImageSize | None = None
) -> Target:
    """The target with its boxes clipped to an image of `size`, without those that are hardly visible.

    `keep` decides which boxes stay, ignored ones as well. "visible": at least a quarter of the area is visible and both
    visible sides have at least one pixel; less than that looks like background. "center": the center lies in the image.
    "any": the visible part has a thousandth of the sides of `frame` (of `size` where there is none). A box of which
    nothing is visible never stays.
    """
    cut = clip(target.boxes, height=size.height, width=size.width)
    sides = cut[:, 2:] - cut[:, :2]
    if keep == "visible":
        stays = (visible_fractions(target.boxes, size=size) >= MIN_VISIBLE_FRACTION) & (sides >= MIN_BOX_SIDE_PX).all(1)
    elif keep == "center":
        centers = (target.boxes[:, :2] + target.boxes[:, 2:]) / 2
        limit = centers.new_tensor([size.width, size.height])
        stays = ((centers >= 0) & (centers <= limit) & (sides > 0)).all(1)
    else:
        height, width = frame or size
        stays = (sides >= MIN_FRAME_FRACTION * sides.new_tensor([width, height])).all(1)
    return replace(target, boxes=cut)[stays]


def join_targets(targets: list[Target]) -> Target:
    """One target with all boxes of several targets of one image."""
    boxes, labels, ignored = zip(*((t.boxes, t.labels, t.ignored) for t in targets), strict=True)
    return Target(torch.cat(boxes), torch.cat(labels), torch.cat(ignored))


def shift_target(target: Target, *, x: int, y: int) -> Target:
    """The target with every box shifted by whole pixels."""
    return replace(target, boxes=target.boxes + target.boxes.new_tensor([x, y, x, y]))


def _whole(size: ImageSize, resize: Resize) -> ImageView:
    """The view of a whole image of `size`, resized."""
    x, y = resize.corner(size)
    return ImageView(top=0, left=0, window=size, shown=resize.content(size), x=x, y=y)


def _bounding_boxes(boxes: Float[Tensor, "G 4"], size: ImageSize) -> tv_tensors.BoundingBoxes:
    """Boxes as torchvision's type; without clamping, which would cut them at every step."""
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=tuple(size), clamping_mode=None)


def _plain(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor)
