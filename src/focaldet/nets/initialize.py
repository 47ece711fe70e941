"""The first weights of layers; modules other than convolutions and linear layers are passed over."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn


def initialize_he(modules: Iterable[nn.Module], *, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draw the weights of `modules` from N(0, 2 / fan) (He et al. 2015); biases are 0."""
    _initialize(modules, partial(nn.init.kaiming_normal_, mode=mode, nonlinearity="relu"))


def initialize_xavier(modules: Iterable[nn.Module]) -> None:
    """Draw the weights of `modules` as Caffe's Xavier filler, uniform in ±√(3 / fan-in); biases are 0."""
    _initialize(modules, partial(nn.init.kaiming_uniform_, a=1))


def initialize_normal(modules: Iterable[nn.Module], *, std: float = 0.01) -> None:
    """Draw the weights of `modules` from N(0, `std`²); biases are 0."""
    _initialize(modules, partial(nn.init.normal_, std=std))


def set_biases(layer: nn.Conv2d | nn.Linear, biases: Sequence[float]) -> None:
    """Set the biases of `layer` to `biases`, again and again for the anchors of a cell."""
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.view(-1, len(biases)).copy_(torch.tensor(biases))


def _initialize(modules: Iterable[nn.Module], draw: Callable[[Tensor], object]) -> None:
    for module in modules:
        # On the device "meta", which has shapes alone, torch takes longer to draw nothing than to build the network.
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
