"""The parts of SSD with residual layers (Fu et al. 2017): extra layers behind the backbone, and what predicts.

Axes: B images, C D channels, H W cells, S priors per cell, A priors of a level, V values per prior.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.nets.heads import TowerInit, initialize_tower
from focaldet.nets.initialize import initialize_he, initialize_normal, initialize_xavier, set_biases
from focaldet.nets.mobilenet import ConvNorm, MobileLayers
from focaldet.nets.norm import NormKind, conv_norm, norm_layer

EXPANSION = 4
STRIDE_OF_KERNEL = {2: 2, 3: 1}  # of the extra layers, as the released scripts have them
SSD_GROUP_CHANNELS = 16  # of GroupNorm: with fewer, a group of the 1 × 1 map is a single number or nearly so


@dataclass(frozen=True, slots=True)
class SSDLayers:
    """How all layers behind the backbone are made."""

    norm: NormKind
    eps: float
    tower_init: TowerInit

    def norm_layer(self, channels: int) -> nn.Module:
        """A normalization of `channels` channels, as everywhere in the nets but for the size of the groups."""
        if self.norm == "group":
            return nn.GroupNorm(max(1, channels // SSD_GROUP_CHANNELS), channels, eps=self.eps)
        return norm_layer(self.norm, channels, eps=self.eps)


class ConvNormReLU(nn.Module):
    """A 3×3 convolution without bias, normalization, and ReLU unless `relu` is off."""

    def __init__(self, channels: int, width: int, *, layers: SSDLayers, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = layers.norm_layer(width)
        self.relu = relu

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        y = conv_norm(x, self.conv, self.norm)
        return F.relu(y, inplace=True) if self.relu else y


class ProjectedBottleneck(nn.Module):
    """One residual unit whose shortcut is a convolution: C channels to 4 · `width`, as Caffe's ResBody builds it.

    `kernel` and `stride` are those of the shortcut and of the first convolution. With kernel and stride 1 it is the
    prediction module (c) of the paper's figure 2, with both 2 (or 3 and 1) an extra layer. A map smaller than the
    kernel is padded to it with zeros, so that any image goes through.

    Raises:
        ConfigError: in training, BatchNorm meets a single cell of a single image, which has no deviation.
    """

    def __init__(self, channels: int, width: int, *, kernel: int, stride: int, padding: int, layers: SSDLayers) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.project = nn.Conv2d(channels, out_channels, kernel, stride, padding, bias=False)
        self.project_norm = layers.norm_layer(out_channels)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.norm1 = layers.norm_layer(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = layers.norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = layers.norm_layer(out_channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        x = self._at_least_kernel(x)
        self._require_statistics(x)
        y = F.relu(conv_norm(x, self.conv1, self.norm1), inplace=True)
        y = F.relu(conv_norm(y, self.conv2, self.norm2), inplace=True)
        y = conv_norm(y, self.conv3, self.norm3)
        return F.relu(y + conv_norm(x, self.project, self.project_norm), inplace=True)

    def _at_least_kernel(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        kernel, padding = self.conv1.kernel_size[0], int(self.conv1.padding[0])
        down, right = (max(0, kernel - 2 * padding - side) for side in x.shape[-2:])
        return F.pad(x, (0, right, 0, down)) if down or right else x

    def _require_statistics(self, x: Float[Tensor, "B C H W"]) -> None:
        kernel, stride, padding = self.conv1.kernel_size[0], self.conv1.stride[0], int(self.conv1.padding[0])
        rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[-2:])
        require_statistics(self.norm1, x.shape[0] * rows * columns)


def require_statistics(norm: nn.Module, count: int) -> None:
    """Refuse to train BatchNorm on `count` numbers of a channel, one of which has no deviation.

    Raises:
        ConfigError: that is so.
    """
    if norm.training and isinstance(norm, nn.BatchNorm2d) and count < 2:
        raise ConfigError(
            "batch_size: BatchNorm cannot be trained on the map of 1 × 1 cells of a single image; give every "
            "process and every accumulated part at least 2 images (the original took 5 and more), or set "
            "architecture.extra_norm to group, which needs no batch"
        )


class ExtraLayers(nn.ModuleList):
    """Residual units one after the other, each of which makes the last map smaller.

    `kernels` are one for each layer: 2 has stride 2, 3 goes over the map cell by cell. `paddings` are those of these
    convolutions; the last one holds for all further layers.
    """

    def __init__(
        self, channels: int, width: int, *, kernels: Sequence[int], paddings: Sequence[int], layers: SSDLayers
    ) -> None:
        super().__init__()
        for index, kernel in enumerate(kernels):
            self.append(
                ProjectedBottleneck(
                    channels if index == 0 else width,
                    width // EXPANSION,
                    kernel=kernel,
                    stride=STRIDE_OF_KERNEL[kernel],
                    padding=at_level(paddings, index),
                    layers=layers,
                )
            )
        initialize_tower(self.modules(), layers.tower_init)

    def forward(self, x: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The map after each layer, finest first."""
        maps = []
        for layer in self:
            x = layer(x)
            maps.append(x)
        return maps


