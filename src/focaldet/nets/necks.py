"""Feature pyramid network (Lin et al. 2016) in RetinaNet's form: P3 to P7.

Axes: B images, C channels, H W cells.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

STRIDES_PX = (8, 16, 32, 64, 128)


class HalvingConv(nn.Conv2d):
    """A 3 × 3 convolution with stride 2: B C H W → B C' ⌈H/2⌉ ⌈W/2⌉."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 1:
            return super().forward(x)
        # Of a map 1 cell wide, oneDNN leaves most of the weights' gradient in bf16 as it finds the memory (torch 2.14);
        # padded beforehand the map is 3 wide.
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, stride=2)


class FeaturePyramid(nn.Module):
    """P3, P4, P5 from C3, C4, C5 by lateral 1×1 and top-down nearest upsampling; P6, P7 by strided convolutions.

    `p6_from` is the input of P6: C5 in the paper and Detectron, P5 in torchvision's first RetinaNet and many later
    works. No normalisation and no non-linearity but the ReLU before P7 (Focal Loss paper, footnote 2).
    """

    def __init__(self, channels: Sequence[int], width: int, *, p6_from: Literal["C5", "P5"]) -> None:
        super().__init__()
        self.p6_from = p6_from
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.p6 = HalvingConv(channels[-1] if p6_from == "C5" else width, width)
        self.p7 = HalvingConv(width, width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # Caffe's XavierFill
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """P3…P7 from C3, C4, C5, finest first."""
        merged = self.lateral[-1](maps[-1])
        levels = [self.output[-1](merged)]
        for place in range(len(maps) - 2, -1, -1):
            lateral = self.lateral[place](maps[place])
            merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.output[place](merged))
        p6 = self.p6(maps[-1] if self.p6_from == "C5" else levels[-1])
        return [*levels, p6, self.p7(F.relu(p6))]
