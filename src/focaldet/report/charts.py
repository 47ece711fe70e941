"""Curves as inline SVG: no script, legible on light and dark pages, with a text for those who cannot see them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44
MOST_POINTS = 300
DASHES = ("", "7 4", "2 3", "10 4 2 4")


@dataclass(frozen=True, slots=True)
class Line:
    """A named curve; `x` rises."""

    name: str
    x: Sequence[int | float]
    y: Sequence[int | float]


def line_chart(lines: Sequence[Line], *, title: str, x_label: str, y_top: float | None = None) -> str:
    """A chart of the finite points of all lines from 0 up to `y_top` (or as high as they reach); its colours are CSS.

    Long curves are averaged to `MOST_POINTS` points. Lines differ in colour and in dashes.
    """
    shown = [kept for line in lines if (kept := _thinned(_finite(line))).x]
    x_low = min((line.x[0] for line in shown), default=0.0)
    x_high = max((line.x[-1] for line in shown), default=1.0)
    x_high = x_high if x_high > x_low else x_low + 1
    ticks = nice_ticks(y_top or max((max(line.y) for line in shown), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - min(max(y / ticks[-1], 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    grid = "".join(_level(place(x_low, tick)[1], tick) for tick in ticks)
    feet = "".join(
        f'<text x="{place(x, 0.0)[0]:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{x:g}</text>'
        for x, anchor in ((x_low, "start"), (x_high, "end"))
    )
    curves = "".join(_curve(line, number, place) for number, line in enumerate(shown))
    middle = (LEFT + WIDTH - RIGHT) / 2
    summary = f"{title}. {' '.join(_in_words(line) for line in shown) or 'No points.'}"
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(summary)}">{grid}{feet}'
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>{curves}</svg>'
        f'<p class="legend">{"".join(_key(line, number) for number, line in enumerate(shown))}</p></figure>'
    )


def nice_ticks(top: float) -> list[float]:
    """From 0 to at least `top` in three to six equal steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not (top > 0 and math.isfinite(top)):
        return [0.0, 0.5, 1.0]
    power = 10.0 ** math.floor(math.log10(top / 3))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if top / (s * power) <= 6)
    return [round(step * number, 12) for number in range(math.ceil(top / step - 1e-9) + 1)]


def _finite(line: Line) -> Line:
    points = [(float(x), float(y)) for x, y in zip(line.x, line.y, strict=True)]
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return Line(line.name, [x for x, _ in points], [y for _, y in points])


def _thinned(line: Line) -> Line:
    """At most `MOST_POINTS` points, each the mean of its neighbours; the last point stays where it is on the x axis."""
    each = math.ceil(len(line.x) / MOST_POINTS)
    if each <= 1:
        return line
    parts = [slice(start, start + each) for start in range(0, len(line.x), each)]
    means = [sum(line.y[part]) / len(line.y[part]) for part in parts]
    return Line(line.name, [line.x[part][-1] for part in parts], means)


def _level(y: float, value: float) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'


def _curve(line: Line, number: int, place: Callable[[float, float], tuple[float, float]]) -> str:
    points = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
    if len(points) == 1:  # a line of one point would be invisible
        return f'<circle class="dot c{number % 4}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="4"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="curve c{number % 4}" stroke-dasharray="{DASHES[number % 4]}" points="{path}"/>'


def _key(line: Line, number: int) -> str:
    stroke = f'<line class="curve c{number % 4}" stroke-dasharray="{DASHES[number % 4]}" x1="0" x2="28" y1="6" y2="6"/>'
    return f'<span><svg class="key" viewBox="0 0 28 12" aria-hidden="true">{stroke}</svg>{escape(line.name)}</span>'


def _in_words(line: Line) -> str:
    return (
        f"{line.name}: from {line.y[0]:.3g} to {line.y[-1]:.3g}, lowest {min(line.y):.3g}, highest {max(line.y):.3g}."
    )
