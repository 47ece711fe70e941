"""Builds the networks of a Faster R-CNN: backbone and neck, which make the feature maps, and the head on the regions.

Trunk "pyramid": a feature pyramid on a backbone, and a small head. Trunk "c4": a classifier cut in two; its first part
makes one map, its last stage (conv5) is the head on the regions (R101-C4 of the ResNet paper, G-RMI), with top-down
modules between them (TDM) or without.
"""

import math
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from torch import nn

from focaldet.errors import ConfigError
from focaldet.nets import build_backbone
from focaldet.nets.backbone import Staged
from focaldet.nets.inception_resnet import INCEPTION_RESNETS, InceptionResNetTail, InceptionResNetTrunk
from focaldet.nets.necks import REGION_STRIDES_PX, RegionPyramid
from focaldet.nets.norm import NormKind
from focaldet.nets.regions import FourConvolutions, PooledTail, TwoLayers
from focaldet.nets.resnet import RESNETS, ResNet
from focaldet.nets.tdm import TopDownNetwork

C4_STRIDE_PX = 16
MIN_CELLS = 3  # of a region's side, for Mixed_7a
Trunk = Literal["pyramid", "c4"]
Head = Literal["2fc", "4conv1fc"]

OTHER_TRUNK_SETTINGS: dict[Trunk, tuple[str, ...]] = {
    "pyramid": ("output_stride", "top_down"),
    "c4": ("width", "neck_norm", "head", "head_width"),
}
"""For each trunk the settings that only the other one has."""


class BackboneSettings(NamedTuple):
    """How the layers of a backbone are made, where published ones differ."""

    kind: NormKind
    eps: float
    stride_in_1x1: bool


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


def refuse_unused_settings(config: Any, *, trunk: Trunk) -> None:
    """Raise where a setting is given that only the other trunk uses, as it would have no effect.

    Raises:
        ConfigError: such a setting differs from its default; names it.
    """
    defaults = {field.name: field.default for field in fields(config)}
    if unused := [name for name in OTHER_TRUNK_SETTINGS[trunk] if getattr(config, name) != defaults[name]]:
        raise ConfigError(f'{unused[0]}: has no effect with trunk: "{trunk}"; leave it at {defaults[unused[0]]}')


def build_components(config: Any) -> FasterRCNNComponents:
    """Backbone, neck and head of a `FasterRCNNConfig`, with random weights."""
    settings = BackboneSettings(config.norm, config.norm_eps, config.stride_in_1x1)
    size = config.pooling.size
    if config.trunk == "c4":
        return build_c4_components(
            config.backbone, settings, config.output_stride, top_down=config.top_down, pooled_size=size
        )
    return build_pyramid_components(
        config.backbone,
        settings,
        width=config.width,
        neck_norm=config.neck_norm,
        head=config.head,
        head_width=config.head_width,
        pooled_size=size,
    )


def build_pyramid_components(
    backbone: str,
    norms: BackboneSettings,
    *,
    width: int,
    neck_norm: bool,
    head: Head,
    head_width: int,
    pooled_size: int,
) -> FasterRCNNComponents:
    """P2…P6 on C2…C5, and a head on 7 × 7 cells (Lin et al. 2016, section 4.2)."""
    network = build_backbone(backbone, norm=norms.kind, eps=norms.eps, stride_in_1x1=norms.stride_in_1x1)
    pyramid = RegionPyramid(network.channels, width, norm=norms.kind if neck_norm else None, eps=norms.eps)
    roi_head: TwoLayers | FourConvolutions = (
        TwoLayers(width, pooled_size, head_width)
        if head == "2fc"
        else FourConvolutions(width, pooled_size, head_width, norm=norms.kind, eps=norms.eps)
    )
    return FasterRCNNComponents(network, pyramid, roi_head, REGION_STRIDES_PX, width)


def build_c4_components(
    backbone: str,
    norms: BackboneSettings,
    output_stride: Literal[8, 16],
    *,
    top_down: tuple[int, ...],
    pooled_size: int,
) -> FasterRCNNComponents:
    """C4 and conv5 of a ResNet, or trunk and tail of Inception-ResNet-v2; `top_down` are the widths of the modules.

    Raises:
        ConfigError: the backbone cannot be cut, has no output stride of 8, or needs regions of more cells.
    """
    trunk: ResNet | InceptionResNetTrunk
    tail: nn.Module
    channels: tuple[int, ...]
    if backbone in INCEPTION_RESNETS:
        if pooled_size < MIN_CELLS:
            raise ConfigError(
                f"pooling.size: must be at least {MIN_CELLS} for {backbone}, whose tail does not pad, got {pooled_size}"
            )
        shape = INCEPTION_RESNETS[backbone]
        trunk = InceptionResNetTrunk(shape, norm=norms.kind, eps=norms.eps, output_stride=output_stride)
        inception_tail = InceptionResNetTail(shape, norm=norms.kind, eps=norms.eps)
        channels, strides_px = trunk.channels, trunk.strides_px
        tail, width = inception_tail, inception_tail.channels
    elif backbone in RESNETS:
        if output_stride != C4_STRIDE_PX:
            raise ConfigError(
                f"output_stride: {output_stride} needs an Inception-ResNet-v2 backbone; {backbone} has 16"
            )
        trunk = ResNet(backbone, norm=norms.kind, eps=norms.eps, stride_in_1x1=norms.stride_in_1x1)
        *first, width = trunk.channels
        channels, strides_px, tail = tuple(first), (4, 8, C4_STRIDE_PX), trunk.cut()
    else:
        known = ", ".join([*INCEPTION_RESNETS, *RESNETS])
        raise ConfigError(f'backbone {backbone!r} cannot be cut for trunk: "c4" (these can: {known})')
    neck = TopDownNetwork(channels, top_down) if top_down else None
    stride_px = strides_px[-1 - len(top_down)]
    map_channels = neck.channels if neck else channels[-1]
    head = PooledTail(map_channels, tail, tail_channels=channels[-1], width=width)
    return FasterRCNNComponents(trunk, neck, head, (stride_px,), map_channels)
