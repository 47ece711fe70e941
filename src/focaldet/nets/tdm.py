"""Top-down modulation (Shrivastava et al. 2016): coarse maps are merged into finer ones, and only the finest is used.

A re-creation: the authors released no code, and widths and end points for Inception-ResNet-v2 are our own choice.

Axes: B images, C D E channels, H W cells.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.nets.dssd import fit_cells
from focaldet.nets.initialize import initialize_he

WIDTHS_TO_STRIDE_8 = (256,)
"""Widths of the two sides of each module, coarsest first: one module from stride 16 to 8, its map has 512 channels."""
WIDTHS_TO_STRIDE_4 = (256, 128)
"""The same with a second module, to stride 4; its map has 256 channels."""


class TopDownModule(nn.Module):
    """The coarser map T and the finer one L, a 3×3 convolution with ReLU each, side by side in a 1×1 one with ReLU.

    T is doubled by repeating its cells, unless the maps are of one size already. Where L has an odd number of rows or
    columns, T's last one is cut off; where L was made without padding and T is too small, T's last one is repeated.
    """

    def __init__(self, coarse_channels: int, fine_channels: int, width: int) -> None:
        super().__init__()
        self.top_down = nn.Conv2d(coarse_channels, width, 3, padding=1)
        self.lateral = nn.Conv2d(fine_channels, width, 3, padding=1)
        self.output = nn.Conv2d(2 * width, 2 * width, 1)
        self.channels = 2 * width

    def forward(self, coarse: Float[Tensor, "B C h w"], fine: Float[Tensor, "B D H W"]) -> Float[Tensor, "B E H W"]:
        top = F.relu(self.top_down(coarse), inplace=True)
        if torch.compiler.is_exporting():  # the same cells, of maps made with padding, without asking for their number
            top = F.interpolate(top, size=fine.shape[-2:], mode="nearest")
        elif coarse.shape[-2:] != fine.shape[-2:]:
            top = fit_cells(F.interpolate(top, scale_factor=2, mode="nearest"), like=fine, padding=0)
        both = torch.cat([F.relu(self.lateral(fine), inplace=True), top], 1)
        return F.relu(self.output(both), inplace=True)


class TopDownNetwork(nn.Module):
    """As many modules as there are `widths`, from the coarsest of the maps down; `channels` are those of the result.

    Regions are proposed on the result and cut from it: nothing is predicted on the other maps.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        modules: list[TopDownModule] = []
        for index, width in enumerate(widths):
            coarse = modules[-1].channels if modules else channels[-1]
            modules.append(TopDownModule(coarse, channels[-2 - index], width))
        self.steps = nn.ModuleList(modules)
        self.channels = modules[-1].channels
        initialize_he(self.modules())

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The last module's map, the only level. `maps` are finest first, with the channels given at the start."""
        x = maps[-1]
        for index, module in enumerate(self.steps):
            x = module(x, maps[-2 - index])
        return [x]
