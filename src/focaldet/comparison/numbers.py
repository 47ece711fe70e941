"""The files of a comparison that hold its numbers, and its table for a terminal."""

from collections.abc import Mapping
from typing import Any

from focaldet import config as configs
from focaldet.comparison.figure import mark_rows, write_trade_off
from focaldet.comparison.folder import write_record
from focaldet.comparison.rows import ComparedDetector, Comparison
from focaldet.comparison.systems import published_points
from focaldet.comparison.table import TABLE_NUMBERS, finite_or_none, latex_table, markdown_table, number_columns
from focaldet.comparison.timing import TimingReport
from focaldet.evaluation.coco import percent
from focaldet.files import write_csv, write_text

PAIR_COLUMNS = ("first", "second", "mean", "low", "high", "probability", "p_value", "adjusted")


def write_numbers(comparison: Comparison, *, record: Mapping[str, Any], timing: TimingReport | None) -> None:
    """Write `compare.json`, `.csv`, `.md` and `.tex`, `differences.csv` and the figure."""
    out, rows = comparison.out, comparison.rows
    columns = [number_columns(row) for row in rows]
    pairs = [{name: _json_value(getattr(each, name)) for name in PAIR_COLUMNS} for each in comparison.differences]
    if columns:
        write_csv(out / "compare.csv", list(columns[0]), (list(each.values()) for each in columns))
    write_csv(out / "differences.csv", PAIR_COLUMNS, ([each[name] for name in PAIR_COLUMNS] for each in pairs))
    write_text(out / "compare.md", markdown_table(rows))
    write_text(out / "compare.tex", latex_table(rows))
    write_trade_off(out / "figure", rows, mark_rows(rows), published_points())
    write_record(
        out,
        {
            "identity": dict(record),
            "detectors": [column | _seed_values(row) for column, row in zip(columns, rows, strict=True)],
            "differences": pairs,
            "sentences": list(comparison.sentences),
            "timing": None if timing is None else configs.to_dict(timing),
        },
    )


def _json_value(value: Any) -> Any:
    """The value as JSON has it."""
    return finite_or_none(value) if isinstance(value, float) else value


def _seed_values(row: ComparedDetector) -> dict[str, Any]:
    """AP of each seed and the kinds of errors, for the record."""
    return {
        "ap_of_seeds": [] if row.sample is None else list(row.sample.ap),
        "kinds": dict(row.kinds or {}),
        "ap50_costs": dict(row.costs or {}),
        "per_class": [{each.name: each.ap for each in metrics.per_class} for metrics in row.metrics],
    }


def summary_rows(comparison: Comparison) -> list[list[str]]:
    """The table for a terminal: detector, the six numbers, milliseconds."""
    lines = [["DETECTOR", *TABLE_NUMBERS.values(), "MS"]]
    for row in comparison.rows:
        if row.error is not None:
            lines.append([f"{row.name}  failed: {row.error}", *[""] * (len(TABLE_NUMBERS) + 1)])
            continue
        time_ms = "-" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        lines.append([row.name, *(percent(row.mean(field)) for field in TABLE_NUMBERS), time_ms])
    return lines
