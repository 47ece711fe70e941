"""The learning-rate finder: a short training whose rate rises from step to step, and the loss at each rate.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3. Nothing is written.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from focaldet.data.dataset import ImageSource
from focaldet.data.loading.loader import Loader, explain_worker_death
from focaldet.errors import ConfigError, NonFiniteLossError
from focaldet.runtime import launch_fabric, num_processes, pick_device, torch_settings
from focaldet.training.config import RunConfig
from focaldet.training.sources import open_sources
from focaldet.training.state import build_state
from focaldet.training.step import train_step
from focaldet.types import Batch

# The rates tried, for 8 images per update, and how many of them.
LOWEST_RATE, HIGHEST_RATE, NUM_RATES = 1e-5, 1.0, 100

# Weight of the past in the moving average of the loss; the search ends where this is as many times the smallest one.
SMOOTHING, DIVERGED = 0.9, 4.0

# The suggestion is the rate of the smallest loss, divided by this: the loss is about to rise there. Less than the usual
# 10, because the schedules reach their largest rate slowly and the gradient is clipped.
MARGIN = 3.0


class RateTrial(NamedTuple):
    """A learning rate that was tried: `rate` for 8 images per update, the `loss` of its step, and the smoothed loss."""

    rate: float
    loss: float
    smooth: float


class RateCurve(NamedTuple):
    """The trials of a search in the order of their rates, and the rate to take; None where no loss fell."""

    trials: tuple[RateTrial, ...]
    suggestion: float | None


def find_rate(
    config: RunConfig, *, sources: tuple[ImageSource, ImageSource] | None = None, num_rates: int = NUM_RATES
) -> RateCurve:
    """Train a fresh detector for `num_rates` steps whose learning rate rises evenly on a logarithmic scale.

    Everything but the rate is as `config` says; of a run with phases the first one. The search ends early where the
    loss grows.

    Args:
        config: the settings of the run.
        sources: images to train on (and others, not used), instead of those in `config.data`.
        num_rates: how many rates, at least 2.

    Raises:
        ConfigError: a setting is out of range, or several processes were started.
        DataError, CheckpointError: as in `train`.
    """
    if num_processes() > 1:
        raise ConfigError("find_lr: runs in one process; start it without torchrun or SLURM tasks")
    config = replace(config.phase_configs[0], ema=None)
    with explain_worker_death(), torch_settings(threads=config.threads, deterministic=config.deterministic):
        fabric = launch_fabric(pick_device(config.device))
        source, validation, _ = open_sources(config, sources)
        state, _ = build_state(config, classes=validation.dataset.classes, fabric=fabric, saved=None)
        loader = Loader(
            source,
            preprocessing=state.detector.preprocessing,
            batch_size=config.batch_size // config.accumulate,
            seed=config.seed,
            augment=config.augment,
            workers=config.workers,
            sampling=config.sampling,
        )
        batches = _repeat_epochs(loader)
        factor = config.scaled_learning_rate / config.learning_rate
        trials: list[RateTrial] = []
        for rate in rates_to_try(num_rates):
            group = list(itertools.islice(batches, config.accumulate))
            try:
                losses, _, _ = train_step(state, group, module=state.detector, config=config, rate=rate * factor)
            except NonFiniteLossError:
                break
            trials.append(_next_trial(trials, rate=rate, loss=sum(losses.values())))
            if trials[-1].smooth > DIVERGED * min(trial.smooth for trial in trials):
                break
    return RateCurve(tuple(trials), suggest_rate(trials))


def rates_to_try(number: int) -> list[float]:
    """So many rates from the lowest to the highest, each the same factor above the one before."""
    return [LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** (i / (number - 1)) for i in range(number)]


def suggest_rate(trials: list[RateTrial]) -> float | None:
    """A third of the rate at the smallest smoothed loss; None where that is the first loss, or there are few trials."""
    if len(trials) < 3:
        return None
    best = min(range(len(trials)), key=lambda i: trials[i].smooth)
    return float(f"{trials[best].rate / MARGIN:.1g}") if best > 1 else None


def _next_trial(trials: list[RateTrial], *, rate: float, loss: float) -> RateTrial:
    """The next trial; the moving average begins unbiased, as Adam's does."""
    number = len(trials) + 1
    before = trials[-1].smooth * (1 - SMOOTHING ** (number - 1)) if trials else 0.0
    smooth = (SMOOTHING * before + (1 - SMOOTHING) * loss) / (1 - SMOOTHING**number)
    return RateTrial(rate, loss, smooth if math.isfinite(smooth) else math.inf)


def _repeat_epochs(loader: Any) -> Iterator[Batch]:
    """The batches of epoch after epoch."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)
