"""How the layers of a network start, where several networks start alike."""

from collections.abc import Iterable

from torch import nn


def initialize_he(modules: Iterable[nn.Module]) -> None:
    """Draw the weights of the convolutions among `modules` from N(0, 2 / fan-in) (He et al. 2015); biases are 0."""
    for module in modules:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_xavier(modules: Iterable[nn.Module]) -> None:
    """Draw the weights of the convolutions and linear layers among `modules` as Caffe's XavierFill; biases are 0."""
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
