"""The focal loss of Lin et al. 2017, elementwise as in the paper and fused for dense detectors.

Axes: A anchors (rows), K classes. Inputs are logits, never probabilities. Everything is computed in fp32 (fp64 stays
fp64) in log space; half-precision inputs give fp32 losses.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 16  # 256 KB of fp32: the block's handful of temporaries stays in the second-level cache


def focal_loss(
    logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], *, gamma: float
) -> Float[Tensor, "*shape"]:
    """FL(p_t) = -(1 - p_t)^γ log(p_t) of every element (eq. 4); γ = 0 is the binary cross entropy.

    `targets` are 0 or 1. Value and gradient are finite for every γ ≥ 0 and any finite logit.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    signed = torch.where(targets > 0.5, logits, -logits)
    log_pt = F.logsigmoid(signed)
    if gamma == 0:
        return -log_pt
    # (1 - p_t)^γ as exp(γ log(1 - p_t)): a power of 1 - p_t has an infinite slope at p_t = 1 for γ < 1.
    return -torch.exp(gamma * F.logsigmoid(-signed)) * log_pt


def balanced_focal_loss(
    logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], *, alpha: float, gamma: float
) -> Float[Tensor, "*shape"]:
    """α_t FL(p_t) of every element (eq. 5): α weighs the positives, 1 - α the negatives, α in [0, 1]."""
    weight = torch.where(targets > 0.5, alpha, 1 - alpha)
    return weight * focal_loss(logits, targets, gamma=gamma)


def focal_loss_sum(
    logits: Float[Tensor, "*A K"],
    labels: Int64[Tensor, "*A"],
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    ignored: Bool[Tensor, "*A"] | None = None,
) -> Float[Tensor, ""]:
    """The sum of the α-balanced focal loss (eq. 5) over all anchors and classes, in one pass.

    `labels` hold the class in [0, K) or K for background; rows marked `ignored` count nothing. `alpha=None` leaves the
    balance out (eq. 4). Loss and gradient are computed together, block by block: beside the gradient (in the type of
    `logits`) nothing of the size of `logits` is allocated.

    Raises:
        RuntimeError: on the attempt to differentiate twice.
    """
    total: Tensor = _FocalLossSum.apply(logits, labels, alpha, gamma, ignored)
    return total


class _FocalLossSum(torch.autograd.Function):
    """Loss and gradient in one pass over blocks of rows."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes positions only
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        alpha: float | None,
        gamma: float,
        ignored: Tensor | None,
    ) -> Tensor:
        num_classes = logits.shape[-1]
        rows, classes = logits.reshape(-1, num_classes), labels.reshape(-1)
        keep = None if ignored is None else ~ignored.reshape(-1)
        needed = ctx.needs_input_grad[0]
        grad = torch.empty_like(rows) if needed else None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        step = max(1, _BLOCK_ELEMENTS // max(1, num_classes)) if logits.device.type == "cpu" else max(1, len(rows))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            mask = None if keep is None else keep[block]
            part = None if grad is None else grad[block]
            total += _block(rows[block], classes[block], mask, part, alpha=alpha, gamma=gamma)
        if needed:
            ctx.save_for_backward(grad.reshape(logits.shape) if grad is not None else None)
        return total.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only so while a graph of this gradient is asked for
            raise RuntimeError("focal_loss_sum has no second derivative: use balanced_focal_loss, which has")
        (grad,) = ctx.saved_tensors
        return grad * grad_output.to(grad.dtype), None, None, None, None


def _block(
    logits: Float[Tensor, "A K"],
    labels: Int64[Tensor, " A"],
    keep: Bool[Tensor, " A"] | None,
    grad: Float[Tensor, "A K"] | None,
    *,
    alpha: float | None,
    gamma: float,
) -> Float[Tensor, ""]:
    """Sum of the block's loss in float64; writes d loss / d logit into `grad`.

    All elements are first treated as negatives; the few positives (one a row at most) are then put right.
    """
    x = logits.double() if logits.dtype == torch.float64 else logits.float()
    positive = (labels < x.shape[1]).nonzero().squeeze(1)
    column = labels[positive]
    loss, slope = _value_and_slope(x, gamma)
    true_loss, true_slope = _value_and_slope(-x[positive, column], gamma)
    if alpha is not None:
        loss, slope = loss * (1 - alpha), slope * (1 - alpha)
        true_loss, true_slope = true_loss * alpha, true_slope * alpha
    loss[positive, column] = true_loss
    slope[positive, column] = -true_slope
    if keep is not None:
        loss, slope = loss * keep[:, None], slope * keep[:, None]
    if grad is not None:
        grad.copy_(slope)
    return loss.sum(dtype=torch.float64)


def _value_and_slope(
    x: Float[Tensor, "*shape"], gamma: float
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Focal loss of negatives with logit `x`, and its derivative: p^γ · s and p^γ (γ (1 - p) s + p), s = softplus(x).

    With p = σ(x) the probability given to the wrong answer, so p_t = 1 - p and s = -log p_t.
    """
    decay = torch.exp(-x.abs())
    log_sum = torch.log1p(decay)
    softplus = x.clamp(min=0) + log_sum
    p = torch.where(x >= 0, 1.0, decay) / (1 + decay)
    if gamma == 0:
        return softplus, p
    power = p * p if gamma == 2 else torch.exp(gamma * (x.clamp(max=0) - log_sum))
    q = torch.where(x >= 0, decay, 1.0) / (1 + decay)
    return power * softplus, power * (gamma * q * softplus + p)
