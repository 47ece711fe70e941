"""What `auto` chooses: the rules of the table on data whose answer is known by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from focaldet.check import advice
from focaldet.data.config import DataConfig
from focaldet.data.splits import open_splits
from focaldet.models import PRESETS
from focaldet.types import Resize
from tests.training.squares import squares

LONG = Resize(mode="long", size=320, max_size=None)


def boxes_of(sides, *, image_px=640):
    """A dataset of one image for each square box of so many pixels."""
    data = squares(len(sides)).dataset
    corners = torch.tensor([[0.0, 0.0, side, side] for side in sides], dtype=torch.float64)
    return replace(data, boxes=corners, sizes=torch.full((len(sides), 2), image_px, dtype=torch.int32))


@pytest.mark.parametrize(
    ("sides", "image_px", "size", "reason"),
    [
        ([100] * 8, 640, 320, "25% of the objects are smaller than 50 px at 320"),
        # A quarter of the boxes have 20 px: 10 at 320, 13 at 416, 16 at 512.
        ([20] * 3 + [200] * 5, 640, 512, "25% of the objects are smaller than 10 px at 320, than 16 px at 512"),
        ([20] + [200] * 7, 640, 320, "100 px"),
        ([8] * 8, 640, 640, "8 px at 640, where 14 px would be better, but more is slow"),
        ([8] * 8, 430, 416, "where 14 px would be better, but 512 px would enlarge half of the images"),
        ([8] * 8, 600, 512, "but 640 px would enlarge half of the images"),
        ([50] * 8, 200, 320, "80 px at 320"),
    ],
)
def test_the_size_is_that_at_which_objects_are_large_enough(sides, image_px, size, reason):
    choice = advice.advise_size(boxes_of(sides, image_px=image_px), LONG)
    assert choice.value == size and reason in choice.reason
    assert str(choice).startswith(f"size {size}: ")


def test_a_size_without_boxes_is_the_smallest():
    assert advice.advise_size(squares(3, empty=(0, 1, 2)).dataset, LONG).value == 320


def test_every_list_of_the_table_has_a_row_for_any_data():
    few, many = squares(6).dataset, squares(40).dataset
    assert (advice.advise_epochs(few, batch_size=4).value, advice.advise_epochs(many, batch_size=8).value) == (100, 100)
    assert advice.advise_epochs(few, batch_size=4).reason == "100 updates in all, from 6 images"
    assert (advice.advise_batch_size(few).value, advice.advise_batch_size(many).value) == (4, 8)
    assert advice.advise_augmentation(few, epochs=24).value == "light"
    assert advice.advise_sampling(few).value == "uniform"
    rare = replace(many, labels=torch.tensor([1] + [0] * 39, dtype=torch.int32))
    assert advice.advise_sampling(rare).reason == "39.0 images with the most frequent class for one with the rarest"


def test_a_class_is_rare_by_its_images_and_not_by_its_boxes():
    """Sampling draws images: where every image has twenty cells and one platelet, none is worth drawing more often."""
    data = squares(10).dataset
    crowded = replace(
        data,
        offsets=torch.arange(11) * 21,
        boxes=data.boxes.repeat_interleave(21, 0),
        labels=torch.tensor([0] * 20 + [1], dtype=torch.int32).repeat(10),
        flags=torch.zeros(210, dtype=torch.uint8),
        areas=data.areas.repeat_interleave(21),
    )
    choice = advice.advise_sampling(crowded)
    assert (choice.value, choice.reason[:4]) == ("uniform", "1.0 ")


def test_models_of_the_table_exist_once_their_backbone_does():
    assert "faster_rcnn_mobilenet_v2_fpn" in advice.candidate_models()
    assert {*advice.candidate_models()} <= {*advice.small_models(), "ssd_mobilenet_v2_tf"}


@pytest.mark.parametrize(("name", "size"), [("bccd", 320), ("license_plates", 512), ("deeppcb", 320)])
def test_real_data_get_the_size_that_was_measured_to_suit_them(real_data, name, size):
    train = open_splits(DataConfig(path=real_data / name), seed=0).train
    assert advice.advise_size(train, PRESETS["faster_rcnn_mobilenet_v2_fpn"].preprocessing.resize).value == size


def test_the_guide_states_the_rules_as_they_are():
    guide = Path(__file__).parents[2] / "docs" / "guide" / "training.md"
    text = " ".join(guide.read_text(encoding="utf-8").split())
    *sides, last = advice.RULES["size"]["sides_px"]
    assert f"the smallest of {', '.join(map(str, sides))} and {last} px" in text
    assert f"smaller than {advice.RULES['size']['object_px']} px" in text and advice.RULES["size"]["fraction"] == 0.25
    first, *rows, other = advice.RULES["epochs"]
    counts = [f"{first['epochs']} below {first['images_below']} images"]
    counts += [f"{row['epochs']} below {row['images_below']}" for row in rows]
    assert f"{', '.join(counts)}, else {other['epochs']}" in text
    few = advice.RULES["batch_size"][0]
    assert f"8; {few['batch_size']} below {few['images_below']} images" in text
    assert [row["preset"] for row in advice.RULES["augment"]] == ["light"] and "| `light`: `strong` was" in text
    assert advice.RULES["sampling"][0]["imbalance_from"] == 10 and "in ten times as many images" in text
