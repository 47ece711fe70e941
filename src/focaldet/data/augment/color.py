"""Color augmentation: brightness and contrast, and hue, saturation and value as one 3 × 3 matrix.

Going through HSV and back costs about forty passes over an image. Rotating and scaling RGB about its gray axis changes
the same three properties with one matrix: the hue turns by the angle, grays keep their color.
"""

import math
import random
from typing import NamedTuple

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from focaldet.data.augment.config import AugmentConfig

# With 10 binary places every product and sum below fits the 24 bits of float32: the result is exact, so that it is the
# same for any number of threads and any order of the sums.
_BINARY_STEPS = 1024

_BLOCK_PIXELS = 65_536  # of which two copies in float32 take 1.5 MB


class ColorChange(NamedTuple):
    """A change of the colors of one image; the default changes nothing.

    Attributes:
        brightness: added to red, green and blue.
        contrast: factor ≥ 0 on red, green and blue.
        contrast_first: whether the contrast comes before hue, saturation and value; the brightness always does. The
            order matters where a step leaves 0…255 and is clipped.
        hue: rotation in turns; 1 is a full turn.
        saturation: factor ≥ 0.
        value: factor ≥ 0.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: bool = True
    hue: float = 0.0
    saturation: float = 1.0
    value: float = 1.0


def draw_color_change(augmentation: AugmentConfig, rng: random.Random) -> ColorChange:
    """A random change within the limits of `augmentation`.

    For brightness, contrast and factors that are off no random number is drawn.
    """
    brightness, contrast, first = 0.0, 1.0, True
    if augmentation.brightness and _is_applied(augmentation, rng):
        brightness = rng.uniform(-augmentation.brightness, augmentation.brightness)
    if augmentation.contrast and _is_applied(augmentation, rng):
        contrast, first = 1 + rng.uniform(-augmentation.contrast, augmentation.contrast), rng.random() < 0.5
    hue = rng.uniform(-augmentation.hue, augmentation.hue) if _is_applied(augmentation, rng) else 0.0
    saturation, value = (
        (1 + rng.uniform(-change, change)) * _factor(largest, rng) if _is_applied(augmentation, rng) else 1.0
        for change, largest in (
            (augmentation.saturation, augmentation.saturation_factor),
            (augmentation.value, augmentation.value_factor),
        )
    )
    return ColorChange(brightness, contrast, first, hue, saturation, value)


def change_colors(image: UInt8[Tensor, "3 H W"], change: ColorChange) -> UInt8[Tensor, "3 H W"]:
    """The image with its colors changed, rounded and clipped to 0…255 after each step, as in SSD's program."""
    if change.brightness:
        image = scale_values(image, addend=change.brightness)
    if change.contrast_first and change.contrast != 1:
        image = scale_values(image, factor=change.contrast)
    if (change.hue, change.saturation, change.value) != (0, 1, 1):
        matrix = hsv_matrix(hue=change.hue, saturation=change.saturation, value=change.value)
        image = multiply_colors(image, matrix)
    if not change.contrast_first and change.contrast != 1:
        image = scale_values(image, factor=change.contrast)
    return image


def hsv_matrix(*, hue: float, saturation: float, value: float) -> Float32[Tensor, "3 3"]:
    """The 3 × 3 matrix on RGB that rotates the hue and scales saturation and value; the identity for (0, 1, 1).

    Args:
        hue: rotation in turns: 1/3 makes red green, green blue and blue red.
        saturation: factor ≥ 0 on the distance from gray; 0 leaves the mean of the channels.
        value: factor ≥ 0 on the brightness.
    """
    cosine, sine = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue) / math.sqrt(3)
    same, before, after = (1 + 2 * cosine) / 3, (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
    turn = torch.tensor([[same, before, after], [after, same, before], [before, after, same]], dtype=torch.float64)
    matrix = value * (saturation * turn + (1 - saturation) / 3)
    return ((matrix * _BINARY_STEPS).round() / _BINARY_STEPS).to(torch.float32)


def multiply_colors(image: UInt8[Tensor, "3 H W"], matrix: Float32[Tensor, "3 3"]) -> UInt8[Tensor, "3 H W"]:
    """The image with `matrix` applied to every RGB pixel, rounded and clipped to 0…255.

    A block of rows at a time: in floating point it stays in the processor's cache, which a whole image does not.
    """
    columns, changed = matrix.T[:, :, None, None], torch.empty_like(image)
    rows = max(1, _BLOCK_PIXELS // max(1, image.shape[2]))
    for block, result in zip(torch.split(image, rows, dim=1), torch.split(changed, rows, dim=1), strict=True):
        red, green, blue = block.to(torch.float32, memory_format=torch.contiguous_format)
        mixed: Tensor = (columns[0] * red).addcmul_(columns[1], green).addcmul_(columns[2], blue)
        result.copy_(mixed.round_().clamp_(0, 255))
    return changed


def scale_values(image: UInt8[Tensor, "3 H W"], *, factor: float = 1.0, addend: float = 0.0) -> UInt8[Tensor, "3 H W"]:
    """The image as `factor` · pixel + `addend`, rounded and clipped to 0…255."""
    factor, addend = (round(number * _BINARY_STEPS) / _BINARY_STEPS for number in (factor, addend))
    return image.float().mul_(factor).add_(addend).round_().clamp_(0, 255).to(torch.uint8)


def _is_applied(augmentation: AugmentConfig, rng: random.Random) -> bool:
    """Whether one step of the change is applied; no random number is drawn where all of them are."""
    return augmentation.recolor == 1 or rng.random() < augmentation.recolor


def _factor(largest: float, rng: random.Random) -> float:
    """A random factor from 1 to `largest` or its inverse; no random number is drawn where it is off."""
    if largest == 1:
        return 1.0
    factor = rng.uniform(1, largest)
    return factor if rng.random() < 0.5 else 1 / factor
