"""The α-balanced focal loss of dense detectors, summed in one pass, with its gradient and nothing else of its size.

Axes: A anchors (rows), K classes. Inputs are logits; everything is computed in fp32 (fp64 stays fp64), half-precision
inputs give an fp32 sum.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from focaldet.ops.losses.arguments import (
    require_classes,
    require_gamma,
    require_logits,
    require_mask,
    require_number,
    require_tensor,
)
from focaldet.ops.losses.inputs import upcast, warn_of_probabilities
from focaldet.ops.losses.log_sigmoid import log1p

_BLOCK_ELEMENTS = 1 << 16  # 256 KB of fp32: the block's handful of temporaries stays in the second-level cache


def focal_loss_sum(
    logits: Float[Tensor, "*A K"],
    labels: Integer[Tensor, "*A"],
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    ignore: Bool[Tensor, "*A"] | None = None,
) -> Float[Tensor, ""]:
    """The sum of the α-balanced focal loss (eq. 5) over all anchors and classes, in [0, ∞), in one pass.

    `labels` hold the class in [0, K) or K for background; rows marked in `ignore` count nothing, whatever they hold.
    `alpha=None` leaves the balance out (eq. 4). Loss and gradient are computed together: beside the gradient (in the
    type of `logits`) nothing of the size of `logits` is allocated. On CUDA it is one Triton kernel.

    Raises:
        ValueError: γ below 0, `alpha` outside [0, 1], labels or `ignore` of another shape or type, or (looked at on the
            CPU only) a label outside [0, K] that is not ignored.
        RuntimeError: on the attempt to differentiate twice.
    """
    _require_arguments(logits, labels, alpha, gamma, ignore)
    warn_of_probabilities(logits)
    total: Tensor = _FocalLossSum.apply(logits, labels.long(), alpha, gamma, ignore)
    return total


class _FocalLossSum(torch.autograd.Function):
    """Loss and gradient in one pass; the gradient waits for `backward`, which frees it.

    Whoever runs `backward` again on a retained graph has it computed again.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes positions only
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        alpha: float | None,
        gamma: float,
        ignore: Tensor | None,
    ) -> Tensor:
        ctx.alpha, ctx.gamma = alpha, gamma
        ctx.save_for_backward(logits, labels, ignore)
        with_slope = ctx.needs_input_grad[0]
        total, ctx.slope = _sum_and_slope(logits, labels, ignore, alpha=alpha, gamma=gamma, with_slope=with_slope)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # only so while a graph of this gradient is asked for
            raise RuntimeError("focal_loss_sum has no second derivative: use balanced_focal_loss, which has")
        slope, ctx.slope = ctx.slope, None
        if slope is None:
            logits, labels, ignore = ctx.saved_tensors
            _, slope = _sum_and_slope(logits, labels, ignore, alpha=ctx.alpha, gamma=ctx.gamma, with_slope=True)
        return slope.mul_(grad_output.to(slope.dtype)), None, None, None, None


def _sum_and_slope(
    logits: Tensor, labels: Tensor, ignore: Tensor | None, *, alpha: float | None, gamma: float, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum, and its derivative by every logit if wanted."""
    rows, classes = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    ignored = None if ignore is None else ignore.reshape(-1)
    if logits.device.type == "cuda":
        from focaldet.ops.losses.fused_cuda import sum_and_slope

        total, slopes = sum_and_slope(rows, classes, ignored, alpha, gamma, with_slope)
        slope = slopes if with_slope else None
    else:
        background = f", {rows.shape[1]} for background"
        require_classes("labels", classes, ignored, highest=rows.shape[1], meaning=background)
        slope = torch.empty_like(rows) if with_slope else None
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for start in range(0, len(rows), step := max(1, _BLOCK_ELEMENTS // max(1, rows.shape[1]))):
            block = slice(start, start + step)
            masked, part = (None if each is None else each[block] for each in (ignored, slope))
            total += _block(rows[block], classes[block], masked, part, alpha=alpha, gamma=gamma)
    total = total.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    return total, None if slope is None else slope.view(logits.shape)


def _require_arguments(
    logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, ignore: Tensor | None
) -> None:
    """Refuse what `focal_loss_sum` does, but for the values of the labels."""
    require_gamma(gamma)
    if alpha is not None:
        require_number("alpha", alpha, low=0.0, high=1.0)
    require_logits(logits)
    require_tensor("labels", labels)
    is_number = not labels.is_floating_point() and labels.dtype != torch.bool
    if logits.ndim == 0 or labels.shape != logits.shape[:-1] or not is_number:
        raise ValueError(
            f"labels must be class numbers of the shape of logits without its last axis, {list(logits.shape[:-1])}, "
            f"got {labels.dtype} of shape {list(labels.shape)}: with a column for each class use balanced_focal_loss"
        )
    require_mask(ignore, labels.shape)


def _block(
    logits: Float[Tensor, "A K"],
    labels: Int64[Tensor, " A"],
    ignore: Bool[Tensor, " A"] | None,
    slope_out: Float[Tensor, "A K"] | None,
    *,
    alpha: float | None,
    gamma: float,
) -> Float[Tensor, ""]:
    """Sum of the block's loss in float64; writes d loss / d logit into `slope_out`.

    All elements are first treated as negatives; the few positives (one a row at most) are then put right.
    """
    x = upcast(logits)
    positive = (labels < x.shape[1]).nonzero().squeeze(1)
    if ignore is not None:
        x = x.masked_fill(ignore[:, None], 0.0)
        positive = positive[~ignore[positive]]
    column = labels[positive]
    weights = (1.0, 1.0) if alpha is None else (1 - alpha, alpha)
    loss, slope = _value_and_slope(x, gamma=gamma, weight=weights[0])
    true_loss, true_slope = _value_and_slope(-x[positive, column], gamma=gamma, weight=weights[1])
    loss[positive, column] = true_loss
    slope[positive, column] = -true_slope
    if ignore is not None:
        loss.masked_fill_(ignore[:, None], 0.0)
        slope.masked_fill_(ignore[:, None], 0.0)
    if slope_out is not None:
        slope_out.copy_(slope)
    return loss.sum(dtype=torch.float64)


def _value_and_slope(
    x: Float[Tensor, "*shape"], *, gamma: float, weight: float
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Focal loss of negatives with logit `x`, and its derivative: p^γ s and p^γ (γ (1 - p) s + p), both times `weight`.

    With p = σ(x) the probability given to the wrong answer, so p_t = 1 - p and s = softplus(x) = -log p_t.
    """
    p, s = torch.sigmoid(x), log1p(x.abs().neg_().exp_()).add_(x.clamp(min=0))
    if gamma == 0:
        return s * weight, p * weight
    slope = torch.addcmul(p, 1 - p, s, value=gamma)
    power = (p * p if gamma == 2 else p.pow(gamma)).mul_(weight)
    return s.mul_(power), slope.mul_(power)
