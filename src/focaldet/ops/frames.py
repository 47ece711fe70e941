"""How much of a padded batch is picture.

Axes: B images, H W pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

TOLERANCE = 0.5  # padding of a mean colour is rounded where pixels are bytes


def content_sizes(
    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"], padding: Sequence[float]
) -> Float[Tensor, "B 2"]:
    """Height and width of each picture without the rows and columns of colour `padding` (RGB) below and right of it.

    What is of that colour all along its border is 0 after normalisation as padding is: no network can tell the two
    apart. A picture of nothing else counts as whole. No pixel leaves the device.
    """
    content = torch.zeros_like(images[:, 0], dtype=torch.bool)
    for channel, value in enumerate(padding):
        content |= (images[:, channel].float() - value).abs() > TOLERANCE
    return torch.stack([_extent(content.any(2)), _extent(content.any(1))], dim=1)


def _extent(content: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """The place behind the last True of each row; behind the end where there is none."""
    places = torch.arange(1, content.shape[1] + 1, device=content.device) * content
    last = places.amax(1)
    return torch.where(last > 0, last, content.shape[1]).float()
