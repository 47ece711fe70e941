"""The priors of SSD: the numbers of SSD513 and SSD321, and the rule of their positions."""

import pytest
import torch

from focaldet.config import from_dict, to_dict
from focaldet.errors import ConfigError
from focaldet.models import find_preset
from focaldet.ops.priors import PriorConfig, ScalePriorConfig, all_priors, level_priors, prior_shapes

SSD513 = PriorConfig()
CELLS_513 = tuple((side, side) for side in (64, 32, 16, 8, 4, 2, 1))
STRIDES_513 = (8, 16, 32, 64, 128, 256, 512)
SSD321 = find_preset("ssd321_r101").config.priors
STRIDES_321 = find_preset("ssd321_r101").config.strides_px


def percents_by_the_rule(*, lowest: int, highest: int, levels: int, first: int) -> list[float]:
    """The sizes as the released scripts make them: equal steps of whole per cent, and a smaller first level."""
    step = (highest - lowest) // (levels - 2)
    ratios = list(range(lowest, highest + 1, step))
    return [float(value) for value in (first, *ratios, ratios[-1] + step)]


def test_the_sizes_follow_the_rule_of_the_scripts():
    assert list(SSD513.percents) == percents_by_the_rule(lowest=10, highest=95, levels=7, first=4)
    assert list(SSD321.percents) == percents_by_the_rule(lowest=20, highest=95, levels=6, first=10)


def test_the_sizes_at_513_px():
    squares = [prior_shapes(SSD513, level=level, side_px=513)[:2, 0].tolist() for level in range(7)]
    assert [square[0] for square in squares] == [20, 51, 138, 225, 312, 400, 487]
    expected = [31.94, 83.89, 176.21, 264.95, 353.27, 441.36, 528.71]
    assert [square[1] for square in squares] == pytest.approx(expected, abs=0.006)


def test_sizes_are_cut_to_whole_pixels_unless_told_otherwise():
    exact = PriorConfig(whole_px=False)
    low, mean = prior_shapes(exact, level=0, side_px=513)[:2, 0].tolist()
    assert (low, mean) == (pytest.approx(20.52), pytest.approx((20.52 * 51.3) ** 0.5))


def test_the_order_of_a_cell_is_caffes():
    """Min, square root of min and max, then 1.6 and 1 / 1.6 of width to height, 2, 1 / 2, 3, 1 / 3."""
    shapes = prior_shapes(SSD513, level=1, side_px=513)
    ratios = (shapes[:, 0] / shapes[:, 1]).tolist()
    assert ratios == pytest.approx([1, 1, 1.6, 1 / 1.6, 2, 0.5, 3, 1 / 3], rel=1e-5)
    areas = shapes.prod(1).tolist()
    assert areas == pytest.approx([51**2, 51 * 138, *[51**2] * 6], rel=1e-5)


def test_the_number_of_priors():
    actual = all_priors(SSD513, strides_px=STRIDES_513, cells=CELLS_513, image=(513, 513))
    assert len(actual) == 43_688
    cells = tuple((side, side) for side in (40, 20, 10, 5, 3, 1))
    assert len(all_priors(SSD321, strides_px=STRIDES_321, cells=cells, image=(321, 321))) == 17_080


@pytest.mark.parametrize(
    ("level", "first"), [(0, 2.5), (1, 2.5), (2, 10.5), (3, 26.5), (4, 58.5), (5, 122.5), (6, 256.5)]
)
def test_the_centres_at_513_px(level, first):
    """Cell 0 at the start, the others at the stride; the single cell of the last map in the middle of the image."""
    side, stride = CELLS_513[level][0], STRIDES_513[level]
    priors = level_priors(SSD513, level=level, stride_px=stride, cells=(side, side), image=(513, 513))
    centers = ((priors[:, :2] + priors[:, 2:]) / 2).view(side, side, 8, 2)
    assert centers[0, 0, 0].tolist() == pytest.approx([first, first], abs=1e-4)
    assert centers[-1, 0, 5].tolist() == pytest.approx([first, first + (side - 1) * stride], abs=1e-3)
    if side > 1:
        assert centers[0, 1, 0].tolist() == pytest.approx([first + stride, first], abs=1e-4)


