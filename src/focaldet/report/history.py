"""What a run has written down while it was trained: its losses, learning rate and AP as charts, and its time.

All of it can be read while the training goes on.
"""

import csv
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from focaldet.evaluation.coco import HEADLINES, percent
from focaldet.files import read_bytes
from focaldet.report.charts import Chart, Curve, chart_section
from focaldet.report.page import bar_cell, section, table

METRICS_FILE, EVENTS_FILE = "metrics.csv", "events.jsonl"
AP_CURVES = ("ap50", "ap", "ap75")
QUIET_PARTS = ("evaluation", "saving and logging")  # of an epoch: no step is logged meanwhile
PAUSE_STEPS = 50  # the last ones, whose time is the usual one
MOST_SECONDS = 1e12


@dataclass(frozen=True, slots=True)
class History:
    """The rows of metrics.csv, of steps and of evaluations, and the records of events.jsonl, in their order."""

    steps: list[dict[str, str]]
    evaluations: list[dict[str, str]]
    events: list[dict[str, Any]]

    @property
    def losses(self) -> list[str]:
        """The columns of the losses, their sum first."""
        parts = [name for name in (self.steps[0] if self.steps else {}) if name and name.endswith("_loss")]
        return ["loss", *parts] if self.steps else []

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each part of the work, over all epochs that were logged."""
        seconds: dict[str, float] = defaultdict(float)
        for parts in self._epochs():
            for part, spent in parts.items():
                seconds[part] += spent
        return dict(seconds)

    @property
    def usual_pause(self) -> float:
        """Seconds for which the run writes nothing as a rule: from one logged step to the next, or in an evaluation."""
        spent = [value for row in self.steps[-PAUSE_STEPS:] if math.isfinite(value := _read_cell(row.get("seconds")))]
        apart = [value for row in self.steps[-2:] if math.isfinite(value := _read_cell(row.get("step")))]
        logged = statistics.median(spent) * max(1.0, apart[-1] - apart[0]) if spent and apart else 0.0
        return max([logged, *(sum(parts.get(part, 0.0) for part in QUIET_PARTS) for parts in self._epochs())])

    def _epochs(self) -> Iterator[dict[str, float]]:
        """The seconds of each part of each epoch; what is not a number is left out."""
        for event in self.events:
            parts = event.get("seconds")
            if event.get("event") == "epoch" and isinstance(parts, dict):
                yield {
                    part: float(spent)
                    for part, spent in parts.items()
                    if isinstance(spent, int | float) and abs(spent) < MOST_SECONDS
                }


def read_history(run: Path) -> History:
    """The history in a run folder; what is missing, half written or damaged is skipped."""
    rows: list[dict[str, str]] = []
    events: list[dict[str, Any]] = []
    with suppress(csv.Error):
        rows += csv.DictReader(io.StringIO(_read_text(run / METRICS_FILE), newline=""))
    for line in _read_text(run / EVENTS_FILE).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        events += [record] if isinstance(record, dict) else []
    steps, evaluations = ([row for row in rows if row.get("kind") == kind] for kind in ("step", "evaluation"))
    return History(steps, evaluations, events)


def _read_text(path: Path) -> str:
    """The text of a file; none where it is missing, as it may be from one moment to the next."""
    try:
        return read_bytes(path).decode(errors="replace")
    except OSError:
        return ""


def history_sections(history: History) -> str:
    """Charts of the losses, the learning rate and AP, and a table of the time; nothing for an empty history."""
    return chart_section("Training", training_charts(history)) + section("Where the time went", time_table(history))


def training_charts(history: History) -> list[Chart]:
    """Losses and learning rate by step, and AP by epoch, as far as there are any."""
    charts: list[Chart] = []
    if history.steps:
        losses = [
            read_curve(history.steps, "step", name, name.removesuffix("_loss").replace("_", " ")).smooth()
            for name in history.losses
        ]
        rates = read_curve(history.steps, "step", "learning_rate", "learning rate").smooth()
        charts = [Chart("Training loss", losses, x_label="step", y_label="loss")]
        if rates.y:
            charts.append(Chart("Learning rate", [rates], x_label="step", y_label="learning rate"))
    if history.evaluations:
        precisions = [read_curve(history.evaluations, "epoch", name, HEADLINES[name][0], 100.0) for name in AP_CURVES]
        chart = Chart(
            "Average precision", precisions, x_label="epoch", y_label="AP, %", y_range=(0.0, 100.0), dots=True
        )
        charts.append(chart)
    return charts


def read_curve(rows: Sequence[dict[str, str]], x: str, y: str, name: str, factor: float = 1.0) -> Curve:
    """A column of metrics.csv against another one; cells that are missing or damaged are gaps."""
    return Curve(name, [_read_cell(row.get(x)) for row in rows], [factor * _read_cell(row.get(y)) for row in rows])


def time_table(history: History) -> str:
    """The parts of the work, the longest first, with their seconds and percent; nothing where none was logged."""
    seconds = history.seconds
    total = sum(seconds.values())
    if not total:
        return ""
    rows = [
        [escape(part), f"{spent:,.1f}", bar_cell(percent(spent / total), spent / total)]
        for part, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    text = "Loading is what the network waited for; images that are loaded beside it cost nothing here."
    return table(["Part", "Seconds", "%"], [*rows, ["all epochs", f"{total:,.1f}", ""]]) + f"<p>{text}</p>"


def _read_cell(text: str | None) -> float:
    """The number in a cell of metrics.csv; NaN, which is not drawn, where the cell is missing or damaged."""
    try:
        return float(text or math.nan)
    except ValueError:
        return math.nan
