"""The decoder of DSSD (Fu et al. 2017, section 3.2): from the coarsest map back to the finest.

Axes: B images, C D channels, H W cells.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.nets.heads import initialize_tower
from focaldet.nets.ssd import STRIDE_OF_KERNEL, ConvNormReLU, SSDLayers, at_level


class DeconvolutionModule(nn.Module):
    """The coarser map enlarged by a transposed convolution, times the finer one, and ReLU (figure 3 of the paper).

    The released script gives the first transposed convolution, from 1 cell to 2, stride 1: the same numbers as with
    stride 2, which also fits larger images.
    """

    def __init__(
        self, channels: int, fine_channels: int, width: int, *, kernel: int, stride: int, layers: SSDLayers
    ) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, width, kernel, stride)
        self.up_conv = ConvNormReLU(width, width, layers=layers, relu=False)
        self.fine_conv1 = ConvNormReLU(fine_channels, width, layers=layers)
        self.fine_conv2 = ConvNormReLU(width, width, layers=layers, relu=False)

    def forward(
        self, coarse: Float[Tensor, "B C h w"], fine: Float[Tensor, "B D H W"], *, padding: int
    ) -> Float[Tensor, "B E H W"]:
        """`padding` is that of the convolution that made `coarse` of `fine`."""
        raised = self.up_conv(fit_cells(self.up(coarse), like=fine, padding=padding))
        return F.relu(raised * self.fine_conv2(self.fine_conv1(fine)))


class Decoder(nn.Module):
    """A deconvolution module for every map but the coarsest, which stays as it is.

    `kernels` are those of the convolutions that made a map of the next finer one, finest first: their transposed ones
    undo them. That of the coarsest map has `top_kernel` instead.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        *,
        kernels: Sequence[int],
        top_kernel: int,
        paddings: Sequence[int],
        layers: SSDLayers,
    ) -> None:
        super().__init__()
        self.paddings = tuple(paddings)
        top = len(channels) - 2
        self.steps = nn.ModuleList(
            DeconvolutionModule(
                channels[-1] if level == top else width,
                channels[level],
                width,
                kernel=top_kernel if level == top else kernels[level],
                stride=STRIDE_OF_KERNEL[kernels[level]],
                layers=layers,
            )
            for level in range(top + 1)
        )
        initialize_tower(self.modules(), layers.tower_init)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The combined maps, finest first; the last one is that of the encoder."""
        combined = [levels[-1]]
        for level in reversed(range(len(self.steps))):
            padding = at_level(self.paddings, level)
            combined.insert(0, self.steps[level](combined[0], levels[level], padding=padding))
        return combined


def fit_cells(x: Float[Tensor, "B C h w"], *, like: Float[Tensor, "B D H W"], padding: int) -> Float[Tensor, "B C H W"]:
    """`x` brought to the cells of `like`, of which halving left a rest.

    Too large, it loses first the `padding` rows and columns that lay before the map, then the last ones; too small,
    its last row and column are repeated.
    """
    for axis in (-2, -1):
        more = x.shape[axis] - like.shape[axis]
        if more > 0:
            x = x.narrow(axis, min(padding, more), like.shape[axis])
    down, right = (wanted - side for wanted, side in zip(like.shape[-2:], x.shape[-2:], strict=True))
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
