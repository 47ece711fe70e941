"""Phases: parts of one run, trained one after another on the same weights, each with settings of its own.

A phase begins with the weights that the one before it would keep (of a moving average, the average's), with a new
optimiser, average and course of the learning rate. Epochs and steps are counted on over the whole run, and so are the
images that the losses have seen.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from focaldet import config as configs
from focaldet.data.formats.text import list_names
from focaldet.errors import ConfigError
from focaldet.models import PREPROCESSING
from focaldet.training.config import RunConfig, phase_settings
from focaldet.training.state import asked_architecture
from focaldet.types import Preprocessing
from focaldet.weights.tensor_names import Shapes, shapes_of, without_memory


@dataclass(frozen=True)
class Phase:
    """One phase: number `number` (from 1) of `count`, with all settings that hold in it.

    `first_epoch` is the number of epochs before it, `named` what it sets otherwise than the run.
    """

    number: int
    count: int
    config: RunConfig
    first_epoch: int
    named: Mapping[str, Any]

    @property
    def end_epoch(self) -> int:
        """The number of epochs after it."""
        return self.first_epoch + self.config.epochs

    @property
    def mark(self) -> dict[str, int]:
        """The number as a part of a record; nothing in a run without phases."""
        return {"phase": self.number} if self.named else {}

    def sentence(self) -> str:
        """What people want to know when it begins: when it is, and what differs."""
        own = [f"{name} {_word(value)}" for name, value in configs.flatten(self.named).items() if name != "epochs"]
        epochs = f"epochs {self.first_epoch + 1} to {self.end_epoch}"
        if self.config.epochs == 1:
            epochs = f"epoch {self.end_epoch}"
        return f"phase {self.number} of {self.count}, {epochs}: {', '.join(own) or 'settings of the run'}"


def planned(config: RunConfig) -> tuple[Phase, ...]:
    """The phases of a checked `config`, all proven possible before the first begins; without phases the run as one.

    Raises:
        ConfigError: the network or the pictures of a phase are impossible, it has tensors that the first phase has not,
            or nothing to train; names the phase.
    """
    phases, begin = [], 0
    named = config.phases or ({},)
    for number, (settings, own) in enumerate(zip(phase_settings(config), named, strict=True), start=1):
        phases.append(Phase(number, len(named), settings, begin, own))
        begin = phases[-1].end_epoch
    first: Shapes | None = None
    for phase in phases if config.phases else ():
        try:
            first = _fitting(phase.config, first)
        except ConfigError as error:
            raise ConfigError(f"phase {phase.number}: {error}") from None
    return tuple(phases)


def _fitting(config: RunConfig, first: Shapes | None) -> Shapes:
    """The shapes of the network's tensors, which are those of the `first` phase where there is one."""
    asked = PREPROCESSING.get(config.model, Preprocessing()).resize
    asked.with_sides(size=config.size, short_side=config.short_side, max_side=config.max_side)
    detector = without_memory(asked_architecture(config))
    if not any(parameter.requires_grad for parameter in detector.parameters()):
        raise ConfigError("nothing is left to train")
    shapes = shapes_of(detector, counters=False)
    others = [name for name in {**shapes, **(first or shapes)} if shapes.get(name) != (first or shapes).get(name)]
    if others:
        raise ConfigError(
            f"architecture: a phase goes on with all tensors as they are; not so here: {list_names(others)}"
        )
    return shapes


def shared_out(epochs: Sequence[int], *, total: int) -> list[int]:
    """`total` epochs for phases of these `epochs`, in the same proportion (Sainte-Laguë) and at least one each.

    Raises:
        ConfigError: fewer epochs than phases.
    """
    if total < len(epochs):
        raise ConfigError(f"epochs: {total} for {len(epochs)} phases; each needs at least one")
    shares = [1] * len(epochs)
    while sum(shares) < total:
        poorest = max(range(len(epochs)), key=lambda place: epochs[place] / (2 * shares[place] + 1))
        shares[poorest] += 1
    return shares


def _word(value: Any) -> str:
    """A setting as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)
