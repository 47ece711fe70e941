"""Losses of box regression, elementwise: whoever calls them sums and normalises.

Axes: N boxes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from focaldet.ops.boxes import elementwise_giou


def smooth_l1_loss(
    predicted: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, beta: float
) -> Float[Tensor, "*shape"]:
    """0.5 d² / β below |d| = β, |d| - β / 2 above (Fast R-CNN, eq. 3, in Detectron's form); β = 0 is the L1 loss."""
    distance = (predicted - target).abs()
    if beta == 0:
        return distance
    return torch.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def giou_loss(predicted: Float[Tensor, "*N 4"], target: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """1 - GIoU of each pair of xyxy boxes, in [0, 2)."""
    return 1 - elementwise_giou(predicted, target)
