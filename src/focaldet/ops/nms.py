"""Non-maximum suppression per class.

Axes: N candidate boxes.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import nms


def class_nms(
    boxes: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    labels: Int64[Tensor, " N"],
    *,
    iou: float,
) -> Int64[Tensor, " kept"]:
    """Indices of the boxes that survive, best score first; a box suppresses only others of its own class.

    All classes run in one call: each is moved to a place of its own. The move is made from the smallest coordinate
    and in float64, so negative coordinates keep their class apart and far classes keep their decimals; torchvision's
    `batched_nms` does neither.
    """
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    exact = boxes.double()
    low = exact.amin()
    span = exact.amax() - low + 1
    apart = exact - low + (labels * span)[:, None]
    kept: Tensor = nms(apart, scores.double(), iou)
    return kept
