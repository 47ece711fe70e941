"""Figure 2: every detector once, its bars, and labels that cover nothing."""

import itertools
import re

import numpy
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from focaldet.comparison.figure import (
    FIGURE_INCHES,
    PlotPoint,
    Rectangle,
    draw_trade_off,
    mark_rows,
    place_label,
    plot_points,
    trade_off_figure,
    write_trade_off,
)
from focaldet.comparison.systems import published_points
from tests.comparison.rows_by_hand import make_row


def area(box):
    return box.overlap(box)


def test_overlap_of_rectangles():
    one = Rectangle(0.0, 0.0, 10.0, 10.0)
    assert [
        one.overlap(other) for other in (one, Rectangle(5.0, 5.0, 20.0, 20.0), Rectangle(10.0, 0.0, 20.0, 10.0))
    ] == [100, 25, 0]


def test_a_label_goes_where_nothing_is():
    frame, wall = Rectangle(0.0, 0.0, 200.0, 200.0), Rectangle(100.0, 0.0, 200.0, 200.0)
    box = place_label((95.0, 100.0), (20.0, 10.0), blocked=[wall], frame=frame)
    assert box.right < 95 and box.overlap(wall) == 0
    corner = place_label((1.0, 1.0), (20.0, 10.0), blocked=[], frame=frame)
    assert corner.overlap(frame) == pytest.approx(200)


@pytest.mark.parametrize("seed", range(4))
def test_labels_of_nine_detectors_and_the_published_points_cover_nothing(seed):
    rng = numpy.random.default_rng(seed)
    points = []
    for number in range(9):
        ap, ms = float(rng.uniform(20, 60)), float(numpy.exp(rng.uniform(2.5, 5.0)))
        points.append(PlotPoint("ABCDEFGHI"[number], (ap, ap - 3, ap + 3), (ms, 0.9 * ms, 1.3 * ms), number < 4))
    figure = Figure(figsize=FIGURE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    placed = draw_trade_off(figure, points=points, front=[(10.0, 20.0), (90.0, 60.0)], published=published_points())
    assert len(placed) == 19
    (axes,), renderer = figure.axes, figure.canvas.get_renderer()
    frame, *drawn = (Rectangle(*each.get_window_extent(renderer).extents) for each in (axes.patch, *axes.texts))
    assert len(drawn) == 19 and min(area(each) for each in drawn) > 30
    assert max(one.overlap(other) for one, other in itertools.combinations(drawn, 2)) < 1.0
    assert all(each.overlap(frame) > 0.99 * area(each) for each in drawn), "inside the axes"
    markers = axes.transData.transform([(point.ms[0], point.ap[0]) for point in points])
    assert not any(each.overlap(Rectangle(x - 2, y - 2, x + 2, y + 2)) for each in drawn for x, y in markers)


def test_a_row_without_time_or_accuracy_is_no_point():
    rows = [make_row("a", [0.5], 10.0), make_row("b", [0.4]), make_row("c", [], model="yolov2", error="no memory")]
    marks = mark_rows(rows)
    assert marks == {"a": "A", "b": "B"}
    (point,) = plot_points(rows, marks)
    assert (point.ap[0], point.ms) == (50.0, (10.0, 9.0, 13.0)) and point.ap[1] < 50 < point.ap[2]
    assert trade_off_figure(rows[1:], marks) == ""


def test_the_figure_of_a_page_names_its_detectors_and_follows_its_colors():
    rows = [make_row("a<b", [0.5], 10.0), make_row("second", [0.6], 30.0)]
    html = trade_off_figure(rows, mark_rows(rows), published_points())
    assert 'aria-label="AP against time. A a&lt;b: AP 50.0, 10 ms; B second: AP 60.0, 30 ms."' in html
    assert "SSD513" in html and "var(--c0)" in html and "var(--c1)" in html
    assert not re.search(r"#[0-9a-f]{6}", html), "all colors are those of the page"
    assert html == trade_off_figure(rows, mark_rows(rows), published_points())


def test_marks_go_on_after_z():
    names = [make_row(str(number), [0.5]) for number in range(28)]
    assert list(mark_rows(names).values())[24:] == ["Y", "Z", "A1", "B1"]


def test_a_figure_of_earlier_times_is_removed_where_there_are_none(tmp_path):
    for name in ("figure.png", "figure.svg"):
        (tmp_path / name).write_text("of an earlier call")
    rows = [make_row("a", [0.5])]
    write_trade_off(tmp_path / "figure", rows, mark_rows(rows))
    assert list(tmp_path.iterdir()) == []
