"""Inception-ResNet-v2 (Szegedy et al. 2016) for detection: cut in two, with timm's key names.

The cut, the output stride of 8 and the padding are those of Huang et al. 2016, section 3.2, and of the released slim
network: the trunk makes the map that regions are proposed on and cut from, the tail classifies each cut-out.

Axes: B images, R regions, C D channels, H W cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.nets.backbone import Staged
from focaldet.nets.initialize import initialize_he
from focaldet.nets.norm import FrozenBatchNorm, NormKind, conv_norm

INCEPTION_EPS = 1e-3
"""What all of the network's BatchNorms add to the variance."""
INCEPTION_GROUP_CHANNELS = 8  # of GroupNorm: all widths are multiples of it

Padding = Literal["same", "valid"]
Steps = Sequence[tuple[int, tuple[int, int]]]
"""Published widths and kernels (rows, columns) of convolutions one after the other."""


@dataclass(frozen=True, slots=True)
class InceptionResNetShape:
    """The factor on all published widths, and how often Block35, Block17 and Block8 are repeated.

    The last Block8, which has no ReLU, is not counted. A width is rounded to a multiple of 8 and is at least 8.
    """

    factor: float = 1.0
    repeats: tuple[int, int, int] = (10, 20, 9)

    def width(self, published: int) -> int:
        """What becomes of a published width."""
        return max(1, int(published * self.factor / INCEPTION_GROUP_CHANNELS + 0.5)) * INCEPTION_GROUP_CHANNELS


INCEPTION_RESNETS = {
    "inception_resnet_v2": InceptionResNetShape(),
    "inception_resnet_small": InceptionResNetShape(factor=0.25, repeats=(2, 4, 2)),
}
"""The published network, and one that trains from random weights without a graphics card."""

# fmt: off
_MIXED_5B = (((96, (1, 1)),), ((48, (1, 1)), (64, (5, 5))), ((64, (1, 1)), (96, (3, 3)), (96, (3, 3))))
_BLOCK35 = (((32, (1, 1)),), ((32, (1, 1)), (32, (3, 3))), ((32, (1, 1)), (48, (3, 3)), (64, (3, 3))))
_MIXED_6A = (((384, (3, 3)),), ((256, (1, 1)), (256, (3, 3)), (384, (3, 3))))
_BLOCK17 = (((192, (1, 1)),), ((128, (1, 1)), (160, (1, 7)), (192, (7, 1))))
_MIXED_7A = (
    ((256, (1, 1)), (384, (3, 3))), ((256, (1, 1)), (288, (3, 3))), ((256, (1, 1)), (288, (3, 3)), (320, (3, 3))),
)
_BLOCK8 = (((192, (1, 1)),), ((192, (1, 1)), (224, (1, 3)), (256, (3, 1))))
# fmt: on


class ShiftBatchNorm(nn.BatchNorm2d):
    """BatchNorm that learns a shift and no scale, as slim's has it; the scale is a buffer of ones.

    timm's files have a tensor for the scale. Whatever it holds is kept and multiplied with, so nothing is lost.
    """

    weight: Tensor  # type: ignore[assignment]

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__(channels, eps=eps)
        del self.weight
        self.register_buffer("weight", torch.ones(channels))


