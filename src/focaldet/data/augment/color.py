"""Changes of the colours: brightness and contrast, and hue, saturation and value as one 3 × 3 matrix.

Going through HSV and back costs about forty passes over a picture. Turning and stretching RGB about its grey axis
changes the same three properties, and one matrix does it: the hue turns by the angle, greys stay what they are.
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
_PLACES = 1024


class Colours(NamedTuple):
    """What is done to the colours of one picture; the default changes nothing.

    Attributes:
        brightness: added to red, green and blue.
        contrast: factor ≥ 0 on red, green and blue.
        contrast_first: whether the contrast comes before hue, saturation and value; the brightness always does. The
            order matters where a step leaves 0…255 and is clipped.
        hue: turns.
        saturation: factor ≥ 0.
        value: factor ≥ 0.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_first: bool = True
    hue: float = 0.0
    saturation: float = 1.0
    value: float = 1.0


def draw_colours(strength: AugmentConfig, stream: random.Random) -> Colours:
    """Changes as strong as `strength` allows; for brightness, contrast and factors that are off nothing is drawn."""
    brightness, contrast, first = 0.0, 1.0, True
    if strength.brightness and _made(strength, stream):
        brightness = stream.uniform(-strength.brightness, strength.brightness)
    if strength.contrast and _made(strength, stream):
        contrast, first = 1 + stream.uniform(-strength.contrast, strength.contrast), stream.random() < 0.5
    hue = stream.uniform(-strength.hue, strength.hue) if _made(strength, stream) else 0.0
    saturation, value = (
        (1 + stream.uniform(-change, change)) * _factor(greatest, stream) if _made(strength, stream) else 1.0
        for change, greatest in (
            (strength.saturation, strength.saturation_factor),
            (strength.value, strength.value_factor),
        )
    )
    return Colours(brightness, contrast, first, hue, saturation, value)


def recoloured(image: UInt8[Tensor, "3 H W"], colours: Colours) -> UInt8[Tensor, "3 H W"]:
    """The picture after every change in its order, rounded and clipped to 0…255 after each one, as in SSD's program."""
    if colours.brightness:
        image = stretched(image, addend=colours.brightness)
    if colours.contrast_first and colours.contrast != 1:
        image = stretched(image, factor=colours.contrast)
    if (colours.hue, colours.saturation, colours.value) != (0, 1, 1):
        matrix = hsv_matrix(hue=colours.hue, saturation=colours.saturation, value=colours.value)
        image = recolour(image, matrix)
    if not colours.contrast_first and colours.contrast != 1:
        image = stretched(image, factor=colours.contrast)
    return image


def hsv_matrix(*, hue: float, saturation: float, value: float) -> Float32[Tensor, "3 3"]:
    """The matrix that turns the hue and multiplies saturation and value; the identity for (0, 1, 1).

    Args:
        hue: turns: 1/3 makes red green, green blue and blue red.
        saturation: factor ≥ 0 on the distance from grey; 0 leaves the mean of the channels.
        value: factor ≥ 0 on the brightness.
    """
    cosine, sine = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue) / math.sqrt(3)
    same, before, after = (1 + 2 * cosine) / 3, (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
    turn = torch.tensor([[same, before, after], [after, same, before], [before, after, same]], dtype=torch.float64)
    matrix = value * (saturation * turn + (1 - saturation) / 3)
    return ((matrix * _PLACES).round() / _PLACES).to(torch.float32)


def recolour(image: UInt8[Tensor, "3 H W"], matrix: Float32[Tensor, "3 3"]) -> UInt8[Tensor, "3 H W"]:
    """`matrix` applied to every RGB pixel, rounded and clipped to 0…255."""
    red, green, blue = image.to(torch.float32, memory_format=torch.contiguous_format)
    columns = matrix.T[:, :, None, None]
    mixed: Tensor = (columns[0] * red).addcmul_(columns[1], green).addcmul_(columns[2], blue)
    return mixed.round_().clamp_(0, 255).to(torch.uint8)


def stretched(image: UInt8[Tensor, "3 H W"], *, factor: float = 1.0, addend: float = 0.0) -> UInt8[Tensor, "3 H W"]:
    """`factor` · pixel + `addend`, rounded and clipped to 0…255."""
    factor, addend = (round(number * _PLACES) / _PLACES for number in (factor, addend))
    return image.float().mul_(factor).add_(addend).round_().clamp_(0, 255).to(torch.uint8)


def _made(strength: AugmentConfig, stream: random.Random) -> bool:
    """Whether a change is made; where all are, nothing is drawn."""
    return strength.recolor == 1 or stream.random() < strength.recolor


def _factor(greatest: float, stream: random.Random) -> float:
    """A factor from 1 to `greatest` or its inverse; where it is off, nothing is drawn."""
    if greatest == 1:
        return 1.0
    factor = stream.uniform(1, greatest)
    return factor if stream.random() < 0.5 else 1 / factor
