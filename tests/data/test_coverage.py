"""The quick anchor coverage equals what all anchors laid out would say."""

import inspect

import pytest
import torch

from focaldet.data.coverage import best_overlaps, resized_boxes, smallest_area
from focaldet.nets.necks import STRIDES_PX
from focaldet.ops.anchors import AnchorConfig, level_anchors
from focaldet.ops.boxes import pairwise_iou
from focaldet.types import ImageSize, Preprocessing, Resize

from .test_index import small_index


@pytest.mark.parametrize("flavour", ["continuous", "torchvision", "detectron1"])
def test_equals_brute_force(flavour):
    config = AnchorConfig(flavour=flavour)
    generator = torch.Generator().manual_seed(0)
    height, width = 150, 230
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([width, height])
    size = torch.rand(60, 2, generator=generator).square() * 200 + 1
    boxes = torch.cat([corner, torch.minimum(corner + size, torch.tensor([width, height]))], 1)
    found = best_overlaps(boxes, torch.tensor([[height, width]]).expand(60, 2), config)
    for level, stride in enumerate(STRIDES_PX):
        rows, columns = (-(-side // stride) for side in Preprocessing().padded(ImageSize(height, width)))
        anchors = level_anchors(config, stride_px=stride, height=rows, width=columns)
        assert torch.allclose(found[:, level], pairwise_iou(boxes, anchors).amax(1), atol=1e-5)


def test_the_levels_are_those_of_the_pyramid():
    assert inspect.signature(best_overlaps).parameters["strides_px"].default is STRIDES_PX
    assert inspect.signature(smallest_area).parameters["strides_px"].default is STRIDES_PX


def test_an_anchor_fits_itself_and_half_of_it_just_passes():
    anchor = torch.tensor([[48.0, 48, 80, 80]])  # the 32 px square of stride 8 around the cell at (64, 64)
    image = torch.tensor([[128, 128]])
    assert float(best_overlaps(anchor, image, AnchorConfig())[0, 0]) == pytest.approx(1, abs=1e-6)
    half = torch.tensor([[48.0, 48, 80, 64]])
    only_square = AnchorConfig(scales=(1.0,), ratios=(1.0,))
    assert float(best_overlaps(half, image, only_square)[0, 0]) == pytest.approx(0.5, abs=1e-6)


def test_the_smallest_anchor_has_32_px():
    assert smallest_area(AnchorConfig()) == pytest.approx(32 * 32, rel=1e-5)


def test_boxes_are_resized_with_their_picture_and_ignored_ones_left_out():
    boxes, images = resized_boxes(small_index(), Resize(mode="long", size=12))
    assert images.tolist() == [[8, 12]]  # the picture is 4 × 6; the other boxes are a crowd and a difficult one
    assert boxes.tolist() == [[0, 0, 4, 4]]


def test_no_boxes():
    assert best_overlaps(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64), AnchorConfig()).shape == (0, 5)