@dataclass(frozen=True, slots=True)
class InceptionLayers:
    """How all layers are made."""

    shape: InceptionResNetShape
    norm: NormKind
    eps: float

    def norm_layer(self, channels: int) -> nn.Module:
        """A normalization of `channels` channels; BatchNorm has no scale to learn, GroupNorm has."""
        if self.norm == "frozen":
            return FrozenBatchNorm(channels, eps=self.eps)
        if self.norm == "batch":
            return ShiftBatchNorm(channels, eps=self.eps)
        return nn.GroupNorm(channels // INCEPTION_GROUP_CHANNELS, channels, eps=self.eps)


class InceptionConv(nn.Module):
    """A convolution without bias, normalization and ReLU. With padding "same" H cells become ⌈H / stride⌉."""

    def __init__(
        self,
        channels: int,
        published: int,
        kernel: tuple[int, int],
        *,
        layers: InceptionLayers,
        stride: int = 1,
        dilation: int = 1,
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        self.channels = layers.shape.width(published)
        self.pads_before = padding == "same" and stride == 2
        fixed = padding == "same" and stride == 1
        rows, columns = (dilation * (side // 2) if fixed else 0 for side in kernel)
        self.conv = nn.Conv2d(channels, self.channels, kernel, stride, (rows, columns), dilation, bias=False)
        self.bn = layers.norm_layer(self.channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        x = pad_for_halving(x) if self.pads_before else x
        return F.relu(conv_norm(x, self.conv, self.bn), inplace=True)


class MixedBlock(nn.Module):
    """Mixed_5b: three branches of convolutions and one of a 3×3 mean, which leaves padding out of its count."""

    def __init__(self, channels: int, *, layers: InceptionLayers) -> None:
        super().__init__()
        width = _add_branches(self, channels, _MIXED_5B, layers=layers)
        pooled = InceptionConv(channels, 64, (1, 1), layers=layers)
        self.branch3 = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), pooled)
        self.channels = width + pooled.channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return torch.cat([branch(x) for branch in self.children()], 1)


class Reduction(nn.Module):
    """Mixed_6a and Mixed_7a: branches whose last convolution has the stride, and a 3×3 maximum with the same stride."""

    def __init__(
        self, channels: int, branches: Sequence[Steps], *, stride: int, padding: Padding, layers: InceptionLayers
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        width = _add_branches(self, channels, branches, layers=layers, stride=stride, padding=padding)
        self.channels = width + channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        pooled = max_pool(x, stride=self.stride, padding=self.padding)
        return torch.cat([*(branch(x) for branch in self.children()), pooled], 1)


class ResidualBlock(nn.Module):
    """Block35, Block17 and Block8: x + scale · (1×1 convolution, with bias, of the branches side by side), and ReLU."""

    def __init__(
        self,
        channels: int,
        branches: Sequence[Steps],
        *,
        scale: float,
        layers: InceptionLayers,
        dilation: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.scale, self.relu = scale, relu
        width = _add_branches(self, channels, branches, layers=layers, dilation=dilation)
        self.conv2d = nn.Conv2d(width, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        *branches, project = self.children()
        y = torch.add(x, project(torch.cat([branch(x) for branch in branches], 1)), alpha=self.scale)
        return F.relu(y, inplace=True) if self.relu else y


class InceptionResNetTrunk(Staged):
    """The first half, up to PreAuxLogits: the maps of Conv2d_4a, of the last Block35 and of the last Block17.

    `channels` and `strides_px` are those of the three maps: (192, 320, 1088) and (4, 8, 16) in the published network.
    With `output_stride` 8 Mixed_6a halves nothing and Block17 is dilated by 2. Row i of the map of stride 16 is then
    row 2i of this one where the map of Block35 has an odd number of rows, else row 2i + 1; columns likewise.

    Padding "same" is TensorFlow's: ⌈H / 2⌉ cells after each halving. "valid" leaves it out where the classifier did,
    in six layers; detectors want maps that line up with the image, so that it serves comparisons only.
    """

    def __init__(
        self,
        shape: InceptionResNetShape,
        *,
        norm: NormKind = "frozen",
        eps: float = INCEPTION_EPS,
        output_stride: Literal[8, 16] = 16,
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        layers = InceptionLayers(shape, norm, eps)
        self.padding = padding
        self.conv2d_1a = InceptionConv(3, 32, (3, 3), layers=layers, stride=2, padding=padding)
        self.conv2d_2a = InceptionConv(self.conv2d_1a.channels, 32, (3, 3), layers=layers, padding=padding)
        self.conv2d_2b = InceptionConv(self.conv2d_2a.channels, 64, (3, 3), layers=layers)
        self.conv2d_3b = InceptionConv(self.conv2d_2b.channels, 80, (1, 1), layers=layers)
        self.conv2d_4a = InceptionConv(self.conv2d_3b.channels, 192, (3, 3), layers=layers, padding=padding)
        self.mixed_5b = MixedBlock(self.conv2d_4a.channels, layers=layers)
        count35, count17, _ = shape.repeats
        width = self.mixed_5b.channels
        self.repeat = nn.Sequential(
            *(ResidualBlock(width, _BLOCK35, scale=0.17, layers=layers) for _ in range(count35))
        )
        stride = output_stride // 8
        self.mixed_6a = Reduction(width, _MIXED_6A, stride=stride, padding=padding, layers=layers)
        last = self.mixed_6a.channels
        self.repeat_1 = nn.Sequential(
            *(ResidualBlock(last, _BLOCK17, scale=0.1, dilation=2 // stride, layers=layers) for _ in range(count17))
        )
        self.channels = (self.conv2d_4a.channels, width, last)
        self.strides_px = (4, 8, output_stride)
        initialize_he(self.modules())

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The three maps of normalized images, finest first."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(images)))
        x = self.conv2d_4a(self.conv2d_3b(max_pool(x, stride=2, padding=self.padding)))
        y = self.repeat(self.mixed_5b(max_pool(x, stride=2, padding=self.padding)))
        return [x, y, self.repeat_1(self.mixed_6a(y))]

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage: the stem, then those that end in the three maps. The tail would be the fifth."""
        return [
            [self.conv2d_1a, self.conv2d_2a, self.conv2d_2b],
            [self.conv2d_3b, self.conv2d_4a],
            [self.mixed_5b, self.repeat],
            [self.mixed_6a, self.repeat_1],
        ]


class InceptionResNetTail(nn.Module):
    """The second half, from Mixed_7a to Conv2d_7b, run on what was cut out of the trunk's last map.

    `in_channels` and `channels` are 1088 and 1536 in the published network. It never pads before it halves, as the
    original: 17×17 cells become 8×8, and fewer than 3×3 cannot be taken. Any number of regions can be, none included.
    """

    def __init__(self, shape: InceptionResNetShape, *, norm: NormKind = "frozen", eps: float = INCEPTION_EPS) -> None:
        super().__init__()
        layers = InceptionLayers(shape, norm, eps)
        self.in_channels = trunk_width(shape)
        self.mixed_7a = Reduction(self.in_channels, _MIXED_7A, stride=2, padding="valid", layers=layers)
        width = self.mixed_7a.channels
        self.repeat_2 = nn.Sequential(
            *(ResidualBlock(width, _BLOCK8, scale=0.2, layers=layers) for _ in range(shape.repeats[2]))
        )
        self.block8 = ResidualBlock(width, _BLOCK8, scale=1.0, relu=False, layers=layers)
        self.conv2d_7b = InceptionConv(width, 1536, (1, 1), layers=layers)
        self.channels = self.conv2d_7b.channels
        initialize_he(self.modules())

    def forward(self, crops: Float[Tensor, "R C H W"]) -> Float[Tensor, "R D h w"]:
        x: Tensor = self.conv2d_7b(self.block8(self.repeat_2(self.mixed_7a(crops))))
        return x


def trunk_width(shape: InceptionResNetShape) -> int:
    """The channels of the trunk's last map: Mixed_6a's two branches and all that Mixed_5b has."""
    return sum(shape.width(published) for published in (384, 384, 96, 64, 96, 64))


def pad_for_halving(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """`x` with TensorFlow's SAME padding for a 3×3 kernel of stride 2, in zeros.

    H cells must become ⌈H / 2⌉, which takes 1 more row for even H and 2 for odd H. Of an odd number of rows the larger
    part lies behind: none before and 1 behind where H is even, 1 on each side where it is odd.
    """
    rows, columns = x.shape[-2:]
    return F.pad(x, (columns % 2, 1, rows % 2, 1))


def max_pool(x: Float[Tensor, "B C H W"], *, stride: int, padding: Padding) -> Float[Tensor, "B C h w"]:
    """The maximum of each 3×3 window of what ReLU gave; padding is never the largest."""
    if padding == "valid":
        return F.max_pool2d(x, 3, stride)
    if stride == 1:
        return F.max_pool2d(x, 3, 1, 1)
    if torch.compiler.is_exporting():  # a size that is open has no fixed padding; beside what is ≥ 0 zeros will do
        return F.max_pool2d(pad_for_halving(x), 3, 2)
    # Rounding up lets the last window hang over: that is the row behind an even number of them.
    return F.max_pool2d(x, 3, 2, (x.shape[-2] % 2, x.shape[-1] % 2), ceil_mode=True)


def _add_branches(
    block: nn.Module,
    channels: int,
    branches: Sequence[Steps],
    *,
    layers: InceptionLayers,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding = "same",
) -> int:
    """Add `branch0`, `branch1`… to `block` and return the channels of all of them together.

    A branch is convolutions one after the other, the last one with `stride` and `padding`; a single one is not wrapped
    in a Sequential.
    """
    total = 0
    for number, (*first, (last_width, last_kernel)) in enumerate(branches):
        width, convs = channels, list[InceptionConv]()
        for published, kernel in first:
            convs.append(InceptionConv(width, published, kernel, layers=layers, dilation=dilation))
            width = convs[-1].channels
        last = InceptionConv(
            width, last_width, last_kernel, layers=layers, stride=stride, dilation=dilation, padding=padding
        )
        block.add_module(f"branch{number}", nn.Sequential(*convs, last) if convs else last)
        total += last.channels
    return total
