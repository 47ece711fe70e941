"""`convert_data`: every layout as COCO, VOC and YOLO, and back with the same boxes; what does not fit is said."""

import json
import os

import pytest
import torch

from focaldet.cli import main
from focaldet.data.config import DataConfig
from focaldet.data.convert.convert_data import convert_data
from focaldet.data.splits import find_parts, open_parts
from focaldet.errors import ConfigError
from tests.data.datasets import BOXES, coco_document, write_coco, write_voc
from tests.data.layouts import LAYOUTS
from tests.data.test_layouts import assert_is


def read_all(folder):
    config = DataConfig(path=folder)
    return open_parts(config, find_parts(config))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_coco_voc_and_yolo(tmp_path, name):
    layout = LAYOUTS[name]
    wanted = layout.write(tmp_path / "in")
    for to in ("coco", "voc", "yolo"):
        out = tmp_path / to
        convert_data(DataConfig(path=tmp_path / "in"), to=to, out=out)
        datasets = read_all(out)
        assert len(datasets) == len(wanted)
        for dataset, contents in zip(sorted_by_size(datasets.values()), sorted_by_size(wanted.values()), strict=True):
            assert_is(dataset, contents, background=layout.background)
            assert dataset.problems.count("error", "warning") == 0, dataset.problems.lines()


def sorted_by_size(values):
    """Splits by the number of their boxes, since YOLO renames them."""
    return sorted(values, key=lambda each: sum(map(len, each.values())) if isinstance(each, dict) else len(each.boxes))


def fractional_coco(folder):
    document = coco_document()
    document["annotations"][0] |= {"bbox": [10.1, 0.7, 53.9, 0.3], "iscrowd": 1, "area": 7.25}
    document["annotations"][1] |= {"bbox": [33.33, 17.77, 0.01, 20.02], "ignore": 1}
    document["annotations"][2] |= {"bbox": [0.1, 1e-7, 7.7, 11.3]}
    write_coco(folder, document)
    return read_all(folder)["train"]


def test_coco_to_coco_loses_nothing(tmp_path):
    before = fractional_coco(tmp_path / "in")
    converted = convert_data(DataConfig(path=tmp_path / "in"), to="coco", out=tmp_path / "out", images="copy")
    after = read_all(tmp_path / "out")["train"]
    assert after.classes == before.classes
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name]), name
    assert (converted.num_images, converted.num_boxes) == (3, 3)


@pytest.mark.parametrize(
    ("to", "boxes", "flags", "said"),
    [
        (
            "voc",
            3,
            [2, 2, 0],
            ['1 crowds, written as "difficult"', "3 image ids", "3 areas of masks", "3 boxes with frac"],
        ),
        ("yolo", 1, [0], ["2 crowds, difficult and ignored boxes left out", "3 image ids"]),
    ],
)
def test_what_does_not_fit_is_counted(tmp_path, to, boxes, flags, said):
    before = fractional_coco(tmp_path / "in")
    converted = convert_data(DataConfig(path=tmp_path / "in"), to=to, out=tmp_path / "out")
    after = read_all(tmp_path / "out")["train"]
    assert after.flags.tolist() == flags and len(after.boxes) == boxes
    torch.testing.assert_close(after.boxes, before.boxes[-boxes:], rtol=0, atol=1e-9)
    notes = "\n".join(converted.notes)
    assert all(text in notes for text in said), notes


def test_two_images_of_one_stem_and_images_that_are_linked(tmp_path):
    document = coco_document({"a.png": (64, 48), "b.png": (48, 64)})
    document["images"].append({"id": 7, "file_name": "a.jpg"})
    write_coco(tmp_path / "in", document)
    os.link(tmp_path / "in" / "images" / "a.png", tmp_path / "in" / "images" / "a.jpg")
    for images in ("hardlink", "symlink", "copy"):
        converted = convert_data(DataConfig(path=tmp_path / "in"), to="yolo", out=tmp_path / images, images=images)
        assert any("1 images renamed" in note for note in converted.notes)
        placed = tmp_path / images / "images" / "train" / "a_2.jpg"
        assert placed.is_symlink() == (images == "symlink")
        assert placed.samefile(tmp_path / "in" / "images" / "a.jpg") == (images != "copy")


def test_the_command(tmp_path, capsys):
    write_voc(tmp_path / "in", {"train": ["a", "c"], "val": ["b"]})
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    arguments = ["convert-data", str(tmp_path / "in"), "--to", "coco", "--out"]
    assert main([*arguments, str(tmp_path / "used")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "new")]) == 0
    assert "3 images, 3 boxes" in capsys.readouterr().out
    document = json.loads((tmp_path / "new" / "annotations" / "instances_val.json").read_text())
    (x1, y1, x2, y2) = BOXES["b.png"][0][1]
    assert [row["bbox"] for row in document["annotations"]] == [[x1, y1, x2 - x1, y2 - y1]]


def test_yolo_has_three_splits(tmp_path):
    write_voc(tmp_path / "in", {"train": ["a"], "trainval": ["a", "b"]})
    with pytest.raises(ConfigError, match='"train" and "trainval" would both be train'):
        convert_data(DataConfig(path=tmp_path / "in"), to="yolo", out=tmp_path / "out")
