"""One update of the weights."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from focaldet.errors import NonFiniteLossError
from focaldet.ops.losses.normalize import sum_over_ranks
from focaldet.runtime import gather_objects, seed_everything
from focaldet.training.config import RunConfig
from focaldet.training.optim import clip_gradients, ema_decay, set_rate
from focaldet.training.signals import StopSignal
from focaldet.training.state import TrainState
from focaldet.training.timing import BACKWARD, FORWARD, UPDATE, Stopwatch
from focaldet.types import Batch


def train_step(
    state: TrainState,
    batches: Sequence[Batch],
    *,
    module: Callable[..., Any],
    config: RunConfig,
    rate: float,
    rank: int = 0,
    first_step: int = 0,
    stop: StopSignal | bool = False,
    stopwatch: Stopwatch | None = None,
) -> tuple[dict[str, float], float, bool]:
    """Update the weights once: forward, losses, backward, clipping, optimizer, moving average.

    Args:
        state: what is changed; update number `state.step` (from 0) of the run is made.
        batches: one or more batches, whose mean gradient counts.
        module: the state's detector as it is called: plain, or spread over ranks.
        config: the settings of the phase under way.
        rate: the learning rate.
        rank: of this process.
        first_step: the updates of the run before this phase.
        stop: whether this process was asked to stop.
        stopwatch: counts the seconds of forward, backward and update.

    Returns:
        The mean losses over all ranks, the norm of the gradient before clipping, and whether any rank was asked to
        stop: the same on every rank.

    Raises:
        NonFiniteLossError: a loss or the gradient is infinite or NaN on any rank; the weights are as they were.
    """
    seed_everything(config.seed, state.step, rank)
    set_rate(state.optimizer, rate)
    state.optimizer.zero_grad(set_to_none=True)
    means: dict[str, float] = {}
    scaler, stopping, stopwatch = state.autocast.scaler, False, stopwatch or Stopwatch()
    for number, batch in enumerate(batches, start=1):
        is_last = number == len(batches)
        with nullcontext() if is_last else _skip_gradient_sync(module):
            losses = _forward(state, batch, module=module, channels_last=config.channels_last)
            # The engine's one wait for the device in a step (a detector with two stages waits for its proposals). It
            # comes before the backward pass, which then keeps the device busy while the next batch is prepared.
            values, stopping = _mean_over_ranks(losses, stop=bool(stop), num_ranks=state.context.num_ranks)
            stopwatch.lap(FORWARD)
            _require_finite(losses, values, batch, state=state)
            loss = torch.stack(list(losses.values())).sum() / len(batches)
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
            stopwatch.lap(BACKWARD)
        means = {name: means.get(name, 0.0) + value / len(batches) for name, value in values.items()}
    norm = _apply_gradients(state, batches, max_norm=config.clip_norm)
    if config.ema is not None:
        state.update_ema(decay=ema_decay(state.step - first_step, limit=config.ema))
    stopwatch.lap(UPDATE)
    state.step += 1
    state.context.images_seen += sum(len(batch.indices) for batch in batches) * state.context.num_ranks
    return means, norm, stopping


def _forward(state: TrainState, batch: Batch, *, module: Callable[..., Any], channels_last: bool) -> dict[str, Tensor]:
    """The losses of a batch."""
    batch = batch.to(state.autocast.device)
    images = batch.images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    with state.autocast():
        outputs = module(images, batch.sizes, batch.targets)
    return state.detector.losses(outputs, batch.targets, state.context)


def _apply_gradients(state: TrainState, batches: Sequence[Batch], *, max_norm: float | None) -> float:
    """Clip the gradients and let the optimizer move the weights; the norm of the gradient before clipping.

    A step in which fp16 overflowed is skipped.
    """
    optimizer, scaler = state.optimizer, state.autocast.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(clip_gradients(trained, max_norm=max_norm))
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    elif math.isfinite(norm):
        optimizer.step()
    else:
        _raise_not_finite(f"the gradient is not finite (norm {norm})", batches, state=state)
    return norm


def _skip_gradient_sync(module: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Inside, the processes do not exchange gradients: they do so once, after the last batch of an update."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def _mean_over_ranks(losses: dict[str, Tensor], *, stop: bool, num_ranks: int) -> tuple[dict[str, float], bool]:
    """The losses as plain numbers, their mean over the ranks, and whether any rank is asked to stop."""
    row = torch.stack([loss.detach().float() for loss in losses.values()])
    if num_ranks > 1:
        row = sum_over_ranks(torch.cat([row, torch.full_like(row[:1], float(stop) * num_ranks)])) / num_ranks
    values = row.tolist()
    if num_ranks > 1:
        stop = values.pop() > 0
    return dict(zip(losses, values, strict=True)), stop


def _require_finite(losses: dict[str, Tensor], means: dict[str, float], batch: Batch, *, state: TrainState) -> None:
    """Refuse `means` over the ranks that are not finite; a rank whose own `losses` are finite is not to blame."""
    if all(map(math.isfinite, means.values())):
        return
    listed = ", ".join(f"{name} {value:g}" for name, value in means.items())
    is_sound = all(bool(loss.isfinite()) for loss in losses.values())
    _raise_not_finite(f"the loss is not finite ({listed})", [] if is_sound else [batch], state=state)


def _raise_not_finite(problem: str, batches: Sequence[Batch], *, state: TrainState) -> None:
    """Raise NonFiniteLossError on every rank, with the names of the images in the `batches` of all ranks."""
    own = [name for batch in batches for name in batch.image_names]
    names = [name for part in gather_objects(own, num_ranks=state.context.num_ranks) for name in part]
    raise NonFiniteLossError(
        f"step {state.step + 1}: {problem}; no update was applied. Images of the batch: {', '.join(names)}. "
        "Look at their boxes with `focaldet check`; if they are sound, try a lower learning_rate or precision=fp32"
    )
