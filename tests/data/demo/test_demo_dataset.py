import json
import sys

import pytest
import torch

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.config import DataConfig
from focaldet.data.dataset import FileSource
from focaldet.data.demo.dataset import CLASSES, NUM_TRAINING_DIGITS, DemoScenes, _material, write_demo
from focaldet.data.demo.scenes import MAX_OVERLAP, SCENE_SIZE, draw_layout, draw_scene
from focaldet.data.loading.loader import Loader
from focaldet.data.loading.rng import generator
from focaldet.data.splits import open_split, open_splits
from focaldet.errors import ConfigError
from focaldet.types import Preprocessing, Resize

SCENES = 60


@pytest.fixture(scope="module", params=["train", "test"])
def scenes(request):
    return DemoScenes(request.param, num_scenes=SCENES, seed=0)


def test_index_and_loaded_scenes_agree(scenes):
    assert len(scenes.dataset) == SCENES
    for i in range(SCENES):
        image, target = scenes.load(i, epoch=0)
        assert image.shape == (3, *SCENE_SIZE) and scenes.dataset.size(i) == SCENE_SIZE
        assert torch.equal(target.boxes, scenes.dataset.target(i).boxes)
        assert torch.equal(target.labels, scenes.dataset.target(i).labels)


def test_scenes_hold_all_classes_and_sizes_and_from_none_to_eight_digits(scenes):
    counts, areas = scenes.dataset.offsets.diff().tolist(), scenes.dataset.areas
    assert min(counts) == 0 and 7 <= max(counts) <= 8
    small, large = ((areas < 32**2).sum(), (areas > 96**2).sum())
    assert min(small, len(areas) - small - large, large) > 0.05 * len(areas)
    assert scenes.dataset.labels.unique().tolist() == list(range(10))
    assert scenes.dataset.classes.names == tuple("0123456789")


def test_boxes_are_large_enough_inside_and_hardly_overlap(scenes):
    boxes = scenes.dataset.boxes
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert (boxes >= 0).all() and (boxes[:, 2] <= SCENE_SIZE.width).all() and (boxes[:, 3] <= SCENE_SIZE.height).all()
    assert height.min() >= 20 and width.min() >= 6 and height.max() <= SCENE_SIZE.height
    assert height.median() > 40
    for i in range(SCENES):
        one = scenes.dataset.target(i).boxes
        shared = torch.minimum(one[:, None, 2:], one[None, :, 2:]) - torch.maximum(one[:, None, :2], one[None, :, :2])
        areas = (one[:, 2:] - one[:, :2]).prod(1)
        overlap = shared.clamp(min=0).prod(2) / torch.minimum(areas[:, None], areas[None])
        assert (overlap.fill_diagonal_(0) <= MAX_OVERLAP + 1e-6).all()


def test_a_digit_changes_the_pixels_of_its_box_and_no_others():
    material = _material("train")
    for i in range(20):
        layout = draw_layout(material, generator("test", i))
        with_digits = draw_scene(layout, material, generator("paint", i))
        changed = (with_digits != draw_scene([], material, generator("paint", i))).any(0)
        boxes = torch.zeros(SCENE_SIZE, dtype=torch.bool)
        for digit in layout:
            x1, y1, x2, y2 = map(int, digit.box)
            boxes[y1:y2, x1:x2] = True
            ink = digit.ink > 0.1
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
            assert changed[y1:y2, x1:x2][ink].float().mean() > 0.9
        assert not (changed & ~boxes).any()


def test_ink_stands_out_from_what_is_below_it():
    material = _material("train")
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for i in range(30):
        layout = draw_layout(material, generator("test", i))[:1]
        image, below = (draw_scene(digits, material, generator("paint", i)) for digits in (layout, []))
        for digit in layout:
            x1, y1, x2, y2 = map(int, digit.box)
            solid = digit.ink == 1
            color = (image[:, y1:y2, x1:x2] * luma).sum(0)[solid].mean()
            assert abs(color - (below[:, y1:y2, x1:x2] * luma).sum(0).mean()) > 85


