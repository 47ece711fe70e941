"""Losses of box regression, elementwise: whoever calls them sums and normalizes.

Everything is computed in fp32 (fp64 stays fp64): products of coordinates leave the range of fp16 from 256 px on.
Both arguments have the same shape; another is refused with a `ValueError`, also where it would broadcast.

Axes: N boxes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from focaldet.ops.boxes import elementwise_ciou, elementwise_diou, elementwise_giou, elementwise_iou
from focaldet.ops.losses.arguments import require_boxes
from focaldet.ops.losses.inputs import upcast


def smooth_l1_loss(
    predicted: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, beta: float
) -> Float[Tensor, "*shape"]:
    """0.5 d² / β below |d| = β, |d| - β / 2 above (Fast R-CNN, eq. 3, in Detectron's form); β = 0 is the L1 loss.

    Raises:
        ValueError: two shapes, or β below 0.
    """
    require_boxes(predicted, target, beta=beta)
    distance = (upcast(predicted) - upcast(target)).abs()
    if beta == 0:
        return distance
    return torch.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def l1_loss(predicted: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """|d| of every element."""
    return smooth_l1_loss(predicted, target, beta=0.0)


def iou_loss(predicted: Float[Tensor, "*N 4"], target: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """1 - IoU of each pair of xyxy boxes, in [0, 1]; without a gradient where the boxes do not meet."""
    return 1 - elementwise_iou(*_box_pair(predicted, target))


def giou_loss(predicted: Float[Tensor, "*N 4"], target: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """1 - GIoU of each pair of xyxy boxes, in [0, 2)."""
    return 1 - elementwise_giou(*_box_pair(predicted, target))


def diou_loss(predicted: Float[Tensor, "*N 4"], target: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """1 - DIoU of each pair of xyxy boxes, in [0, 2)."""
    return 1 - elementwise_diou(*_box_pair(predicted, target))


def ciou_loss(predicted: Float[Tensor, "*N 4"], target: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """1 - CIoU of each pair of xyxy boxes, in [0, 3)."""
    return 1 - elementwise_ciou(*_box_pair(predicted, target))


def _box_pair(
    predicted: Float[Tensor, "*N 4"], target: Float[Tensor, "*N 4"]
) -> tuple[Float[Tensor, "*N 4"], Float[Tensor, "*N 4"]]:
    """Both in fp32 or fp64.

    Raises:
        ValueError: two shapes, or a last axis that is not 4 long.
    """
    require_boxes(predicted, target, last_axis=4)
    return upcast(predicted), upcast(target)
