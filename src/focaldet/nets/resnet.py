"""ResNet (He et al. 2015) and ResNeXt (Xie et al. 2016), with torchvision's key names.

Axes: B images, C D channels, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.nets.backbone import Backbone
from focaldet.nets.initialize import initialize_he
from focaldet.nets.norm import NormKind, conv_norm, norm_layer


@dataclass(frozen=True, slots=True)
class ResNetShape:
    """Blocks per stage, the width of their inner convolutions, and that of the stem, which stages after C2 double."""

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64
    stem_width: int = 64


RESNETS = {
    "resnet18": ResNetShape((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetShape((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetShape((3, 4, 6, 3)),
    "resnet101": ResNetShape((3, 4, 23, 3)),
    "resnext101_32x8d": ResNetShape((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": ResNetShape((3, 4, 23, 3), groups=64, width_per_group=4),
}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, channels: int, planes: int, *, stride: int, dilation: int, norm: NormKind, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, dilation, dilation, bias=False)
        self.bn1 = norm_layer(norm, planes, eps=eps)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = norm_layer(norm, planes, eps=eps)
        self.downsample = _shortcut(channels, planes, stride=stride, norm=norm, eps=eps)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        y = conv_norm(y, self.conv2, self.bn2)
        return F.relu(y + _apply_shortcut(x, self.downsample), inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; the stride sits in the 3×3, or in the first 1×1 (MSRA)."""

    expansion = 4

    def __init__(
        self,
        channels: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        shape: ResNetShape,
        stride_in_1x1: bool,
        norm: NormKind,
        eps: float,
    ) -> None:
        super().__init__()
        width = planes * shape.width_per_group // 64 * shape.groups
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(channels, width, 1, first, bias=False)
        self.bn1 = norm_layer(norm, width, eps=eps)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, groups=shape.groups, bias=False)
        self.bn2 = norm_layer(norm, width, eps=eps)
        self.conv3 = nn.Conv2d(width, planes * self.expansion, 1, bias=False)
        self.bn3 = norm_layer(norm, planes * self.expansion, eps=eps)
        self.downsample = _shortcut(channels, planes * self.expansion, stride=stride, norm=norm, eps=eps)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(conv_norm(y, self.conv2, self.bn2), inplace=True)
        y = conv_norm(y, self.conv3, self.bn3)
        return F.relu(y + _apply_shortcut(x, self.downsample), inplace=True)


class ResNet(Backbone):
    """ResNet-18/34/50/101 or ResNeXt-101 without its classifier.

    `ceil_pool` is Caffe's pooling after the stem, not padded and rounded up: 257 becomes 128. `dilated_c5` leaves out
    the last halving and spreads the 3×3 convolutions of that stage by 2 instead: C5 has the stride of C4.
    """

    def __init__(
        self,
        name: str,
        *,
        norm: NormKind = "frozen",
        eps: float = 1e-5,
        stride_in_1x1: bool = False,
        ceil_pool: bool = False,
        dilated_c5: bool = False,
    ) -> None:
        super().__init__()
        shape = RESNETS[name]
        self.ceil_pool = ceil_pool
        self.conv1 = nn.Conv2d(3, shape.stem_width, 7, 2, 3, bias=False)
        self.bn1 = norm_layer(norm, shape.stem_width, eps=eps)
        block: Callable[..., nn.Module] = BasicBlock
        if shape.bottleneck:
            block = partial(Bottleneck, shape=shape, stride_in_1x1=stride_in_1x1)
        expansion = Bottleneck.expansion if shape.bottleneck else BasicBlock.expansion
        channels = shape.stem_width
        widths = []
        for number, depth in enumerate(shape.depths):
            blocks: list[nn.Module] = []
            dilation = 2 if dilated_c5 and number == len(shape.depths) - 1 else 1
            planes = shape.stem_width * 2**number
            for index in range(depth):
                stride = 2 if number and not index and dilation == 1 else 1
                blocks.append(block(channels, planes, stride=stride, dilation=dilation, norm=norm, eps=eps))
                channels = planes * expansion
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            widths.append(channels)
        self.channels = (widths[0], widths[1], widths[2], widths[3])
        initialize_he(self.modules(), mode="fan_out")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalized images; to C4 after `cut`."""
        x = F.relu(conv_norm(images, self.conv1, self.bn1), inplace=True)
        x = F.max_pool2d(x, 3, 2, 0 if self.ceil_pool else 1, ceil_mode=self.ceil_pool)
        maps = []
        for layer in self._layers():
            x = layer(x)
            maps.append(x)
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage: the stem, then those that end in C2, C3, C4, C5."""
        return [[self.conv1, self.bn1], *([layer] for layer in self._layers())]

    def cut(self) -> nn.Module:
        """Take conv5 out and return it: what is left ends in C4."""
        tail = self.get_submodule("layer4")
        del self.layer4
        return tail

    def _layers(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name.startswith("layer")]


def _shortcut(channels: int, out_channels: int, *, stride: int, norm: NormKind, eps: float) -> nn.Sequential | None:
    if stride == 1 and channels == out_channels:
        return None
    conv = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, norm_layer(norm, out_channels, eps=eps))


def _apply_shortcut(x: Float[Tensor, "B C H W"], shortcut: nn.Sequential | None) -> Float[Tensor, "B D h w"]:
    if shortcut is None:
        return x
    conv = shortcut[0]
    assert isinstance(conv, nn.Conv2d)
    return conv_norm(x, conv, shortcut[1])
