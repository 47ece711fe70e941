import colorsys
import random

import pytest
import torch

from focaldet.data.augment.color import (
    ColorChange,
    change_colors,
    draw_color_change,
    hsv_matrix,
    multiply_colors,
    scale_values,
)
from focaldet.data.augment.config import AugmentConfig


def make_image(*pixels):
    return torch.tensor(pixels, dtype=torch.uint8).T[:, None, :].contiguous()


def pixels(image):
    return image[:, 0].T.tolist()


def test_no_change_is_the_identity():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(multiply_colors(image, hsv_matrix(hue=0.0, saturation=1.0, value=1.0)), image)


def test_a_third_of_a_turn_makes_red_green():
    turned = multiply_colors(make_image((250, 0, 0), (10, 200, 30)), hsv_matrix(hue=1 / 3, saturation=1.0, value=1.0))
    assert pixels(turned) == [[0, 250, 0], [30, 10, 200]]


@pytest.mark.parametrize(("hue", "saturation"), [(0.1, 1.0), (0.0, 0.3), (-0.4, 1.7)])
def test_grays_stay_what_they_are(hue, saturation):
    grays = make_image((0, 0, 0), (7, 7, 7), (128, 128, 128), (255, 255, 255))
    assert torch.equal(multiply_colors(grays, hsv_matrix(hue=hue, saturation=saturation, value=1.0)), grays)


def test_value_multiplies_and_clips():
    brighter = multiply_colors(make_image((10, 100, 200)), hsv_matrix(hue=0.0, saturation=1.0, value=1.5))
    assert pixels(brighter) == [[15, 150, 255]]


def test_saturation_zero_is_the_mean_of_the_channels():
    assert pixels(multiply_colors(make_image((30, 60, 120)), hsv_matrix(hue=0.0, saturation=0.0, value=1.0))) == [
        [70, 70, 70]
    ]


@pytest.mark.parametrize("turn", [0.05, -0.03, 0.5])
def test_hue_turns_as_hsv_counts_it(turn):
    color = (150, 110, 90)
    (turned,) = pixels(multiply_colors(make_image(color), hsv_matrix(hue=turn, saturation=1.0, value=1.0)))
    change = (colorsys.rgb_to_hsv(*turned)[0] - colorsys.rgb_to_hsv(*color)[0] - turn + 0.5) % 1 - 0.5
    assert abs(change) < 0.012  # the hexagon of HSV and the circle differ by up to 1.1 hundredths of a turn


def test_the_result_does_not_depend_on_threads_or_layout():
    image = torch.randint(0, 256, (3, 301, 203), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    matrix = hsv_matrix(hue=0.013, saturation=1.37, value=0.81)
    exact = (matrix.double() @ image.double().flatten(1)).round().clamp(0, 255).to(torch.uint8).view_as(image)
    assert torch.equal(multiply_colors(image, matrix), exact)
    assert torch.equal(multiply_colors(image.permute(1, 2, 0).contiguous().permute(2, 0, 1), matrix), exact)


def test_stretching_multiplies_adds_rounds_and_clips():
    assert pixels(scale_values(make_image((10, 100, 200)), addend=-32.0)) == [[0, 68, 168]]
    assert pixels(scale_values(make_image((10, 100, 200)), factor=1.5, addend=7.25)) == [[22, 157, 255]]
    image = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(scale_values(image), image)


def test_brightness_comes_first_and_a_coin_places_the_contrast():
    """Every step is clipped: 200 · 1.5 is 255, half of it 128 and not 150."""
    gray = make_image((200, 200, 200))
    assert pixels(change_colors(gray, ColorChange(contrast=1.5, contrast_first=True, value=0.5))) == [[128] * 3]
    assert pixels(change_colors(gray, ColorChange(contrast=1.5, contrast_first=False, value=0.5))) == [[150] * 3]
    assert pixels(change_colors(make_image((20, 20, 20)), ColorChange(brightness=-32.0, contrast=1.5))) == [[0] * 3]
    assert pixels(change_colors(make_image((240, 240, 240)), ColorChange(brightness=32.0, contrast=0.5))) == [[128] * 3]
    assert torch.equal(change_colors(gray, ColorChange()), gray)


def draws(augmentation, count=3000):
    rng = random.Random(0)
    return [draw_color_change(augmentation, rng) for _ in range(count)]


def spread(numbers, *, fraction, low, high, neutral):
    """`fraction` of the numbers differ from `neutral`; they lie in low…high, come near both and are even in between."""
    made = [number for number in numbers if number != neutral]
    assert len(made) / len(numbers) == pytest.approx(fraction, abs=0.03)
    margin = 0.02 * (high - low)
    assert low <= min(made) < low + margin and high - margin < max(made) <= high
    assert sum(made) / len(made) == pytest.approx((low + high) / 2, abs=0.03 * (high - low))


def test_the_colors_of_ssd_are_drawn_each_by_itself_for_half_of_the_images():
    drawn = draws(AugmentConfig("ssd"))
    spread([colors.brightness for colors in drawn], fraction=0.5, low=-32, high=32, neutral=0)
    spread([colors.contrast for colors in drawn], fraction=0.5, low=0.5, high=1.5, neutral=1)
    spread([colors.saturation for colors in drawn], fraction=0.5, low=0.5, high=1.5, neutral=1)
    spread([colors.hue for colors in drawn], fraction=0.5, low=-0.1, high=0.1, neutral=0)  # 18 of OpenCV's 180 steps
    assert {colors.value for colors in drawn} == {1}
    first = [colors.contrast_first for colors in drawn if colors.contrast != 1]
    assert sum(first) / len(first) == pytest.approx(0.5, abs=0.04)
    both = [colors.brightness != 0 and colors.hue != 0 for colors in drawn]
    assert sum(both) / len(both) == pytest.approx(0.25, abs=0.03)


def test_the_colors_of_yolo_are_factors_or_their_inverses():
    drawn = draws(AugmentConfig("yolo"))
    spread([colors.hue for colors in drawn], fraction=1, low=-0.1, high=0.1, neutral=0)
    for name in ("saturation", "value"):
        factors = [getattr(colors, name) for colors in drawn]
        above, below = [f for f in factors if f > 1], [1 / f for f in factors if f < 1]
        assert len(above) / len(factors) == pytest.approx(0.5, abs=0.03)
        spread(above, fraction=1, low=1, high=1.5, neutral=None)
        spread(below, fraction=1, low=1, high=1.5, neutral=None)
    assert {(colors.brightness, colors.contrast) for colors in drawn} == {(0, 1)}


def test_colors_that_are_off_are_left_as_they_are():
    assert set(draws(AugmentConfig("none"), 20)) == {ColorChange()}
    off = AugmentConfig("none", recolor=0.0, brightness=9.0, contrast=0.5, hue=0.5, saturation=0.5, value_factor=3.0)
    assert set(draws(off, 20)) == {ColorChange()}
