"""The focal loss of any number of decisions, sorted from easy to hard, in constant memory.

Axes: S the two sides, positives and negatives; E exponents γ; X bins of x_t; P corners of a curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from focaldet.models.base import Margins
from focaldet.ops.losses.focal import focal_loss

SIDES = ("positives", "negatives")
BINS_PER_UNIT, FARTHEST = 128, 60  # bins of x_t; the outermost ones take what is farther out
NUM_BINS = 2 * FARTHEST * BINS_PER_UNIT
CHUNK_DECISIONS = 1 << 20


class LossTally:
    """A histogram of decisions by x_t, with the exact sum of their focal loss in each bin for every γ.

    FL without α depends on x_t alone and falls with it, so the bins in the order of x_t give its cumulative sum over
    any number of decisions in the same memory. Only within a bin, 1/128 of a logit wide, is the order unknown.

    Args:
        gammas: exponents of the loss, each ≥ 0.
        device: of the sums; one that computes in fp64.

    Attributes:
        counts: decisions, positives first; x_t grows from −60 to 60 over the bins.
        losses: sums of the loss for every γ.
    """

    def __init__(self, gammas: Sequence[float], *, device: torch.device | None = None) -> None:
        self.gammas = tuple(gammas)
        self.counts: Int64[Tensor, "S X"] = torch.zeros(len(SIDES), NUM_BINS, dtype=torch.int64, device=device)
        self.losses: Float64[Tensor, "E S X"] = torch.zeros(
            len(self.gammas), len(SIDES), NUM_BINS, dtype=torch.float64, device=device
        )

    def add(self, margins: Margins) -> None:
        """Add the decisions of some images, all of them finite."""
        x = torch.cat(margins)
        first = len(margins.positive)
        for start in range(0, len(x), CHUNK_DECISIONS):
            chunk = x[start : start + CHUNK_DECISIONS].to(self.counts.device).double()
            side = torch.arange(start, start + len(chunk), device=chunk.device) >= first
            bins = ((chunk + FARTHEST) * BINS_PER_UNIT).clamp(0, NUM_BINS - 1).long() + side * NUM_BINS
            self.counts += bins.bincount(minlength=self.counts.numel()).view_as(self.counts)
            for losses, gamma in zip(self.losses.unbind(), self.gammas, strict=True):
                loss = focal_loss(chunk, torch.ones_like(chunk, dtype=torch.bool), gamma=gamma)
                losses.add_(bins.bincount(loss, minlength=losses.numel()).view_as(losses))

    def cumulative(self, side: str, gamma: float) -> "CumulativeLoss | None":
        """The curve of one of `SIDES`; None where that has no loss."""
        row = SIDES.index(side)
        counts, losses = self.counts[row].cpu(), self.losses[self.gammas.index(gamma), row].cpu()
        filled = counts.flip(0).nonzero().squeeze(1)  # from easy to hard: x_t falls
        sums = [numpy.append(0.0, bins.flip(0)[filled].double().cumsum(0).numpy()) for bins in (counts, losses)]
        return CumulativeLoss(*(ends / ends[-1] for ends in sums)) if sums[1][-1] > 0 else None

    def cpu(self) -> "LossTally":
        """A copy in the memory of the processor."""
        return LossTally.merge([self])

    @staticmethod
    def merge(parts: "Sequence[LossTally]") -> "LossTally":
        """The sum of several tallies with the same γ, on the processor."""
        whole = LossTally(parts[0].gammas)
        for part in parts:
            whole.counts += part.counts.cpu()
            whole.losses += part.losses.cpu()
        return whole


@dataclass(frozen=True, slots=True)
class CumulativeLoss:
    """The cumulative normalized loss: the easiest fraction `examples` of all has the fraction `loss` of the loss.

    Both grow from 0 to 1, corner by corner; between the corners the curve is straight.
    """

    examples: Float64[numpy.ndarray, " P"]
    loss: Float64[numpy.ndarray, " P"]

    def easiest(self, fraction: Float64[numpy.ndarray, " P"]) -> Float64[numpy.ndarray, " P"]:
        """The fractions of the loss that belong to these fractions of the examples, the easiest ones."""
        return numpy.asarray(numpy.interp(fraction, self.examples, self.loss))

    def hardest(self, fraction: float) -> float:
        """The fraction of the loss that belongs to this fraction of the examples, the hardest ones."""
        return 1 - float(self.easiest(numpy.array([1 - fraction]))[0])
