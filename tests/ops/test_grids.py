"""The quick fit equals what all anchors laid out would say, for every detector's kind of anchors."""

import pytest
import torch

from focaldet.models import build, find_preset, named_config
from focaldet.models.yolov2 import STRIDE_PX
from focaldet.nets.necks import PYRAMID_STRIDES_PX
from focaldet.ops.anchors import AnchorConfig, level_anchors, pyramid_anchors
from focaldet.ops.boxes import pairwise_iou
from focaldet.ops.grids import best_overlaps, hold_centers, prior_grids, pyramid_grids
from focaldet.ops.priors import PriorConfig, level_priors
from focaldet.types import ImageSize, Preprocessing


def random_boxes(count, image, *, seed=0):
    """Boxes of all sizes inside of an image, some of them as large as it and some of a single pixel."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([image.width, image.height], dtype=torch.float64)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (extent - 1)
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64).square() * extent + 1
    return torch.cat([corner, torch.minimum(corner + size, extent)], 1)


def agree(boxes, grids, anchors, level_sizes):
    """Brute force over every anchor of every level."""
    for grid, laid in zip(grids, anchors.double().split(list(level_sizes)), strict=True):
        assert torch.allclose(best_overlaps(boxes, grid), pairwise_iou(boxes, laid).amax(1), atol=1e-5)


@pytest.mark.parametrize("flavor", ["continuous", "torchvision", "detectron1"])
@pytest.mark.parametrize("image", [ImageSize(160, 256), ImageSize(224, 96)])
def test_pyramids(flavor, image):
    config = AnchorConfig(flavor=flavor)
    shapes = tuple((-(-image.height // stride), -(-image.width // stride)) for stride in PYRAMID_STRIDES_PX)
    anchors = pyramid_anchors(config, strides_px=PYRAMID_STRIDES_PX, shapes=shapes, image=tuple(image))
    sizes = [rows * columns * config.per_cell for rows, columns in shapes]
    grids = pyramid_grids(config, strides_px=PYRAMID_STRIDES_PX, image=image)
    agree(random_boxes(200, image), grids, anchors, sizes)


@pytest.mark.parametrize("name", ["ssd_r18", "ssd_mobilenet_v2", "dssd_r18", "retinanet_mobilenet_v2_fpn"])
@pytest.mark.parametrize("image", [ImageSize(320, 320), ImageSize(192, 352)])
def test_what_the_network_itself_lays_out(name, image):
    detector = build(name, num_classes=2, preprocessing=Preprocessing()).eval()
    with torch.no_grad():
        outputs = detector(torch.zeros(1, 3, *image), [image])
    agree(random_boxes(150, image), detector.config.grids(image), outputs.anchors, outputs.level_sizes)


@pytest.mark.parametrize("name", ["faster_rcnn_r50_fpn", "faster_rcnn_r50_fpn_tv", "faster_rcnn_mobilenet_v2_fpn"])
@pytest.mark.parametrize("image", [ImageSize(320, 320), ImageSize(192, 352)])
def test_what_a_first_stage_lays_out(name, image):
    detector = build(name, num_classes=2, architecture={"backbone": "resnet18", "width": 8, "head_width": 8}).eval()
    with torch.no_grad():
        _, first = detector.first_stage(torch.zeros(1, 3, *image), [image])
    agree(random_boxes(150, image), detector.config.grids(image), first.anchors, first.level_sizes)


@pytest.mark.parametrize("name", ["ssd513_r101", "ssd321_r101"])
def test_the_published_priors(name):
    config, side = named_config(name), 513 if name == "ssd513_r101" else 321
    image, sides = ImageSize(side, side), (64, 32, 16, 8, 4, 2, 1) if side == 513 else (40, 20, 10, 5, 3, 1)
    grids = config.grids(image)
    assert [grid.cells for grid in grids] == [(cells, cells) for cells in sides]
    assert [grid.name for grid in grids][:3] == ["C3", "C5", "E1"]
    boxes = random_boxes(50, image)
    for level, (grid, stride) in enumerate(zip(grids, config.strides_px, strict=True)):
        laid = level_priors(config.priors, level=level, stride_px=stride, cells=grid.cells, image=image)
        agree(boxes, [grid], laid, [len(laid)])


def test_offsets_by_the_word_of_the_released_program_lie_outside():
    config = PriorConfig(centers="offset")
    cells = tuple((side, side) for side in (64, 32, 16, 8, 4, 2, 1))
    strides = named_config("ssd513_r101").strides_px
    names = tuple("abcdefg")
    grids = prior_grids(config, names=names, strides_px=strides, cells=cells, image=ImageSize(513, 513))
    boxes = random_boxes(60, ImageSize(513, 513))
    assert float(best_overlaps(boxes, grids[5]).max()) == 0  # (1 + 122.5) · 256 px is far away
    laid = level_priors(config, level=0, stride_px=8, cells=(64, 64), image=(513, 513))
    agree(boxes, grids[:1], laid, [len(laid)])


@pytest.mark.parametrize("name", ["yolov2", "yolov2_tiny"])
def test_shapes_are_compared_at_a_common_centre(name):
    config = named_config(name)
    (grid,) = config.grids(ImageSize(416, 320))
    assert (grid.cells, grid.by_shape) == ((13, 10), True)
    boxes = random_boxes(300, ImageSize(416, 320))
    shapes = torch.tensor(config.anchors, dtype=torch.float64) * STRIDE_PX
    for box, actual in zip(boxes, best_overlaps(boxes, grid).tolist(), strict=True):
        center = (box[:2] + box[2:]) / 2
        there = torch.cat([center - shapes / 2, center + shapes / 2], 1)
        assert actual == pytest.approx(float(pairwise_iou(box[None], there).max()), abs=1e-6)


def test_an_anchor_fits_itself_and_half_of_it_just_passes():
    anchor = torch.tensor([[48.0, 48, 80, 80]])  # the 32 px square of stride 8 around the cell at (64, 64)
    image = ImageSize(128, 128)
    assert float(best_overlaps(anchor, pyramid_grids(AnchorConfig(), strides_px=(8,), image=image)[0])) == (
        pytest.approx(1, abs=1e-6)
    )
    (only_square,) = pyramid_grids(AnchorConfig(scales=(1.0,), ratios=(1.0,)), strides_px=(8,), image=image)
    half = torch.tensor([[48.0, 48, 80, 64]])
    assert float(best_overlaps(half, only_square)[0]) == pytest.approx(0.5, abs=1e-6)


def test_the_smallest_anchor_has_32_px():
    grid = pyramid_grids(AnchorConfig(), strides_px=(8,), image=ImageSize(128, 128))[0]
    assert grid.smallest_area == pytest.approx(32 * 32, rel=1e-5)


def test_every_detector_has_grids_from_fine_to_coarse():
    for name in ("retinanet_r50_fpn", "faster_rcnn_r50_fpn", "ssd_r18", "yolov2"):
        areas = [grid.smallest_area for grid in find_preset(name).config.grids(ImageSize(320, 320))]
        assert areas == sorted(areas) and areas[0] > 0


def test_no_boxes():
    assert best_overlaps(torch.zeros(0, 4), find_preset("yolov2").config.grids(ImageSize(320, 320))[0]).shape == (0,)


def test_a_box_holds_the_center_of_an_anchor():
    (grid, *_) = find_preset("retinanet_mobilenet_v2_fpn").config.grids(ImageSize(64, 96))
    assert grid.by_center
    anchors = level_anchors(AnchorConfig(base_scale=8.0, scales=(1.0,), ratios=(1.0,)), stride_px=8, height=8, width=12)
    centers = ((anchors[:, :2] + anchors[:, 2:]) / 2).double()
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator, dtype=torch.float64) * torch.tensor([92, 60])
    boxes = torch.cat([corner, corner + 4], dim=1)
    inside = ((centers > boxes[:, None, :2]) & (centers < boxes[:, None, 2:])).all(-1).any(1)
    assert hold_centers(boxes, grid).equal(inside) and 0 < inside.sum() < 300
