"""The frame of every HTML page: one style sheet for light and dark, and the parts that pages are made of.

A page needs no network and no other file. The helpers return HTML; their `html` and the cells of tables are HTML too,
other texts are escaped.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from focaldet.files import write_text

LIGHT = {
    "page": "#fafaf8",
    "sheet": "#ffffff",
    "ink": "#1c1d21",
    "soft": "#575b66",
    "rule": "#dcdde2",
    "bar": "#cfe0fb",
    "shade": "#e7f3ea",
    "edge": "#8a8e99",
    "c0": "#1f5fbf",
    "c1": "#b8430e",
    "c2": "#15784a",
    "c3": "#8a3ab0",
    "c4": "#7a6200",
    "c5": "#5a5f6b",
}
"""The colors of a light page, by the names of their CSS variables; c0 to c5 are those of the curves."""

DARK = {
    "page": "#14161a",
    "sheet": "#1c1f25",
    "ink": "#eceef2",
    "soft": "#a9afbb",
    "rule": "#363b45",
    "bar": "#24406d",
    "shade": "#1f3328",
    "edge": "#5d6470",
    "c0": "#7fb0ff",
    "c1": "#ff9d6b",
    "c2": "#63d69c",
    "c3": "#d79cf5",
    "c4": "#e3c84f",
    "c5": "#a7adba",
}


def _css_variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_css_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_css_variables(DARK)} }} }}
@media print {{ :root {{ {_css_variables(LIGHT)} }} }}
{files("focaldet.report").joinpath("page.css").read_text(encoding="utf-8")}"""

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a page may load: nothing."""


def write_page(
    path: Path, title: str, *html: str, style: str = "", script: str = "", refresh_seconds: int | None = None
) -> None:
    """Write an HTML page of these parts.

    Args:
        path: the file.
        title: text of the window.
        html: the parts, in their order.
        style: CSS after that of all pages.
        script: JavaScript, run after the body. A page with a script may show images that lie beside it.
        refresh_seconds: after how long the page loads itself anew; never by default.
    """
    # Even a class name that got past the escaping could load or run nothing.
    policy = PAGE_POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f" file: 'self'; script-src 'sha256-{digest}'"
    page = render_page(title, *html, style=style, script=script, policy=policy, refresh_seconds=refresh_seconds)
    write_text(path, page)


def render_page(
    title: str,
    *html: str,
    style: str = "",
    script: str = "",
    policy: str = PAGE_POLICY,
    refresh_seconds: int | None = None,
) -> str:
    """An HTML page of these parts, as `write_page` writes it; `policy` says what the page may load."""
    reload = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"{reload}<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n{''.join(html)}</main>\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def header(title: str, *html: str, model: str = "", notes: Sequence[str] = ()) -> str:
    """The head of a page: its title, a line in monospace (`model`), paragraphs as HTML, and notes as text."""
    paragraphs = "".join(f"<p>{paragraph}</p>" for paragraph in html)
    about = f'<p class="model">{escape(model)}</p>' if model else ""
    note_html = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"<header><h1>{escape(title)}</h1>{about}{paragraphs}{note_html}</header>\n"


def section(heading: str, *html: str) -> str:
    """A part of a page, under a heading where there is one; nothing where `html` is empty."""
    content = "".join(html)
    title = f"<h2>{escape(heading)}</h2>" if heading else ""
    return f"<section>{title}{content}</section>\n" if content else ""


def fold(title: str, *html: str) -> str:
    """A part of a page that is shown once its title is chosen; nothing where `html` is empty."""
    content = "".join(html)
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: Sequence[int] = ()) -> str:
    """A table of HTML cells that scrolls by itself where it is too wide; the first cell of a row is the row's head.

    Columns of numbers end at the right; the first column and `text_columns` start at the left.
    """
    kinds = [' class="text"' if column in (0, *text_columns) else "" for column in range(len(heads))]
    top = "".join(f"<th{kind}>{head}</th>" for kind, head in zip(kinds, heads, strict=True))
    lines = []
    for first, *cells in rows:
        values = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], cells, strict=True))
        lines.append(f'<tr><th scope="row" class="text">{first}</th>{values}</tr>')
    body = "".join(lines)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def bar_cell(text: str, fraction: float) -> str:
    """The content of a cell with a bar behind it, of a length in [0, 1]."""
    return f'<div class="bar" style="--length:{100 * min(1.0, max(0.0, fraction)):.1f}%">{text}</div>'


def embed_image(image: Image.Image, *, alt: str, quality: int = 80) -> str:
    """An `img` that holds the image in itself, as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)  # thin colored lines need their color
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" {size} alt="{escape(alt)}">'
