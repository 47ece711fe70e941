"""What a network is made of, read from the network itself: sizes of maps, channels, kernels.

It is built at full size on the device "meta", which computes shapes alone.
"""

import torch
from torch import Tensor, nn

from focaldet.models import PREPROCESSING, build


class Network:
    """A detector, and the shapes (height, width, channels) of what its parts gave for a picture of its own size."""

    def __init__(self, name: str) -> None:
        self.side_px = PREPROCESSING[name].resize.size
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        with torch.device("meta"), torch.no_grad():
            self.detector = build(name).eval()
            for part, module in self.detector.named_modules():
                module.register_forward_hook(lambda _, __, given, part=part: self._note(part, given))
            self.detector(torch.zeros(1, 3, self.side_px, self.side_px))

    def _note(self, part: str, given: object) -> None:
        maps = given if isinstance(given, list | tuple) else [given]
        self.shapes[part] = [
            (one.shape[2], one.shape[3], one.shape[1]) for one in maps if isinstance(one, Tensor) and one.ndim == 4
        ]

    def part(self, name: str) -> nn.Module:
        return self.detector.get_submodule(name)

    def size(self, name: str, place: int = 0) -> str:
        """Such as "64 × 64 × 512"."""
        return " × ".join(str(side) for side in self.shapes[name][place])

    def channels(self, name: str) -> int:
        return self.shapes[name][0][2]


def convolution(conv: nn.Module) -> str:
    """Such as "3 × 3"."""
    return " × ".join(str(side) for side in conv.kernel_size)
