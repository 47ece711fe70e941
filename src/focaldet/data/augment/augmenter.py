"""Augmentation: what is done to a training sample, and how it is drawn.

A sample leaves in the frame of the network: the size to which `Preprocessing.resize` takes the picture. What is larger
is cut, what is smaller lies somewhere on the colour of the padding, so that a training step costs the same whatever was
drawn.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from focaldet.data.augment.color import draw_colours, recoloured
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.augment.geometry import (
    INTERPOLATIONS,
    Sample,
    View,
    boxes_in_view,
    flip_horizontal,
    flip_vertical,
    joined,
    moved,
    part_in_picture,
    visible_part,
    visible_shares,
    window_of,
)
from focaldet.data.augment.ssd_crops import draw_window
from focaldet.data.loading.collate import blank
from focaldet.types import ImageSize, Preprocessing, Target

NUM_PARTNERS = 3
MOSAIC_SHRINK = (0.5, 1.0)
MOSAIC_CENTRE = (0.3, 0.7)
CROP_ZOOM = (1.0, 2.0)
ZOOM_OUT = (1.0, 2.0)
# SSD's crops ask that some object stays with at least a drawn share (Liu et al. 2016, section 2.2).
CROP_SHARES = (0.3, 0.5, 0.7, 0.9, 1.0)
CROP_TRIES = 8


@dataclass(frozen=True, slots=True)
class Augmenter:
    """Turns a sample into what the network sees of it in training."""

    augmentation: AugmentConfig
    preprocessing: Preprocessing

    def __call__(self, sample: Sample, *, stream: random.Random, partners: Sequence[Sample] = ()) -> Sample:
        """The sample in the network's frame, everything drawn from `stream`.

        With three `partners` it is a mosaic: the frame is cut in four at a drawn point, each part a view of a picture.
        Boxes are kept by the rule `keep_boxes` (`geometry.visible_part`), applied to each picture's window.
        """
        frame = self.preprocessing.resize.target(sample.size)
        image = blank(frame, preprocessing=self.preprocessing)
        parts = _quarters(frame, stream) if partners else [(0, 0, frame)]
        targets = []
        for picture, (y, x, part) in zip((sample, *partners), parts, strict=True):
            shrink = stream.uniform(*MOSAIC_SHRINK) if partners else 1.0
            view = self._draw_view(picture, part, stream, shrink=shrink)
            if view is None:
                continue
            self._show(picture.image, view, stream, canvas=image[:, y : y + part.height, x : x + part.width])
            targets.append(moved(self._seen(picture, view, frame), x=x + view.x, y=y + view.y))
        return self._flipped(Sample(image, joined(targets) if targets else Target.empty()), stream)

    def _draw_view(self, sample: Sample, frame: ImageSize, stream: random.Random, *, shrink: float) -> View | None:
        """How much of the picture is shown, how large and where in the frame; None where a crop of an expansion shows
        nothing of it.
        """
        strength, size = self.augmentation, sample.size
        window = draw_window(size, sample.target.boxes, strength=strength, stream=stream)
        zoom, choice = shrink * stream.uniform(*strength.scale_jitter), stream.random()
        target = self._draw_content(size, stream)
        if choice < strength.crop:
            boxes = moved(sample.target, x=-window.left, y=-window.top).boxes
            scaled = _scaled(target, zoom * stream.uniform(*CROP_ZOOM))
            view = _crop(boxes, window.size, frame, scaled, stream)
        else:
            if choice < strength.crop + strength.zoom_out:
                zoom /= stream.uniform(*ZOOM_OUT)
            view = _place(window.size, frame, _scaled(target, zoom), stream)
        return part_in_picture(view, window, size=size)

    def _draw_content(self, size: ImageSize, stream: random.Random) -> ImageSize:
        """The size at which a picture of `size` is shown before any zoom."""
        content, jitter = self.preprocessing.resize.content(size), self.augmentation.aspect_jitter
        if jitter == 0:
            return content
        frame = self.preprocessing.resize.target(size)
        height, width = (side * (1 + stream.uniform(-jitter, jitter)) for side in content)
        fit = min(frame.height / height, frame.width / width)
        return ImageSize(*(max(1, round(side * fit)) for side in (height, width)))

    def _show(
        self, image: UInt8[Tensor, "3 h w"], view: View, stream: random.Random, *, canvas: UInt8[Tensor, "3 H W"]
    ) -> None:
        """Draw the view onto the canvas, its colours changed; the canvas around it keeps its colour."""
        kind, antialias = InterpolationMode.BILINEAR, self.preprocessing.resize.antialias
        if self.augmentation.interpolation == "random":
            kind, antialias = stream.choice(INTERPOLATIONS)
        shown = window_of(image, view=view, antialias=antialias, interpolation=kind)
        shown = recoloured(shown, draw_colours(self.augmentation, stream))
        canvas[:, view.y : view.y + view.shown.height, view.x : view.x + view.shown.width] = shown

    def _seen(self, sample: Sample, view: View, frame: ImageSize) -> Target:
        """What is visible through the view, in pixels of the shown picture."""
        target = sample.target
        boxes = boxes_in_view(target.boxes, view=view, size=sample.size)
        whole = Target(boxes, target.labels, target.ignored)
        return visible_part(whole, size=view.shown, keep=self.augmentation.keep_boxes, frame=frame)

    def _flipped(self, sample: Sample, stream: random.Random) -> Sample:
        if stream.random() < self.augmentation.flip_horizontal:
            sample = flip_horizontal(sample)
        if stream.random() < self.augmentation.flip_vertical:
            sample = flip_vertical(sample)
        return sample


def _quarters(frame: ImageSize, stream: random.Random) -> list[tuple[int, int, ImageSize]]:
    """Four parts (y, x, size) that cover the frame and meet in a point near its middle."""
    # A frame one pixel high cannot be halved; its parts then overlap and the later one is seen.
    y, x = (max(1, round(side * stream.uniform(*MOSAIC_CENTRE))) for side in frame)
    rows = ((0, y), (min(y, frame.height - 1), max(1, frame.height - y)))
    columns = ((0, x), (min(x, frame.width - 1), max(1, frame.width - x)))
    return [(top, left, ImageSize(height, width)) for top, height in rows for left, width in columns]


def _scaled(size: ImageSize, zoom: float) -> ImageSize:
    return ImageSize(*(max(1, round(side * zoom)) for side in size))


def _crop(
    boxes: Float[Tensor, "G 4"], size: ImageSize, frame: ImageSize, scaled: ImageSize, stream: random.Random
) -> View:
    """A view of a picture of `size` in which some object is visible by at least a drawn share; the last one tried where
    none is.
    """
    least = stream.choice(CROP_SHARES) - 1e-4  # A whole box measures a little less than 1 in float32.
    for _ in range(CROP_TRIES):
        view = _place(size, frame, scaled, stream)
        seen = boxes_in_view(boxes, view=view, size=size)
        if len(seen) == 0 or visible_shares(seen, size=view.shown).max() >= least:
            break
    return view


def _place(size: ImageSize, frame: ImageSize, scaled: ImageSize, stream: random.Random) -> View:
    """A view of a picture as if it were `scaled`: a random window where that passes the frame, else a random place."""
    top, height, shown_height, y = _place_side(size.height, frame.height, scaled.height, stream)
    left, width, shown_width, x = _place_side(size.width, frame.width, scaled.width, stream)
    window, shown = ImageSize(height, width), ImageSize(shown_height, shown_width)
    return View(top=top, left=left, window=window, shown=shown, x=x, y=y)


def _place_side(length: int, frame: int, scaled: int, stream: random.Random) -> tuple[int, int, int, int]:
    """One axis of a view: start and length of the window, its length in the frame and where it begins there."""
    if scaled <= frame:
        return 0, length, scaled, stream.randint(0, frame - scaled)
    window = max(1, round(length * frame / scaled))
    return stream.randint(0, length - window), window, frame, 0