@pytest.mark.parametrize(
    ("config", "strides"), [(SSD513, (8, 16, 32, 64, 128, 256)), (SSD321, (8, 16, 32, 64, 64))], ids=["513", "321"]
)
def test_the_starts_are_those_of_the_receptive_fields(config, strides):
    """Center of cell 0 through conv1 (7, pad 3), the pool (3, no pad), strided 1×1 and 2×2 convolutions, plus ½ px."""
    position, step = 0.0, 1
    actual = []
    extras = [(2, 2, 0)] * 4 if config is SSD513 else [(2, 2, 0), (2, 2, 0), (3, 1, 0)]
    for kernel, stride, padding in [(7, 2, 3), (3, 2, 0), (1, 2, 0), (1, 2, 0), *extras]:
        position += ((kernel - 1) / 2 - padding) * step
        step *= stride
        actual.append((step, position + 0.5))
    assert actual[2:] == list(zip(strides, config.starts_px[:-1], strict=True))


def test_the_released_program_by_its_word_lies_outside():
    """(w + offset) · step: 20 px for the first cell, and 256.5 · 513 for the last level."""
    literal = PriorConfig(centers="offset")
    first = level_priors(literal, level=0, stride_px=8, cells=(64, 64), image=(513, 513))[0]
    assert float(first[0] + first[2]) / 2 == 20
    last = level_priors(literal, level=6, stride_px=512, cells=(1, 1), image=(513, 513))[0]
    assert float(last[0] + last[2]) / 2 == pytest.approx(256.5 * 513)


def test_cells_without_a_start_are_spread_evenly_over_the_image():
    even = PriorConfig(percents=(5.0, 10.0), starts_px=(None,))
    priors = level_priors(even, level=0, stride_px=8, cells=(2, 4), image=(100, 320))
    centers = ((priors[:, :2] + priors[:, 2:]) / 2).view(2, 4, 8, 2)
    assert centers[:, 0, 0, 1].tolist() == [25, 75]
    assert centers[0, :, 0, 0].tolist() == [40, 120, 200, 280]


def test_an_image_that_is_not_square_warps_the_priors():
    even = PriorConfig(percents=(10.0, 20.0), starts_px=(None,), elongations=(), whole_px=False)
    square, _ = level_priors(even, level=0, stride_px=8, cells=(1, 1), image=(100, 300))
    assert (square[2:] - square[:2]).tolist() == pytest.approx([30, 10])


def test_the_answer_is_shared():
    arguments = {"strides_px": STRIDES_513, "cells": CELLS_513, "image": (513, 513)}
    with torch.inference_mode():
        actual = all_priors(SSD513, **arguments)
    assert not actual.is_inference()
    assert all_priors(SSD513, **arguments) is actual


def test_a_config_survives_plain_values():
    assert from_dict(PriorConfig, to_dict(SSD321)) == SSD321


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"percents": (5.0, 10.0)}, "one more than the 7"),
        ({"percents": (10.0, 5.0), "starts_px": (None,)}, "must grow"),
    ],
)
def test_bad_priors_give_one_clear_error(settings, words):
    with pytest.raises(ConfigError, match=words):
        PriorConfig(**settings)


def test_tensorflows_priors():
    """1917 at 300 px; the numbers of the released ssd_mobilenet_v2_coco, whose first map has three of a cell."""
    config, cells = ScalePriorConfig(), (19, 10, 5, 3, 2, 1)
    assert config.counts == (3, 6, 6, 6, 6, 6) and config.num_levels == len(config.starts_px) == 6
    strides = find_preset("ssd_mobilenet_v2_tf").config.strides_px
    assert strides == (16, 32, 64, 128, 256, 512)
    priors = all_priors(config, strides_px=strides, cells=tuple((n, n) for n in cells), image=(300, 300))
    assert len(priors) == 1917
    expected = {0: [(30, 30), (84.8528, 42.4264), (42.4264, 84.8528)]}
    expected[1] = [(105, 105), (148.4924, 74.2462), (74.2462, 148.4924), (181.8653, 60.6218)]
    expected[1] += [(60.6187, 181.8744), (125.4990, 125.4990)]
    for level, rows in expected.items():
        torch.testing.assert_close(
            prior_shapes(config, level=level, side_px=300), torch.tensor(rows), rtol=1e-5, atol=0
        )
    last = prior_shapes(config, level=5, side_px=300)
    torch.testing.assert_close(last[[0, -1]], torch.tensor([[285.0] * 2, [292.4038] * 2]))
    centers = (priors[:, :2] + priors[:, 2:]) / 2
    torch.testing.assert_close(
        centers[[0, 3, -1]], torch.tensor([[150 / 19, 150 / 19], [450 / 19, 150 / 19], [150, 150]])
    )
    with pytest.raises(ConfigError, match=r"max_scale: must be above min_scale, 0\.2, got 0\.1"):
        ScalePriorConfig(max_scale=0.1)
