"""The results table in the form of the paper's table 2: as lines, HTML, Markdown, CSV and LaTeX."""

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from html import escape
from typing import Any, Literal

from focaldet.comparison.rows import ComparedDetector
from focaldet.comparison.systems import System
from focaldet.comparison.timing import IMAGE_PARTS
from focaldet.evaluation.coco import percent
from focaldet.report import page

TABLE_NUMBERS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APS", "ap_medium": "APM", "ap_large": "APL"}
HEADS = ("", "backbone", *TABLE_NUMBERS.values(), "ms")
SECTIONS = {True: "Two-stage methods", False: "One-stage methods", None: "Other results"}
PUBLISHED = "paper, COCO"
LATEX_SPECIAL = re.compile(r"[&%$#_{}~^\\]")
LATEX_WORDS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True, slots=True)
class TableLine:
    """A line of the table: a heading of a section, a detector, the published row below it, or one that failed.

    `cells` are as many as `HEADS`, of a heading or a failed detector only the first ones; `best` are the columns where
    it is the best of all detectors.
    """

    kind: Literal["heading", "detector", "published", "failed"]
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


def table_lines(rows: Sequence[ComparedDetector]) -> list[TableLine]:
    """The lines in the order of `rows`, each published row below the last detector of its system."""
    best = _best_values(rows)
    lines: list[TableLine] = []
    for number, row in enumerate(rows):
        if number == 0 or row.two_stage != rows[number - 1].two_stage:
            lines.append(TableLine("heading", (SECTIONS[row.two_stage],)))
        if row.error is not None:
            lines.append(TableLine("failed", (row.name, row.backbone or "", f"failed: {row.error}")))
        else:
            lines.append(_detector_line(row, best))
        is_last = number + 1 == len(rows) or rows[number + 1].system != row.system
        if row.system is not None and is_last:
            lines.append(_published_line(row.system))
    return lines


def _detector_line(row: ComparedDetector, best: Sequence[str | None]) -> TableLine:
    """The line of a detector that has numbers."""
    values = [percent(row.mean(field)) for field in TABLE_NUMBERS]
    time = "-" if row.milliseconds is None else f"{row.milliseconds:.1f}"
    marks = frozenset(2 + number for number, value in enumerate([*values, time]) if value == best[number] != "-")
    deviation = None if row.sample is None else row.sample.deviation
    if deviation is not None:
        values[0] += f" ± {100 * deviation:.1f}"
    if row.failures:
        values[0] += f" (n = {len(row.metrics)})"
    return TableLine("detector", (row.name, row.backbone or "-", *values, time), marks)


def _published_line(system: System) -> TableLine:
    """The row of the paper's table for a system; its times are in Figure 2."""
    values = astuple(system.published) if system.published else ("-",) * len(TABLE_NUMBERS)
    return TableLine("published", (f"{system.title}, {PUBLISHED}", system.backbone, *map(str, values), ""))


def _best_values(rows: Sequence[ComparedDetector]) -> list[str | None]:
    """The text of the best number of each column: the highest AP above 0, the shortest time. Equal texts are level."""
    best: list[str | None] = []
    for field in TABLE_NUMBERS:
        values = [value for row in rows if (value := row.mean(field)) is not None]
        best.append(percent(max(values)) if any(values) else None)
    times = [row.milliseconds for row in rows if row.milliseconds is not None]
    return [*best, f"{min(times):.1f}" if times else None]


def html_table(rows: Sequence[ComparedDetector], letters: dict[str, str]) -> str:
    """The table for the page; `letters` are the marks of the detectors in Figure 2."""
    html = []
    for line in table_lines(rows):
        first = escape(line.cells[0])
        if line.kind == "heading":
            html.append([f"<em>{first}</em>", *[""] * (len(HEADS) - 1)])
        elif line.kind == "failed":
            name, backbone, reason = map(escape, line.cells)
            html.append([name, backbone, f'<span class="reason">{reason}</span>', *[""] * (len(HEADS) - 3)])
        else:
            cells = [_html_cell(line, column) for column in range(len(line.cells))]
            if mark := letters.get(line.cells[0]):
                cells[0] = f'<span class="mark">{mark}</span> {cells[0]}'
            html.append(cells)
    return page.table(HEADS, html, text_columns=[1])


