"""Normalizers: what the summed losses of a detector are divided by. Published programs differ in it.

Axes: B images.
"""

from collections.abc import Callable, MutableMapping
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Normalizer = Literal["batch", "image", "batch_plus_one", "moving_average"]

MOMENTUM, START = 0.9, 100.0  # detectron2's moving average


def loss_normalizers(
    counts: Int64[Tensor, " B"],
    kind: Normalizer,
    *,
    averages: MutableMapping[str, Tensor],
    all_reduce_sum: Callable[[Tensor], Tensor] | None,
    num_ranks: int,
) -> Float[Tensor, " B"]:
    """What to divide the summed loss of each image by, from the number of positive anchors of each image.

    The quotients add up to the loss of this rank. `batch`: positives of the batch (the paper, section 4). `image`:
    those of the image, then the mean of images (torchvision). `batch_plus_one`: positives + 1 (Detectron).
    `moving_average`: decaying mean of the batch's positives (detectron2), kept in `averages`. With `all_reduce_sum` the
    counts are those of all ranks; as gradients are then averaged over `num_ranks`, the normalizer is the count divided
    by `num_ranks`. Never below one positive per batch.
    """
    images = counts.new_tensor(len(counts))
    total = counts.sum()
    if all_reduce_sum is not None:
        total, images = all_reduce_sum(torch.stack([total, images]).double()).unbind()
    if kind == "image":
        return counts.clamp(min=1).float() * (images.float() / num_ranks)
    if kind == "moving_average":
        last = averages.get("positives", torch.full((), START, device=counts.device))
        count = averages["positives"] = last * MOMENTUM + total.float().clamp(min=1) * (1 - MOMENTUM)
    else:
        count = total.float() + 1 if kind == "batch_plus_one" else total.float().clamp(min=1)
    return (count / num_ranks).expand(len(counts))


def sum_over_ranks(value: Tensor) -> Tensor:
    """`value` added up over all processes of `torch.distributed`, without gradient."""
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total
