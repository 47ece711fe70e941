"""What `auto` chooses: the rules of the table on data whose answer is known by hand."""

from dataclasses import replace

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
        ([8] * 8, 640, 640, "8 px at 640, where 16 px would be better, but more is slow"),
        ([8] * 8, 430, 416, "where 16 px would be better, but the images are not larger"),
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
    assert advice.advise_epochs(few, batch_size=4).reason == "6 images make 200 updates"
    assert (advice.advise_batch_size(few).value, advice.advise_batch_size(many).value) == (4, 8)
    assert advice.advise_augmentation(few, epochs=24).value == "light"
    assert advice.advise_augmentation(few, epochs=100).value == "strong"
    assert advice.advise_sampling(few).value == "uniform"
    rare = replace(many, labels=torch.tensor([1] + [0] * 39, dtype=torch.int32))
    assert advice.advise_sampling(rare).reason == "39.0 boxes of the most frequent class for one of the rarest"


def test_models_of_the_table_exist_once_their_backbone_does():
    assert "faster_rcnn_mobilenet_v2_fpn" in advice.candidate_models()
    assert {*advice.candidate_models()} <= {*advice.small_models()}


@pytest.mark.parametrize(("name", "size"), [("bccd", 320), ("license_plates", 512), ("deeppcb", 416)])
def test_real_data_get_the_size_that_was_measured_to_suit_them(real_data, name, size):
    train = open_splits(DataConfig(path=real_data / name), seed=0).train
    assert advice.advise_size(train, PRESETS["faster_rcnn_mobilenet_v2_fpn"].preprocessing.resize).value == size
