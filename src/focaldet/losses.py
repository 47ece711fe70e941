"""The losses for any training loop: functions of logits that return a value per element, and modules that sum.

>>> import torch
>>> from focaldet import losses
>>> losses.focal_loss(torch.tensor([2.2]), torch.tensor([1.0]), gamma=2.0)
tensor([0.0010])
"""

import warnings
from typing import Any

from focaldet.ops.losses.cross_entropy import balanced_cross_entropy, binary_cross_entropy, cross_entropy, p_t
from focaldet.ops.losses.focal import (
    balanced_focal_loss,
    focal_loss,
    focal_star_loss,
    quality_focal_loss,
    softmax_focal_loss,
)
from focaldet.ops.losses.fused import focal_loss_sum
from focaldet.ops.losses.modules import (
    BalancedCrossEntropyLoss,
    BalancedFocalLoss,
    BinaryCrossEntropyLoss,
    FocalLoss,
    FocalStarLoss,
    NormalizedLoss,
    QualityFocalLoss,
    SoftmaxFocalLoss,
)
from focaldet.ops.losses.regression import ciou_loss, diou_loss, giou_loss, iou_loss, l1_loss, smooth_l1_loss

__all__ = [
    "BalancedCrossEntropyLoss",
    "BalancedFocalLoss",
    "BinaryCrossEntropyLoss",
    "FocalLoss",
    "FocalStarLoss",
    "NormalizedLoss",
    "QualityFocalLoss",
    "SoftmaxFocalLoss",
    "balanced_cross_entropy",
    "balanced_focal_loss",
    "binary_cross_entropy",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "focal_loss",
    "focal_loss_sum",
    "focal_star_loss",
    "giou_loss",
    "iou_loss",
    "l1_loss",
    "p_t",
    "quality_focal_loss",
    "smooth_l1_loss",
    "softmax_focal_loss",
]


def __getattr__(name: str) -> Any:
    """`NormalizedLoss` under its name of version 0.1."""
    if name == "NormalisedLoss":
        warnings.warn("NormalisedLoss is now called NormalizedLoss", FutureWarning, stacklevel=2)
        return NormalizedLoss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
