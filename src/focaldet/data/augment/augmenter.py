"""The augmentation of one training sample at random.

Every sample comes out at the size to which `Preprocessing.resize` takes its image: what is larger is cut, what is
smaller lies at a random position on the color of the padding. So every training step costs the same.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from focaldet.data.augment.color import change_colors, draw_color_change
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.augment.geometry import (
    INTERPOLATIONS,
    ImageView,
    Sample,
    boxes_in_view,
    flip_horizontal,
    flip_vertical,
    join_targets,
    part_in_image,
    resample_window,
    shift_target,
    target_in_view,
    visible_fractions,
    visible_part,
)
from focaldet.data.augment.ssd_crops import draw_window
from focaldet.data.loading.collate import blank_image
from focaldet.types import ImageSize, Preprocessing, Target

NUM_PARTNERS = 3
MOSAIC_SHRINK = (0.5, 1.0)
MOSAIC_CENTER = (0.3, 0.7)
CROP_ZOOM = (1.0, 2.0)
ZOOM_OUT = (1.0, 2.0)
# The smallest visible fraction of some object in a crop is drawn of these (as in SSD: Liu et al. 2016, section 2.2).
CROP_FRACTIONS = (0.3, 0.5, 0.7, 0.9, 1.0)
CROP_TRIES = 8


@dataclass(frozen=True, slots=True)
class Augmenter:
    """Augments samples for training as `augmentation` says, at the input size of `preprocessing`."""

    augmentation: AugmentConfig
    preprocessing: Preprocessing

    def __call__(self, sample: Sample, *, rng: random.Random, partners: Sequence[Sample] = ()) -> Sample:
        """The augmented sample at the network's input size; all random numbers come from `rng`.

        With three `partners` it is a mosaic: the frame is cut in four at a random point, and each part shows one image.
        Boxes are kept by the rule `keep_boxes` (`geometry.visible_part`), applied to each image's window.
        """
        resize = self.preprocessing.resize
        frame = resize.target(sample.size)
        canvas = blank_image(frame, preprocessing=self.preprocessing)
        parts = _quarters(frame, rng) if partners else [(0, 0, frame)]
        targets = [Target.empty()]
        for source, (y, x, part) in zip((sample, *partners), parts, strict=True):
            shrink = rng.uniform(*MOSAIC_SHRINK) if partners else 1.0
            view = self._draw_view(source, part, rng, shrink=shrink)
            if view is None:
                continue
            self._paint(source.image, view, rng, canvas=canvas[:, y : y + part.height, x : x + part.width])
            whole = target_in_view(source, view)
            target = visible_part(whole, size=view.shown, keep=self.augmentation.keep_boxes, frame=frame)
            targets.append(shift_target(target, x=x + view.x, y=y + view.y))
        augmented = Sample(canvas, join_targets(targets))
        if rng.random() < self.augmentation.flip_horizontal:
            augmented = flip_horizontal(augmented)
        return flip_vertical(augmented) if rng.random() < self.augmentation.flip_vertical else augmented

    def _draw_view(self, sample: Sample, frame: ImageSize, rng: random.Random, *, shrink: float) -> ImageView | None:
        """A random view: which part of the image is shown, how large and where in the frame.

        None where the window lies wholly on the canvas beside the image.
        """
        augmentation, size = self.augmentation, sample.size
        window = draw_window(size, sample.target.boxes, augmentation=augmentation, rng=rng)
        zoom, choice = shrink * rng.uniform(*augmentation.scale_jitter), rng.random()
        target = self._draw_content_size(size, rng)
        if choice < augmentation.crop:
            boxes = shift_target(sample.target, x=-window.left, y=-window.top).boxes
            scaled = _scale_size(target, zoom * rng.uniform(*CROP_ZOOM))
            view = _crop(boxes, window.size, frame, scaled, rng)
        else:
            if choice < augmentation.crop + augmentation.zoom_out:
                zoom /= rng.uniform(*ZOOM_OUT)
            view = _sample_view(window.size, frame, _scale_size(target, zoom), rng)
        return part_in_image(view, window, size=size)

    def _draw_content_size(self, size: ImageSize, rng: random.Random) -> ImageSize:
        """The size at which an image of `size` is shown before any zoom, its aspect ratio jittered."""
        resize, jitter = self.preprocessing.resize, self.augmentation.aspect_jitter
        content = resize.content(size)
        if jitter == 0:
            return content
        frame = resize.target(size)
        height, width = (side * (1 + rng.uniform(-jitter, jitter)) for side in content)
        fit = min(frame.height / height, frame.width / width)
        return ImageSize(*(max(1, round(side * fit)) for side in (height, width)))

    def _paint(
        self, image: UInt8[Tensor, "3 h w"], view: ImageView, rng: random.Random, *, canvas: UInt8[Tensor, "3 H W"]
    ) -> None:
        """Draw the view of an image, its colors changed at random, onto the canvas."""
        resize = self.preprocessing.resize
        kind, antialias = InterpolationMode.BILINEAR, resize.antialias
        if self.augmentation.interpolation == "random":
            kind, antialias = rng.choice(INTERPOLATIONS)
        shown = resample_window(image, view=view, antialias=antialias, interpolation=kind)
        view.part_of(canvas)[:] = change_colors(shown, draw_color_change(self.augmentation, rng))


def _quarters(frame: ImageSize, rng: random.Random) -> list[tuple[int, int, ImageSize]]:
    """Four parts (y, x, size) that cover the frame and meet in a point near its middle."""
    # A frame one pixel high cannot be halved; its parts then overlap and the later one is seen.
    y, x = (max(1, round(side * rng.uniform(*MOSAIC_CENTER))) for side in frame)
    rows = ((0, y), (min(y, frame.height - 1), max(1, frame.height - y)))
    columns = ((0, x), (min(x, frame.width - 1), max(1, frame.width - x)))
    return [(top, left, ImageSize(height, width)) for top, height in rows for left, width in columns]


def _scale_size(size: ImageSize, zoom: float) -> ImageSize:
    return ImageSize(*(max(1, round(side * zoom)) for side in size))


def _crop(
    boxes: Float[Tensor, "G 4"], size: ImageSize, frame: ImageSize, scaled: ImageSize, rng: random.Random
) -> ImageView:
    """A view of an image of `size` in which at least a random fraction of some object is visible.

    It is the last of `CROP_TRIES` views where none of them is such.
    """
    least = rng.choice(CROP_FRACTIONS) - 1e-4  # A whole box measures a little less than 1 in float32.
    for _ in range(CROP_TRIES):
        view = _sample_view(size, frame, scaled, rng)
        seen = boxes_in_view(boxes, view=view, size=size)
        if len(seen) == 0 or visible_fractions(seen, size=view.shown).max() >= least:
            break
    return view


def _sample_view(size: ImageSize, frame: ImageSize, scaled: ImageSize, rng: random.Random) -> ImageView:
    """A view of an image at the size `scaled`: a random window of it along a side that is longer than the frame's,
    else a random position in the frame.
    """
    top, height, shown_height, y = _sample_side(size.height, frame.height, scaled.height, rng)
    left, width, shown_width, x = _sample_side(size.width, frame.width, scaled.width, rng)
    window, shown = ImageSize(height, width), ImageSize(shown_height, shown_width)
    return ImageView(top=top, left=left, window=window, shown=shown, x=x, y=y)


def _sample_side(length: int, frame: int, scaled: int, rng: random.Random) -> tuple[int, int, int, int]:
    """One axis of a view: start and length of the window in the image, its length and start in the frame."""
    if scaled <= frame:
        return 0, length, scaled, rng.randint(0, frame - scaled)
    window = max(1, round(length * frame / scaled))
    return rng.randint(0, length - window), window, frame, 0
