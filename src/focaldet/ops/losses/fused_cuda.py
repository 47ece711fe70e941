"""`focal_loss_sum` on CUDA: one Triton kernel that reads every logit once and writes its gradient once.

Axes: A anchors (rows), K classes. Imported on the first use on a GPU: Triton is not everywhere.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@torch.library.triton_op("focaldet::focal_loss_sum_and_slope", mutates_args={})
def sum_and_slope(
    logits: Tensor, labels: Tensor, ignore: Tensor | None, alpha: float | None, gamma: float, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """The sum in float64 of the α-balanced focal loss of A × K logits, and its slopes in their type (or none).

    See `fused.focal_loss_sum`; a label outside [0, K) stands for background.
    """
    logits = logits.contiguous()
    num_elements, num_blocks = logits.numel(), triton.cdiv(logits.numel(), BLOCK)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    sums = torch.zeros(max(1, num_blocks), dtype=wide, device=logits.device)
    slope = torch.empty_like(logits) if with_slope else logits.new_empty(0)
    if num_blocks:
        torch.library.wrap_triton(_kernel)[(num_blocks,)](
            logits,
            labels,
            logits if ignore is None else ignore.view(torch.uint8),
            sums,
            slope,
            num_elements,
            logits.shape[1],
            1.0 if alpha is None else 1 - alpha,
            1.0 if alpha is None else alpha,
            gamma,
            WITH_IGNORE=ignore is not None,
            WITH_SLOPE=with_slope,
            SQUARE=gamma == 2,
            WIDE=tl.float64 if wide == torch.float64 else tl.float32,
            BLOCK=BLOCK,
        )
    return sums.sum(dtype=torch.float64), slope


@triton.jit
def _kernel(
    logits_at,
    labels_at,
    ignore_at,
    sums_at,
    slopes_at,
    num_elements,
    num_classes,
    weight_negative,
    weight_positive,
    gamma,
    WITH_IGNORE: tl.constexpr,
    WITH_SLOPE: tl.constexpr,
    SQUARE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_elements
    row = index // num_classes
    x = tl.load(logits_at + index, mask=inside, other=0.0).to(WIDE)
    positive = tl.load(labels_at + row, mask=inside, other=-1) == index % num_classes
    counted = inside
    if WITH_IGNORE:
        counted = counted & (tl.load(ignore_at + row, mask=inside, other=1) == 0)
    # As in `fused._value_and_slope`: z is the logit of the wrong answer, p its probability, s = softplus(z).
    z = tl.where(counted, tl.where(positive, -x, x), 0.0)
    decay = tl.exp(-tl.abs(z))
    one_more = 1 + decay  # log(1 + decay) that keeps its digits where decay is small (Kahan)
    log_sum = tl.where(one_more == 1, decay, tl.log(one_more) * (decay / (one_more - 1)))
    s = tl.maximum(z, 0.0) + log_sum
    p = tl.where(z >= 0, 1.0, decay) / one_more
    q = tl.where(z >= 0, decay, 1.0) / one_more
    power = p * p if SQUARE else tl.exp(gamma * (tl.minimum(z, 0.0) - log_sum))
    weight = tl.where(positive, weight_positive, weight_negative)
    loss = tl.where(counted, weight * power * s, 0.0)
    tl.store(sums_at + tl.program_id(0), tl.sum(loss, axis=0))
    if WITH_SLOPE:
        slope = tl.where(counted, weight * power * (gamma * q * s + p), 0.0)
        tl.store(slopes_at + index, tl.where(positive, -slope, slope), mask=inside)
