"""TensorFlow's SAME padding, which is not the same before and behind.

Axes: B images, C channels, H W cells.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pad_for_halving(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """`x` with TensorFlow's SAME padding for a 3×3 kernel of stride 2, in zeros.

    H cells must become ⌈H / 2⌉, which takes 1 more row for even H and 2 for odd H. Of an odd number of rows the larger
    part lies behind: none before and 1 behind where H is even, 1 on each side where it is odd.
    """
    rows, columns = x.shape[-2:]
    return F.pad(x, (columns % 2, 1, rows % 2, 1))
