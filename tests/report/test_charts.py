"""Charts: points at their position, nothing that is not finite, colors of the page, and words beside the curves."""

import csv
import io
import math
import re
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from focaldet.report.charts import (
    MOST_POINTS,
    Chart,
    Curve,
    chart_figure,
    chart_section,
    usual_top,
    write_chart,
    write_curves,
)
from focaldet.report.page import DARK, LIGHT


def chart(*curves, title="t", x_label="x", y_label="y", **settings):
    return Chart(title, curves, x_label=x_label, y_label=y_label, **settings)


def curve_paths(figure):
    """The points and the style of each curve, in pixels of the SVG."""
    groups = re.findall(r'<g class="curve">.*?</g>', figure, re.DOTALL)
    paths = [re.search(r'<path d="([^"]*)"[^>]*style="([^"]*)"', group) for group in groups]
    return [
        ([tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path[1])], path[2])
        for path in paths
        if path is not None
    ]


def test_corners_of_the_data_are_corners_of_the_axes():
    figure = chart_figure(chart(Curve("AP", [0, 10], [0, 1]), y_range=(0.0, 1.0)))
    (((left, bottom), (right, top)), _) = curve_paths(figure)[0]
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', figure).groups())
    assert 0 < left < 0.2 * width and 0.9 * width < right < width
    assert 0 < top < 0.2 * height and 0.6 * height < bottom < height


def test_the_figure_is_well_formed_and_has_a_text():
    root = ET.fromstring(
        chart_figure(chart(Curve("a<b", [1, 2, 3], [0.5, 0.25, 1]), title="Loss & more", x_label="step"))
    )
    svg = root.find("svg")
    assert svg.get("aria-label") == "Loss & more. a<b: from 0.5 to 1, lowest 0.25, highest 1."
    assert svg.get("role") == "img"
    texts = [element.text for element in svg.iter("text")]
    assert {"a<b", "step", "y"} <= set(texts)


def test_its_colors_are_those_of_the_page():
    figure = chart_figure(chart(*(Curve(name, [0, 1], [0, 1]) for name in "abcdef"), shaded=(0.5, 1.0, "high")))
    assert not re.search(r": #|rgb|black|white", figure)
    assert set(re.findall(r"var\(--(\w+)\)", figure)) <= set(LIGHT) == set(DARK)
    assert {f"c{number}" for number in range(6)} <= set(re.findall(r"var\(--(\w+)\)", figure))


def test_curves_differ_in_color_and_in_dashes():
    styles = [style for _, style in curve_paths(chart_figure(chart(*(Curve(n, [0, 1], [0, 1]) for n in "abcdef"))))]
    assert len({re.search(r"stroke: [^;]*", style)[0] for style in styles}) == 6
    assert len({re.search(r"stroke-dasharray: [^;]*|$", style)[0] for style in styles}) == 6


def test_what_is_not_finite_is_a_gap():
    figure = chart_figure(chart(Curve("a", [1, 2, 3, 4, 5], [1, 2, math.nan, math.inf, 2])))
    assert "lowest 1, highest 2" in figure
    ((points, _),) = curve_paths(figure)
    assert len(points) == 3


@pytest.mark.parametrize("curves", [[], [Curve("a", [], [])], [Curve("a", [1], [math.nan])]])
def test_a_chart_without_points(curves):
    assert "No points." in chart_figure(chart(*curves))
    assert chart_section("Curves", []) == ""


def test_a_single_point_is_a_dot_at_a_whole_number():
    figure = chart_figure(chart(Curve("a", [3], [0.5])))
    (group,) = re.findall(r'<g class="curve">.*?</g>\s*</g>', figure, re.DOTALL)
    assert "<use" in group
    assert re.findall(r">(\d[\d.]*)</text>", figure).count("3") == 1


