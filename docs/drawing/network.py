"""What a network is made of, read from the network itself: sizes of maps, channels, kernels.

It is built at full size on the device "meta", which computes shapes alone.
"""

import torch
from torch import Tensor, nn

from focaldet.models import build
from focaldet.models.faster_rcnn.model import FasterRCNN
from focaldet.models.faster_rcnn.plus import scale_maps
from focaldet.types import ImageSize

PHOTOGRAPH = ImageSize(480, 640)  # the most frequent size in COCO
REGIONS = 7  # of the second stage; any number
Shapes = list[tuple[int, ...]]


class Network:
    """A detector, and the shapes (height, width, channels) of the outputs of its parts for a photograph.

    `image` is the size of the resized photograph, `padded` the size with padding. The second stage of a two-stage
    detector gets empty regions, since shapes do not depend on them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.shapes: dict[str, Shapes] = {}
        with torch.device("meta"), torch.no_grad():
            self.detector = build(name).eval()
            preprocessing = self.detector.preprocessing
            self.side_px = preprocessing.resize.size
            self.image = preprocessing.resize.target(PHOTOGRAPH)
            self.padded = preprocessing.padded_size(self.image)
            for part, module in self.detector.named_modules():
                module.register_forward_hook(lambda _, __, given, part=part: self._note(part, given))
            images = torch.zeros(1, 3, *self.padded)
            if isinstance(self.detector, FasterRCNN):
                self._run_two_stages(self.detector, images, [self.padded])
            else:
                self.detector(images, [self.padded])

    def _run_two_stages(self, detector: FasterRCNN, images: Tensor, sizes: list[ImageSize]) -> None:
        levels, first = detector.first_stage(images, sizes)
        self.level_sizes = first.level_sizes
        self._note("levels", levels)
        side = detector.config.pooling.size
        pooled = torch.empty(REGIONS, levels[0].shape[1], side, side)
        self._note("pooled", pooled)
        vectors = detector.roi_head(pooled).repeat(1, 1 + detector.config.plus.context)
        detector.predictor(vectors)
        shapes = dict(self.shapes)
        self.views = scale_maps(images, levels, scales=detector.config.plus.scales, levels_of=detector.levels)
        self.shapes = shapes  # those of the image at its own scale
        for index, view in enumerate(self.views):
            self._note(f"views.{index}", view.levels)

    def _note(self, part: str, given: object) -> None:
        maps = given if isinstance(given, list | tuple) else [given]
        self.shapes[part] = [
            (one.shape[2], one.shape[3], one.shape[1]) for one in maps if isinstance(one, Tensor) and one.ndim == 4
        ]

    def part(self, name: str) -> nn.Module:
        return self.detector.get_submodule(name)

    def size(self, name: str, index: int = 0) -> str:
        """Such as "64 × 64 × 512"."""
        return " × ".join(str(side) for side in self.shapes[name][index])

    def channels(self, name: str) -> int:
        return self.shapes[name][0][2]


def convolution(conv: nn.Module) -> str:
    """Such as "3 × 3"."""
    return " × ".join(str(side) for side in conv.kernel_size)
