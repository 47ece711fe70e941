"""Feature pyramid network (Lin et al. 2016): P3 to P7 as RetinaNet has it, P2 to P6 for detectors with two stages.

Axes: B images, C channels, H W cells.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focaldet.nets.initialize import initialize_xavier
from focaldet.nets.norm import NormKind, norm_layer, wide_group_norm

PYRAMID_STRIDES_PX = (8, 16, 32, 64, 128)
REGION_STRIDES_PX = (4, 8, 16, 32, 64)


class HalvingConv(nn.Conv2d):
    """A 3 × 3 convolution with stride 2: B C H W → B C' ⌈H/2⌉ ⌈W/2⌉."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or x.shape[-1] > 1:
            return super().forward(x)
        # Of a map 1 cell wide, oneDNN leaves most of the weights' gradient in bf16 as it finds the memory (torch 2.14);
        # padded beforehand the map is 3 wide.
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, stride=2)


class FeaturePyramid(nn.Module):
    """P3, P4, P5 from C3, C4, C5 by lateral 1×1 and top-down nearest upsampling; P6, P7 by strided convolutions.

    `p6_from` is the input of P6: C5 in the paper and Detectron, P5 in torchvision's first RetinaNet and many later
    works. No normalization and no non-linearity but the ReLU before P7 (Focal Loss paper, footnote 2), which
    mmdetection leaves out: `p7_relu`.

    `norm` puts GroupNorm (`nets.norm.wide_group_norm`) behind the lateral and the output convolutions, whose bias it
    makes needless, as in detectron2 and torchvision; P6 and P7 come from normalized maps and have none.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        *,
        p6_from: Literal["C5", "P5"],
        p7_relu: bool = True,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.p6_from, self.p7_relu = p6_from, p7_relu
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1, bias=not norm) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=not norm) for _ in channels)
        count = len(channels) if norm else 0
        self.lateral_norms = nn.ModuleList(wide_group_norm(width) for _ in range(count))
        self.output_norms = nn.ModuleList(wide_group_norm(width) for _ in range(count))
        self.p6 = HalvingConv(channels[-1] if p6_from == "C5" else width, width)
        self.p7 = HalvingConv(width, width)
        initialize_xavier(self.modules())

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """P3…P7 from C3, C4, C5, finest first."""
        levels = _each(self.output, self.output_norms, top_down(_each(self.lateral, self.lateral_norms, maps)))
        p6 = self.p6(maps[-1] if self.p6_from == "C5" else levels[-1])
        return [*levels, p6, self.p7(F.relu(p6) if self.p7_relu else p6)]


class RegionPyramid(nn.Module):
    """P2…P5 from C2…C5, and P6, every other cell of P5, for the large anchors alone (FPN paper, footnote 1).

    `norm` puts a normalization behind every convolution, whose bias it makes needless, as torchvision's second Faster
    R-CNN has it.
    """

    def __init__(self, channels: Sequence[int], width: int, *, norm: NormKind | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        plain = norm is None
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1, bias=plain) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=plain) for _ in channels)
        count = len(channels) if norm is not None else 0
        self.lateral_norms = nn.ModuleList(norm_layer(norm or "frozen", width, eps=eps) for _ in range(count))
        self.output_norms = nn.ModuleList(norm_layer(norm or "frozen", width, eps=eps) for _ in range(count))
        initialize_xavier(self.modules())

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """P2…P6 from C2…C5, finest first."""
        levels = _each(self.output, self.output_norms, top_down(_each(self.lateral, self.lateral_norms, maps)))
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


def top_down(laterals: Sequence[Tensor]) -> list[Tensor]:
    """Each map plus the merged coarser one, which grows by repeating its cells; finest first, as they come."""
    merged = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
    return merged


def _each(convs: nn.ModuleList, norms: nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:
    """Every map through its convolution and, where there are any, its normalization."""
    convolved = [conv(x) for conv, x in zip(convs, maps, strict=True)]
    return [norm(x) for norm, x in zip(norms, convolved, strict=True)] if norms else convolved
