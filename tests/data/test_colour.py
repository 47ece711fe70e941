import colorsys

import pytest
import torch

from focaldet.data.colour import hsv_matrix, recolour


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
