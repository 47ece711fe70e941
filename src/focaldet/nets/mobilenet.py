"""MobileNetV2 (Sandler et al. 2018), with torchvision's key names.

Axes: B images, C D channels, H W pixels.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.nets.backbone import Backbone
from focaldet.nets.initialize import initialize_he
from focaldet.nets.norm import NormKind, conv_norm, norm_layer
from focaldet.nets.same_padding import SameConv2d

# expansion, channels, blocks, stride of the first block: table 2 of the paper
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_ENDS = (3, 6, 13, 17)  # the last blocks of strides 4, 8, 16 and 32
LAST_CHANNELS = 1280  # of the 1×1 convolution behind the blocks


@dataclass(frozen=True, slots=True)
class MobileLayers:
    """How all layers are made; `same` pads as TensorFlow does, ⌈H / 2⌉ cells after each halving."""

    norm: NormKind
    eps: float
    same: bool = False


class ConvNorm(nn.Sequential):
    """Convolution, normalization and ReLU6; the two layers are called "0" and "1" in checkpoints."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, layers: MobileLayers
    ) -> None:
        conv = (
            SameConv2d(channels, out_channels, kernel, stride=stride, groups=groups)
            if layers.same
            else nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        )
        super().__init__(conv, norm_layer(layers.norm, out_channels, eps=layers.eps))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        return F.relu6(conv_norm(x, conv, self[1]), inplace=True)


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise, 1×1 linear projection; a shortcut where the shape stays."""

    def __init__(self, channels: int, out_channels: int, *, stride: int, expansion: int, layers: MobileLayers) -> None:
        super().__init__()
        hidden = channels * expansion
        parts: list[nn.Module] = []
        if expansion != 1:
            parts.append(ConvNorm(channels, hidden, 1, layers=layers))
        parts += [
            ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, layers=layers),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            norm_layer(layers.norm, out_channels, eps=layers.eps),
        ]
        self.conv = nn.ModuleList(parts)
        self.shortcut = stride == 1 and channels == out_channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.contract(self.expand(x))
        return x + y if self.shortcut else y

    def expand(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """The first layer: the expansion, or the depthwise convolution of a block that has none."""
        y: Tensor = self.conv[0](x)
        return y

    def contract(self, y: Float[Tensor, "B E H W"]) -> Float[Tensor, "B D h w"]:
        """All layers behind the first, without the shortcut."""
        *hidden, project, norm = list(self.conv)[1:]
        for layer in hidden:
            y = layer(y)
        assert isinstance(project, nn.Conv2d)
        return conv_norm(y, project, norm)


class MobileNetV2(Backbone):
    """MobileNetV2-1.0 up to its last block; the 1×1 convolution to 1280 channels belongs to the classifier."""

    def __init__(self, *, norm: NormKind = "frozen", eps: float = 1e-5, same: bool = False) -> None:
        super().__init__()
        layers = MobileLayers(norm, eps, same)
        blocks: list[nn.Module] = [ConvNorm(3, 32, 3, stride=2, layers=layers)]
        channels = 32
        for expansion, out_channels, repeats, first_stride in _STAGES:
            for block in range(repeats):
                stride = 1 if block else first_stride
                blocks.append(
                    InvertedResidual(channels, out_channels, stride=stride, expansion=expansion, layers=layers)
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


class TensorFlowMobileNetV2(MobileNetV2):
    """MobileNetV2-1.0 as TensorFlow's Object Detection API takes its maps from it, with TensorFlow's padding.

    C4 is what the first block of stride 32 widens its input to (layer_15/expansion_output, 576 channels at stride 16),
    C5 that of the 1×1 convolution behind all blocks (layer_19, 1280).
    """

    def __init__(self, *, norm: NormKind = "frozen", eps: float = 1e-3) -> None:
        super().__init__(norm=norm, eps=eps, same=True)
        *first, widest = self.channels
        last = ConvNorm(widest, LAST_CHANNELS, 1, layers=MobileLayers(norm, eps, same=True))
        initialize_he(last.modules(), mode="fan_out")
        self.features.append(last)
        self.channels = (first[0], first[1], first[2] * _STAGES[-2][0], LAST_CHANNELS)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalized images."""
        fine, middle, coarse, _ = _ENDS
        maps = []
        x = images
        for number, block in enumerate(self.features):
            if number == coarse + 1:
                assert isinstance(block, InvertedResidual)
                maps.append(block.expand(x))
                x = block.contract(maps[-1])
                continue
            x = block(x)
            if number in (fine, middle):
                maps.append(x)
        return [*maps, x]

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage: the stem, then those that end in C2, C3, C4, C5; C4's last layer counts to C5."""
        *first, last = super().stages()
        return [*first, [*last, self.features[-1]]]
