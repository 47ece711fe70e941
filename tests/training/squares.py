"""A source that needs no files: bright squares of two colors on a dark ground, the same for the same seed.

Also a network small enough that a training step takes a few hundredths of a second.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.dataset import Classes, Dataset, pack_paths, starts
from focaldet.data.problems import Problems
from focaldet.training.config import RunConfig
from tests import tiny_backbones  # noqa: F401  ARCHITECTURE names one

SIDE = 64
ARCHITECTURE = {
    "backbone": "resnet_tiny",
    "width": 16,
    "head_depth": 1,
    "tower_init": "normal",
    "norm": "batch",
    "anchors": {"base_scale": 2.0},
    "loss": {"box": "smooth_l1", "box_weight": 1.0},
}


@dataclass(frozen=True)
class Squares:
    """`num_images` images of SIDE × SIDE pixels with one square each; those in `empty` have none."""

    dataset: Dataset
    images: torch.Tensor

    def load(self, i, *, epoch):
        del epoch
        return self.images[i], self.dataset.target(i)


def squares(num_images, *, seed=0, empty=()):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (num_images, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    boxes, labels, counts = [], [], []
    for i in range(num_images):
        side = int(torch.randint(16, 33, (), generator=generator))
        x, y = torch.randint(0, SIDE - side, (2,), generator=generator).tolist()
        counts.append(int(i not in empty))
        if i not in empty:
            images[i, i % 2, y : y + side, x : x + side] = 230
            boxes.append([x, y, x + side, y + side])
            labels.append(i % 2)
    path_bytes, path_offsets = pack_paths([f"{i}.png" for i in range(num_images)])
    corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    dataset = Dataset(
        name="squares",
        root=Path("squares"),
        classes=Classes(("red", "green"), (3, 7)),
        image_ids=torch.arange(num_images) + 10,
        sizes=torch.full((num_images, 2), SIDE, dtype=torch.int32),
        offsets=starts(torch.tensor(counts, dtype=torch.int64)),
        boxes=corners,
        labels=torch.tensor(labels, dtype=torch.int32),
        flags=torch.zeros(len(boxes), dtype=torch.uint8),
        areas=(corners[:, 2:] - corners[:, :2]).prod(1),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
    )
    return Squares(dataset, images)


def small_run(out, **changes):
    """Settings of a run of a few steps with the small network."""
    settings = {
        "model": "retinanet_mobilenet_v2_fpn",
        "architecture": ARCHITECTURE,
        "size": SIDE,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "device": "cpu",
        "augment": AugmentConfig(preset="none"),
        "evaluate_every": None,
        "ema": None,
    }
    if "phases" in changes:
        del settings["epochs"]
    return RunConfig(out=Path(out), **{**settings, **changes})
