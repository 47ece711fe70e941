"""SSD's expansion and crops, against the rules written out for one window at a time."""

import math
import random

import pytest
import torch

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.augment.geometry import Window
from focaldet.data.augment.ssd_crops import draw_crop, draw_window
from focaldet.types import ImageSize

SSD = AugmentConfig("ssd")
OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)


def overlap(one, other):
    """Intersection over union of two boxes, in plain numbers."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)) - shared)


def corners(window):
    return window.left, window.top, window.left + window.size.width, window.top + window.size.height


def random_case(rng):
    """A canvas around an image, and boxes in the image."""
    height, width = rng.randint(20, 500), rng.randint(20, 500)
    boxes = []
    for _ in range(rng.randint(1, 6)):
        x, y = rng.uniform(0, width - 4), rng.uniform(0, height - 4)
        boxes.append([x, y, x + rng.uniform(2, width - x), y + rng.uniform(2, height - y)])
    canvas = Window(-rng.randint(0, 300), -rng.randint(0, 300), ImageSize(height + 300, width + 300))
    whole = Window(0, 0, ImageSize(height, width))
    return rng.choice([canvas, whole]), boxes


def one_window(canvas, fractions, scales, aspects):
    """The sampler of SSD for one window: size, shape within what fits, place."""
    scale = scales[0] + fractions[0] * (scales[1] - scales[0])
    low, high = (min(max(aspect, scale**2), scale**-2) for aspect in aspects)
    aspect = low + fractions[1] * (high - low)
    height, width = canvas.size
    sides = (width * scale * math.sqrt(aspect), height * scale / math.sqrt(aspect))
    wide, high = (min(max(1, round(side)), limit) for side, limit in zip(sides, (width, height), strict=True))
    left, top = int(fractions[2] * (width - wide + 1)), int(fractions[3] * (height - high + 1))
    return Window(canvas.top + top, canvas.left + left, ImageSize(high, wide))


def expected_crop(canvas, boxes, overlaps, rng):
    """What `draw_crop` should give: every sampler in turn, every try in turn."""
    for least in rng.sample(overlaps, rng.randint(0, len(overlaps))):
        fractions = [[rng.random() for _ in range(50)] for _ in range(4)]
        for each in zip(*fractions, strict=True):
            window = one_window(canvas, each, (0.3, 1.0), (0.5, 2.0))
            if any(overlap(corners(window), box) >= least for box in boxes):
                return window
    return canvas


def test_crops_are_those_of_the_rule_written_out():
    source, cropped = random.Random(0), 0
    for seed in range(600):
        canvas, boxes = random_case(source)
        window = draw_crop(canvas, torch.tensor(boxes), augmentation=SSD, rng=random.Random(seed))
        assert window == expected_crop(canvas, boxes, OVERLAPS, random.Random(seed)), seed
        cropped += window != canvas
    assert 250 < cropped < 550


@pytest.mark.parametrize("least", OVERLAPS)
def test_a_window_has_the_overlap_that_is_asked_and_lies_in_the_canvas(least):
    source, cropped = random.Random(1), 0
    augmentation = AugmentConfig("none", crop_overlaps=(least,), crop_scale=(0.4, 0.95), crop_aspect=(0.5, 2.0))
    for seed in range(120):
        canvas, boxes = random_case(source)
        left, top, right, bottom = corners(canvas)
        boxes.append([left + 0.1 * canvas.size.width, top + 0.1 * canvas.size.height, right, bottom])
        window = draw_crop(canvas, torch.tensor(boxes), augmentation=augmentation, rng=random.Random(seed))
        if window == canvas:
            continue
        cropped += 1
        assert max(overlap(corners(window), box) for box in boxes) >= least - 1e-5
        x1, y1, x2, y2 = corners(window)
        assert left <= x1 < x2 <= right and top <= y1 < y2 <= bottom
        high, wide = window.size.height / canvas.size.height, window.size.width / canvas.size.width
        assert 0.35 < math.sqrt(high * wide) < 1 and 0.4 < wide / high < 2.4
    assert (5 if least == 0.9 else 30) < cropped < 90


def fraction_of_whole(overlaps, boxes, num_draws=1500):
    canvas, rng = Window(0, 0, ImageSize(200, 300)), random.Random(5)
    augmentation = AugmentConfig("none", crop_overlaps=overlaps)
    draws = [draw_crop(canvas, boxes, augmentation=augmentation, rng=rng) for _ in range(num_draws)]
    return sum(window == canvas for window in draws) / num_draws


def test_one_of_the_windows_found_and_the_whole_image_is_drawn_evenly():
    everywhere = torch.tensor([[0.0, 0.0, 300.0, 200.0]])
    assert fraction_of_whole((0.0,) * 4, everywhere) == pytest.approx(1 / 5, abs=0.04)
    # A box of 2 × 2 px reaches an IoU of .5 with no window: two samplers give nothing, and the other one is left.
    speck = torch.tensor([[50.0, 50.0, 52.0, 52.0]])
    assert fraction_of_whole((0.5, 0.9, 0.0), speck) == pytest.approx(1 / 2, abs=0.04)
    assert fraction_of_whole((0.5, 0.9), speck, num_draws=50) == 1


def test_an_image_without_boxes_is_not_cropped():
    canvas = Window(-3, -4, ImageSize(50, 60))
    for seed in range(20):
        assert draw_crop(canvas, torch.zeros(0, 4), augmentation=SSD, rng=random.Random(seed)) == canvas


def test_half_of_the_images_are_expanded_up_to_four_times_anywhere():
    size, ratios, positions = ImageSize(100, 150), [], []
    augmentation, rng = AugmentConfig("none", expand=0.5), random.Random(0)
    for _ in range(2000):
        window = draw_window(size, torch.zeros(0, 4), augmentation=augmentation, rng=rng)
        if window == Window(0, 0, size):
            continue
        height, width = window.size
        assert -(height - 100) <= window.top <= 0 and -(width - 150) <= window.left <= 0
        assert height / 100 == pytest.approx(width / 150, abs=0.011)
        ratios.append(width / 150)
        positions.append(-window.top / max(1, height - 100))
    assert len(ratios) / 2000 == pytest.approx(0.5, abs=0.04)
    assert 1 <= min(ratios) < 1.05 and 3.95 < max(ratios) <= 4
    assert sum(ratios) / len(ratios) == pytest.approx(2.5, abs=0.08)
    assert sum(positions) / len(positions) == pytest.approx(0.5, abs=0.05)


def test_what_is_off_draws_nothing():
    rng = random.Random(3)
    boxes = torch.tensor([[1.0, 1.0, 5.0, 5.0]])
    window = draw_window(ImageSize(7, 9), boxes, augmentation=AugmentConfig("none"), rng=rng)
    assert window == Window(0, 0, ImageSize(7, 9))
    assert rng.getstate() == random.Random(3).getstate()
