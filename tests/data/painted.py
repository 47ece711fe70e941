"""Images whose boxes can be found again in their pixels, and sources of them that need no files."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from focaldet.data.augment.geometry import Sample
from focaldet.data.dataset import Classes, Dataset, pack_paths, starts
from focaldet.data.problems import Problems
from focaldet.errors import DataError
from focaldet.types import ImageSize, Target

# One color per label, far apart and far from the paper.
COLORS = torch.tensor(
    [[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10], [250, 10, 250], [10, 250, 250], [250, 130, 10]],
    dtype=torch.uint8,
)
PAPER = 60


def painted(size, boxes, labels, *, ignored=None):
    """A sample with every box filled with the color of its label."""
    image = torch.full((3, *size), PAPER, dtype=torch.uint8)
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        image[:, y1:y2, x1:x2] = COLORS[label][:, None, None]
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignored = torch.zeros(len(boxes), dtype=torch.bool) if ignored is None else torch.tensor(ignored, dtype=torch.bool)
    return Sample(image, Target(boxes, torch.tensor(labels, dtype=torch.int64), ignored))


def painted_box(image, label, *, tolerance=110):
    """The box around all pixels near the color of a label; None where there are none."""
    distance = (image.int() - COLORS[label].int()[:, None, None]).abs().sum(0)
    rows, columns = (distance <= tolerance).nonzero(as_tuple=True)
    if len(rows) == 0:
        return None
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def index_of(targets, sizes, *, num_classes=7):
    """The dataset of these targets."""
    count = len(targets)
    boxes = torch.cat([torch.zeros(0, 4), *(target.boxes for target in targets)]).double()
    path_bytes, path_offsets = pack_paths([f"{i}.png" for i in range(count)])
    return Dataset(
        name="painted",
        root=Path("painted"),
        classes=Classes(tuple(f"class {k}" for k in range(num_classes)), tuple(range(num_classes))),
        image_ids=torch.arange(count),
        sizes=torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2),
        offsets=starts(torch.tensor([len(target.boxes) for target in targets], dtype=torch.int64)),
        boxes=boxes,
        labels=torch.cat([torch.zeros(0, dtype=torch.int64), *(target.labels for target in targets)]).int(),
        flags=torch.cat([torch.zeros(0, dtype=torch.bool), *(target.ignored for target in targets)]).to(torch.uint8),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
    )


@dataclass(frozen=True)
class PaintedSource:
    """Samples from memory; reading image `broken` fails as a damaged file would."""

    samples: tuple[Sample, ...]
    broken: int | None = None

    @functools.cached_property
    def dataset(self):
        return index_of([sample.target for sample in self.samples], [sample.size for sample in self.samples])

    def load(self, i, *, epoch):
        if i == self.broken:
            raise DataError("is damaged", file="painted/broken.png", record="image 3", field="pixels")
        return self.samples[i].image, self.samples[i].target


def painted_source(num_images, *, portrait=(), empty=(), broken=None):
    """Images with one box each of label i mod 7; those in `portrait` stand, those in `empty` have no box."""
    samples = []
    for i in range(num_images):
        size = ImageSize(40, 24) if i in portrait else ImageSize(24, 40)
        box = [] if i in empty else [(4 + i % 5, 3, 16 + i % 5, 20)]
        sample = painted(size, box, [i % len(COLORS)] * len(box))
        sample.image[:, 0, 0] = i
        samples.append(sample)
    return PaintedSource(tuple(samples), broken)
