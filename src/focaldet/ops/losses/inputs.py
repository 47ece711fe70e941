"""What every classification loss does with its inputs before it computes.

Inputs are logits; they are computed in fp32 (fp64 stays fp64), whatever their type.
"""

import warnings

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from focaldet.ops.losses.arguments import Alpha, check_alpha

Targets = Float[Tensor, "*shape"] | Bool[Tensor, "*shape"] | Integer[Tensor, "*shape"]
"""1 for what an element is, 0 for what it is not."""

FEWEST_TO_JUDGE = 8  # of fewer logits all may well lie in [0, 1]

_warned_of_probabilities = False


def upcast(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The logits in fp32, or fp64 where they are that."""
    return logits if logits.dtype == torch.float64 else logits.float()


def prepare_logits(logits: Float[Tensor, "*shape"], ignore: Bool[Tensor, "*_mask"] | None) -> Float[Tensor, "*shape"]:
    """The logits in fp32 or fp64, 0 where ignored; warns where they look like probabilities."""
    warn_of_probabilities(logits)
    return zero_ignored(upcast(logits), ignore)


def sign_logits(
    logits: Float[Tensor, "*shape"], targets: Targets, *, ignore: Bool[Tensor, "*shape"] | None
) -> Float[Tensor, "*shape"]:
    """x for positives and -x for negatives, so that p_t = σ(signed x); 0 where ignored."""
    x = prepare_logits(logits, ignore)
    return torch.where(is_positive(targets), x, -x)


def is_positive(targets: Targets) -> Bool[Tensor, "*shape"]:
    """Where the targets are 1."""
    return targets if targets.dtype == torch.bool else targets > 0.5


def zero_ignored(values: Float[Tensor, "*shape"], ignore: Bool[Tensor, "*_mask"] | None) -> Float[Tensor, "*shape"]:
    """The values with 0 where ignored; the mask may have axes of length 1."""
    return values if ignore is None else values.masked_fill(ignore, 0.0)


def balance(targets: Targets, alpha: Alpha, *, dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """α_t: α where the targets are 1, 1 - α elsewhere.

    Raises:
        ValueError: an α outside [0, 1], or not one for each class.
    """
    alpha = check_alpha(alpha, num_classes=targets.shape[-1] if targets.ndim else 0)
    if isinstance(alpha, Tensor):
        weight = alpha.to(device=targets.device, dtype=dtype)
        rest = 1 - weight
    else:
        weight, rest = (torch.full((), value, dtype=dtype, device=targets.device) for value in (alpha, 1 - alpha))
    return torch.where(is_positive(targets), weight, rest)


def warn_of_probabilities(logits: Tensor) -> None:
    """Warn once in a process if all values could be probabilities; on the CPU only, where looking costs no wait."""
    global _warned_of_probabilities  # noqa: PLW0603  once in a process is what is asked for
    if _warned_of_probabilities or logits.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if logits.numel() < FEWEST_TO_JUDGE:
        return
    try:
        low, high = (float(bound) for bound in torch.aminmax(logits.detach()))
    except RuntimeError:  # under vmap and while tracing there are no values to look at
        return
    if low >= 0 and 0 < high <= 1:
        _warned_of_probabilities = True
        warnings.warn(
            "all values are in [0, 1]: these losses take logits; were probabilities passed?", UserWarning, stacklevel=5
        )
