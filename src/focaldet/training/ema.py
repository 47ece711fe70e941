"""The exponential moving average of a detector's weights."""

import copy

import torch
from torch import Tensor

from focaldet.models.base import Detector


class Ema:
    """A copy of a detector whose weights follow it slowly: w ← d·w + (1 − d)·source, batch statistics included.

    The decay d grows with the updates t, d(t) = min(`decay`, (1 + t) / (10 + t)), so that a short run is not dominated
    by its random start. Whole-number buffers are copied.
    """

    def __init__(self, source: Detector, *, decay: float) -> None:
        self.decay = decay
        self.detector = copy.deepcopy(source).eval().requires_grad_(False)
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copies: list[tuple[Tensor, Tensor]] = []
        sources = source.state_dict(keep_vars=True)
        for name, own in self.detector.state_dict(keep_vars=True).items():
            if own.is_floating_point():
                self._pairs[0].append(own)
                self._pairs[1].append(sources[name])
            else:
                self._copies.append((own, sources[name]))

    def decay_at(self, update: int) -> float:
        """The decay of update number `update`, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, *, update: int) -> None:
        """Move the average towards the source, as it stands after update number `update`."""
        own, source = self._pairs
        torch._foreach_lerp_(own, source, 1 - self.decay_at(update))
        for copied, value in self._copies:
            copied.copy_(value)
