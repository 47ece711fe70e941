"""Scenes of the embedded data set: handwritten digits on a piece of a photograph.

Axes: N digits, H W pixels.
"""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from focaldet.data.augment.geometry import ImageView, Sample, flip_horizontal, resample_window
from focaldet.types import ImageSize, Target

SCENE_SIZE = ImageSize(192, 256)
MAX_DIGITS = 8
DIGIT_HEIGHT_PX = (26.0, 150.0)  # small, medium and large ones in the sense of COCO
STRETCH = (0.85, 1.15)
# A photograph's window is at least this fraction of what would fit: a smaller one is a blur of two or three colors.
WINDOW_FRACTION = (0.6, 1.0)
MAX_OVERLAP = 0.1
MIN_CONTRAST = 90.0
TRIES = 12
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Material:
    """The material of scenes: photographs, and 8 × 8 images of digits with ink in [0, 1]."""

    photographs: tuple[UInt8[Tensor, "3 _ _"], ...]
    digits: Float[Tensor, "N 8 8"]
    labels: Int64[Tensor, " N"]


@dataclass(frozen=True, slots=True)
class PlacedDigit:
    """A digit's ink in [0, 1], touching all four edges of its box, whose top left corner is at (`x`, `y`)."""

    ink: Float[Tensor, "H W"]
    label: int
    x: int
    y: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """xyxy pixels of the scene."""
        height, width = self.ink.shape
        return float(self.x), float(self.y), float(self.x + width), float(self.y + height)


def draw_layout(material: Material, rng: random.Random) -> list[PlacedDigit]:
    """Up to eight digits at random positions; a digit is dropped where no free position is drawn for it."""
    placed: list[PlacedDigit] = []
    for _ in range(rng.randint(0, MAX_DIGITS)):
        choice = rng.randrange(len(material.labels))
        ink = _enlarge(material.digits[choice], rng)
        for _ in range(TRIES):
            y, x = (rng.randint(0, limit - side) for limit, side in zip(SCENE_SIZE, ink.shape, strict=True))
            digit = PlacedDigit(ink, int(material.labels[choice]), x, y)
            if all(_overlap(digit, other) <= MAX_OVERLAP for other in placed):
                placed.append(digit)
                break
    return placed


def layout_target(layout: list[PlacedDigit]) -> Target:
    """The boxes and classes of a layout."""
    boxes = torch.tensor([digit.box for digit in layout], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([digit.label for digit in layout], dtype=torch.int64)
    return Target(boxes, labels, torch.zeros(len(layout), dtype=torch.bool))


def draw_scene(layout: list[PlacedDigit], material: Material, rng: random.Random) -> UInt8[Tensor, "3 H W"]:
    """The layout painted on a piece of a photograph, each digit in a color that stands out from what is below it."""
    image = _background(material, rng)
    for digit in layout:
        height, width = digit.ink.shape
        below = image[:, digit.y : digit.y + height, digit.x : digit.x + width]
        color = _contrasting_color(below.mean((1, 2)), rng)
        below += digit.ink * (color[:, None, None] - below)
    return image.round().to(torch.uint8)


def _enlarge(digit: Float[Tensor, "8 8"], rng: random.Random) -> Float[Tensor, "H W"]:
    """The ink of a digit at a random size, its edges sharp to about a pixel, cropped to where there is ink."""
    low, high = DIGIT_HEIGHT_PX
    height = low * (high / low) ** rng.random()
    rows = int((digit > 0.5).any(1).sum())
    scale_y = height / max(rows, 1)
    scale_x = scale_y * rng.uniform(*STRETCH)
    # The ring of paper around the digit lets its strokes end before the edge.
    paper = functional.pad(digit, (1, 1, 1, 1))[None, None]
    size = (round(10 * scale_y), round(10 * scale_x))
    smooth = functional.interpolate(paper, size=size, mode="bicubic", align_corners=False)[0, 0]
    ink: Tensor = ((smooth - 0.45) * scale_y + 0.5).clamp(0, 1)
    top, bottom = _extent((ink > 0.1).any(1))
    left, right = _extent((ink > 0.1).any(0))
    return ink[top : min(bottom, top + SCENE_SIZE.height), left : min(right, left + SCENE_SIZE.width)]


def _extent(inked: Tensor) -> tuple[int, int]:
    """The index of the first row (or column) with ink, and one past the last."""
    rows = inked.nonzero()
    return int(rows[0]), int(rows[-1]) + 1


def _overlap(one: PlacedDigit, other: PlacedDigit) -> float:
    """The intersection of two boxes as a fraction of the smaller one."""
    (a1, b1, a2, b2), (c1, d1, c2, d2) = one.box, other.box
    shared = max(0.0, min(a2, c2) - max(a1, c1)) * max(0.0, min(b2, d2) - max(b1, d1))
    return shared / min(one.ink.numel(), other.ink.numel())


def _background(material: Material, rng: random.Random) -> Float[Tensor, "3 H W"]:
    """A random window of a photograph at the size of the scene, flipped left to right half of the time."""
    photograph = rng.choice(material.photographs)
    size = ImageSize(*photograph.shape[1:])
    scale = min(size.height / SCENE_SIZE.height, size.width / SCENE_SIZE.width) * rng.uniform(*WINDOW_FRACTION)
    window = ImageSize(*(int(side * scale) for side in SCENE_SIZE))
    top, left = (rng.randint(0, whole - part) for whole, part in zip(size, window, strict=True))
    view = ImageView(top=top, left=left, window=window, shown=SCENE_SIZE, x=0, y=0)
    scene = Sample(resample_window(photograph, view=view, antialias=True), Target.empty())
    return (flip_horizontal(scene) if rng.random() < 0.5 else scene).image.float()


def _contrasting_color(below: Float[Tensor, "3"], rng: random.Random) -> Float[Tensor, "3"]:
    """A random color that is much lighter or darker than the mean color `below`."""
    luma = torch.tensor(_LUMA)
    for _ in range(TRIES):
        color = torch.tensor([rng.uniform(0, 255) for _ in range(3)])
        if abs(float(luma @ (color - below))) >= MIN_CONTRAST:
            return color
    return torch.full((3,), 0.0 if float(luma @ below) > 127.5 else 255.0)
