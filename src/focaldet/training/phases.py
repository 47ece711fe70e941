"""Phases: parts of one run, trained one after another on the same weights, each with settings of its own.

A phase starts from the weights that the one before it saves (with a moving average, the average's), with a new
optimizer, moving average and learning rate schedule. Epochs, steps and the images that the losses have seen are counted
over the whole run.
"""

import json
from collections.abc import Sequence
from typing import Any

from focaldet import config as configs
from focaldet.data.formats.text import list_names
from focaldet.errors import ConfigError
from focaldet.models import effective_config, find_preset
from focaldet.training.config import RunConfig
from focaldet.training.state import asked_architecture
from focaldet.weights.tensor_names import TensorShapes, build_on_meta, shapes_of


def check_phases(config: RunConfig) -> None:
    """Make sure that every phase can be trained before the first one begins.

    Raises:
        ConfigError: the network or the image size of a phase is impossible, it has other tensors than the first phase,
            or nothing to train; names the phase.
    """
    first: TensorShapes | None = None
    for number, phase in enumerate(config.phase_configs if config.phases else (), start=1):
        try:
            first = _check_network(phase, first)
        except ConfigError as error:
            raise ConfigError(f"phase {number}: {error}") from None


def _check_network(config: RunConfig, first: TensorShapes | None) -> TensorShapes:
    """The shapes of the network's tensors, which are those of the `first` phase where there is one."""
    config.resize(find_preset(config.model).preprocessing.resize)  # refuses sides that contradict each other
    if not config.resume:  # a run that began before some setting lost its effect goes on
        effective_config(config.model, architecture=config.architecture)
    detector = build_on_meta(asked_architecture(config))
    if not any(parameter.requires_grad for parameter in detector.parameters()):
        raise ConfigError("nothing is left to train")
    shapes = shapes_of(detector, counters=False)
    others = [name for name in {**shapes, **(first or shapes)} if shapes.get(name) != (first or shapes).get(name)]
    if others:
        raise ConfigError(
            f"architecture: a phase must have the same tensors as the first one; these differ: {list_names(others)}"
        )
    return shapes


def describe_phase(config: RunConfig, number: int) -> str:
    """One line on phase `number` (from 1) of a run: its epochs, and the settings in which it differs from the run."""
    lengths = [phase.epochs for phase in config.phase_configs]
    end = sum(lengths[:number])
    begin = end - lengths[number - 1] + 1
    epochs = f"epochs {begin} to {end}" if begin < end else f"epoch {end}"
    changes = configs.flatten(config.phases[number - 1])
    own = [f"{name} {_yaml_word(value)}" for name, value in changes.items() if name != "epochs"]
    return f"phase {number} of {len(lengths)}, {epochs}: {', '.join(own) or 'settings of the run'}"


def split_epochs(epochs: Sequence[int], *, total: int) -> list[int]:
    """Split `total` epochs into phases in the proportion of `epochs` (Sainte-Laguë), at least one each.

    Raises:
        ConfigError: fewer epochs than phases.
    """
    if total < len(epochs):
        raise ConfigError(f"epochs: {total} for {len(epochs)} phases; each needs at least one")
    lengths = [1] * len(epochs)
    while sum(lengths) < total:
        shortest = max(range(len(epochs)), key=lambda phase: epochs[phase] / (2 * lengths[phase] + 1))
        lengths[shortest] += 1
    return lengths


def _yaml_word(value: Any) -> str:
    """A setting as YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value)
