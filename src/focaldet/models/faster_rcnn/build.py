"""What a Faster R-CNN is made of: the network that makes its maps, and the one that looks at a region of them.

Either a pyramid on a backbone, and a small head. Or a classifier in two halves: the first makes one map, the second
looks at what is cut out of it (R101-C4 of the ResNet paper, G-RMI), with top-down modules between them or without
(TDM).
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

STRIDE_OF_HALVES_PX = 16
LEAST_CELLS = 3  # of a region's side, for Mixed_7a
Head = Literal["2fc", "4conv1fc"]


IDLE = {"pyramid": ("output_stride", "top_down"), "halves": ("width", "neck_norm", "head", "head_width")}
"""The settings that only the other trunk has."""


class Norms(NamedTuple):
    """How the layers of a backbone are made, where published ones differ."""

    kind: NormKind
    eps: float
    stride_in_1x1: bool


class Parts(NamedTuple):
    """Images → `backbone` → maps → `neck` → levels, of `channels` each; without a neck the last map is the only level.

    `head` makes a vector of a region, which is cut from the first `num_pooled` levels.
    """

    backbone: Staged
    neck: nn.Module | None
    head: TwoLayers | FourConvolutions | PooledTail
    strides_px: tuple[int, ...]
    channels: int

    @property
    def finest(self) -> int:
        """The number of the first level: its stride is 2^number pixels."""
        return int(math.log2(self.strides_px[0]))

    @property
    def num_pooled(self) -> int:
        """How many levels regions are cut from: the coarsest of several serves proposals alone."""
        return max(1, len(self.strides_px) - 1)


def require_used(config: Any, *, trunk: Literal["pyramid", "halves"]) -> None:
    """See that no setting is there which only a Faster R-CNN with the other trunk has: it would have no effect.

    Raises:
        ConfigError: a setting that only the other trunk has is not its default; names it.
    """
    defaults = {field.name: field.default for field in fields(config)}
    if idle := [name for name in IDLE[trunk] if getattr(config, name) != defaults[name]]:
        raise ConfigError(f'{idle[0]}: has no effect with trunk: "{trunk}"; leave it at {defaults[idle[0]]}')


def pyramid_parts(
    backbone: str,
    norms: Norms,
    *,
    width: int,
    neck_norm: bool,
    head: Head,
    head_width: int,
    pooled_size: int,
) -> Parts:
    """P2…P6 on C2…C5, and a head on 7 × 7 cells (Lin et al. 2016, section 4.2)."""
    network = build_backbone(backbone, norm=norms.kind, eps=norms.eps, stride_in_1x1=norms.stride_in_1x1)
    pyramid = RegionPyramid(network.channels, width, norm=norms.kind if neck_norm else None, eps=norms.eps)
    region_head: TwoLayers | FourConvolutions = (
        TwoLayers(width, pooled_size, head_width)
        if head == "2fc"
        else FourConvolutions(width, pooled_size, head_width, norm=norms.kind, eps=norms.eps)
    )
    return Parts(network, pyramid, region_head, REGION_STRIDES_PX, width)


def halved_parts(
    backbone: str,
    norms: Norms,
    output_stride: Literal[8, 16],
    *,
    top_down: tuple[int, ...],
    pooled_size: int,
) -> Parts:
    """C4 and conv5 of a ResNet, or the two halves of Inception-ResNet-v2; `top_down` are the widths of the modules.

    Raises:
        ConfigError: the backbone cannot be cut, has no output stride of 8, or cannot look at regions of so few cells.
    """
    trunk: ResNet | InceptionResNetTrunk
    tail: nn.Module
    channels: tuple[int, ...]
    if backbone in INCEPTION_RESNETS:
        if pooled_size < LEAST_CELLS:
            raise ConfigError(
                f"pooling.size: {pooled_size} is too few for {backbone}, whose second half does not pad: 3"
            )
        shape = INCEPTION_RESNETS[backbone]
        trunk = InceptionResNetTrunk(shape, norm=norms.kind, eps=norms.eps, output_stride=output_stride)
        half = InceptionResNetTail(shape, norm=norms.kind, eps=norms.eps)
        channels, strides_px, tail, width = trunk.channels, trunk.strides_px, half, half.channels
    elif backbone in RESNETS:
        if output_stride != STRIDE_OF_HALVES_PX:
            raise ConfigError(
                f"output_stride: {output_stride} is there for Inception-ResNet-v2 alone; {backbone} has 16"
            )
        trunk = ResNet(backbone, norm=norms.kind, eps=norms.eps, stride_in_1x1=norms.stride_in_1x1)
        *kept, width = trunk.channels
        channels, strides_px, tail = tuple(kept), (4, 8, STRIDE_OF_HALVES_PX), trunk.cut()
    else:
        halves = ", ".join([*INCEPTION_RESNETS, *RESNETS])
        raise ConfigError(f"backbone {backbone!r} cannot be cut in two halves (these can: {halves})")
    neck = TopDownNetwork(channels, top_down) if top_down else None
    stride_px = strides_px[-1 - len(top_down)]
    map_channels = neck.channels if neck else channels[-1]
    head = PooledTail(map_channels, tail, tail_channels=channels[-1], width=width)
    return Parts(trunk, neck, head, (stride_px,), map_channels)
