"""Small datasets, detections and a detector that finds what is bright, for the tests of evaluation and prediction."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from focaldet.data.dataset import Classes, Dataset, pack_paths, starts
from focaldet.data.problems import Problems
from focaldet.models.base import Detector, DetectorConfig
from focaldet.types import Detections, ImageSize, Preprocessing, Resize


def make_dataset(
    images, *, names=("cell", "dog"), category_ids=None, image_ids=None, sizes=None, paths=None, root=".", name="val"
):
    """A dataset from one list of (box xyxy, label, flag) per image; areas are those of the boxes."""
    rows = [row for image in images for row in image]
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float64).reshape(-1, 4)
    path_bytes, path_offsets = pack_paths(paths or [f"{index}.png" for index in range(len(images))])
    return Dataset(
        name=name,
        root=Path(root),
        classes=Classes(tuple(names), tuple(category_ids or range(1, len(names) + 1))),
        image_ids=torch.tensor(image_ids or range(1, len(images) + 1), dtype=torch.int64),
        sizes=torch.tensor(sizes or [(100, 100)] * len(images), dtype=torch.int32).reshape(-1, 2),
        offsets=starts(torch.tensor([len(image) for image in images], dtype=torch.int64)),
        boxes=boxes,
        labels=torch.tensor([row[1] for row in rows], dtype=torch.int32),
        flags=torch.tensor([row[2] for row in rows], dtype=torch.uint8),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
    )


def make_detections(*rows, names=("cell", "dog")):
    """Detections from (box xyxy, score, label)."""
    return Detections(
        torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([row[1] for row in rows], dtype=torch.float32),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
        tuple(names),
    )


@dataclass(frozen=True)
class BrightConfig(DetectorConfig):
    num_classes: int = 2


class BrightDetector(Detector):
    """Finds the bounding box of what is bright in each image: a cell where it is red, a dog where it is yellow."""

    def __init__(self, *, names=("cell", "dog"), resize=None, size_divisor=32):
        preprocessing = Preprocessing(
            mean=(10.0, 20.0, 30.0), resize=resize or Resize(mode="long", size=64), size_divisor=size_divisor
        )
        super().__init__(BrightConfig(max(2, len(names))), class_names=tuple(names), preprocessing=preprocessing)
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout()
        self.seen = []

    def forward(self, images, sizes, targets=None):
        self.seen.append(images.detach().clone())
        return images.float() + self.weight

    def losses(self, outputs, targets, context):
        return {"none": self.weight.sum()}

    def detect(self, outputs, sizes):
        return [self._one(image[:, : size.height, : size.width]) for image, size in zip(outputs, sizes, strict=True)]

    def _one(self, image):
        bright = image[0] > 200
        if not bright.any():
            return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), self.class_names)
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        box = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
        label = int(image[1][bright].mean() > 100)
        score = image[0][bright].mean() / 255
        return Detections(
            torch.tensor(box, dtype=torch.float32), score.reshape(1), torch.tensor([label]), self.class_names
        )

    def backbone_parameters(self):
        return []


def make_image(size=(48, 64), box=(8, 8, 24, 40), *, red=255, green=0):
    """A dark image (height, width) with a bright rectangle at `box` (xyxy), as a tensor."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    left, top, right, bottom = box
    image[0, top:bottom, left:right] = red
    image[1, top:bottom, left:right] = green
    return image


def size_of(image):
    return ImageSize(*image.shape[1:])
