"""Non-maximum suppression per class, and the vote of those that it suppresses.

Axes: N candidate boxes, D those that were kept.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import nms

from focaldet.ops.boxes import pairwise_iou

FIRST, GROWTH = 8, 4  # of the boxes by score first so many times `most` are compared, then that times more

# A call takes as long as so many comparisons of two boxes, measured on the CPU: what splitting into classes must spare.
CALL_COMPARISONS = 8000


def class_nms(
    boxes: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    labels: Int64[Tensor, " N"],
    *,
    iou: float,
    most: int | None = None,
) -> Int64[Tensor, " kept"]:
    """Indices of the boxes that survive, best score first; a box suppresses only others of its own class.

    With `most` the first so many. Boxes suppress only lesser ones, so that the survivors of the best N are survivors of
    all: N grows until they suffice, as the time goes with N².

    On the CPU each class runs in a call of its own where that spares comparisons. Else all run in one, each moved to a
    region of its own: from the smallest coordinate and in float64, so negative coordinates keep their class apart and
    far classes keep their decimals; torchvision's `batched_nms` does neither.
    """
    if most is None or torch.compiler.is_compiling() or FIRST * most >= len(boxes):  # no loop goes into a graph
        return _survivors(boxes, scores, labels, iou=iou)[:most]
    looked_at = FIRST * most
    order = scores.argsort(descending=True, stable=True)
    while True:
        first = order[:looked_at]
        kept = first[_survivors(boxes[first], scores[first], labels[first], iou=iou)[:most]]
        if len(kept) == most or looked_at >= len(boxes):
            return kept
        looked_at *= GROWTH


def _survivors(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], labels: Int64[Tensor, " N"], *, iou: float
) -> Int64[Tensor, " kept"]:
    if boxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    exact = boxes.double()
    if not torch.compiler.is_compiling() and boxes.device.type == "cpu":
        order = scores.argsort(descending=True, stable=True)
        by_class, ranks = labels[order].sort(stable=True)
        counts = [count for count in torch.bincount(by_class).tolist() if count]
        if sum(count * count for count in counts) + 2 * CALL_COMPARISONS * (len(counts) - 1) <= len(boxes) ** 2:
            return order[_ranks_of_survivors(exact[order[ranks]], ranks, counts, iou=iou)]
    low = exact.amin()
    span = exact.amax() - low + 1
    apart = exact - low + (labels * span)[:, None]
    kept: Tensor = nms(apart, scores.double(), iou)
    return kept


def _ranks_of_survivors(
    boxes: Float[Tensor, "N 4"], ranks: Int64[Tensor, " N"], counts: list[int], *, iou: float
) -> Int64[Tensor, " kept"]:
    """The ranks by score of the boxes that survive, in order; `boxes` are sorted by class, then by rank."""
    survives = torch.zeros(len(boxes), dtype=torch.bool)
    for class_boxes, class_ranks in zip(torch.split(boxes, counts), torch.split(ranks, counts), strict=True):
        survives[class_ranks[nms(class_boxes, -class_ranks.double(), iou)]] = True
    return survives.nonzero().squeeze(1)


def vote(
    boxes: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    labels: Int64[Tensor, " N"],
    *,
    kept: Int64[Tensor, " D"],
    iou: float,
) -> Float[Tensor, "D 4"]:
    """Where the `kept` boxes lie by the vote of all (Gidaris and Komodakis 2015, section 5).

    Each is the mean, weighted by `scores` > 0, of all boxes of its class whose overlap with it is at least `iou`; it is
    one of them itself. Taken in float64, which neither autocast nor TF32 shortens.
    """
    votes = (pairwise_iou(boxes[kept], boxes) >= iou) & (labels[kept][:, None] == labels)
    weights = (votes * scores).double()
    return (weights @ boxes.double() / weights.sum(1, keepdim=True)).to(boxes.dtype)
