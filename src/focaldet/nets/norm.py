"""Normalization layers, and the convolution that absorbs a frozen one."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

NormKind = Literal["frozen", "batch", "group"]
NORM_GROUPS = 32


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


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that also takes a group of one value, which becomes the bias.

    torch refuses one image whose map is a single cell with one channel to a group; P7 of a small image is such a map.
    """

    def forward(self, x: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        if not torch.compiler.is_exporting():
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        # The same as an operation that ONNX has; torch takes group_norm apart, which takes minutes and runs slower.
        rows = x.reshape(x.shape[0], self.num_groups, -1)
        rows = torch.instance_norm(rows, None, None, None, None, True, 0.0, self.eps, False)
        return rows.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]


def wide_group_norm(channels: int) -> GroupNorm:
    """GroupNorm for maps that may be a single cell: `NORM_GROUPS` groups, or fewer of four channels and more where they
    do not divide the channels.

    A group of one channel has a single value on a map of one cell, and its norm is rounding errors.
    """
    divides = channels % NORM_GROUPS == 0
    return GroupNorm(NORM_GROUPS if divides else max(1, math.gcd(NORM_GROUPS, channels) // 4), channels)


def norm_layer(kind: NormKind, channels: int, *, eps: float = 1e-5) -> nn.Module:
    """A normalization of `channels` channels: frozen or trained BatchNorm, or GroupNorm with 32 groups."""
    if kind == "frozen":
        return FrozenBatchNorm(channels, eps=eps)
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    return GroupNorm(32 if channels % 32 == 0 else 8, channels, eps=eps)


def conv_norm(x: Float[Tensor, "B C H W"], conv: nn.Conv2d, norm: nn.Module) -> Float[Tensor, "B D h w"]:
    """`norm(conv(x))`; a frozen norm is multiplied into the weights, which saves a pass forward and one backward."""
    if not isinstance(norm, FrozenBatchNorm):
        y: Tensor = norm(_convolve(x, conv, conv.weight, conv.bias) if _is_slow(x, conv) else conv(x))
        return y
    scale, shift = norm.affine()
    return _convolve(x, conv, conv.weight * scale[:, None, None, None], shift)


def _convolve(
    x: Float[Tensor, "B C H W"], conv: nn.Conv2d, weight: Tensor, bias: Tensor | None
) -> Float[Tensor, "B D h w"]:
    """The convolution of `conv` with other weights; in fp32 where its gradient in bf16 is slow."""
    convolve: Callable[..., Tensor] = conv._conv_forward  # which pads as the layer does
    if not _is_slow(x, conv):
        return convolve(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        return convolve(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def _is_slow(x: Float[Tensor, "B C H W"], conv: nn.Conv2d) -> bool:
    """Whether the convolution's gradient in bf16 is slow.

    oneDNN has no quick one of depthwise convolutions that are strided or larger than 3 × 3: in fp32 they take a seventh
    to a half of its time (benchmarks/depthwise.py).
    """
    depthwise = conv.groups == conv.in_channels > 1 and (conv.kernel_size[0] > 3 or conv.stride[0] > 1)
    trains = torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad)
    return depthwise and trains and x.dtype == torch.bfloat16 and x.device.type == "cpu"