class LevelPredictor(nn.Module):
    """What predicts on one map: module (c), then a convolution each for classes and boxes.

    `inter_width` puts a 3×3 convolution of that width with norm and ReLU before each of the two, as DSSD has it.
    `biases` are those of the V class values; without `std` the two last convolutions start as Caffe's Xavier filler
    leaves them, uniform in ±√(3 / fan-in), with it from N(0, std).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        kernel: int,
        per_cell: int,
        biases: Sequence[float],
        std: float | None,
        inter_width: int | None,
        layers: SSDLayers,
    ) -> None:
        super().__init__()
        self.values = len(biases)
        self.module = ProjectedBottleneck(channels, width, kernel=1, stride=1, padding=0, layers=layers)
        out_channels = EXPANSION * width
        self.class_inter = self.box_inter = None
        if inter_width is not None:
            self.class_inter = ConvNormReLU(out_channels, inter_width, layers=layers)
            self.box_inter = ConvNormReLU(out_channels, inter_width, layers=layers)
        initialize_tower(self.modules(), layers.tower_init)
        last = inter_width or out_channels
        self.classes = nn.Conv2d(last, per_cell * len(biases), kernel, padding=kernel // 2)
        self.boxes = nn.Conv2d(last, per_cell * 4, kernel, padding=kernel // 2)
        if std is None:
            initialize_xavier([self.classes, self.boxes])
        else:
            initialize_normal([self.classes, self.boxes], std=std)
        set_biases(self.classes, biases)

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B A V"], Float[Tensor, "B A 4"]]:
        """Class values and encoded boxes: cells row by row, the priors of a cell together; fp32."""
        x = self.module(x)
        of_classes = x if self.class_inter is None else self.class_inter(x)
        of_boxes = x if self.box_inter is None else self.box_inter(x)
        return _per_prior(self.classes(of_classes), self.values), _per_prior(self.boxes(of_boxes), 4)


class HalvingLayers(nn.ModuleList):
    """The extra layers of TensorFlow's SSD, one for each of `widths`: 1×1 to half of it, 3×3 depthwise, 1×1.

    The second one has stride 2, so that H cells become ⌈H / 2⌉; each has a normalization and ReLU6.
    """

    def __init__(self, channels: int, widths: Sequence[int], *, layers: MobileLayers) -> None:
        super().__init__()
        for width in widths:
            half = width // 2
            first = ConvNorm(channels, half, 1, layers=layers)
            halving = ConvNorm(half, half, 3, stride=2, groups=half, layers=layers)
            self.append(nn.Sequential(first, halving, ConvNorm(half, width, 1, layers=layers)))
            channels = width
        initialize_he(self.modules(), mode="fan_out")

    def forward(self, x: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The map after each layer, finest first."""
        maps = []
        for layer in self:
            assert isinstance(layer, nn.Sequential) and isinstance(layer[1], ConvNorm)
            rows, columns = (-(-side // 2) for side in x.shape[-2:])
            require_statistics(layer[1][1], x.shape[0] * rows * columns)
            x = layer(x)
            maps.append(x)
        return maps


class MapPredictor(nn.Module):
    """One convolution each for classes and boxes on a map. Weights start from N(0, `std`²), classes from `biases`."""

    def __init__(self, channels: int, *, kernel: int, per_cell: int, biases: Sequence[float], std: float) -> None:
        super().__init__()
        self.values = len(biases)
        self.classes = nn.Conv2d(channels, per_cell * len(biases), kernel, padding=kernel // 2)
        self.boxes = nn.Conv2d(channels, per_cell * 4, kernel, padding=kernel // 2)
        initialize_normal([self.classes, self.boxes], std=std)
        set_biases(self.classes, biases)

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B A V"], Float[Tensor, "B A 4"]]:
        """Class values and encoded boxes: cells row by row, the priors of a cell together; fp32."""
        return _per_prior(self.classes(x), self.values), _per_prior(self.boxes(x), 4)


def _per_prior(x: Float[Tensor, "B C H W"], values: int) -> Float[Tensor, "B A V"]:
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values).float()


def at_level(values: Sequence[int], level: int) -> int:
    """The value of a level where the last of `values` holds for all further ones."""
    return values[min(level, len(values) - 1)]


def extra_strides(stride: int, kernels: Sequence[int], *, count: int) -> list[int]:
    """The distance of the cells after each of `count` extra layers behind a map of `stride`; units are the caller's."""
    factors = (STRIDE_OF_KERNEL[at_level(kernels, index)] for index in range(count))
    return list(accumulate(factors, operator.mul, initial=stride))[1:]