def test_long_curves_keep_their_mean_and_their_end():
    curve = Curve("a", range(10_000), [k % 2 for k in range(10_000)]).smooth()
    assert len(curve.x) <= MOST_POINTS
    assert curve.x[-1] == 9999
    assert curve.y[5] == pytest.approx(0.5, abs=0.02)
    assert Curve("a", [1, 2, 3], [1, math.nan, 2]).smooth() == Curve("a", [1, 3], [1, 2])
    assert Curve("a", [], []).smooth() == Curve("a", [], [])


class TestTheEndOfTheAxis:
    def test_the_first_steps_do_not_own_it_and_the_label_says_so(self):
        loss = Curve("loss", range(200), [100.0 * 0.5**k + 1 for k in range(200)])
        assert usual_top([loss]) == (pytest.approx(1.1, abs=0.15), True)
        assert re.search(r">loss \(cut off above 1\.\d+\)<", chart_figure(chart(loss, y_label="loss")))

    @pytest.mark.parametrize("later", [[1.0, 0.9, 0.8], [1.0] * 7, [1.0] * 19])
    def test_neither_does_the_first_of_a_few(self, later):
        """A run of some epochs that logs seldom; the text of the axis says what is not there."""
        loss = Curve("loss", range(1 + len(later)), [60.0, *later])
        assert usual_top([loss]) == (pytest.approx(1.1), True)
        assert re.search(r">loss \(cut off above 1\.1\)<", chart_figure(chart(loss, y_label="loss")))

    @pytest.mark.parametrize(
        "y", [[9, 1], [9, 1, 1], [3, 1, 1, 1, 1], [1, 1, 9, 1, 1], [8 / (1 + k) for k in range(8)]]
    )
    def test_few_points_without_such_a_first_one_are_shown_whole(self, y):
        assert usual_top([Curve("a", range(len(y)), y)]) == (pytest.approx(1.05 * max(y)), False)

    def test_the_first_of_a_few_shows_where_another_curve_needs_the_axis(self):
        curves = [Curve("a", range(4), [9, 1, 1, 1]), Curve("b", range(4), [8, 8, 8, 8])]
        assert usual_top(curves) == (pytest.approx(9.45), False)

    def test_even_curves_are_shown_whole(self):
        assert usual_top([Curve("a", range(200), [1.4 - k / 400 for k in range(200)])]) == (pytest.approx(1.47), False)

    def test_a_loss_below_zero_is_shown(self):
        ((points, _),) = curve_paths(chart_figure(chart(Curve("a", [0, 1], [1.0, -2.0]))))
        assert points[1][1] < 250  # above the labels

    @pytest.mark.parametrize("y", [[], [0.0, 0.0], [math.nan]])
    def test_it_is_above_zero_without_values(self, y):
        assert usual_top([Curve("a", range(len(y)), y)])[0] > 0


def test_names_from_the_data_are_text_and_nothing_else():
    name = "_<script>alert(1)</script> $x$ &amp; 적혈구"
    figure = chart_figure(chart(Curve(name, [1, 2], [1, 2])))
    assert "<script" not in figure
    assert name in [element.text for element in ET.fromstring(figure).iter("text")]


def test_the_files(tmp_path):
    shown = chart(Curve("α", [0, 1], [0, 2]), Curve("β", [0, 1], [1, math.nan]), title="Files")
    write_chart(shown, tmp_path / "one")
    write_chart(shown, tmp_path / "two")
    svg = (tmp_path / "one.svg").read_bytes()
    assert svg.startswith(b"<?xml") and b"var(--" not in svg and b"<text" not in svg
    assert svg == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(io.BytesIO((tmp_path / "one.png").read_bytes())) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    write_curves({"f": shown}, tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    points = [["f", "α", "0", "0"], ["f", "α", "1", "2"], ["f", "β", "0", "1"], ["f", "β", "1", "nan"]]
    assert rows == [["figure", "curve", "x", "y"], *points]


def test_the_same_chart_gives_the_same_html():
    shown = chart(Curve("a", range(50), range(50)))
    assert chart_figure(shown) == chart_figure(shown)
