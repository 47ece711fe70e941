"""The choice of splits, and that all formats of the same data give equal datasets."""

import json
import re
from pathlib import Path

import pytest
import torch

from focaldet.data.config import DataConfig
from focaldet.data.dataset import Classes
from focaldet.data.formats.listing import stem_of
from focaldet.data.formats.records import BoxRows, DatasetLayout, Records
from focaldet.data.formats.registry import FORMATS, AnnotationFormat
from focaldet.data.problems import Location
from focaldet.data.select_classes import with_classes
from focaldet.data.splits import find_parts, hold_out, open_parts, open_split, open_splits
from focaldet.errors import ConfigError, DataError
from tests.data.datasets import IMAGES, coco_document, write_coco, write_csv, write_images, write_voc, write_yolo

WRITERS = {"coco": lambda f: write_coco(f).parent, "voc": write_voc, "yolo": write_yolo, "csv": write_csv}


def coco_with(folder: Path, *splits: str, num_images: int = 20) -> Path:
    """A COCO folder with these splits of different images."""
    for split in splits:
        sizes = {f"{split}{i}.png": (30, 20) for i in range(num_images)}
        write_images(folder / "images", sizes)
        images = [{"id": i, "file_name": name} for i, name in enumerate(sizes)]
        boxes = [{"image_id": i, "category_id": 7, "bbox": [1, 1, 9, 9]} for i in range(num_images)]
        document = coco_document() | {"images": images, "annotations": boxes}
        (folder / f"instances_{split}.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("fmt", WRITERS)
def test_formats_are_recognized_or_named_and_agree(tmp_path, fmt):
    folder = tmp_path / fmt
    folder.mkdir()
    WRITERS[fmt](folder)
    for config in (DataConfig(path=folder), DataConfig(path=folder, format=fmt)):
        splits = open_splits(config, seed=0)
        assert len(splits.train) + len(splits.val) == 3
        targets = {}
        for dataset in (splits.train, splits.val):
            assert dataset.classes.names == ("cat", "dog")
            for i in range(len(dataset)):
                target = dataset.target(i)
                targets[dataset.path(i).name] = (target.labels.tolist(), target.boxes.round(decimals=4).tolist())
        assert targets == {
            "a.png": ([0, 1], [[8, 4, 40, 36], [0, 0, 16, 12]]),
            "b.png": ([0], [[12, 16, 36, 48]]),
            "c.png": ([], []),
        }


@pytest.mark.parametrize("name", ["val", "valid", "validation", "val2017"])
def test_val_is_taken_under_its_four_names(tmp_path, name):
    folder = coco_with(tmp_path, "train", name, "test")
    splits = open_splits(DataConfig(path=folder), seed=0)
    assert (splits.train.name, splits.val.name) == ("train", name)
    assert splits.chosen == f'Training on "train" (20 images), validating on "{name}" (20 images).'
    assert splits.val.path(0).name.startswith(name)


def test_test_is_never_taken_for_validation(tmp_path):
    folder = coco_with(tmp_path, "train", "test")
    splits = open_splits(DataConfig(path=folder), seed=0)
    assert (len(splits.train), len(splits.val)) == (18, 2)
    names = [dataset.path(i).name for dataset in (splits.train, splits.val) for i in range(len(dataset))]
    assert sorted(names) == sorted(f"train{i}.png" for i in range(20))
    assert 'validating on "10 % of train" (2 images), drawn with seed 0' in splits.chosen
    assert '"test" stays untouched' in splits.chosen
    assert len(open_split(DataConfig(path=folder), "test", seed=0)) == 20


def test_the_tenth_follows_the_seed(tmp_path):
    config = DataConfig(path=coco_with(tmp_path, "train", num_images=40))
    drawn = [open_splits(config, seed=seed).val for seed in (0, 0, 1)]
    assert drawn[0].fingerprint() == drawn[1].fingerprint() != drawn[2].fingerprint()
    assert len(drawn[0]) == 4
    assert open_split(config, "val", seed=1).fingerprint() == drawn[2].fingerprint()
    assert len(open_split(config, "train", seed=1)) == 36


def test_held_out_and_kept_are_the_whole(tmp_path):
    whole = open_split(DataConfig(path=coco_with(tmp_path, "test", num_images=15)), "test", seed=0)
    kept, held_out = hold_out(whole, seed=3)
    assert sorted(torch.cat([kept.image_ids, held_out.image_ids]).tolist()) == list(range(15))
    assert not held_out.problems.examples, "problems are reported once"
    with pytest.raises(DataError, match="one image only"):
        hold_out(whole.subset([0], "one"), seed=0)


def test_parts_named_one_by_one(tmp_path):
    first, second = coco_with(tmp_path / "x", "train", "val"), coco_with(tmp_path / "y", "odd", num_images=5)
    config = DataConfig(path=first, val=second / "instances_odd.json")
    splits = open_splits(config, seed=0)
    assert (len(splits.train), len(splits.val)) == (20, 5)
    config = DataConfig(train=first / "instances_train.json", val=first)
    assert open_splits(config, seed=0).val.path(0).name.startswith("val")
    only = DataConfig(val=second / "instances_odd.json")
    assert len(open_split(only, "val", seed=0)) == 5
    with pytest.raises(ConfigError, match="no split to train on"):
        open_splits(only, seed=0)
    with pytest.raises(DataError, match='has no split for "test"'):
        open_splits(DataConfig(path=first, test=first), seed=0)


def test_a_file_as_path(tmp_path):
    for name, file in (("coco", "instances_train.json"), ("yolo", "data.yaml"), ("csv", "train.csv")):
        folder = tmp_path / name
        folder.mkdir()
        WRITERS[name](folder)
        splits = open_splits(DataConfig(path=folder / file), seed=0)
        assert (len(splits.train), len(splits.val)) == (len(IMAGES) - 1, 1)


def test_own_names_and_unknown_names_of_splits(tmp_path):
    config = DataConfig(path=coco_with(tmp_path, "train", "extra"))
    assert open_split(config, "extra", seed=0).path(0).name.startswith("extra")
    with pytest.raises(ConfigError, match=re.escape('no split "extar" (did you mean "extra"?)')):
        open_split(config, "extar", seed=0)
    with pytest.raises(ConfigError, match='no split "test"'):
        open_split(config, "test", seed=0)


def test_validation_has_the_labels_of_training(tmp_path):
    folder = coco_with(tmp_path, "train", "val")
    file = folder / "instances_val.json"
    document = json.loads(file.read_text())
    document["categories"] = [{"id": 1, "name": "ant"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}]
    file.write_text(json.dumps(document))
    splits = open_splits(DataConfig(path=folder), seed=0)
    assert splits.val.classes.names == splits.train.classes.names == ("cat", "dog")
    assert (
        splits.val.classes.category_ids == splits.train.classes.category_ids == splits.train.classes.own_ids == (3, 7)
    )
    assert splits.val.classes.own_ids == (9, 7)
    assert splits.val.labels.unique().tolist() == splits.train.labels.unique().tolist() == [1]
    document["annotations"][0]["category_id"] = 1
    file.write_text(json.dumps(document))
    val = open_splits(DataConfig(path=folder), seed=0).val
    assert len(val.boxes) == 19 and val.problems.counts["warning", "class not trained"] == 1
    with pytest.raises(DataError, match=r"split .val. has boxes of classes that are not in the training split: 'ant'"):
        open_splits(DataConfig(path=folder, strict=True), seed=0)


def test_a_split_of_the_same_numbers_has_equal_classes_whatever_else_its_file_names(tmp_path):
    folder = coco_with(tmp_path, "train", "val")
    file = folder / "instances_val.json"
    file.write_text(
        json.dumps(
            json.loads(file.read_text())
            | {"categories": [{"id": 7, "name": "dog"}, {"id": 1, "name": "ant"}, {"id": 3, "name": "cat"}]}
        )
    )
    splits = open_splits(DataConfig(path=folder), seed=0)
    assert splits.val.classes == splits.train.classes
    assert splits.val.problems.count() == 0


def test_a_class_that_only_the_training_split_has_is_reported(tmp_path):
    folder = coco_with(tmp_path, "train", "val")
    file = folder / "instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"categories": [{"id": 7, "name": "dog"}]}))
    val = open_splits(DataConfig(path=folder), seed=0).val
    assert (val.classes.names, val.classes.own_ids) == (("cat", "dog"), (None, 7))
    (problem,) = val.problems
    assert (problem.severity, problem.kind) == ("note", "class absent") and problem.message.endswith("has: cat")
    assert with_classes(val, val.classes) is val
    assert with_classes(val, Classes(("dog", "cat"), (1, 2))).classes.own_ids == (7, None)


def test_nothing_named_nothing_there_nothing_known(tmp_path):
    with pytest.raises(ConfigError, match="name a folder or file"):
        open_splits(DataConfig(), seed=0)
    with pytest.raises(DataError, match="no such file or folder"):
        open_splits(DataConfig(path=tmp_path / "gone"), seed=0)
    with pytest.raises(
        DataError, match=r"has no COCO, VOC, LABELME, VOTT, IMAGEFOLDER, CSV, YOLO data .*no file in it"
    ):
        open_splits(DataConfig(path=tmp_path), seed=0)
    with pytest.raises(DataError, match="has no VOC data"):
        open_splits(DataConfig(path=write_coco(tmp_path).parent, format="voc"), seed=0)


@pytest.mark.parametrize(
    ("name", "train", "val", "classes"),
    [("bccd", 205, 87, 3), ("deeppcb", 900, 100, 6), ("license_plates", 427, 107, 1), ("coco_mini", 50, 50, 80)],
)
def test_real_data(real_data, name, train, val, classes):
    splits = open_splits(DataConfig(path=real_data / name), seed=0)
    assert (len(splits.train), len(splits.val), len(splits.train.classes)) == (train, val, classes)


def test_a_format_is_one_row_of_the_table(tmp_path, monkeypatch):
    def find_toy(listing, file):
        files = {stem_of(path): (listing.root / path,) for path in listing.with_suffix(".toy")}
        return DatasetLayout("toy", listing.root, files) if files else None

    def read_toy(layout, splits, reading):
        def records(split):
            (file,), rows = layout.splits[split], BoxRows()
            rows.add(0, [float(number) for number in file.read_text().split()], 0, Location(file, "line 1"))
            return Records(
                name=split,
                source=file,
                root=reading.images or layout.root,
                classes=Classes(("toy",), (1,)),
                image_ids=[1],
                paths=["a.png"],
                stated_sizes=[None],
                image_location=lambda i: Location(file),
                **rows.columns(),
            )

        return [records(split) for split in splits]

    monkeypatch.setitem(FORMATS, "toy", AnnotationFormat(find_toy, read_toy))
    write_images(tmp_path)
    (tmp_path / "train.toy").write_text("1 2 30 80")
    dataset = open_parts(DataConfig(path=tmp_path), find_parts(DataConfig(path=tmp_path)))["train"]
    assert dataset.boxes.tolist() == [[1, 2, 30, 48]] and dataset.problems.count("warning") == 1
