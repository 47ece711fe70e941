"""The learning-rate finder: a short training whose rate rises from step to step, and the loss at each rate.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3. Nothing is written.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from focaldet.data.dataset import ImageSource
from focaldet.data.loading.loader import explain_worker_death
from focaldet.errors import ConfigError, NonFiniteLossError
from focaldet.runtime import Progress, launch_fabric, num_processes, pick_device, torch_settings
from focaldet.training.config import RunConfig
from focaldet.training.phases import check_phases
from focaldet.training.preflight import require_norm_values, require_objects, require_training_memory
from focaldet.training.sources import build_loader, open_sources
from focaldet.training.state import TrainState, build_state
from focaldet.training.step import train_step
from focaldet.training.trainer import count_threads, explain_errors
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
    config: RunConfig,
    *,
    sources: tuple[ImageSource, ImageSource] | None = None,
    num_rates: int = NUM_RATES,
    log: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> RateCurve:
    """Train a fresh detector for `num_rates` steps whose learning rate rises evenly on a logarithmic scale.

    Everything but the rate is as `config` says; of a run with phases the first one. The search ends early where the
    loss grows. What a training would refuse before its first step is refused here, too.

    Args:
        config: the settings of the run.
        sources: images to train on (and others, not used), instead of those in `config.data`.
        num_rates: how many rates, at least 2.
        log: called before the first step with each line on the images and the initial weights.
        progress: called after each step with the rates that were tried and `num_rates`.

    Raises:
        ConfigError: a setting is out of range, or several processes were started.
        DataError, CheckpointError, OutOfMemoryError: as in `train`.
    """
    if num_processes() > 1:
        raise ConfigError("find_lr: runs in one process; start it without torchrun or SLURM tasks")
    check_phases(config)
    config = replace(config.phase_configs[0], ema=None)
    torch_state = torch_settings(threads=count_threads(config), deterministic=config.deterministic)
    with explain_errors(config), explain_worker_death(), torch_state:
        fabric = launch_fabric(pick_device(config.device))
        source, validation, notes = open_sources(config, sources)
        require_objects(source.dataset)
        state, weights_notes = build_state(config, classes=validation.dataset.classes, fabric=fabric, saved=None)
        require_training_memory(config, state.detector, source.dataset, device=fabric.device)
        require_norm_values(state.detector, config, source.dataset, autocast=state.autocast)
        for line in (*notes, *weights_notes, f"up to {num_rates} steps, each with a larger learning rate"):
            log(line)
        loader = build_loader(config, 0, source, preprocessing=state.detector.preprocessing, ranks=fabric)
        trials: list[RateTrial] = []
        for trial in _try_rates(state, _repeat_epochs(loader), config, rates_to_try(num_rates)):
            trials.append(trial)
            if progress is not None:
                progress(len(trials), num_rates)
    return RateCurve(tuple(trials), suggest_rate(trials))


def _try_rates(
    state: TrainState, batches: Iterator[Batch], config: RunConfig, rates: Sequence[float]
) -> Iterator[RateTrial]:
    """A step with each rate, until the loss has grown."""
    factor = config.scaled_learning_rate / config.learning_rate
    trials: list[RateTrial] = []
    for rate in rates:
        group = list(itertools.islice(batches, config.accumulate))
        try:
            losses, _, _ = train_step(state, group, module=state.detector, config=config, rate=rate * factor)
        except NonFiniteLossError:
            return
        trials.append(_next_trial(trials, rate=rate, loss=sum(losses.values())))
        yield trials[-1]
        if trials[-1].smooth > DIVERGED * min(trial.smooth for trial in trials):
            return


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
