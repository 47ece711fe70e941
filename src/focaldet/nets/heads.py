"""The subnets of dense detectors.

Axes: B images, H W cells, S anchors per cell, A anchors of all levels, V values per anchor.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.nets.initialize import initialize_he, initialize_normal, set_biases
from focaldet.nets.norm import wide_group_norm
from focaldet.ops.classifier import Classifier

TowerInit = Literal["normal", "he"]


class Subnet(nn.Module):
    """`depth` 3×3 convolutions with ReLU, then one that gives `per_cell` × `values` outputs; shared by all levels.

    Weights start from N(0, 0.01) and biases from 0, but for the last: `bias`, one for all values of an anchor or one
    each (Focal Loss paper, section 4.1).
    `tower_init` "he" starts the tower's weights from N(0, 2 / fan-in) instead: with the paper's number every layer
    shrinks the signal, at 256 channels to a third, at 96 to a fifth, and a short training never gets going.
    `norm` puts GroupNorm (`nets.norm.wide_group_norm`) between convolution and ReLU, whose bias it makes needless.
    """

    def __init__(
        self,
        width: int,
        *,
        depth: int,
        per_cell: int,
        values: int,
        norm: bool = False,
        bias: float | Sequence[float] = 0.0,
        tower_init: TowerInit = "normal",
    ) -> None:
        super().__init__()
        self.values = values
        self.tower = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=not norm) for _ in range(depth))
        self.norms = nn.ModuleList(wide_group_norm(width) for _ in range(depth if norm else 0))
        self.predict = nn.Conv2d(width, per_cell * values, 3, padding=1)
        initialize_tower(self.tower, tower_init)
        initialize_normal([self.predict])
        set_biases(self.predict, bias if isinstance(bias, Sequence) else [bias])

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "B A V"]:
        """The values of every anchor: levels in order, cells row by row, the anchors of a cell together; fp32."""
        return torch.cat([self._level(level) for level in levels], dim=1)

    def _level(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ V"]:
        for index, conv in enumerate(self.tower):
            x = conv(x)
            x = F.relu(self.norms[index](x) if self.norms else x, inplace=True)
        # B S·V H W lies in memory as B H W S·V when convolutions run channels-last: then nothing is copied here.
        x = self.predict(x).permute(0, 2, 3, 1)
        return x.reshape(x.shape[0], -1, self.values).float()


def initialize_tower(modules: Iterable[nn.Module], tower_init: TowerInit) -> None:
    """Draw the weights of the convolutions before the last ones from N(0, 0.01²), or for "he" from N(0, 2 / fan-in)."""
    if tower_init == "he":
        initialize_he(modules)
    else:
        initialize_normal(modules)


def logit(probability: float) -> float:
    """-log((1 - π) / π): the bias with which a sigmoid gives π = `probability`, in (0, 1)."""
    return -math.log((1 - probability) / probability)


def prior_biases(classifier: Classifier, *, num_classes: int, prior: float) -> tuple[float, ...]:
    """The biases with which a fresh subnet gives every class the probability π = `prior`, and the rest to background.

    Raises:
        ConfigError: a softmax has no probability left for the background, K π ≥ 1.
    """
    if classifier == "sigmoid":
        return (logit(prior),) * num_classes
    background = 1 - num_classes * prior
    if background <= 0:
        raise ConfigError(
            f"prior: must be below 1 / {num_classes} where a softmax shares 1 among {num_classes} classes and the "
            f"background, got {prior}"
        )
    return (0.0,) * num_classes + (math.log(background / prior),)
