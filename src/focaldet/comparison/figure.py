"""The paper's Figure 2 for one's own detectors: AP against time, and labels that do not collide.

Lengths of the layout are points of the page, as matplotlib counts them: 72 an inch.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from focaldet.comparison.rows import ComparedDetector
from focaldet.comparison.sentences import pareto_front
from focaldet.comparison.systems import PublishedPoint
from focaldet.evaluation.coco import percent
from focaldet.files import write_bytes
from focaldet.report.charts import COLORS, PAGE_LOOK, page_figure, render_figure
from focaldet.report.page import LIGHT

FIGURE_INCHES = (6.4, 5.4)
LABEL_SIZE, NAME_SIZE = 12.0, 8.5
LETTER_WIDTH = {LABEL_SIZE: 0.8, NAME_SIZE: 0.6}  # of the size of the font, in that of the page
MARKERS = "osD^v<>ph"  # two-stage and one-stage detectors also differ in being hollow or filled
STEPS = (9.0, 12.0, 16.0, 22.0, 30.0, 40.0, 52.0)  # distances of a label from its point
FAR = 16.0  # from here on a line leads from the label to its point
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
NAME_COLUMNS, NAME_INCHES = 2, 0.2  # of the list of names below the figure
TITLE = "AP against time"


class Rectangle(NamedTuple):
    """A rectangle of the figure: left, bottom, right and top in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Rectangle") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


class PlotPoint(NamedTuple):
    """A detector of the figure: its mark, AP in percent with its interval, milliseconds with p10 and p90."""

    mark: str
    ap: tuple[float, float, float]
    ms: tuple[float, float, float]
    is_two_stage: bool | None


