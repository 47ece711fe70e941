"""Normalization layers, and the convolution that absorbs a frozen one."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.nets.same_padding import SameConv2d

# Larger maps than this are quicker as they are: there the dense convolution costs more than the stride does.
DENSE_PIXELS = 80 * 80

NormKind = Literal["frozen", "batch", "group"]


class FrozenBatchNorm(nn.Module):
    """Batch normalization with fixed statistics and affine part: y = x · scale + shift. Keys as `nn.BatchNorm2d`.

    Detectors fine-tune with a handful of images per batch, too few to estimate statistics from, so those of the
    ImageNet training stay (ResNet paper, appendix A). All four tensors are buffers: nothing here is trained.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """`scale` and `shift` of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        scale, shift = self.affine()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def norm_layer(kind: NormKind, channels: int, *, eps: float = 1e-5) -> nn.Module:
    """A normalization of `channels` channels: frozen or trained BatchNorm, or GroupNorm with 32 groups."""
    if kind == "frozen":
        return FrozenBatchNorm(channels, eps=eps)
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    return nn.GroupNorm(32 if channels % 32 == 0 else 8, channels, eps=eps)


def conv_norm(x: Float[Tensor, "B C H W"], conv: nn.Conv2d, norm: nn.Module) -> Float[Tensor, "B D h w"]:
    """`norm(conv(x))`; a frozen norm is multiplied into the weights, which saves a pass forward and one backward."""
    if not isinstance(norm, FrozenBatchNorm):
        y: Tensor = norm(conv(x))
        return y
    scale, shift = norm.affine()
    weight = conv.weight * scale[:, None, None, None]
    strided_depthwise = conv.groups == conv.in_channels > 1 and conv.stride[0] > 1
    small = x.shape[-2] * x.shape[-1] <= DENSE_PIXELS
    if strided_depthwise and small and x.requires_grad and x.device.type == "cpu":
        # oneDNN's strided depthwise gradient is so slow on small maps that the dense one, of which every other row and
        # column is the same answer, takes a sixth to two thirds of its time (benchmarks/depthwise.py).
        dense = F.conv2d(x, weight, shift, 1, conv.padding, conv.dilation, conv.groups)
        row, column = conv.starts(x) if isinstance(conv, SameConv2d) else (0, 0)
        every_other = dense[..., row :: conv.stride[0], column :: conv.stride[1]]
        return every_other.contiguous(memory_format=torch.channels_last)
    convolve: Callable[..., Tensor] = conv._conv_forward  # which pads as the layer does
    return convolve(x, weight, shift)
