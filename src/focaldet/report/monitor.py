"""`focaldet monitor`: a run while it is being trained, in the terminal and as a page that reloads itself."""

import time
from collections.abc import Callable
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from focaldet.data.dataset import FileSource
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.coco import HEADLINES, percent
from focaldet.evaluation.evaluate import open_evaluation_split, read_run_settings, run_data_config
from focaldet.report.facts import environment_table, settings_table
from focaldet.report.history import History, history_sections, read_history
from focaldet.report.page import header, section, table, write_page
from focaldet.report.run_report import REPORT_STYLE, evaluation_sections

PAGE = "monitor.html"
ENDINGS = ("finished", "interrupted")
SHOWN_METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
SHOWN_ROWS, SHOWN_EVENTS = 8, 5
BLOCKS, BLOCKS_WIDTH = "▁▂▃▄▅▆▇█", 48


class RunMonitor:
    """Reads a run folder again and again, and shows what is new.

    The part of the page on the detections of the best evaluation is computed anew only where there is a better one.
    """

    def __init__(self, run: Path) -> None:
        """Take a run folder.

        Raises:
            ConfigError: it is not one.
        """
        if not (run / "config.yaml").is_file():
            raise ConfigError(f"monitor: {run} is not a run folder: it has no config.yaml")
        self.run, self.settings = run, read_run_settings(run)
        self.history = read_history(run)
        self._stamp: float | None = None
        self._evaluation = ""

    def refresh(self) -> None:
        """Read what the run has written since."""
        self.history = read_history(self.run)

    @property
    def ending(self) -> str | None:
        """ "finished" or "interrupted" where the last start of the run has come to its end; None while it goes on."""
        for event in reversed(self.history.events):
            if event.get("event") in ENDINGS:
                return str(event["event"])
            if event.get("event") in ("started", "resumed"):
                return None
        return None

    def write_page(self, *, seconds: float) -> Path:
        """Write `monitor.html` into the run folder: the page of a report, which reloads itself until the run ends."""
        path = self.run / PAGE
        lines = "".join(f"<li>{escape(str(e['text']))}</li>" for e in self._spoken()[-SHOWN_EVENTS:])
        state = self.ending or "in training"
        write_page(
            path,
            f"{self.run.absolute().name} · focaldet monitor",
            header(self.run.absolute().name, escape(describe_state(self.history, state)), model=self._model),
            history_sections(self.history),
            section("Evaluations", evaluation_table(self.history)),
            section("What it said last", f"<ul>{lines}</ul>" if lines else ""),
            self._evaluation_part(),
            section("Settings", settings_table(self.settings)),
            section("Environment", environment_table(self.run / "environment.json")),
            style=REPORT_STYLE,
            refresh_seconds=None if self.ending else max(1, round(seconds)),
        )
        return path

    @property
    def _model(self) -> str:
        return str(self.settings.get("model") or "")

    def _spoken(self) -> list[dict[str, Any]]:
        """The events that have a text."""
        return [event for event in self.history.events if event.get("text")]

    def _evaluation_part(self) -> str:
        """What the report says of the best detections so far; nothing before there are any, or without the data."""
        path = self.run / "predictions.json"
        stamp = path.stat().st_mtime if path.is_file() else None
        if stamp is None or stamp == self._stamp:
            return self._evaluation
        try:
            config = run_data_config(None, self.settings)
            dataset = open_evaluation_split(config, "val", seed=self.settings.get("seed", 0))
            self._evaluation = evaluation_sections(self.run, FileSource(dataset), page=self.run / PAGE)
        except (ConfigError, DataError) as error:  # half written, or the data are not on this machine
            self._evaluation = f'<p class="note">{escape(str(error))}</p>'
        self._stamp = stamp
        return self._evaluation

    def render(self) -> RenderableType:
        """What the terminal shows: state, losses, evaluations, time, and what the run said last."""
        state = self.ending or "in training"
        parts: list[RenderableType] = [
            Text(f"{self.run.absolute().name}  {self._model}", style="bold"),
            Text(describe_state(self.history, state)),
        ]
        if self.history.steps:
            parts.append(_loss_table(self.history))
        if self.history.evaluations:
            parts.append(_terminal_evaluations(self.history))
        seconds = self.history.seconds
        if total := sum(seconds.values()):
            parts_of_time = ", ".join(f"{part} {100 * spent / total:.0f} %" for part, spent in seconds.items())
            parts.append(Text(f"time: {parts_of_time}"))
        parts += [Text(str(event["text"]), style="dim") for event in self._spoken()[-SHOWN_EVENTS:]]
        return Group(*parts)


