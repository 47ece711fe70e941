"""Plots of the studies: one look for all, as SVG and PNG, through matplotlib without its global state."""

import base64
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

COLOURS = ("#1f5fbf", "#b8430e", "#15784a", "#8a3ab0", "#7a6200", "#5a5f6b")
STYLES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2)), (0, (2, 1)))
INCHES = (7.0, 4.4)
DOTS_PER_INCH = 160
LOOK: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dcdde2",
    "svg.fonttype": "path",
    "svg.hashsalt": "focaldet",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A named curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over common axes, a y of nan being a gap; `shaded` is a range of x with a word for it.

    With `points` each value is marked, for curves of few.
    """

    title: str
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    shaded: tuple[float, float, str] | None = None
    points: bool = False


def write_plot(plot: Plot, path: Path) -> None:
    """Write `path`.svg and `path`.png; the same plot gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(LOOK):
        figure = Figure(figsize=INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.add_subplot()
        if plot.shaded is not None:
            low, high, word = plot.shaded
            axes.axvspan(low, high, color="#e7f3ea", zorder=0)
            middle = plot.y_range[0] + 0.42 * (plot.y_range[1] - plot.y_range[0])
            axes.text((low + high) / 2, middle, word, ha="center", color="#15784a")
        for number, curve in enumerate(plot.curves):
            look = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}
            look |= {"marker": "o"} if plot.points else {}
            axes.plot(curve.x, curve.y, label=curve.name, linewidth=2, **look)
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label, xlim=plot.x_range, ylim=plot.y_range)
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none")
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=DOTS_PER_INCH)


def write_curves(plots: Mapping[str, Plot], path: Path) -> None:
    """Write the points of all curves as CSV: figure, curve, x, y."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["figure", "curve", "x", "y"])
        for name, plot in plots.items():
            for curve in plot.curves:
                rows.writerows((name, curve.name, x, y) for x, y in zip(curve.x, curve.y, strict=True))


def embedded(plot: Plot, path: Path) -> str:
    """HTML that holds the picture `path`.svg, which `write_plot` wrote, in itself."""
    picture = base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()
    source = f"data:image/svg+xml;base64,{picture}"
    return f'<figure class="chart"><img alt="{escape(plot.title)}" src="{source}"></figure>'
