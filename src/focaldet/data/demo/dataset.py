"""The embedded data set: real handwriting on real photographs, without a download.

scikit-learn brings 1797 handwritten digits and two photographs. Writers come in runs, so the first 1287 digits train
and the others test; a photograph's left part trains and its right part tests. No digit and no pixel is in both.
"""

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from focaldet.data.dataset import Classes, Dataset, pack_paths, starts
from focaldet.data.demo.scenes import SCENE_SIZE, Material, draw_layout, draw_scene, layout_target
from focaldet.data.loading.rng import generator
from focaldet.data.problems import Problems
from focaldet.errors import ConfigError
from focaldet.files import to_json_text, write_text
from focaldet.ops.boxes import areas
from focaldet.types import Target

CLASSES = Classes(names=tuple("0123456789"), category_ids=tuple(range(1, 11)))
NUM_TRAINING_DIGITS = 1287
TRAINING_WIDTH_FRACTION = 0.6


class DemoScenes:
    """Scenes of digits on photographs, generated as they are loaded.

    Scene i is drawn from (seed, split, epoch, i). Training sees fresh scenes in every epoch; the test scenes are those
    of epoch 0 whatever the epoch. `dataset` holds the boxes of epoch 0.

    Args:
        split: which writers and which part of the photographs.
        num_scenes: scenes per epoch, ≥ 0.
        seed: of all scenes.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self, split: Literal["train", "test"], *, num_scenes: int, seed: int) -> None:
        self._split, self._num_scenes, self._seed = split, num_scenes, seed
        self._material = _material(split)

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The scenes of epoch 0; their paths are names, not files."""
        layouts = (draw_layout(self._material, self._generator(i, epoch=0)) for i in range(self._num_scenes))
        return _dataset(self._split, [layout_target(layout) for layout in layouts])

    def load(self, i: int, *, epoch: int) -> tuple[UInt8[Tensor, "3 H W"], Target]:
        """Scene i of an epoch and the boxes of its digits."""
        rng = self._generator(i, epoch=epoch)
        layout = draw_layout(self._material, rng)
        return draw_scene(layout, self._material, rng), layout_target(layout)

    def _generator(self, i: int, *, epoch: int) -> random.Random:
        return generator(f"demo {self._split}", self._seed, epoch if self._split == "train" else 0, i)


def write_demo(folder: Path, *, seed: int, num_train: int, num_test: int) -> None:
    """Write scenes as a COCO folder: `images/`, `instances_train.json`, `instances_test.json`.

    The training scenes are those of epoch 0. Files of the same names are replaced.

    Raises:
        ConfigError: scikit-learn is not installed.
        OSError: the folder cannot be written.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _write_split(folder, "train", DemoScenes("train", num_scenes=num_train, seed=seed))
    _write_split(folder, "test", DemoScenes("test", num_scenes=num_test, seed=seed))


def _write_split(folder: Path, split: str, scenes: DemoScenes) -> None:
    for i in range(len(scenes.dataset)):
        image, _ = scenes.load(i, epoch=0)
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "images" / scenes.dataset.path(i).name, compress_level=1)
    write_text(folder / f"instances_{split}.json", to_json_text(_coco(scenes.dataset)))


def _dataset(split: str, targets: Sequence[Target]) -> Dataset:
    """The dataset of these scenes' targets."""
    count = len(targets)
    boxes = torch.cat([target.boxes for target in [Target.empty(), *targets]]).double()
    path_bytes, path_offsets = pack_paths([f"{split}_{i:05d}.png" for i in range(count)])
    return Dataset(
        name=f"demo {split}",
        root=Path("demo"),
        classes=CLASSES,
        image_ids=torch.arange(1, count + 1),
        sizes=torch.tensor(SCENE_SIZE, dtype=torch.int32).expand(count, 2).contiguous(),
        offsets=starts(torch.tensor([len(target.boxes) for target in targets], dtype=torch.int64)),
        boxes=boxes,
        labels=torch.cat([target.labels for target in [Target.empty(), *targets]]).int(),
        flags=torch.zeros(len(boxes), dtype=torch.uint8),
        areas=areas(boxes),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
    )


def _coco(dataset: Dataset) -> dict[str, Any]:
    """The dataset as a document in COCO's annotation format."""
    images = [
        {"id": i + 1, "file_name": dataset.path(i).name, **dataset.size(i)._asdict()} for i in range(len(dataset))
    ]
    image_ids = torch.repeat_interleave(dataset.image_ids, dataset.offsets.diff()).tolist()
    rows = zip(image_ids, dataset.boxes.tolist(), dataset.labels.tolist(), dataset.areas.tolist(), strict=True)
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": dataset.classes.category_ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": 0,
        }
        for number, (image_id, (x1, y1, x2, y2), label, area) in enumerate(rows, start=1)
    ]
    named = zip(dataset.classes.category_ids, dataset.classes.names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in named]
    return {"images": images, "annotations": annotations, "categories": categories}


@functools.cache
def _material(split: Literal["train", "test"]) -> Material:
    """The digits of a split and its parts of the photographs."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError:
        raise ConfigError("the embedded data set needs scikit-learn: pip install 'focaldet[demo]'") from None
    pixels, labels = load_digits(return_X_y=True)
    digits = torch.from_numpy(pixels).float().reshape(-1, 8, 8) / 16
    photographs = [torch.tensor(photograph).permute(2, 0, 1) for photograph in load_sample_images().images]
    border = int(photographs[0].shape[2] * TRAINING_WIDTH_FRACTION)
    part = 0 if split == "train" else 1
    backgrounds = tuple(photograph.tensor_split([border], dim=2)[part].contiguous() for photograph in photographs)
    ink, classes = (rows.tensor_split([NUM_TRAINING_DIGITS])[part] for rows in (digits, torch.from_numpy(labels)))
    return Material(backgrounds, ink, classes.long())
