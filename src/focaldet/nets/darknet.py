"""DarkNet-19 (Redmon and Farhadi 2016, "YOLO9000", table 6) without its classifier, and the layers YOLOv2 adds to it.

Axes: B images, C D channels, H W pixels.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.nets.backbone import Backbone
from focaldet.nets.norm import NormKind, conv_norm, norm_layer

DARKNETS = {"darknet19": 1.0, "darknet19_half": 0.5, "darknet19_quarter": 0.25}
"""Names of the backbones, and the factor on the published widths."""

NEGATIVE_SLOPE = 0.1
# (kernel, channels) of the convolutions between two poolings: layers 0, 2, 4 to 6, 8 to 10, 12 to 16, 18 to 22.
_BLOCKS = (
    ((3, 32),),
    ((3, 64),),
    ((3, 128), (1, 64), (3, 128)),
    ((3, 256), (1, 128), (3, 256)),
    ((3, 512), (1, 256), (3, 512), (1, 256), (3, 512)),
    ((3, 1024), (1, 512), (3, 1024), (1, 512), (3, 1024)),
)


class ConvLeaky(nn.Module):
    """A convolution that keeps the size, normalization, and a leaky ReLU: x for x > 0, else 0.1 x."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, norm: NormKind, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = norm_layer(norm, out_channels, eps=eps)
        nn.init.kaiming_normal_(self.conv.weight, a=NEGATIVE_SLOPE)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return F.leaky_relu(conv_norm(x, self.conv, self.norm), NEGATIVE_SLOPE, inplace=True)


class DarkNet19(Backbone):
    """The 18 convolutions before the classifier's; `factor` scales all widths (1 is the published network)."""

    def __init__(self, factor: float = 1.0, *, norm: NormKind = "batch", eps: float = 1e-5) -> None:
        super().__init__()
        blocks = []
        channels, widths = 3, []
        for block in _BLOCKS:
            layers = []
            for kernel, published in block:
                width = max(1, round(published * factor))
                layers.append(ConvLeaky(channels, width, kernel, norm=norm, eps=eps))
                channels = width
            blocks.append(nn.Sequential(*layers))
            widths.append(channels)
        self.blocks = nn.ModuleList(blocks)
        self.channels = (widths[2], widths[3], widths[4], widths[5])

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalized images."""
        maps = []
        x = images
        for number, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if number else x)
            maps.append(x)
        return maps[2:]

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage: the stem, which has two poolings, then those that end in C2, C3, C4, C5."""
        first, second, *rest = self.blocks
        return [[first, second], *([block] for block in rest)]


def reorganize(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 4*C H//2 W//2"]:
    """The map at half its size with four times its channels, in the order of darknet's `reorg` layer with stride 2.

    It is not the usual space-to-depth: the C × H × W numbers are first read as C/4 × 2H × 2W, that is taken apart into
    its four grids of every other row and column, and the answer is read as 4C × H/2 × W/2. C must divide by 4, H and W
    by 2.
    """
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, channels // 4, height, 2, width, 2).permute(0, 3, 5, 1, 2, 4)
    return apart.reshape(batch, 4 * channels, height // 2, width // 2)
