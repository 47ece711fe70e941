"""Matplotlib curves for pages and files: inline SVG whose colors follow the page, and SVG, PNG and CSV files.

Curves differ in color and in dashes, to be distinguishable in black and white. The same chart gives the same bytes.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy

from focaldet.files import write_bytes, write_csv
from focaldet.report.page import LIGHT, section

COLORS = tuple(LIGHT[f"c{number}"] for number in range(6))
DASHES = ("-", "--", "-.", ":", (0, (9, 3)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))
INCHES = (6.0, 4.0)
DOTS_PER_INCH = 180
LEGEND_LETTERS, LEGEND_ROW_INCHES = 60, 0.26  # letters of a row of the legend with its lines, and its height
MOST_POINTS = 300  # of a noisy curve
FEW_POINTS, FEWEST_POINTS = 20, 4  # a curve of no more than the first has no quantiles, of fewer no usual range
STEEP, STEEP_START = 1.5, 3.0  # an axis that would be so many times as long as usual values need is cut
FALLBACK_FONTS = ("Noto Sans CJK KR", "Noto Sans CJK JP", "NanumGothic", "Malgun Gothic", "AppleGothic")
LOOK: dict[str, Any] = {
    "font.size": 13,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "axes.edgecolor": LIGHT["soft"],
    "axes.facecolor": LIGHT["sheet"],
    "axes.labelcolor": LIGHT["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "figure.facecolor": LIGHT["sheet"],
    "grid.color": LIGHT["rule"],
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
}

PAGE_LOOK = {"svg.fonttype": "none"}  # text stays text, in the font of the page


@dataclass(frozen=True, slots=True)
class Curve:
    """A named curve; where y is not finite, it has a gap."""

    name: str
    x: Sequence[int | float]
    y: Sequence[int | float]

    def finite(self) -> "Curve":
        """The points that can be drawn."""
        points = [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        return Curve(self.name, [x for x, _ in points], [y for _, y in points])

    def smooth(self) -> "Curve":
        """At most `MOST_POINTS` finite points, each the mean of its neighbors at the x of the last of them."""
        curve = self.finite()
        step = math.ceil(len(curve.x) / MOST_POINTS) or 1
        starts = range(0, len(curve.x), step)
        means = [float(numpy.mean(curve.y[start : start + step])) for start in starts]
        return Curve(self.name, [curve.x[start : start + step][-1] for start in starts], means)


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over common axes.

    Attributes:
        title: what is shown.
        curves: at least one.
        x_label: what x is.
        y_label: what y is.
        x_range: ends of the x axis; where the curves end, by default.
        y_range: ends of the y axis; by default from 0, or the lowest value below it, to `usual_top`.
        shaded: a range of x, and the text in it.
        dots: whether each value is marked, for curves of few.
    """

    title: str
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    shaded: tuple[float, float, str] | None = None
    dots: bool = False

    def describe(self) -> str:
        """The title, and of every curve the first, last, lowest and highest value."""
        lines = [
            f"{curve.name}: from {curve.y[0]:.3g} to {curve.y[-1]:.3g}, lowest {min(curve.y):.3g}, "
            f"highest {max(curve.y):.3g}."
            for curve in map(Curve.finite, self.curves)
            if curve.y
        ]
        return f"{self.title}. {' '.join(lines) or 'No points.'}"


def chart_figure(chart: Chart) -> str:
    """An HTML `figure` of the chart: inline SVG in the page's colors and font, with `Chart.describe` as its label."""
    svg = _render(chart, "svg", title="", look=PAGE_LOOK)
    return page_figure(svg, title=chart.title, label=chart.describe())


def page_figure(svg: bytes, *, title: str, label: str) -> str:
    """An HTML `figure` of an SVG that was drawn with `PAGE_LOOK`: inline, in the page's colors and font."""
    text = svg.decode()
    (view_box,) = re.findall(r'viewBox="[^"]*"', text)
    body = re.sub(r"<!--.*?-->|<g[^>]*/>|font-family: [^;\"]*;? ?", "", text.partition("</defs>")[2])
    body = re.sub(r'<g id="(curve)?[^"]*"', r'<g class="\1"', body).replace('<g class=""', "<g")
    body = body.replace("xlink:href", "href")
    for name, color in LIGHT.items():
        body = body.replace(color, f"var(--{name})")
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg {view_box} role="img" aria-label="{escape(label)}">{body}</figure>'
    )


def chart_section(heading: str, charts: Sequence[Chart]) -> str:
    """A part of a page with these charts side by side where there is room; nothing where there are none."""
    figures = "".join(map(chart_figure, charts))
    return section(heading, f'<div class="charts">{figures}</div>') if charts else ""


def write_chart(chart: Chart, path: Path) -> None:
    """Write `path`.svg and `path`.png, dark on white."""
    write_bytes(path.with_suffix(".svg"), _render(chart, "svg", title=chart.title, look={"svg.fonttype": "path"}))
    write_bytes(path.with_suffix(".png"), _render(chart, "png", title=chart.title))


