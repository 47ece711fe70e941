import colorsys
import random

import pytest
import torch

from focaldet.data.augment.color import Colours, draw_colours, hsv_matrix, recolour, recoloured, stretched
from focaldet.data.augment.config import AugmentConfig


def picture(*pixels):
    return torch.tensor(pixels, dtype=torch.uint8).T[:, None, :].contiguous()


def pixels(image):
    return image[:, 0].T.tolist()


def test_no_change_is_the_identity():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(recolour(image, hsv_matrix(hue=0.0, saturation=1.0, value=1.0)), image)


def test_a_third_of_a_turn_makes_red_green():
    turned = recolour(picture((250, 0, 0), (10, 200, 30)), hsv_matrix(hue=1 / 3, saturation=1.0, value=1.0))
    assert pixels(turned) == [[0, 250, 0], [30, 10, 200]]


@pytest.mark.parametrize(("hue", "saturation"), [(0.1, 1.0), (0.0, 0.3), (-0.4, 1.7)])
def test_greys_stay_what_they_are(hue, saturation):
    greys = picture((0, 0, 0), (7, 7, 7), (128, 128, 128), (255, 255, 255))
    assert torch.equal(recolour(greys, hsv_matrix(hue=hue, saturation=saturation, value=1.0)), greys)


def test_value_multiplies_and_clips():
    brighter = recolour(picture((10, 100, 200)), hsv_matrix(hue=0.0, saturation=1.0, value=1.5))
    assert pixels(brighter) == [[15, 150, 255]]


def test_saturation_zero_is_the_mean_of_the_channels():
    assert pixels(recolour(picture((30, 60, 120)), hsv_matrix(hue=0.0, saturation=0.0, value=1.0))) == [[70, 70, 70]]


@pytest.mark.parametrize("turn", [0.05, -0.03, 0.5])
def test_hue_turns_as_hsv_counts_it(turn):
    colour = (150, 110, 90)
    (turned,) = pixels(recolour(picture(colour), hsv_matrix(hue=turn, saturation=1.0, value=1.0)))
    change = (colorsys.rgb_to_hsv(*turned)[0] - colorsys.rgb_to_hsv(*colour)[0] - turn + 0.5) % 1 - 0.5
    assert abs(change) < 0.012  # the hexagon of HSV and the circle differ by up to 1.1 hundredths of a turn


def test_the_result_does_not_depend_on_threads_or_layout():
    image = torch.randint(0, 256, (3, 301, 203), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    matrix = hsv_matrix(hue=0.013, saturation=1.37, value=0.81)
    exact = (matrix.double() @ image.double().flatten(1)).round().clamp(0, 255).to(torch.uint8).view_as(image)
    assert torch.equal(recolour(image, matrix), exact)
    assert torch.equal(recolour(image.permute(1, 2, 0).contiguous().permute(2, 0, 1), matrix), exact)


def test_stretching_multiplies_adds_rounds_and_clips():
    assert pixels(stretched(picture((10, 100, 200)), addend=-32.0)) == [[0, 68, 168]]
    assert pixels(stretched(picture((10, 100, 200)), factor=1.5, addend=7.25)) == [[22, 157, 255]]
    image = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(stretched(image), image)


def test_brightness_comes_first_and_a_coin_places_the_contrast():
    """Every step is clipped: 200 · 1.5 is 255, half of it 128 and not 150."""
    grey = picture((200, 200, 200))
    assert pixels(recoloured(grey, Colours(contrast=1.5, contrast_first=True, value=0.5))) == [[128] * 3]
    assert pixels(recoloured(grey, Colours(contrast=1.5, contrast_first=False, value=0.5))) == [[150] * 3]
    assert pixels(recoloured(picture((20, 20, 20)), Colours(brightness=-32.0, contrast=1.5))) == [[0] * 3]
    assert pixels(recoloured(picture((240, 240, 240)), Colours(brightness=32.0, contrast=0.5))) == [[128] * 3]
    assert torch.equal(recoloured(grey, Colours()), grey)


def draws(strength, count=3000):
    stream = random.Random(0)
    return [draw_colours(strength, stream) for _ in range(count)]


def spread(numbers, *, share, low, high, neutral):
    """`share` of the numbers differ from `neutral`; they lie in low…high, come near both and are even in between."""
    made = [number for number in numbers if number != neutral]
    assert len(made) / len(numbers) == pytest.approx(share, abs=0.03)
    margin = 0.02 * (high - low)
    assert low <= min(made) < low + margin and high - margin < max(made) <= high
    assert sum(made) / len(made) == pytest.approx((low + high) / 2, abs=0.03 * (high - low))


def test_the_colours_of_ssd_are_drawn_each_by_itself_for_half_of_the_pictures():
    drawn = draws(AugmentConfig("ssd"))
    spread([colours.brightness for colours in drawn], share=0.5, low=-32, high=32, neutral=0)
    spread([colours.contrast for colours in drawn], share=0.5, low=0.5, high=1.5, neutral=1)
    spread([colours.saturation for colours in drawn], share=0.5, low=0.5, high=1.5, neutral=1)
    spread([colours.hue for colours in drawn], share=0.5, low=-0.1, high=0.1, neutral=0)  # 18 of OpenCV's 180 steps
    assert {colours.value for colours in drawn} == {1}
    first = [colours.contrast_first for colours in drawn if colours.contrast != 1]
    assert sum(first) / len(first) == pytest.approx(0.5, abs=0.04)
    both = [colours.brightness != 0 and colours.hue != 0 for colours in drawn]
    assert sum(both) / len(both) == pytest.approx(0.25, abs=0.03)


def test_the_colours_of_yolo_are_factors_or_their_inverses():
    drawn = draws(AugmentConfig("yolo"))
    spread([colours.hue for colours in drawn], share=1, low=-0.1, high=0.1, neutral=0)
    for name in ("saturation", "value"):
        factors = [getattr(colours, name) for colours in drawn]
        above, below = [f for f in factors if f > 1], [1 / f for f in factors if f < 1]
        assert len(above) / len(factors) == pytest.approx(0.5, abs=0.03)
        spread(above, share=1, low=1, high=1.5, neutral=None)
        spread(below, share=1, low=1, high=1.5, neutral=None)
    assert {(colours.brightness, colours.contrast) for colours in drawn} == {(0, 1)}


def test_colours_that_are_off_are_left_as_they_are():
    assert set(draws(AugmentConfig("none"), 20)) == {Colours()}
    off = AugmentConfig("none", recolor=0.0, brightness=9.0, contrast=0.5, hue=0.5, saturation=0.5, value_factor=3.0)
    assert set(draws(off, 20)) == {Colours()}