def watch_run(
    run: Path,
    *,
    seconds: float = 5.0,
    once: bool = False,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Show a run in the terminal and as `monitor.html` in its folder until it ends; return the path of the page.

    Args:
        run: the run folder.
        seconds: between two looks at it.
        once: look once and stop.
        console: where to show it; stdout by default.
        sleep: what waits.

    Raises:
        ConfigError: it is not a run folder, or `seconds` is not above 0.
    """
    if not seconds > 0:
        raise ConfigError(f"monitor: seconds: must be above 0, got {seconds:g}")
    monitor, console = RunMonitor(run), console or Console()
    if once or not console.is_terminal:
        page = monitor.write_page(seconds=seconds)
        while not once and monitor.ending is None:
            sleep(seconds)
            monitor.refresh()
            page = monitor.write_page(seconds=seconds)
        console.print(monitor.render())
        return page
    with Live(monitor.render(), console=console, auto_refresh=False) as live:
        page = monitor.write_page(seconds=seconds)
        while monitor.ending is None:
            sleep(seconds)
            monitor.refresh()
            live.update(monitor.render(), refresh=True)
            page = monitor.write_page(seconds=seconds)
    return page


def describe_state(history: History, state: str) -> str:
    """One line: state, epoch, step, speed, learning rate and best AP, as far as they are known."""
    parts = [state]
    if history.steps:
        last = history.steps[-1]
        parts += [f"epoch {last.get('epoch')}", f"step {last.get('step')}"]
        for column, text in (("images_per_second", "{:.1f} images/s"), ("learning_rate", "learning rate {:.2e}")):
            try:
                parts.append(text.format(float(last.get(column) or "")))
            except ValueError:
                continue
    best = max((number for row in history.evaluations if (number := _metric(row, "ap")) is not None), default=None)
    parts += [] if best is None else [f"best AP {percent(best)}"]
    return ", ".join(parts)


def evaluation_table(history: History) -> str:
    """Every evaluation so far, the last one first, in percent; nothing before there is one."""
    rows = [
        [str(row.get("epoch") or ""), *(percent(_metric(row, name)) for name in SHOWN_METRICS)]
        for row in reversed(history.evaluations)
    ]
    return table(["Epoch", *(HEADLINES[name][0] for name in SHOWN_METRICS)], rows) if rows else ""


def _metric(row: dict[str, str], name: str) -> float | None:
    try:
        return float(row.get(name) or "")
    except ValueError:
        return None


def _terminal_evaluations(history: History) -> Table:
    shown = Table(title="AP in percent", title_justify="left")
    for head in ("epoch", *(HEADLINES[name][0] for name in SHOWN_METRICS)):
        shown.add_column(head, justify="right")
    for row in history.evaluations[-SHOWN_ROWS:]:
        shown.add_row(str(row.get("epoch") or ""), *(percent(_metric(row, name)) for name in SHOWN_METRICS))
    return shown


def _loss_table(history: History) -> Table:
    """Each loss: its course as a row of blocks, the first and the last value."""
    shown = Table(title="losses", title_justify="left")
    for head in ("loss", "course", "first", "last"):
        shown.add_column(head, justify="left" if head in ("loss", "course") else "right")
    for name in history.losses:
        values = [value for row in history.steps if (value := _metric(row, name)) is not None]
        if values:
            text = name.removesuffix("_loss").replace("_", " ")
            shown.add_row(text, draw_blocks(values), f"{values[0]:.3f}", f"{values[-1]:.3f}")
    return shown


def draw_blocks(values: list[float]) -> str:
    """A row of blocks as high as the means of `values`; the highest is that which 95 % of them do not pass."""
    width = min(BLOCKS_WIDTH, len(values))
    ends = [len(values) * part // width for part in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    top = sorted(values)[int(0.95 * (len(values) - 1))] or 1.0
    levels = (int(min(1.0, max(0.0, mean / top)) * (len(BLOCKS) - 1)) for mean in means)
    return "".join(BLOCKS[level] for level in levels)
