"""Anchors for one's own boxes, as the network sees them."""

from dataclasses import replace

import pytest
import torch

from focaldet.check.anchor_clusters import anchor_shapes
from focaldet.errors import ConfigError
from focaldet.types import Resize
from tests.data.test_dataset import small_index


def test_shapes_are_those_of_the_resized_image():
    """Two of three boxes are ignored; the one that counts is 2 × 2 in an image 6 wide and 4 high."""
    shapes = anchor_shapes(small_index(), Resize("warp", 320, None), num_clusters=1, seed=0)
    assert (shapes.split, shapes.resize, shapes.num_boxes) == ("train", "320 × 320 px", 1)
    assert shapes.pixels == ((106.67, 160.0),) and shapes.cells == ((3.33333, 5.0),)
    assert shapes.average_iou == pytest.approx(1)
    assert shapes.to_dict()["cells"] == [[3.33333, 5.0]]


def test_a_split_without_boxes_is_reported():
    dataset = small_index()
    hidden = replace(dataset, flags=torch.ones_like(dataset.flags))
    with pytest.raises(ConfigError, match="has no boxes"):
        anchor_shapes(hidden, Resize(), num_clusters=1, seed=0)