def write_curves(charts: Mapping[str, Chart], path: Path) -> None:
    """Write the points of all curves as CSV: figure, curve, x, y."""
    rows = (
        (name, curve.name, x, y)
        for name, chart in charts.items()
        for curve in chart.curves
        for x, y in zip(curve.x, curve.y, strict=True)
    )
    write_csv(path, ["figure", "curve", "x", "y"], rows)


def usual_top(curves: Sequence[Curve]) -> tuple[float, bool]:
    """Where a y axis from 0 ends, and whether it cuts curves off.

    It reaches the highest value, unless that is far above what 95 % of the values of every long curve need, and all but
    the first value of every short one: then the first steps of a training would own the whole axis.
    """
    values = [curve.y for curve in map(Curve.finite, curves) if curve.y]
    highest = max(map(max, values), default=1.0)
    usual = max(map(_usual_value, values), default=1.0)
    is_cut = highest > STEEP * usual > 0
    return (1.1 * usual if is_cut else 1.05 * highest) or 1.0, is_cut


def _usual_value(y: Sequence[float]) -> float:
    """The highest value of a curve, or of its usual ones where it is far above them."""
    highest = max(y)
    if len(y) < FEWEST_POINTS:
        return highest
    is_short = len(y) <= FEW_POINTS
    usual = max(y[1:]) if is_short else float(numpy.quantile(y, 0.95))
    return usual if highest > (STEEP_START if is_short else STEEP) * usual else highest


def render_figure(
    draw: Callable[[Any], object],
    file_format: str,
    *,
    salt: str,
    inches: tuple[float, float] = INCHES,
    look: Mapping[str, Any] | None = None,
) -> bytes:
    """A figure of matplotlib as a file of this format, in the look of all charts; the same figure gives the same bytes.

    Args:
        draw: draws on the figure that it is given.
        file_format: svg or png.
        salt: text that makes the names inside an SVG different from those of other figures of a page.
        inches: width and height.
        look: settings of matplotlib over those of `LOOK`.
    """
    import matplotlib as mpl
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    installed = font_manager.get_font_names()
    families = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    settings: Any = {**LOOK, "font.family": families, "svg.hashsalt": salt, **(look or {})}
    file = io.BytesIO()
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a class name in another script
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(
            file, format=file_format, dpi=DOTS_PER_INCH, metadata={"Date": None} if file_format == "svg" else None
        )
    return file.getvalue()


def _render(chart: Chart, file_format: str, *, title: str, look: Mapping[str, Any] | None = None) -> bytes:
    """The chart as a file of this format."""
    letters = max((len(curve.name) for curve in chart.curves), default=0) + 8
    columns = max(1, min(len(chart.curves), LEGEND_LETTERS // letters))
    rows = math.ceil(len(chart.curves) / columns)
    width, height = INCHES

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        _draw_axes(axes, chart)
        figure.suptitle(title, fontsize=15)
        if handles := axes.lines:
            figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.8)

    inches = width, height + LEGEND_ROW_INCHES * max(0, rows - 1)
    return render_figure(draw, file_format, salt=chart.title, inches=inches, look=look)


def _draw_axes(axes: Any, chart: Chart) -> None:
    """Curves, grid, labels and ranges."""
    from matplotlib.ticker import MaxNLocator

    top, is_cut = usual_top(chart.curves)
    lowest = min((min(curve.y) for curve in map(Curve.finite, chart.curves) if curve.y), default=0.0)
    y_range = chart.y_range or (min(0.0, lowest), top)
    if chart.shaded is not None:
        low, high, text = chart.shaded
        axes.axvspan(low, high, color=LIGHT["shade"], zorder=0)
        axes.text((low + high) / 2, y_range[0] + 0.42 * (y_range[1] - y_range[0]), text, ha="center", color=COLORS[2])
    for number, curve in enumerate(chart.curves):
        few = chart.dots or len(curve.x) == 1  # a line of one point would be invisible
        (line,) = axes.plot(
            curve.x,
            curve.y,
            label=curve.name,
            linewidth=2,
            color=COLORS[number % len(COLORS)],
            linestyle=DASHES[number % len(DASHES)],
            marker="o" if few else None,
        )
        line.set_gid(f"curve{number}")
    every_x = [x for curve in chart.curves for x in curve.finite().x]
    low, high = min(every_x, default=0.0), max(every_x, default=1.0)
    margin = 0.03 * (high - low) * chart.dots if low < high else 0.5
    axes.set(xlabel=chart.x_label, xlim=chart.x_range or (low - margin, high + margin), ylim=y_range)
    if all(float(x).is_integer() for x in every_x):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    cut = f" (cut off above {top:.3g})" if is_cut and chart.y_range is None else ""
    axes.set_title(chart.y_label + cut, loc="left", fontsize=12, color=LIGHT["soft"])
    axes.tick_params(length=0, pad=6)
