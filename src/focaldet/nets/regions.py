"""What a detector with two stages adds to its maps: the region proposal head, and the heads that look at regions.

Axes: B images, C channels, A anchors of all levels, R regions of all images, S cells of a region's side, K classes,
V = K + 1 class values, the background's last, D width of a region's vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.config import validate_fields
from focaldet.nets.backbone import Staged
from focaldet.nets.heads import TowerInit
from focaldet.nets.initialize import initialize_he, initialize_normal, initialize_xavier, set_biases
from focaldet.nets.norm import NormKind, norm_layer
from focaldet.ranges import Channels, SomeLayers

BOX_STD = 0.001  # of the box layer's first weights (Girshick 2015, section 3.1)


@validate_fields
@dataclass(frozen=True, slots=True)
class RPNHeadConfig:
    """How the proposal head is made: `depth` 3×3 convolutions of `width` channels, None for as many as the maps have.

    `relu6` cuts their outputs at 6. With `softmax` an anchor has two values, of nothing and of an object, as in Faster
    R-CNN's first programs and in the TF Object Detection API; their difference is the logit.
    """

    depth: SomeLayers = 1
    width: Channels | None = None
    relu6: bool = False
    softmax: bool = False


class RPNHead(nn.Module):
    """The 3×3 convolutions of `config`, then 1×1 ones for objectness and boxes; shared by all levels.

    `dilation` spreads the 3×3 ones. Weights start from N(0, 0.01), or the 3×3 from He's variance, and biases from 0,
    but the logit of an object from `bias`.
    """

    def __init__(
        self,
        channels: int,
        *,
        config: RPNHeadConfig,
        per_cell: int,
        dilation: int = 1,
        bias: float = 0.0,
        tower_init: TowerInit = "normal",
    ) -> None:
        super().__init__()
        width = config.width or channels
        self.activation = nn.ReLU6(inplace=True) if config.relu6 else nn.ReLU(inplace=True)
        self.values = 2 if config.softmax else 1
        self.tower = nn.ModuleList(
            nn.Conv2d(width if index else channels, width, 3, padding=dilation, dilation=dilation)
            for index in range(config.depth)
        )
        self.objectness = nn.Conv2d(width, self.values * per_cell, 1)
        self.boxes = nn.Conv2d(width, 4 * per_cell, 1)
        for conv in [*self.tower, self.objectness, self.boxes]:
            initialize_normal([conv])
            if tower_init == "he" and conv.kernel_size == (3, 3):
                initialize_he([conv])
        set_biases(self.objectness, (0.0, bias) if config.softmax else (bias,))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A 4"]]:
        """Logit and encoded box of every anchor: levels in order, cells row by row, a cell's anchors together; fp32."""
        rows = [self._level(level) for level in levels]
        objectness, boxes = (torch.cat(parts, dim=1) for parts in zip(*rows, strict=True))
        return objectness, boxes

    def _level(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B _"], Float[Tensor, "B _ 4"]]:
        for conv in self.tower:
            x = self.activation(conv(x))
        objectness, boxes = (layer(x).permute(0, 2, 3, 1).float() for layer in (self.objectness, self.boxes))
        values = objectness.reshape(x.shape[0], -1, self.values)
        logit = values[..., 1] - values[..., 0] if self.values > 1 else values[..., 0]
        return logit, boxes.reshape(x.shape[0], -1, 4)


class TwoLayers(nn.Module):
    """Two fully connected layers with ReLU over all cells of a region (FPN paper, section 4.2)."""

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.fc6 = nn.Linear(channels * size * size, width)
        self.fc7 = nn.Linear(width, width)
        initialize_xavier([self.fc6, self.fc7])

    def forward(self, pooled: Float[Tensor, "R C S S"]) -> Float[Tensor, "R D"]:
        """A vector of each region."""
        return F.relu(self.fc7(F.relu(self.fc6(pooled.flatten(1)), inplace=True)), inplace=True)


class FourConvolutions(nn.Module):
    """Four 3×3 convolutions, each normalized and with ReLU, then one fully connected layer with ReLU.

    The head of torchvision's second Faster R-CNN (Wu and He 2018, "Group Normalization", section 4.2).
    """

    def __init__(self, channels: int, size: int, width: int, *, norm: NormKind, eps: float) -> None:
        super().__init__()
        self.width = width
        self.tower = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(norm_layer(norm, channels, eps=eps) for _ in range(4))
        self.fc = nn.Linear(channels * size * size, width)
        initialize_he(self.tower, mode="fan_out")
        initialize_xavier([self.fc])

    def forward(self, pooled: Float[Tensor, "R C S S"]) -> Float[Tensor, "R D"]:
        """A vector of each region."""
        x = pooled
        for conv, norm in zip(self.tower, self.norms, strict=True):
            x = F.relu(_apply_norm(conv(x), norm), inplace=True)
        return F.relu(self.fc(x.flatten(1)), inplace=True)


class PooledTail(Staged):
    """The second half of a classifier on the cells of a region, and the mean of what it makes of them.

    `tail` gives `width` channels. Where the map has other channels than the `tail_channels` it was trained on, a 1×1
    convolution gives the cells those, and ReLU the sign: all its inputs were ≥ 0.
    """

    def __init__(self, channels: int, tail: nn.Module, *, tail_channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.adapter = nn.Conv2d(channels, tail_channels, 1) if channels != tail_channels else None
        if self.adapter is not None:
            initialize_he([self.adapter])
        self.tail = tail

    def stages(self) -> list[list[nn.Module]]:
        """The second half, without the adapter before it."""
        return [[self.tail]]

    def forward(self, pooled: Float[Tensor, "R C S S"]) -> Float[Tensor, "R D"]:
        """A vector of each region; of no region none, made of one that is cut off again: normalization needs one."""
        x = pooled if pooled.shape[0] else F.pad(pooled, (0, 0, 0, 0, 0, 0, 0, 1))
        x = x if self.adapter is None else F.relu(self.adapter(x), inplace=True)
        vectors: Tensor = self.tail(x).mean((2, 3))
        return vectors[: pooled.shape[0]]


class RegionPredictor(nn.Module):
    """Class values and boxes of each region, a box for every class.

    Weights start from N(0, 0.01) and N(0, 0.001), class values from `biases`. `background_box` keeps the four rows
    that the background has in torchvision and Detectron, which nothing ever reads.
    """

    def __init__(self, width: int, *, biases: Sequence[float], background_box: bool) -> None:
        super().__init__()
        self.num_classes = len(biases) - 1
        self.classes = nn.Linear(width, len(biases))
        self.boxes = nn.Linear(width, 4 * (self.num_classes + background_box))
        initialize_normal([self.classes])
        initialize_normal([self.boxes], std=BOX_STD)
        set_biases(self.classes, biases)

    def forward(self, vectors: Float[Tensor, "R D"]) -> tuple[Float[Tensor, "R V"], Float[Tensor, "R K 4"]]:
        """Logits and encoded boxes; fp32."""
        boxes = self.boxes(vectors).float().unflatten(1, (-1, 4))
        return self.classes(vectors).float(), boxes[:, : self.num_classes]


def _apply_norm(x: Float[Tensor, "R C S S"], norm: nn.Module) -> Float[Tensor, "R C S S"]:
    """`norm(x)`; without regions its affine part alone, as no statistics can be taken of nothing."""
    if x.shape[0]:
        y: Tensor = norm(x)
        return y
    assert isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]
