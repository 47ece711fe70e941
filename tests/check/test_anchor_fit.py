"""Boxes in the frame of the network, and the anchors of every level against them."""

import pytest
import torch

from focaldet.check.anchor_fit import level_overlaps, resize_boxes
from focaldet.models.retinanet import RetinaNetConfig
from focaldet.ops.grids import best_overlaps
from focaldet.types import ImageSize, Resize
from tests.data.test_dataset import small_index


def test_boxes_are_resized_with_their_image_and_ignored_ones_ignored():
    boxes, images = resize_boxes(small_index(), Resize(mode="long", size=12))
    assert images.tolist() == [[8, 12]]  # the image is 4 × 6; the other boxes are a crowd and a difficult one
    assert boxes.tolist() == [[0, 0, 4, 4]]


def test_each_box_meets_the_anchors_of_its_own_image():
    config = RetinaNetConfig()
    box = torch.tensor([[150.0, 20, 190, 60]])  # right of the small image's last cells
    frames = torch.tensor([[64, 64], [64, 224], [64, 64]])
    overlaps = level_overlaps(box.expand(3, 4), frames, config)
    for row, size in zip(overlaps, frames.tolist(), strict=True):
        wanted = [float(best_overlaps(box, grid)) for grid in config.grids(ImageSize(*size))]
        assert row.tolist() == pytest.approx(wanted)
    assert overlaps[0].tolist() == overlaps[2].tolist() != overlaps[1].tolist()
