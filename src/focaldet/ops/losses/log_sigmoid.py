"""The logarithms that the losses are made of, without torch's log1p: on the CPU it takes eight times as long as log."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def log_sigmoids(x: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """log σ(x) and log σ(-x), in (-∞, 0], each right to rounding at either end, as are all derivatives.

    Compiled for the CPU both come from one exponential; a compiler keeps the steps in registers, which would else be
    arrays. A GPU waits for its memory, and its fast log is not right to rounding.
    """
    if x.device.type != "cpu" or not torch.compiler.is_compiling():
        return F.logsigmoid(x), F.logsigmoid(-x)
    # Of |x| and min(x, 0) autograd would differentiate both sides of 0 at once: here 0 is on the right in all terms.
    negative = x < 0
    near_zero = log1p(torch.exp(torch.where(negative, x, -x)))
    return torch.where(negative, x, 0.0) - near_zero, torch.where(negative, 0.0, -x) - near_zero


def log_sigmoid(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log σ(x), in (-∞, 0]."""
    return log_sigmoids(x)[0] if torch.compiler.is_compiling() else F.logsigmoid(x)


def log1p(y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 + y) of y ≥ 0, within 3 · 2⁻²⁴ of itself in fp32: what rounding takes from 1 + y is put back."""
    rounded = 1 + y
    return rounded.log() + (y - (rounded - 1)) / rounded
