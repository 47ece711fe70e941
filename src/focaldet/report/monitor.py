"""`focaldet monitor`: a run while it is being trained, in the terminal and as a page that reloads itself."""

import time
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from focaldet.data.dataset import Dataset, FileSource
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.coco import HEADLINES, percent
from focaldet.evaluation.evaluate import run_data_config
from focaldet.report.facts import facts_sections, read_if_there
from focaldet.report.history import EVENTS_FILE, METRICS_FILE, History, history_sections, read_history
from focaldet.report.kept_detections import RESULTS, open_validation_images, require_images, validation_fingerprint
from focaldet.report.page import header, section, table, write_page
from focaldet.report.run_report import REPORT_STYLE, evaluation_sections
from focaldet.text import LONGEST_MESSAGE, printable

PAGE = "monitor.html"
ENDINGS = ("finished", "interrupted")
SHOWN_METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
SHOWN_ROWS, SHOWN_EVENTS = 8, 5
BLOCKS, BLOCKS_WIDTH = "▁▂▃▄▅▆▇█", 48
SILENT_SECONDS, SILENT_PAUSES = 300.0, 10
"""A run that writes nothing for so long, and for so many of its usual pauses, has probably been killed."""


class Stamps(NamedTuple):
    """When each file of a run was written last, in nanoseconds; None where it is missing."""

    config: int | None
    metrics: int | None
    events: int | None
    predictions: int | None


def read_stamps(run: Path) -> Stamps:
    """When the files of a run folder were written last."""
    return Stamps(*(_read_stamp(run / name) for name in ("config.yaml", METRICS_FILE, EVENTS_FILE, RESULTS)))


def _read_stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


class RunMonitor:
    """Reads a run folder again and again, and shows what is new.

    Nothing is computed or written anew while the files of the run are the same, since that would take time from the
    training: the part of the page on the detections of the best evaluation only where there is a better one.
    """

    def __init__(self, run: Path, *, now: Callable[[], float] = time.time) -> None:
        """Take a run folder; `now` gives the time in seconds, as `time.time` does.

        Raises:
            ConfigError: it is not a run folder.
        """
        if not (run / "config.yaml").is_file():
            raise ConfigError(f"monitor: {run} is not a run folder: it has no config.yaml")
        self.run, self.now = run, now
        self.stamps = read_stamps(run)  # before the files: what is written meanwhile is read again
        self.settings, self.history = read_if_there(run / "config.yaml"), read_history(run)
        self._datasets: list[Dataset] | None = None
        self._evaluation = ""
        self._evaluated: int | None = None
        self._written: tuple[object, ...] = ()

    def refresh(self) -> None:
        """Read what the run has written since.

        Raises:
            ConfigError: its new settings cannot be read.
        """
        stamps = read_stamps(self.run)
        if stamps == self.stamps:
            return
        if stamps.config not in (None, self.stamps.config):  # started anew
            self.settings, self._datasets = read_if_there(self.run / "config.yaml"), None
            self._evaluation, self._evaluated = "", None
        self.stamps, self.history = stamps, read_history(self.run)

    @property
    def ending(self) -> str | None:
        """ "finished" or "interrupted" where the last start of the run has come to its end; None while it goes on."""
        for event in reversed(self.history.events):
            if event.get("event") in ENDINGS:
                return str(event["event"])
            if event.get("event") in ("started", "resumed"):
                return None
        return None

    @property
    def silence(self) -> float | None:
        """Seconds since the run wrote anything, where they are far more than usual and it has not ended; else None."""
        written = [stamp for stamp in (self.stamps.metrics, self.stamps.events) if stamp is not None]
        if not written or self.ending is not None:
            return None
        seconds = self.now() - max(written) / 1e9
        return seconds if seconds > max(SILENT_SECONDS, SILENT_PAUSES * self.history.usual_pause) else None

    @property
    def state(self) -> str:
        """How the run is: how it ended, in training, or for how long it has been silent."""
        if (silence := self.silence) is None:
            return self.ending or "in training"
        return f"nothing new for {round(silence / 60)} min, far longer than usual (it may have been killed)"

    def write_page(self, *, seconds: float | None) -> Path:
        """Write `monitor.html` into the run folder where anything is new: the page of a report.

        It reloads itself every `seconds` until the run ends or has been silent for long; never where that is None.
        """
        path, is_silent = self.run / PAGE, self.silence is not None
        reload = None if seconds is None or self.ending or is_silent else max(1, round(seconds))
        if (self.stamps, is_silent, reload) == self._written:
            return path
        name = self.run.absolute().name
        lines = "".join(f"<li>{escape(text)}</li>" for text in self._last_texts())
        about = [escape(describe_state(self.history, self.state))]
        about += ["This page does not load itself anew any more."] if is_silent else []
        datasets, note = self._open_data()
        write_page(
            path,
            f"{name} · focaldet monitor",
            header(name, *about, model=self._model),
            history_sections(self.history),
            section("Evaluations", evaluation_table(self.history)),
            section("What it said last", f"<ul>{lines}</ul>" if lines else ""),
            note or self._evaluation_part(datasets),
            facts_sections(self.run, datasets),
            style=REPORT_STYLE,
            refresh_seconds=reload,
        )
        self._written = (self.stamps, is_silent, reload)
        return path

    @property
    def _model(self) -> str:
        return str(self.settings.get("model") or "")

    def _last_texts(self) -> list[str]:
        """The last events that have a text."""
        texts = [str(event["text"]) for event in self.history.events if event.get("text")]
        return [printable(text, most=LONGEST_MESSAGE, keep="\n") for text in texts[-SHOWN_EVENTS:]]

    def _open_data(self) -> tuple[list[Dataset], str]:
        """The images of the training and of its evaluations, read once, and a note where they cannot be read."""
        note = ""
        if self._datasets is None:
            try:
                validation, training = open_validation_images(run_data_config(None, self.settings), self.settings)
                self._datasets = [each for each in (training, validation) if each is not None]
            except (ConfigError, DataError) as error:  # the data are not on this machine
                note = f'<p class="note">{escape(str(error))}</p>'
        return self._datasets or [], note

    def _evaluation_part(self, datasets: Sequence[Dataset]) -> str:
        """What the report says of the best detections so far; nothing before there are any."""
        if self.stamps.predictions in (None, self._evaluated):
            return self._evaluation
        dataset, path = datasets[-1], self.run / RESULTS
        try:
            require_images(dataset, validation_fingerprint(self.run), run=self.run, path=path)
            self._evaluation = evaluation_sections(self.run, FileSource(dataset), page=self.run / PAGE)
        except (ConfigError, DataError) as error:  # half written, or of other images
            self._evaluation = f'<p class="note">{escape(str(error))}</p>'
        self._evaluated = self.stamps.predictions
        return self._evaluation

    def render(self) -> RenderableType:
        """What the terminal shows: state, losses, evaluations, time, and what the run said last.

        Whatever is in the files of the run, the terminal takes none of it for a command.
        """
        parts: list[RenderableType] = [
            Text(printable(f"{self.run.absolute().name}  {self._model}"), style="bold"),
            Text(describe_state(self.history, self.state)),
        ]
        if self.history.steps:
            parts.append(_loss_table(self.history))
        if self.history.evaluations:
            parts.append(_terminal_evaluations(self.history))
        seconds = self.history.seconds
        if total := sum(seconds.values()):
            spent_on = ", ".join(f"{printable(part)} {100 * spent / total:.0f} %" for part, spent in seconds.items())
            parts.append(Text(f"time: {spent_on}"))
        parts += [Text(text, style="dim") for text in self._last_texts()]
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
        page = _follow(monitor, seconds=seconds, sleep=sleep, once=once)
        console.print(monitor.render())
        return page
    with Live(monitor.render(), console=console, auto_refresh=False) as live:
        return _follow(monitor, seconds=seconds, sleep=sleep, show=lambda: live.update(monitor.render(), refresh=True))


