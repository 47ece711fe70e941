"""MobileNetV2 (Sandler et al. 2018), with torchvision's key names.

Axes: B images, C D channels, H W pixels.
"""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.nets.backbone import Backbone
from focaldet.nets.initialize import initialize_he
from focaldet.nets.norm import NormKind, conv_norm, norm_layer

# expansion, channels, blocks, stride of the first block: table 2 of the paper
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_ENDS = (3, 6, 13, 17)  # the last blocks of strides 4, 8, 16 and 32


class ConvNorm(nn.Sequential):
    """Convolution, normalization and ReLU6; the two layers are called "0" and "1" in checkpoints."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, *, stride: int, groups: int, norm: NormKind, eps: float
    ) -> None:
        conv = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, norm_layer(norm, out_channels, eps=eps))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        return F.relu6(conv_norm(x, conv, self[1]), inplace=True)


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise, 1×1 linear projection; a shortcut where the shape stays."""

    def __init__(
        self, channels: int, out_channels: int, *, stride: int, expansion: int, norm: NormKind, eps: float
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNorm(channels, hidden, 1, stride=1, groups=1, norm=norm, eps=eps))
        layers += [
            ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, norm=norm, eps=eps),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            norm_layer(norm, out_channels, eps=eps),
        ]
        self.conv = nn.ModuleList(layers)
        self.shortcut = stride == 1 and channels == out_channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = x
        *hidden, project, norm = self.conv
        for layer in hidden:
            y = layer(y)
        assert isinstance(project, nn.Conv2d)
        y = conv_norm(y, project, norm)
        return x + y if self.shortcut else y


class MobileNetV2(Backbone):
    """MobileNetV2-1.0 up to its last block; the 1×1 convolution to 1280 channels belongs to the classifier."""

    def __init__(self, *, norm: NormKind = "frozen", eps: float = 1e-5) -> None:
        super().__init__()
        blocks: list[nn.Module] = [ConvNorm(3, 32, 3, stride=2, groups=1, norm=norm, eps=eps)]
        channels = 32
        for expansion, out_channels, repeats, first_stride in _STAGES:
            for block in range(repeats):
                stride = 1 if block else first_stride
                blocks.append(
                    InvertedResidual(channels, out_channels, stride=stride, expansion=expansion, norm=norm, eps=eps)
                )
                channels = out_channels
        self.features = nn.ModuleList(blocks)
        self.channels = (24, 32, 96, 320)
        initialize_he(self.modules(), mode="fan_out")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalized images."""
        maps = []
        x = images
        for number, block in enumerate(self.features):
            x = block(x)
            if number in _ENDS:
                maps.append(x)
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage: the stem, then those that end in C2, C3, C4, C5."""
        cuts = (0, 1, *(end + 1 for end in _ENDS))
        blocks = list(self.features)
        return [blocks[start:stop] for start, stop in pairwise(cuts)]
