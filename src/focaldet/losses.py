"""The losses for other people's training loops: logits in, elementwise values out.

>>> import torch
>>> from focaldet import losses
>>> losses.focal_loss(torch.tensor([2.2]), torch.tensor([1.0]), gamma=2.0)
tensor([0.0010])
"""

from focaldet.ops.losses.focal import balanced_focal_loss, focal_loss, focal_loss_sum
from focaldet.ops.losses.regression import giou_loss, smooth_l1_loss

__all__ = ["balanced_focal_loss", "focal_loss", "focal_loss_sum", "giou_loss", "smooth_l1_loss"]
