"""Convolutions with TensorFlow's SAME padding.

Axes: B images, C D channels, H W pixels.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class SameConv2d(nn.Conv2d):
    """A convolution without bias whose output has ⌈side / stride⌉ cells, padded with zeros as TensorFlow does.

    Where the zeros of a side are an odd number, the bottom or right gets the one more: with stride 2 that is every even
    side. torch pads both ends alike. There a whole stride more is padded and the first row or column of the answer
    dropped, which costs less than a padded copy of the input.

    Args:
        channels: C.
        out_channels: D.
        kernel: an odd side, in pixels.
        stride: in pixels, at most `kernel` + 1.
        groups: as in `nn.Conv2d`.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)

    def _conv_forward(
        self, x: Float[Tensor, "B C H W"], weight: Tensor, bias: Tensor | None
    ) -> Float[Tensor, "B D h w"]:
        half, stride = self.kernel_size[0] // 2, self.stride[0]
        if (
            stride == 1
        ):  # nothing to drop: an activation in place on a view is a ScatterND in a graph, which int8 fails on
            return functional.conv2d(x, weight, bias, self.stride, half, groups=self.groups)
        row, column = (self._first_center(side) for side in x.shape[-2:])
        # One stride before the first center lies a kernel whose answer is dropped.
        padding = tuple(half + (stride - center if center else 0) for center in (row, column))
        y = functional.conv2d(x, weight, bias, self.stride, padding, groups=self.groups)
        height, width = (-(-side // stride) for side in x.shape[-2:])
        top, left = int(row > 0), int(column > 0)
        return y[..., top : top + height, left : left + width]

    def _first_center(self, side: int) -> int:
        """The row or column that the first kernel is centered on; 0 where both ends get the same zeros."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        zeros = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return kernel // 2 - zeros // 2
