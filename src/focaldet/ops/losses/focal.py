"""The focal loss of Lin et al. 2017 and its relatives: of logits, elementwise, in log space.

Axes: K classes.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from focaldet.ops.losses.arguments import (
    Alpha,
    check_class_weights,
    class_targets,
    require_beta,
    require_binary,
    require_gamma,
    require_number,
    require_qualities,
)
from focaldet.ops.losses.cross_entropy import softmax_sum
from focaldet.ops.losses.inputs import Targets, balance, prepare_logits, sign_logits, upcast, zero_ignored
from focaldet.ops.losses.log_sigmoid import log_sigmoid, log_sigmoids


def focal_loss(
    logits: Float[Tensor, "*shape"], targets: Targets, *, gamma: float, ignore: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*shape"]:
    """FL(p_t) = -(1 - p_t)^γ log(p_t) of every logit (eq. 4), in [0, ∞); γ = 0 is the binary cross entropy.

    `targets` are 0 or 1; where `ignore` is set, loss and gradient are 0. Value and gradient are finite for every γ ≥ 0
    and any finite logit.

    Raises:
        ValueError: γ below 0; targets of another shape or value (`arguments`).
    """
    require_gamma(gamma)
    require_binary(logits, targets, ignore)
    return zero_ignored(_modulate(*log_sigmoids(sign_logits(logits, targets, ignore=ignore)), gamma), ignore)


def balanced_focal_loss(
    logits: Float[Tensor, "*shape"],
    targets: Targets,
    *,
    alpha: Alpha,
    gamma: float,
    ignore: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """α_t FL(p_t) of every logit (eq. 5), in [0, ∞): α in [0, 1] weighs the positives, 1 - α the negatives.

    `targets` are 0 or 1; `alpha` is a number or one per class; where `ignore` is set, loss and gradient are 0.

    Raises:
        ValueError: γ below 0; an `alpha` outside [0, 1] or not one per class; targets of another shape or value
            (`arguments`).
    """
    loss = focal_loss(logits, targets, gamma=gamma, ignore=ignore)
    return balance(targets, alpha, dtype=loss.dtype) * loss


def focal_star_loss(
    logits: Float[Tensor, "*shape"],
    targets: Targets,
    *,
    gamma: float,
    beta: float,
    ignore: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """`FL* = -log(p_t*) / γ` of every logit, `p_t* = σ(γ x_t + β)` (appendix A), in [0, ∞).

    `targets` are 0 or 1; γ > 0 sets how steep the loss falls, β where; where `ignore` is set, loss and gradient are 0.

    Raises:
        ValueError: γ of 0 or below, β that is not finite; targets of another shape or value (`arguments`).
    """
    require_star(gamma, beta)
    require_binary(logits, targets, ignore)
    return zero_ignored(-log_sigmoid(gamma * sign_logits(logits, targets, ignore=ignore) + beta) / gamma, ignore)


def softmax_focal_loss(
    logits: Float[Tensor, "*shape K"],
    targets: Integer[Tensor, "*shape"] | Float[Tensor, "*shape K"],
    *,
    gamma: float,
    alpha: Float[Tensor, " K"] | Sequence[float] | None = None,
    ignore: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """-Σ t_k α_k (1 - p_k)^γ log p_k of every row of logits, p = softmax(x), in [0, ∞); γ = 0 is the cross entropy.

    `targets` hold the class in [0, K) of every row or, floating, a distribution over the classes. `alpha` ≥ 0 weighs
    the classes. Where `ignore` is set, loss and gradient are 0, whatever the target.

    Raises:
        ValueError: γ below 0; fewer than two classes; an `alpha` that is not one number ≥ 0 per class; targets of
            another shape, type or range (`arguments`).
    """
    require_gamma(gamma)
    targets = class_targets(logits, targets, ignore)
    weights = None if alpha is None else check_class_weights(alpha, num_classes=logits.shape[-1])
    if weights is not None:
        weights = weights.to(device=logits.device, dtype=upcast(logits).dtype)
    weighted = targets if weights is None or not targets.is_floating_point() else targets * weights
    loss = softmax_sum(logits, weighted, lambda log_p, log_rest: _modulate(log_p, log_rest, gamma), ignore=ignore)
    return loss if weights is None or targets.is_floating_point() else weights[targets] * loss


def quality_focal_loss(
    logits: Float[Tensor, "*shape"],
    qualities: Float[Tensor, "*shape"],
    *,
    beta: float = 2.0,
    ignore: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """|y - σ|^β · CE(σ, y) of every logit, σ = σ(x), for soft targets y in [0, 1] (Li et al. 2020, eq. 3), in [0, ∞).

    With hard targets it is the focal loss with γ = β. Where `ignore` is set, loss and gradient are 0.

    Raises:
        ValueError: β between 0 and 1, where the slope at y = σ is infinite, or below 0; qualities of another shape or
            outside [0, 1] (`arguments`).
    """
    require_beta(beta)
    require_qualities(logits, qualities, ignore)
    x = prepare_logits(logits, ignore)
    y = zero_ignored(qualities.to(x.dtype), ignore)
    log_p, log_rest = log_sigmoids(x)
    cross_entropy = -(y * log_p + (1 - y) * log_rest)
    if beta == 0:
        return zero_ignored(cross_entropy, ignore)
    # As y (1 - σ) - (1 - y) σ: the plain difference loses its digits where the answer is sure.
    distance = (y * torch.sigmoid(-x) - (1 - y) * torch.sigmoid(x)).abs()
    return zero_ignored(distance**beta * cross_entropy, ignore)


def require_star(gamma: float, beta: float) -> None:
    """Refuse settings of FL* out of range.

    Raises:
        ValueError: γ of 0 or below, or one of both is not a finite number.
    """
    require_number("gamma", gamma, low=0.0, least=False)
    require_number("beta", beta, low=-math.inf)


def _modulate(
    log_pt: Float[Tensor, "*shape"], log_rest: Float[Tensor, "*shape"], gamma: float
) -> Float[Tensor, "*shape"]:
    """-(1 - p_t)^γ log p_t from log p_t and log(1 - p_t)."""
    # As exp(γ log(1 - p_t)): a power of 1 - p_t has an infinite slope at p_t = 1 for γ < 1.
    return -log_pt if gamma == 0 else -torch.exp(gamma * log_rest) * log_pt
