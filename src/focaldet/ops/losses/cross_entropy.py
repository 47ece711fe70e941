"""Cross entropy in the steps of Lin et al. 2017, section 3: of logits, elementwise, before any focus.

Axes: K classes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from focaldet.ops.losses.arguments import Alpha, class_targets, require_binary
from focaldet.ops.losses.inputs import Targets, balance, prepare_logits, sign_logits, zero_ignored
from focaldet.ops.losses.log_sigmoid import log_sigmoid, log_sigmoids

LossOfClass = Callable[[Tensor, Tensor], Tensor]
"""From log p and log(1 - p) of classes to their loss."""


def p_t(logits: Float[Tensor, "*shape"], targets: Targets) -> Float[Tensor, "*shape"]:
    """The probability in [0, 1] given to what is true (eq. 2): p = σ(x) for positives, 1 - p for negatives.

    `logits` are any real numbers, `targets` 0 or 1.

    Raises:
        ValueError: targets of another shape or value (`arguments`).
    """
    require_binary(logits, targets, None)
    return torch.sigmoid(sign_logits(logits, targets, ignore=None))


def binary_cross_entropy(
    logits: Float[Tensor, "*shape"], targets: Targets, *, ignore: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*shape"]:
    """CE(p_t) = -log(p_t) of every logit (eq. 1), in [0, ∞).

    `targets` are 0 or 1; where `ignore` is set, loss and gradient are 0.

    Raises:
        ValueError: targets of another shape or value (`arguments`).
    """
    require_binary(logits, targets, ignore)
    return zero_ignored(-log_sigmoid(sign_logits(logits, targets, ignore=ignore)), ignore)


def balanced_cross_entropy(
    logits: Float[Tensor, "*shape"],
    targets: Targets,
    *,
    alpha: Alpha,
    ignore: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """-α_t log(p_t) of every logit (eq. 3), in [0, ∞): α in [0, 1] weighs the positives, 1 - α the negatives.

    `targets` are 0 or 1; `alpha` is a number or one per class; where `ignore` is set, loss and gradient are 0.

    Raises:
        ValueError: an `alpha` outside [0, 1] or not one per class; targets of another shape or value (`arguments`).
    """
    loss = binary_cross_entropy(logits, targets, ignore=ignore)
    return balance(targets, alpha, dtype=loss.dtype) * loss


def cross_entropy(
    logits: Float[Tensor, "*shape K"],
    targets: Integer[Tensor, "*shape"] | Float[Tensor, "*shape K"],
    *,
    ignore: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """-Σ t_k log p_k of every row of logits, p = softmax(x), in [0, ∞).

    `targets` hold the class in [0, K) of every row or, floating, a distribution over the classes. Where `ignore` is
    set, loss and gradient are 0, whatever the target.

    Raises:
        ValueError: fewer than two classes; targets of another shape, type or range (`arguments`).
    """
    targets = class_targets(logits, targets, ignore)
    return softmax_sum(logits, targets, lambda log_p, _: -log_p, ignore=ignore)


def softmax_sum(logits: Tensor, targets: Tensor, loss: LossOfClass, *, ignore: Tensor | None) -> Tensor:
    """Σ t_k loss(log p_k, log(1 - p_k)) of every row, both logarithms exact to rounding for p_k near 0 and near 1.

    `targets` come from `class_targets`; what t_k = 0 weighs counts nothing, even where p_k = 0.
    """
    x = prepare_logits(logits, None if ignore is None else ignore[..., None])
    log_p, log_rest = log_softmax(x)
    if targets.is_floating_point():
        weights = targets.to(x.dtype)
        possible = log_p.masked_fill((weights == 0) & (log_p == -torch.inf), 0.0)
        summed = (weights * loss(possible, log_rest)).sum(-1)
    else:
        classes = targets[..., None]
        summed = loss(log_p.gather(-1, classes), log_rest.gather(-1, classes)).squeeze(-1)
    return zero_ignored(summed, ignore)


def log_softmax(x: Float[Tensor, "*shape K"]) -> tuple[Float[Tensor, "*shape K"], Float[Tensor, "*shape K"]]:
    """log p and log(1 - p) of the softmax.

    Only the largest class can have p > 1/2, where 1 - p would lose its digits: there both come from the margin
    m = x_k - log Σ_{j≠k} e^{x_j}, as p_k = σ(m). Classes may be masked with −inf; where all but one are, its p is 1.
    There must be at least two classes.
    """
    top = x.argmax(-1, keepdim=True)
    rest = x.scatter(-1, top, -torch.inf)
    alone = rest.amax(-1, keepdim=True) == -torch.inf
    # The sum of no class has no slope: it is taken of zeros instead and then replaced.
    margin = x.gather(-1, top) - rest.masked_fill(alone, 0.0).logsumexp(-1, keepdim=True)
    margin = margin.masked_fill(alone, torch.inf)
    log_top, log_rest = log_sigmoids(margin)
    log_p = (x - x.gather(-1, top) + log_top).scatter(-1, top, log_top)
    # Where the largest stands, another value that is safe to differentiate is put in until it is replaced.
    small = log_p.scatter(-1, top, -1.0)
    return log_p, torch.log1p(-small.exp()).scatter(-1, top, log_rest)
