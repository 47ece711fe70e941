"""Curves as SVG: points where they belong, nothing that is not finite, and words beside the picture."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from focaldet.report.charts import BOTTOM, HEIGHT, LEFT, MOST_POINTS, RIGHT, TOP, WIDTH, Line, line_chart, nice_ticks


def points(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in text.split()] for text in re.findall(r'points="([^"]*)"', svg)
    ]


def test_corners_of_the_data_are_corners_of_the_frame():
    ((first, last),) = points(line_chart([Line("AP", [0, 10], [0, 1])], title="t", x_label="epoch", y_top=1.0))
    assert first == (LEFT, HEIGHT - BOTTOM)
    assert last == (WIDTH - RIGHT, TOP)


def test_the_chart_is_well_formed_and_speaks():
    svg = line_chart([Line("a<b", [1, 2, 3], [0.5, 0.25, 1])], title="Loss & more", x_label="step")
    root = ET.fromstring(svg)
    label = root.find("svg").get("aria-label")
    assert label == "Loss & more. a<b: from 0.5 to 1, lowest 0.25, highest 1."
    assert root.find("svg").get("role") == "img"


def test_what_is_not_finite_is_left_out():
    ((*shown,),) = points(line_chart([Line("a", [1, 2, 3, 4], [1, math.nan, math.inf, 2])], title="t", x_label="x"))
    assert len(shown) == 2


@pytest.mark.parametrize("lines", [[], [Line("a", [], [])], [Line("a", [1], [math.nan])]])
def test_no_points_are_no_curve(lines):
    svg = line_chart(lines, title="t", x_label="x")
    assert "polyline" not in svg
    assert "No points." in svg


def test_a_single_point_is_a_dot():
    assert "<circle" in line_chart([Line("a", [3], [0.5])], title="t", x_label="epoch")


def test_long_curves_keep_their_mean_and_their_end():
    line = Line("a", range(10_000), [k % 2 for k in range(10_000)])
    ((*shown,),) = points(line_chart([line], title="t", x_label="x", y_top=1.0))
    assert len(shown) <= MOST_POINTS
    assert shown[-1][0] == WIDTH - RIGHT
    assert shown[5][1] == pytest.approx((TOP + HEIGHT - BOTTOM) / 2, abs=1)


def test_lines_differ_in_colour_and_dashes():
    svg = line_chart([Line(name, [0, 1], [0, 1]) for name in "abc"], title="t", x_label="x")
    curves = re.findall(r'<polyline class="curve (c\d)" stroke-dasharray="([^"]*)"', svg)
    assert len(set(curves)) == 3 == len({dashes for _, dashes in curves})


@pytest.mark.parametrize("top", [1e-6, 0.013, 0.58, 1.0, 2.4, 3.0, 7.1, 99.0, 12345.0])
def test_ticks_are_few_round_and_reach_the_top(top):
    ticks = nice_ticks(top)
    assert ticks[0] == 0
    assert ticks[-2] < top <= ticks[-1] * (1 + 1e-9)
    assert 3 <= len(ticks) - 1 <= 6
    assert float(f"{ticks[1]:.2g}") == ticks[1]


@pytest.mark.parametrize("top", [0.0, -1.0, math.nan, math.inf])
def test_ticks_without_a_top(top):
    assert nice_ticks(top) == [0.0, 0.5, 1.0]
