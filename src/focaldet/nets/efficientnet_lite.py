"""EfficientNet-Lite0 (Liu et al. 2020, after Tan and Le 2019), with timm's key names of `tf_efficientnet_lite0`.

EfficientNet-B0 without squeeze-and-excitation, with ReLU6 instead of swish, and with TensorFlow's SAME padding.

Axes: B images, C D channels, H W pixels.
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from focaldet.nets.backbone import Backbone
from focaldet.nets.initialize import initialize_he
from focaldet.nets.norm import NormKind, conv_norm, norm_layer
from focaldet.nets.same_padding import SameConv2d

NORM_EPS = 1e-3
"""What BatchNorm adds to the variance in TensorFlow's EfficientNets."""

# kernel, channels, blocks, stride of the first block: table 1 of EfficientNet, where all stages but the first expand
# their input six times
_LITE0_STAGES = (
    (3, 16, 1, 1),
    (3, 24, 2, 2),
    (5, 40, 2, 2),
    (3, 80, 3, 2),
    (5, 112, 3, 1),
    (5, 192, 4, 2),
    (3, 320, 1, 1),
)
_EXPANSION = 6
_MAP_STAGES = (1, 2, 4, 6)  # the last stages of strides 4, 8, 16 and 32
NormLayer = Callable[[int], nn.Module]


def conv_norm_relu6(x: Float[Tensor, "B C H W"], conv: nn.Conv2d, norm: nn.Module) -> Float[Tensor, "B D h w"]:
    """Convolution, normalization and ReLU6."""
    # A strided answer may be a view without its first row and column: the copy that ReLU6 makes of it is whole.
    return functional.relu6(conv_norm(x, conv, norm), inplace=conv.stride == (1, 1))


class SeparableConv(nn.Module):
    """3×3 depthwise, then 1×1 linear projection."""

    def __init__(self, channels: int, out_channels: int, *, norm: NormLayer) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(channels, channels, 3, groups=channels)
        self.bn1 = norm(channels)
        self.conv_pw = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn2 = norm(out_channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return conv_norm(conv_norm_relu6(x, self.conv_dw, self.bn1), self.conv_pw, self.bn2)


class MBConv(nn.Module):
    """1×1 expansion, depthwise, 1×1 linear projection; a shortcut where the shape stays."""

    def __init__(self, channels: int, out_channels: int, *, kernel: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        hidden = channels * _EXPANSION
        self.conv_pw = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = norm(hidden)
        self.conv_dw = SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.bn2 = norm(hidden)
        self.conv_pwl = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.shortcut = stride == 1 and channels == out_channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = conv_norm_relu6(x, self.conv_pw, self.bn1)
        y = conv_norm_relu6(y, self.conv_dw, self.bn2)
        y = conv_norm(y, self.conv_pwl, self.bn3)
        return x + y if self.shortcut else y


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 up to its last block; the 1×1 convolution to 1280 channels belongs to the classifier."""

    def __init__(self, *, norm: NormKind = "frozen", eps: float = NORM_EPS) -> None:
        super().__init__()
        layer = partial(norm_layer, norm, eps=eps)
        self.conv_stem = SameConv2d(3, 32, 3, stride=2)
        self.bn1 = layer(32)
        stages: list[nn.Module] = []
        channels = 32
        for kernel, out_channels, repeats, first_stride in _LITE0_STAGES:
            blocks: list[nn.Module] = []
            for block in range(repeats):
                stride = 1 if block else first_stride
                if stages:
                    blocks.append(MBConv(channels, out_channels, kernel=kernel, stride=stride, norm=layer))
                else:
                    blocks.append(SeparableConv(channels, out_channels, norm=layer))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.ModuleList(stages)
        self.channels = (24, 40, 112, 320)
        initialize_he(self.modules(), mode="fan_out")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalized images."""
        maps = []
        x = conv_norm_relu6(images, self.conv_stem, self.bn1)
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in _MAP_STAGES:
                maps.append(x)
        return maps

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage: the stem, then those that end in C2, C3, C4, C5."""
        s = list(self.blocks)
        return [[self.conv_stem, self.bn1, s[0]], [s[1]], [s[2]], s[3:5], s[5:]]
