"""A drawing of boxes, words and arrows as SVG: dark on a white card, so that it reads on a light and a dark page."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

INK, QUIET, STROKE, FAINT = "#1d2935", "#52606d", "#33475b", "#9fb0bf"
BLUE, GREEN, ORANGE, RED, PURPLE = "#d6e6f5", "#d9efdc", "#fde6c8", "#f8d5d3", "#e6dcf2"
CARD, EDGE = "#faf7fd", "#7a5aa6"
LINE_PX = 16

Point = tuple[float, float]


class Canvas:
    """Later shapes cover earlier ones. All numbers are pixels of the drawing, from its top left corner."""

    def __init__(self, width: float, height: float, *, title: str, meaning: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'font-family="Helvetica, Arial, sans-serif" role="img" aria-label="{escape(meaning)}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{STROKE}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def words(
        self, x: float, y: float, text: str, *, size: float = 11, anchor: str = "middle", bold=False, dark=False
    ) -> None:
        """A line of text, its baseline at `y`; nothing where there is none."""
        if not text:
            return
        color = INK if bold or dark else QUIET
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{weight} fill="{color}">'
            f"{escape(text)}</text>"
        )

    def heading(self, x: float, text: str, below: str = "") -> None:
        """The title of a column, and a line below it."""
        self.words(x, 34, text, size=15, bold=True)
        self.words(x, 52, below, size=11.5)

    def box(self, x: float, y: float, width: float, height: float, fill: str, *lines: str) -> None:
        """A rectangle around (x, y) with its name, and further lines in smaller letters."""
        self._parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}" rx="4" '
            f'fill="{fill}" stroke="{STROKE}" stroke-width="1.5"/>'
        )
        first = y + 5 - LINE_PX / 2 * (len(lines) - 1)
        for index, line in enumerate(lines):
            self.words(x, first + index * LINE_PX, line, size=13 if index == 0 else 11, dark=index == 0)

    def sign(self, x: float, y: float, text: str) -> None:
        """An operation of two maps: a small circle."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="#ffffff" stroke="{STROKE}" stroke-width="1.5"/>')
        self.words(x, y + 5, text, size=15, dark=True)

    def dot(self, x: float, y: float) -> None:
        """Where one line leaves another."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="3" fill="{STROKE}"/>')

    def badge(self, x: float, y: float, text: str) -> None:
        """The number of an explanation."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="{EDGE}"/>')
        self._parts.append(
            f'<text x="{x:g}" y="{y + 4:g}" font-size="12" text-anchor="middle" font-weight="bold" fill="#ffffff">'
            f"{escape(text)}</text>"
        )

    def card(self, left: float, top: float, width: float, height: float) -> None:
        """The background of an optional addition."""
        self._parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="8" '
            f'fill="{CARD}" stroke="{EDGE}" stroke-width="1.5" stroke-dasharray="6 4"/>'
        )

    def wire(self, *points: Point) -> None:
        """A line like an arrow's, that runs into another one."""
        self._path(points, f'stroke="{STROKE}" stroke-width="1.5"')

    def arrow(self, *points: Point) -> None:
        """A line through these points that ends in a tip."""
        self._path(points, f'stroke="{STROKE}" stroke-width="1.5" marker-end="url(#tip)"')

    def line(self, *points: Point) -> None:
        """A line without a tip."""
        self._path(points, f'stroke="{FAINT}" stroke-width="1.3"')

    def outline(self, x: float, y: float, width: float, height: float) -> None:
        """A rectangle that is not filled, around (x, y)."""
        self._parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}" '
            f'fill="none" stroke="{STROKE}" stroke-width="1.8"/>'
        )

    def _path(self, points: Sequence[Point], style: str) -> None:
        track = " L".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'<path d="M{track}" fill="none" {style}/>')

    def write(self, path: Path) -> None:
        path.write_text("\n".join([*self._parts, "</svg>"]) + "\n", encoding="utf-8")