def _follow(
    monitor: RunMonitor,
    *,
    seconds: float,
    sleep: Callable[[float], None],
    once: bool = False,
    show: Callable[[], None] = lambda: None,
) -> Path:
    """Write the page and `show` what is new until the run ends; the last page does not reload itself."""
    try:
        page = monitor.write_page(seconds=None if once else seconds)
        while not once and monitor.ending is None:
            sleep(seconds)
            monitor.refresh()
            show()
            page = monitor.write_page(seconds=seconds)
    except KeyboardInterrupt:
        monitor.write_page(seconds=None)
        raise
    return page


def describe_state(history: History, state: str) -> str:
    """One line: state, epoch, step, speed, learning rate and best AP, as far as they are known."""
    parts = [state]
    if history.steps:
        last = history.steps[-1]
        parts += [f"epoch {printable(last.get('epoch'))}", f"step {printable(last.get('step'))}"]
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
        [escape(str(row.get("epoch") or "")), *(percent(_metric(row, name)) for name in SHOWN_METRICS)]
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
        shown.add_row(Text(printable(row.get("epoch") or "")), *(percent(_metric(row, name)) for name in SHOWN_METRICS))
    return shown


def _loss_table(history: History) -> Table:
    """Each loss: its course as a row of blocks, the first and the last value."""
    shown = Table(title="losses", title_justify="left")
    for head in ("loss", "course", "first", "last"):
        shown.add_column(head, justify="left" if head in ("loss", "course") else "right")
    for name in history.losses:
        values = [value for row in history.steps if (value := _metric(row, name)) is not None]
        if values:
            text = Text(printable(name.removesuffix("_loss").replace("_", " ")))
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
