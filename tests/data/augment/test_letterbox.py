"""The letterbox: darknet's geometry, gray bars, boxes there and back."""

import random

import pytest
import torch

from focaldet.check.anchor_fit import resize_boxes
from focaldet.data.augment.augmenter import Augmenter
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.augment.geometry import resize_image, resize_sample
from focaldet.data.loading.collate import pad_images
from focaldet.errors import ConfigError
from focaldet.types import Detections, ImageSize, Preprocessing, Resize
from tests.data.painted import painted, painted_box
from tests.data.test_dataset import small_index

LETTERBOX = Resize("letterbox", 64, None)
PREPROCESSING = Preprocessing(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), resize=LETTERBOX)
SAMPLE = painted((30, 50), [(5, 4, 20, 12), (30, 10, 49, 29)], [0, 1], ignored=[False, True])


def darknets(original, size):
    """letterbox_image of image.c: the size of the image within and where it is put."""
    height, width = original
    if size / width < size / height:
        new_width, new_height = size, (height * size) // width
    else:
        new_height, new_width = size, (width * size) // height
    return (new_height, new_width), ((size - new_width) // 2, (size - new_height) // 2)


def test_the_geometry_is_darknets():
    for height in range(20, 700, 37):
        for width in range(20, 700, 41):
            for size in (320, 416, 544):
                resize, original = Resize("letterbox", size, None), ImageSize(height, width)
                content, corner = darknets(original, size)
                assert (resize.content(original), resize.corner(original)) == (content, corner)
                assert resize.target(original) == (size, size)


def test_by_hand():
    """640 × 480 at 416: 416 × 312 with 52 rows of gray above and below."""
    resize, original = Resize("letterbox", 416, None), ImageSize(480, 640)
    assert (resize.content(original), resize.corner(original)) == ((312, 416), (0, 52))
    assert str(resize) == "416 × 416 px, letterbox"
    assert Resize("long", 416, None).corner(original) == Resize("warp", 416, None).corner(original) == (0, 0)


@pytest.mark.parametrize("antialias", [True, False])
def test_boxes_lie_where_the_pixels_do(antialias):
    resize = Resize("letterbox", 64, None, antialias=antialias)
    out = resize_sample(SAMPLE, resize)
    assert out.size == (64, 64)
    for box, label in zip(out.target.boxes, out.target.labels, strict=True):
        assert (box - painted_box(out.image, label)).abs().max() <= 1
    gray = 128 if antialias else 127.5
    assert (out.image[:, :13] == gray).all() and (out.image[:, 51:] == gray).all()
    assert not (out.image[:, 13] == gray).all() and not (out.image[:, 50] == gray).all()


def test_an_upright_image_has_its_bars_at_the_sides():
    image = resize_image(torch.zeros(3, 40, 20, dtype=torch.uint8), LETTERBOX)
    assert image.shape == (3, 64, 64)
    assert (image[:, :, :16] == 128).all() and (image[:, :, 48:] == 128).all() and not image[:, :, 16:48].any()


def test_the_way_back_is_the_inverse():
    from focaldet.evaluation.inference import to_original

    out = resize_sample(SAMPLE, LETTERBOX)
    boxes = out.target.boxes
    there = Detections(boxes, torch.ones(len(boxes)), out.target.labels)
    back = to_original(there, LETTERBOX, size=out.size, original=SAMPLE.size)
    torch.testing.assert_close(back.boxes, SAMPLE.target.boxes)
    everything = Detections(torch.tensor([[0.0, 0, 64, 64]]), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert to_original(everything, LETTERBOX, size=out.size, original=SAMPLE.size).boxes.tolist() == [[0, 0, 50, 30]]


def test_training_puts_the_image_anywhere_in_the_square():
    augmenter = Augmenter(AugmentConfig("none"), PREPROCESSING)
    tops = set()
    for seed in range(30):
        out = augmenter(SAMPLE, rng=random.Random(seed))
        assert out.size == (64, 64)
        for box, label in zip(out.target.boxes, out.target.labels, strict=True):
            assert (box - painted_box(out.image, label)).abs().max() <= 1
        rows = (out.image == 128).all(0).all(1)
        assert int(rows.sum()) >= 64 - 38
        tops.add(int(out.target.boxes[0, 1]))
    assert len(tops) > 5


def test_padding_beyond_the_square_is_gray_too():
    batch = pad_images([torch.zeros(3, 30, 30, dtype=torch.uint8)], preprocessing=PREPROCESSING)
    assert batch.shape == (1, 3, 32, 32) and (batch[0, :, 30:] == 128).all() and not batch[0, :, :30, :30].any()


def test_boxes_of_an_index_are_moved_as_samples_are():
    boxes, frames = resize_boxes(small_index(), LETTERBOX)
    assert frames.tolist() == [[64, 64]]
    scale, rows = 64 / 6, (64 - 42) // 2
    assert boxes[0].tolist() == pytest.approx([0, rows, 2 * scale, 2 * 42 / 4 + rows])


def test_a_size_that_is_asked_for_keeps_the_letterbox():
    assert LETTERBOX.with_sides(size=96) == Resize("letterbox", 96, None)
    with pytest.raises(ConfigError, match="resizes images to a square"):
        LETTERBOX.with_sides(short_side=96)
