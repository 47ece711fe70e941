"""Builds the networks of a Faster R-CNN: backbone and neck, which make the feature maps, and the head on the regions.

Trunk "pyramid": a feature pyramid on a backbone, and a small head. Trunk "c4": a classifier cut in two; its first part
makes one map, its last stage (conv5) is the head on the regions (R101-C4 of the ResNet paper, G-RMI), with top-down
modules between them (TDM) or without.
"""

import math
from dataclasses import fields
from typing import Literal, NamedTuple

from torch import nn

from focaldet.errors import ConfigError
from focaldet.models.base import DetectorConfig
from focaldet.nets import build_backbone
from focaldet.nets.backbone import Staged
from focaldet.nets.inception_resnet import INCEPTION_RESNETS, InceptionResNetTail, InceptionResNetTrunk
from focaldet.nets.necks import REGION_STRIDES_PX, RegionPyramid
from focaldet.nets.norm import NormKind
from focaldet.nets.regions import FourConvolutions, PooledTail, TwoLayers
from focaldet.nets.resnet import RESNETS, ResNet
from focaldet.nets.tdm import TopDownNetwork
from focaldet.ops.roi import PoolConfig

C4_STRIDE_PX = 16
MIN_CELLS = 3  # of a region's side, for Mixed_7a
Trunk = Literal["pyramid", "c4"]
Head = Literal["2fc", "4conv1fc"]

OTHER_TRUNK_SETTINGS: dict[Trunk, tuple[str, ...]] = {
    "pyramid": ("output_stride", "top_down"),
    "c4": ("width", "neck_norm", "head", "head_width"),
}
"""For each trunk the settings that only the other one has."""


class ComponentsConfig(DetectorConfig):
    """The settings of a Faster R-CNN that decide its backbone, neck and head; `FasterRCNNConfig` explains them."""

    __slots__ = ()

    backbone: str
    norm: NormKind
    norm_eps: float
    trunk: Trunk
    output_stride: Literal[8, 16]
    top_down: tuple[int, ...]
    width: int
    neck_norm: bool
    pooling: PoolConfig
    head: Head
    head_width: int


class FasterRCNNComponents(NamedTuple):
    """The parts: images → `backbone` → maps → `neck` → levels of `channels` each, and `head` on pooled regions.

    Without a neck the last map is the only level. Regions are pooled from the first `num_pooled` levels; `head` turns
    each into a vector.
    """

    backbone: Staged
    neck: nn.Module | None
    head: TwoLayers | FourConvolutions | PooledTail
    strides_px: tuple[int, ...]
    channels: int

    @property
    def finest(self) -> int:
        """log2 of the first level's stride in pixels, such as 2 for P2."""
        return int(math.log2(self.strides_px[0]))

    @property
    def num_pooled(self) -> int:
        """How many levels regions are pooled from: all but the coarsest of several, which only gets proposals."""
        return max(1, len(self.strides_px) - 1)


def refuse_unused_settings(config: ComponentsConfig) -> None:
    """Raise where a setting is given that only the other trunk uses, as it would have no effect.

    Raises:
        ConfigError: such a setting differs from its default; names it.
    """
    defaults = {field.name: field.default for field in fields(config)}  # type: ignore[arg-type]  # a dataclass derives from it
    if unused := [name for name in OTHER_TRUNK_SETTINGS[config.trunk] if getattr(config, name) != defaults[name]]:
        raise ConfigError(f'{unused[0]}: has no effect with trunk: "{config.trunk}"; leave it at {defaults[unused[0]]}')


def build_components(config: ComponentsConfig) -> FasterRCNNComponents:
    """Backbone, neck and head, with random weights."""
    return build_c4_components(config) if config.trunk == "c4" else build_pyramid_components(config)


def build_pyramid_components(config: ComponentsConfig) -> FasterRCNNComponents:
    """P2…P6 on C2…C5, and a head on 7 × 7 cells (Lin et al. 2016, section 4.2)."""
    norm, eps, width = config.norm, config.norm_eps, config.width
    backbone = build_backbone(config.backbone, norm=norm, eps=eps, stride_in_1x1=config.stride_in_1x1)
    pyramid = RegionPyramid(backbone.channels, width, norm=norm if config.neck_norm else None, eps=eps)
    sizes = (width, config.pooling.size, config.head_width)
    head: TwoLayers | FourConvolutions
    head = TwoLayers(*sizes) if config.head == "2fc" else FourConvolutions(*sizes, norm=norm, eps=eps)
    return FasterRCNNComponents(backbone, pyramid, head, REGION_STRIDES_PX, width)


def build_c4_components(config: ComponentsConfig) -> FasterRCNNComponents:
    """C4 and conv5 of a ResNet, or trunk and tail of Inception-ResNet-v2; `top_down` are the widths of the modules.

    Raises:
        ConfigError: the backbone cannot be cut, has no output stride of 8, or needs regions of more cells.
    """
    backbone, output_stride, norm, eps = config.backbone, config.output_stride, config.norm, config.norm_eps
    trunk: ResNet | InceptionResNetTrunk
    tail: nn.Module
    channels: tuple[int, ...]
    if backbone in INCEPTION_RESNETS:
        if (pooled_size := config.pooling.size) < MIN_CELLS:
            raise ConfigError(
                f"pooling.size: must be at least {MIN_CELLS} for {backbone}, whose tail does not pad, got {pooled_size}"
            )
        shape = INCEPTION_RESNETS[backbone]
        trunk = InceptionResNetTrunk(shape, norm=norm, eps=eps, output_stride=output_stride)
        inception_tail = InceptionResNetTail(shape, norm=norm, eps=eps)
        channels, strides_px = trunk.channels, trunk.strides_px
        tail, width = inception_tail, inception_tail.channels
    elif backbone in RESNETS:
        if output_stride != C4_STRIDE_PX:
            raise ConfigError(
                f"output_stride: {output_stride} needs an Inception-ResNet-v2 backbone; {backbone} has 16"
            )
        trunk = ResNet(backbone, norm=norm, eps=eps, stride_in_1x1=config.stride_in_1x1)
        *first, width = trunk.channels
        channels, strides_px, tail = tuple(first), (4, 8, C4_STRIDE_PX), trunk.cut()
    else:
        known = ", ".join([*INCEPTION_RESNETS, *RESNETS])
        raise ConfigError(f'backbone {backbone!r} cannot be cut for trunk: "c4" (these can: {known})')
    neck = TopDownNetwork(channels, config.top_down) if config.top_down else None
    stride_px = strides_px[-1 - len(config.top_down)]
    map_channels = neck.channels if neck else channels[-1]
    head = PooledTail(map_channels, tail, tail_channels=channels[-1], width=width)
    return FasterRCNNComponents(trunk, neck, head, (stride_px,), map_channels)
