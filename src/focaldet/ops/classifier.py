"""The class losses and scores of a dense detector: K sigmoids, or one softmax over the classes and the background.

Labels are in [0, K], K for background.

Axes: A anchors (rows), K classes, V values per anchor: K of a sigmoid classifier, K + 1 of a softmax (background last).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from focaldet.ops.losses.cross_entropy import log_softmax
from focaldet.ops.losses.focal import balanced_focal_loss, focal_loss, softmax_focal_loss
from focaldet.ops.losses.fused import focal_loss_sum

Classifier = Literal["sigmoid", "softmax"]


def class_loss_sum(
    logits: Float[Tensor, "*A V"],
    labels: Int64[Tensor, "*A"],
    *,
    classifier: Classifier,
    alpha: float | None,
    gamma: float,
    ignore: Bool[Tensor, "*A"],
) -> Float[Tensor, ""]:
    """The sum of `class_losses`, in [0, ∞); of sigmoids in one pass."""
    if classifier == "sigmoid":
        return focal_loss_sum(logits, labels, alpha=alpha, gamma=gamma, ignore=ignore)
    return class_losses(logits, labels, classifier=classifier, alpha=alpha, gamma=gamma, ignore=ignore).sum()


def class_losses(
    logits: Float[Tensor, "*A V"],
    labels: Int64[Tensor, "*A"],
    *,
    classifier: Classifier,
    alpha: float | None,
    gamma: float,
    ignore: Bool[Tensor, "*A"],
) -> Float[Tensor, "*A"]:
    """The class loss of every anchor, in [0, ∞); 0 where ignored.

    Of sigmoids the focal loss added up over the classes, of a softmax -α_t (1 - p_t)^γ log p_t, once. In both α weighs
    objects and 1 - α background (eq. 5), None leaves the balance out, and γ = 0 is the cross entropy.
    """
    if classifier == "softmax":
        weights = None if alpha is None else logits.new_tensor([alpha] * (logits.shape[-1] - 1) + [1 - alpha])
        return softmax_focal_loss(logits, labels, gamma=gamma, alpha=weights, ignore=ignore)
    targets = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    ignored = ignore[..., None].expand_as(logits)
    if alpha is None:
        return focal_loss(logits, targets, gamma=gamma, ignore=ignored).sum(-1)
    return balanced_focal_loss(logits, targets, alpha=alpha, gamma=gamma, ignore=ignored).sum(-1)


def class_logits(logits: Float[Tensor, "*A V"], classifier: Classifier) -> Float[Tensor, "*A K"]:
    """log(p / (1 - p)) of every class: what a sigmoid turns into its probability."""
    if classifier == "sigmoid":
        return logits
    log_p, log_rest = log_softmax(logits)
    return (log_p - log_rest)[..., :-1]


def decisions(
    logits: Float[Tensor, "A V"], labels: Int64[Tensor, " A"], classifier: Classifier
) -> tuple[Float[Tensor, " P"], Float[Tensor, " N"]]:
    """x_t = log(p_t / (1 - p_t)) of every decision, those about objects and those about background.

    A sigmoid classifier decides for every anchor and class, a softmax once for every anchor.
    """
    if classifier == "softmax":
        log_p, log_rest = log_softmax(logits)
        sure = (log_p - log_rest).gather(1, labels[:, None]).squeeze(1)
        is_object = labels < logits.shape[1] - 1
        return sure[is_object], sure[~is_object]
    is_class = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
    return logits[is_class], -logits[~is_class]