def _html_cell(line: TableLine, column: int) -> str:
    text = escape(line.cells[column])
    if line.kind == "published":
        return f'<span class="published">{text}</span>'
    return f"<strong>{text}</strong>" if column in line.best else text


def markdown_table(rows: Sequence[ComparedDetector]) -> str:
    """The table in Markdown: the best bold, published rows in italics."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{'|'.join(['---', '---', *['---:'] * (len(HEADS) - 2)])}|"]
    for line in table_lines(rows):
        cells = [cell.replace("|", "\\|") for cell in line.cells]
        if line.kind == "heading":
            cells = [f"**{cells[0]}**"]
        elif line.kind == "published":
            cells = [f"*{cell}*" if cell else "" for cell in cells]
        else:
            cells = [f"**{cell}**" if column in line.best else cell for column, cell in enumerate(cells)]
        lines.append(f"| {' | '.join([*cells, *[''] * (len(HEADS) - len(cells))])} |")
    return "\n".join(lines) + "\n"


def latex_table(rows: Sequence[ComparedDetector]) -> str:
    """The table in LaTeX, with the packages booktabs and xcolor."""
    columns = "ll" + "r" * (len(HEADS) - 2)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(HEADS), r"\midrule"]
    for line in table_lines(rows):
        cells = [_escape_latex(cell) for cell in line.cells]
        if line.kind == "heading":
            if len(lines) > 4:
                lines.append(r"\midrule")
            lines.append(rf"\multicolumn{{{len(HEADS)}}}{{l}}{{\emph{{{cells[0]}}}}} \\")
        elif line.kind == "failed":
            reason = rf"\multicolumn{{{len(HEADS) - 2}}}{{l}}{{{cells[2]}}}"
            lines.append(f"{cells[0]} & {cells[1]} & {reason} " + r"\\")
        elif line.kind == "published":
            lines.append(_latex_row([rf"\textcolor{{gray}}{{{cell}}}" if cell else "" for cell in cells]))
        else:
            bold = [rf"\textbf{{{cell}}}" if column in line.best else cell for column, cell in enumerate(cells)]
            lines.append(_latex_row(bold))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} " + r"\\"


def _escape_latex(text: str) -> str:
    escaped = LATEX_SPECIAL.sub(lambda match: LATEX_WORDS.get(match[0], rf"\{match[0]}"), text)
    return escaped.replace("±", r"$\pm$").replace("−", "$-$")


def number_columns(row: ComparedDetector) -> dict[str, Any]:
    """Everything that was measured of a detector in plain numbers, for CSV and JSON; APs are in [0, 1]."""
    timing, sample = row.timing, row.sample
    low, high = (None, None) if sample is None else sample.interval()
    starts = [result.start for result in row.results if result.error is None]
    throughput, parts = (None, {}) if timing is None else (timing.throughput, timing.parts)
    return {
        "detector": row.name,
        "backbone": row.backbone,
        "two_stage": row.two_stage,
        "paper": None if row.system is None else f"{row.system.title}, {row.system.backbone}",
        "seeds": len(row.metrics),
        "failed_seeds": len(row.failures),
        **{field: row.mean(field) for field in TABLE_NUMBERS},
        "ap_deviation": None if sample is None else sample.deviation,
        "ap_low": finite_or_none(low),
        "ap_high": finite_or_none(high),
        "ms": row.milliseconds,
        "ms_fastest": None if timing is None else timing.total.best,
        "ms_p10": None if timing is None else timing.total.p10,
        "ms_p90": None if timing is None else timing.total.p90,
        "ms_count": None if timing is None else timing.total.num_values,
        **{f"{part}_ms": parts[part].median if part in parts else None for part in IMAGE_PARTS},
        "images_per_second": None if throughput is None else throughput.median,
        "parameters": None if timing is None else timing.parameters,
        "gflop": None if timing is None else timing.gflop,
        "memory_mb": None if timing is None else timing.memory_mb,
        "initial_weights": starts[0] if starts else None,
        "images_seen": row.images_seen,
        "epochs": row.training_mean("epochs"),
        "training_seconds": row.training_mean("seconds"),
        "wall_seconds": row.training_mean("wall_seconds"),
        "training_pflop": row.training_pflop,
        "score": row.score,
        "error": row.error,
    }


def finite_or_none(value: float | None) -> float | None:
    """The number; None for one that JSON does not have."""
    return value if value is not None and math.isfinite(value) else None