def mark_rows(rows: Sequence[ComparedDetector]) -> dict[str, str]:
    """A short mark for each detector that has numbers: A to Z, then A1 and so on."""
    names = [row.name for row in rows if row.sample is not None]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return {
        name: letters[number % 26] + (str(number // 26) if number >= 26 else "") for number, name in enumerate(names)
    }


def plot_points(rows: Sequence[ComparedDetector], marks: dict[str, str]) -> list[PlotPoint]:
    """The detectors that have both AP and time."""
    points = []
    for row in rows:
        if row.sample is None or row.timing is None:
            continue
        low, high = row.sample.interval()
        ap, total = 100 * row.sample.mean, row.timing.total
        ends = min(100 * low, ap), max(100 * high, ap)
        times = total.median, total.p10, total.p90
        points.append(PlotPoint(marks[row.name], (ap, *ends), times, row.two_stage))
    return points


def trade_off_figure(
    rows: Sequence[ComparedDetector], marks: dict[str, str], published: Sequence[PublishedPoint] = ()
) -> str:
    """The figure for a page; nothing where no detector has both AP and time."""
    points = plot_points(rows, marks)
    if not points:
        return ""
    svg = _render_trade_off(rows, points, published, file_format="svg")
    label = "; ".join(
        f"{marks[row.name]} {row.name}: AP {percent(row.sample.mean)}, {row.milliseconds:.0f} ms"
        for row in rows
        if row.sample is not None and row.milliseconds is not None
    )
    return page_figure(svg, title=f"{TITLE}, as in the paper's Figure 2", label=f"{TITLE}. {label}.")


def write_trade_off(
    path: Path, rows: Sequence[ComparedDetector], marks: dict[str, str], published: Sequence[PublishedPoint] = ()
) -> None:
    """Write the figure as PNG and SVG beside each other, with the names of the detectors.

    Without points no figure is written, and one of an earlier call is removed.
    """
    points = plot_points(rows, marks)
    names = {mark: name for name, mark in marks.items()}
    for file_format in ("png", "svg"):
        file = path.with_suffix(f".{file_format}")
        if not points:
            file.unlink(missing_ok=True)
            continue
        write_bytes(file, _render_trade_off(rows, points, published, file_format=file_format, names=names))


def _render_trade_off(
    rows: Sequence[ComparedDetector],
    points: Sequence[PlotPoint],
    published: Sequence[PublishedPoint],
    *,
    file_format: str,
    names: Mapping[str, str] | None = None,
) -> bytes:
    timed = [row for row in rows if row.sample is not None and row.milliseconds is not None]
    front = [(row.milliseconds or 0.0, 100 * (row.mean("ap") or 0.0)) for row in pareto_front(timed)]
    draw = partial(draw_trade_off, points=points, front=front, published=published, names=names or {})
    look = {**PAGE_LOOK, "font.size": 12} if file_format == "svg" else {"font.size": 12}
    width, height = FIGURE_INCHES
    inches = (width, height + NAME_INCHES * math.ceil(len(points) / NAME_COLUMNS)) if names else FIGURE_INCHES
    return render_figure(draw, file_format, salt=TITLE, inches=inches, look=look)


def draw_trade_off(
    figure: Any,
    *,
    points: Sequence[PlotPoint],
    front: Sequence[tuple[float, float]],
    published: Sequence[PublishedPoint],
    names: Mapping[str, str] | None = None,
) -> list[Rectangle]:
    """Draw points, bars, front and labels on an empty figure; where the labels are.

    With `names`, by mark, they stand below the axes.
    """
    axes = figure.add_subplot()
    axes.set_xscale("log")
    gray = LIGHT["soft"]
    times = {*(each.milliseconds for each in published), *(value for point in points for value in point.ms)}
    if len(times) == 1:  # one detector that was timed once
        axes.set_xlim(min(times) / 2, max(times) * 2)
    if published:
        xs, ys = [each.milliseconds for each in published], [each.ap for each in published]
        axes.plot(xs, ys, "x", color=gray, markersize=5, alpha=0.7)
    axes.plot(*zip(*front, strict=True), color=gray, linewidth=1.2, linestyle="--", zorder=1)
    drawn = []
    for number, point in enumerate(points):
        ap, low, high = point.ap
        ms, fast, slow = point.ms
        color = COLORS[number % len(COLORS)]
        bars = axes.errorbar(
            ms,
            ap,
            xerr=[[ms - fast], [slow - ms]],
            yerr=[[ap - low], [high - ap]],
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            markersize=8,
            markerfacecolor=LIGHT["sheet"] if point.is_two_stage else color,
            markeredgewidth=1.8,
            elinewidth=1.2,
            capsize=3,
            zorder=3,
        )
        drawn.append(bars.lines[0])
    axes.set_xlabel("ms an image (log), bars are the 10th to 90th percentile")
    axes.set_title("AP, %, bars are the 95 % interval over images", loc="left", fontsize=12, color=gray)
    axes.margins(x=0.12, y=0.09)
    _label_ticks(axes)
    if names:
        texts = [f"{point.mark}  {names[point.mark]}" for point in points]
        figure.legend(drawn, texts, loc="outside lower center", ncols=NAME_COLUMNS, fontsize=NAME_SIZE, frameon=False)
    return _write_labels(figure, axes, points, front, published)


def _label_ticks(axes: Any) -> None:
    """Numbers such as 20 and 50 on the logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0, pad=6)


def _write_labels(
    figure: Any,
    axes: Any,
    points: Sequence[PlotPoint],
    front: Sequence[tuple[float, float]],
    published: Sequence[PublishedPoint],
) -> list[Rectangle]:
    """Write every label where it covers neither a point, nor a bar, nor another label, those of the detectors first."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    axes.autoscale(enable=False)
    per_point = 72.0 / figure.dpi

    def to_points(x: float, y: float) -> tuple[float, float]:
        across, up = axes.transData.transform((x, y)) * per_point
        return float(across), float(up)

    frame = Rectangle(*(float(side) * per_point for side in axes.get_window_extent().extents))
    blocked = [box for point in points for box in _boxes_of(point, to_points)]
    blocked += [_around(*to_points(each.milliseconds, each.ap), 4.0) for each in published]
    blocked += _line_boxes([to_points(ms, ap) for ms, ap in front])
    wanted = [(point.mark, point.ms[0], point.ap[0], LABEL_SIZE, "ink") for point in points]
    wanted += [(each.name, each.milliseconds, each.ap, NAME_SIZE, "soft") for each in published]
    placed: list[Rectangle] = []
    for text, x, y, size, color in wanted:
        across, up = to_points(x, y)
        width, height = LETTER_WIDTH[size] * size * len(text), 1.15 * size
        box = place_label((across, up), (width, height), blocked=[*blocked, *placed], frame=frame)
        placed.append(box)
        _write_label(axes, text, box, (across, up), per_point=per_point, size=size, color=LIGHT[color])
    return placed


def _write_label(
    axes: Any,
    text: str,
    box: Rectangle,
    point: tuple[float, float],
    *,
    per_point: float,
    size: float,
    color: str,
) -> None:
    """A label in its rectangle, with a line to its point where that is far."""
    (x, y), to_data = point, axes.transData.inverted().transform
    center = to_data(((box.left + box.right) / 2 / per_point, (box.bottom + box.top) / 2 / per_point))
    weight = "bold" if size == LABEL_SIZE else "normal"
    axes.text(*center, text, ha="center", va="center", fontsize=size, fontweight=weight, color=color, zorder=4)
    near = min(max(x, box.left), box.right), min(max(y, box.bottom), box.top)
    if math.dist(near, point) >= FAR:
        ends = [to_data((each[0] / per_point, each[1] / per_point)) for each in (near, point)]
        axes.plot(*zip(*ends, strict=True), color=color, linewidth=0.6, zorder=2)


def _line_boxes(corners: Sequence[tuple[float, float]]) -> list[Rectangle]:
    """Small rectangles along a line, for labels to keep away from it."""
    boxes = []
    for (x1, y1), (x2, y2) in pairwise(corners):
        count = max(2, round(math.dist((x1, y1), (x2, y2)) / 5))
        boxes += [_around(x1 + (x2 - x1) * k / count, y1 + (y2 - y1) * k / count, 2.0) for k in range(count + 1)]
    return boxes


def _around(x: float, y: float, radius: float) -> Rectangle:
    return Rectangle(x - radius, y - radius, x + radius, y + radius)


def _boxes_of(point: PlotPoint, to_points: Any) -> list[Rectangle]:
    """What a detector covers: its marker and its two bars."""
    (ms, fast, slow), (ap, low, high) = point.ms, point.ap
    x, y = to_points(ms, ap)
    left, right = to_points(fast, ap)[0], to_points(slow, ap)[0]
    bottom, top = to_points(ms, low)[1], to_points(ms, high)[1]
    return [_around(x, y, 6.0), Rectangle(left, y - 2, right, y + 2), Rectangle(x - 2, bottom, x + 2, top)]


def place_label(
    point: tuple[float, float], size: tuple[float, float], *, blocked: Sequence[Rectangle], frame: Rectangle
) -> Rectangle:
    """The rectangle of a label near its point that covers least of what is there and of the world outside the frame.

    Args:
        point: what it names.
        size: its width and height.
        blocked: what it should not cover.
        frame: where it should stay.
    """
    (x, y), (width, height) = point, size
    best, least = None, float("inf")
    for step, (right, up) in product(STEPS, DIRECTIONS):
        center_x, center_y = x + right * (step + width / 2), y + up * (step + height / 2)
        box = Rectangle(center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2)
        outside = width * height - box.overlap(frame)
        cost = sum(box.overlap(other) for other in blocked) + 4 * outside
        if cost < least - 1e-6:
            best, least = box, cost
        if least <= 1e-6:
            break
    return best or _around(x, y, height)
