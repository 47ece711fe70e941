"""One update of the weights."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from focaldet.errors import NonFiniteLossError
from focaldet.ops.losses.normalize import sum_over_ranks
from focaldet.runtime import seed_everything
from focaldet.training.config import RunConfig
from focaldet.training.optim import clip_gradients, set_rate
from focaldet.training.state import TrainState
from focaldet.types import Batch


class StepResult(NamedTuple):
    """What a step found: mean losses over all ranks, the gradient's norm before clipping, the images of all ranks.

    `stop` is True on every rank when any rank was asked to stop.
    """

    losses: dict[str, float]
    gradient_norm: float
    num_images: int
    stop: bool


class Update:
    """The way from batches to new weights: forward, losses, backward, clipping, optimiser, moving average.

    `module` is the learner's detector as it is called: plain, or spread over ranks. `first_step` is the number of
    updates of the run before the learner's first.
    """

    def __init__(
        self,
        learner: TrainState,
        *,
        module: Callable[..., Any],
        config: RunConfig,
        rank: int = 0,
        first_step: int = 0,
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.learner, self.module, self.config, self.rank = learner, module, config, rank
        self.context, self.optimizer = learner.context, learner.optimizer
        self.first_step, self.stop_asked = first_step, stop_asked
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def __call__(self, batches: Sequence[Batch], *, step: int, rate: float) -> StepResult:
        """Update number `step` (from 0) of the run from one or more batches whose mean gradient counts.

        Raises:
            NonFiniteLossError: a loss or the gradient is infinite or NaN on any rank; the weights are as they were.
        """
        seed_everything(self.config.seed, step, self.rank)
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        stop = False
        for place, batch in enumerate(batches):
            last = place == len(batches) - 1
            with nullcontext() if last else self._unsynchronised():
                losses = self._losses(batch)
                values, stop = self._agreed(losses, batch, step=step)
                self._backward(torch.stack(list(losses.values())).sum() / len(batches))
            means = {name: means.get(name, 0.0) + value / len(batches) for name, value in values.items()}
        norm = self._apply(batches, step=step)
        num_images = sum(len(batch.indices) for batch in batches) * self.context.num_ranks
        self.context.images_seen += num_images
        return StepResult(means, norm, num_images, stop)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        batch = batch.to(self.learner.autocast.device)
        images = batch.images.contiguous(memory_format=self.memory_format)
        with self.learner.autocast():
            outputs = self.module(images, batch.sizes, batch.targets)
        return self.learner.detector.losses(outputs, batch.targets, self.context)

    def _agreed(self, losses: dict[str, Tensor], batch: Batch, *, step: int) -> tuple[dict[str, float], bool]:
        """The losses as plain numbers, their mean over the ranks, and whether to stop: the same on every rank.

        The engine's one wait for the device in a step; proposals, whose number no one knows before, make a detector
        with two stages wait in its own. It comes before the backward pass, which then keeps the device busy
        while the next batch is prepared.
        """
        row = torch.stack([loss.detach().float() for loss in losses.values()])
        ranks = self.context.num_ranks
        own = row
        if ranks > 1:
            flag = torch.full_like(row[:1], float(self.stop_asked()))
            row = sum_over_ranks(torch.cat([row, flag * ranks])) / ranks
        values = row.tolist()
        stop = values.pop() > 0 if ranks > 1 else self.stop_asked()
        named = dict(zip(losses, values, strict=True))
        if not all(map(math.isfinite, values)):
            self._refuse(
                f"the loss is not finite ({_listed(named)})", [batch], step=step, guilty=not own.isfinite().all()
            )
        return named, stop

    def _backward(self, loss: Tensor) -> None:
        scaler = self.learner.autocast.scaler
        torch.autograd.backward(loss if scaler is None else scaler.scale(loss))

    def _apply(self, batches: Sequence[Batch], *, step: int) -> float:
        """Let the optimiser and the average move; the norm of the gradient. fp16 steps that overflow are left out."""
        scaler = self.learner.autocast.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = float(clip_gradients(self.trained, max_norm=self.config.clip_norm))
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        elif math.isfinite(norm):
            self.optimizer.step()
        else:
            self._refuse(f"the gradient is not finite (norm {norm})", batches, step=step, guilty=True)
        if self.learner.ema is not None:
            self.learner.ema.update(update=step - self.first_step)
        return norm

    def _unsynchronised(self) -> AbstractContextManager[Any]:
        if isinstance(self.module, nn.parallel.DistributedDataParallel):
            return self.module.no_sync()
        return nullcontext()

    def _refuse(self, problem: str, batches: Sequence[Batch], *, step: int, guilty: bool) -> None:
        names = [name for batch in batches for name in batch.image_names] if guilty else []
        if self.context.num_ranks > 1:
            gathered: list[list[str]] = [[] for _ in range(self.context.num_ranks)]
            torch.distributed.all_gather_object(gathered, names)
            names = [name for part in gathered for name in part]
        raise NonFiniteLossError(
            f"step {step + 1}: {problem}; no update was applied. Images of the batch: {', '.join(names)}. "
            "Look at their boxes with `focaldet check`; if they are sound, try a lower learning_rate or precision=fp32"
        )


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
