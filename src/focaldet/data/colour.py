"""Changes of hue, saturation and value, as one 3 × 3 matrix.

Going through HSV and back costs about forty passes over a picture. Turning and stretching RGB about its grey axis
changes the same three properties, and one matrix does it: the hue turns by the angle, greys stay what they are.
"""

import math

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

# With 10 binary places every product and sum below fits the 24 bits of float32: the result is exact, so that it is the
# same for any number of threads and any order of the sums.
_PLACES = 1024


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