def test_training_scenes_are_fresh_in_every_epoch_and_test_scenes_never_change():
    train, test = (DemoScenes(split, num_scenes=3, seed=0) for split in ("train", "test"))
    assert torch.equal(train.load(1, epoch=4)[0], train.load(1, epoch=4)[0])
    assert not torch.equal(train.load(1, epoch=4)[0], train.load(1, epoch=5)[0])
    assert not torch.equal(train.load(1, epoch=4)[0], DemoScenes("train", num_scenes=3, seed=1).load(1, epoch=4)[0])
    assert torch.equal(test.load(1, epoch=4)[0], test.load(1, epoch=0)[0])


def test_the_splits_share_no_digit_and_no_piece_of_a_photograph():
    train, test = _material("train"), _material("test")
    assert (len(train.labels), len(test.labels)) == (NUM_TRAINING_DIGITS, 1797 - NUM_TRAINING_DIGITS)
    assert train.digits.min() == 0 and train.digits.max() == 1
    for left, right in zip(train.photographs, test.photographs, strict=True):
        assert left.shape[1:] == (427, 384) and right.shape[1:] == (427, 256)


def test_every_digit_of_both_splits_can_be_drawn():
    for split in ("train", "test"):
        material = _material(split)
        for start in range(0, len(material.labels), 100):
            layout = draw_layout(material, generator("every", start))
            assert all(0 < digit.ink.numel() <= 192 * 256 for digit in layout)
        assert ((material.digits > 0.5).flatten(1).sum(1) > 5).all()


def test_training_on_scenes_does_not_depend_on_workers():
    def batches(workers):
        loader = Loader(
            DemoScenes("train", num_scenes=12, seed=0),
            preprocessing=Preprocessing(resize=Resize("long", 256, None)),
            batch_size=4,
            seed=0,
            augment=AugmentConfig("none"),
            workers=workers,
        )
        return [batch.images for epoch in range(2) for batch in loader.epoch(epoch)]

    plain, workers = batches(0), batches(2)
    assert len(plain) == 6 and all(torch.equal(a, b) for a, b in zip(plain, workers, strict=True))


def test_the_written_folder_holds_the_same_scenes(tmp_path):
    write_demo(tmp_path, seed=5, num_train=6, num_test=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "instances_test.json", "instances_train.json"]
    config = DataConfig(path=tmp_path)
    parts = open_splits(config, seed=0)  # 10 % of train are held out, because there is no val
    numbers = [_check_written(part, DemoScenes("train", num_scenes=6, seed=5)) for part in (parts.train, parts.val)]
    assert sorted(numbers[0] + numbers[1]) == list(range(6))
    numbers = _check_written(open_split(config, "test", seed=0), DemoScenes("test", num_scenes=4, seed=5))
    assert numbers == list(range(4))


def _check_written(dataset, scenes):
    """The numbers of the scenes of a dataset, each of which was compared with the scene itself."""
    assert dataset.classes == CLASSES
    numbers = [int(dataset.path(i).stem.split("_")[1]) for i in range(len(dataset))]
    for i, number in enumerate(numbers):
        (image, target), (wanted_image, wanted) = FileSource(dataset).load(i, epoch=0), scenes.load(number, epoch=0)
        assert torch.equal(image, wanted_image)
        assert torch.equal(target.boxes, wanted.boxes) and torch.equal(target.labels, wanted.labels)
    return numbers


def test_writing_no_scene_gives_valid_files(tmp_path):
    write_demo(tmp_path, seed=0, num_train=0, num_test=0)
    assert json.loads((tmp_path / "instances_train.json").read_text())["images"] == []


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    _material.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"focaldet\[demo\]"):
        DemoScenes("train", num_scenes=1, seed=0)
