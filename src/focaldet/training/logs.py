"""What a run writes down: `metrics.csv`, `events.jsonl`, progress on the terminal, and the chosen trackers.

A record has a kind: "step", "evaluation", or the name of an event.
"""

import csv
import io
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from focaldet.errors import ConfigError
from focaldet.files import open_growing, read_bytes, read_utf8, to_json_text, write_csv
from focaldet.text import LONGEST_MESSAGE, printable
from focaldet.training.config import Logger

STEP_COLUMNS = ("seconds", "loading_seconds", "images_per_second", "learning_rate", "gradient_norm", "loss")
SECONDS_TO_FIRST_LINE, SECONDS_BETWEEN_LINES = 2.0, 10.0


class RunLog:
    """Writes every record of a run where it belongs.

    Steps and evaluations go to metrics.csv and to the trackers; evaluations and events, with the time, to
    events.jsonl, which is the history of all starts and never cut. The terminal has a progress bar and a line per
    event that has a `text`; without a terminal it is a plain line every ten seconds, the first one after two.

    The `notes` of an evaluation become events of their own, each once, whatever its numbers are the next time.
    """

    def __init__(
        self,
        metrics: "MetricsFile",
        *,
        events: Path,
        total_steps: int,
        done_steps: int = 0,
        trackers: Sequence[Any] = (),
        console: Console | None = None,
    ) -> None:
        self.metrics, self.trackers, self.total_steps = metrics, trackers, total_steps
        self.events, self.known_notes = open_growing(events), set[str]()
        self.console = console or Console(file=sys.stdout)
        self.is_terminal, self.next_line = self.console.is_terminal, time.monotonic() + SECONDS_TO_FIRST_LINE
        self.progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self.console,
            disable=not self.is_terminal,
        )
        self.task = self.progress.add_task("train", total=total_steps, completed=done_steps, status="")
        self.progress.start()

    def write(self, kind: str, **values: Any) -> None:
        """Write one record."""
        notes = values.pop("notes", ())
        self.metrics.write(kind, values)
        if kind == "step":
            self._show_step(values)
        else:
            self._write_event(kind, values)
        if kind in ("step", "evaluation"):
            self._track(kind, values)
        for note in notes:
            self._write_note(note)

    def set_total(self, steps: int) -> None:
        """Say how many steps the run will have, where that has changed."""
        self.total_steps = steps
        self.progress.update(self.task, total=steps)

    @property
    def num_rows(self) -> int:
        """The rows of metrics.csv so far."""
        return self.metrics.num_rows

    def _write_event(self, kind: str, values: Mapping[str, Any]) -> None:
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **values}
        self.events.write(to_json_text(record, default=str) + "\n")
        if "text" in values:
            self._print(values["text"])

    def _write_note(self, note: str) -> None:
        """Write a note of an evaluation, unless one that differs in its numbers alone was written before."""
        words = re.sub(r"\d+", "", note)
        if words not in self.known_notes:
            self.known_notes.add(words)
            self._write_event("note", {"text": f"note: {note}"})

    def _show_step(self, values: Mapping[str, Any]) -> None:
        """Time left, each loss, images per second, learning rate, memory."""
        step = values["step"]
        losses = "  ".join(f"{name} {value:.4f}" for name, value in values["losses"].items())
        status = (
            f"ETA {values['eta']}  {losses}  "
            f"{values['images_per_second']:.1f} images/s  lr {values['learning_rate']:.2e}  {memory_gb():.1f} GB"
        )
        self.progress.update(self.task, completed=step, status=status)
        if not self.is_terminal and (time.monotonic() > self.next_line or step == self.total_steps):
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self._print(f"step {step}/{self.total_steps}  epoch {values['epoch']}  {status}")

    def _print(self, line: str) -> None:
        shown = printable(line, most=LONGEST_MESSAGE, keep="\n")
        self.console.print(shown, soft_wrap=True, markup=False, highlight=False)

    def _track(self, kind: str, values: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in loss_columns(values).items() if isinstance(value, int | float)}
        step = numbers.pop("step")
        for tracker in self.trackers:
            tracker.log_metrics({f"{kind}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """Write what is left and let go of files."""
        for tracker in self.trackers:
            tracker.finalize("success")
        self.metrics.close()
        self.events.close()
        self.progress.stop()


class MetricsFile:
    """`metrics.csv`: a row per logged step and per evaluation, whose `kind` says which; missing values are empty.

    The columns are `kind`, `epoch`, `step`, those of a step, one `<name>_loss` per loss, and `evaluation_columns`; in a
    run with phases `phase` comes after `kind`. Of a file that is already there only `keep_rows` rows stay, so that
    those written after the state that a run resumes from are not there twice.
    """

    def __init__(
        self, path: Path, *, evaluation_columns: Sequence[str], log_every: int = 1, keep_rows: int = 0
    ) -> None:
        self.evaluation_columns, self.log_every, self.num_rows = tuple(evaluation_columns), log_every, keep_rows
        self.path = path
        kept = read_bytes(path).splitlines(keepends=True)[: keep_rows + 1] if keep_rows else []
        self.columns = next(csv.reader([kept[0].decode()]), []) if kept else []
        self.losses: list[str] = []
        self.file = self._open()
        self.file.truncate(sum(map(len, kept)))

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write a row for a record that has one."""
        # The first row can be an evaluation's, which has no losses: the header takes them from steps that get no row.
        if kind == "step":
            losses = [name for name in loss_columns(values) if name.endswith("_loss")]
            if not self.columns:
                self.losses = losses
            elif new := [name for name in losses if name not in self.columns]:
                self._add_columns(new)
        if kind == "evaluation" or (kind == "step" and values["step"] % self.log_every == 0):
            self._write_row({"kind": kind, **loss_columns(values)})

    def _write_row(self, row: dict[str, Any]) -> None:
        writer = csv.writer(self.file, lineterminator="\n")
        if not self.columns:
            lead = ["kind", "phase"] if "phase" in row else ["kind"]
            self.columns = [*lead, "epoch", "step", *STEP_COLUMNS, *self.losses, *self.evaluation_columns]
            writer.writerow(self.columns)
        values = [row.get(column, "") for column in self.columns]
        writer.writerow([f"{value:.7g}" if isinstance(value, float) else value for value in values])
        self.num_rows += 1

    def _add_columns(self, losses: Sequence[str]) -> None:
        """Give losses that only a later phase has columns beside the others."""
        position = max(number for number, name in enumerate(self.columns, start=1) if name.endswith("loss"))
        self.columns[position:position] = losses
        self.file.close()
        rows = list(csv.DictReader(io.StringIO(read_utf8(self.path), newline="")))
        values = ([row.get(column) or "" for column in self.columns] for row in rows)
        write_csv(self.path, self.columns, values, newline="\n")
        self.file = self._open()

    def _open(self) -> TextIO:
        return open_growing(self.path)

    def close(self) -> None:
        self.file.close()


def open_trackers(names: Sequence[Logger], *, folder: Path, settings: Mapping[str, Any]) -> list[Any]:
    """TensorBoard, Weights & Biases or MLflow through Fabric's loggers, which have written the `settings`.

    Raises:
        ConfigError: the package of a tracker is not installed.
    """
    trackers = [_open_tracker(name, folder) for name in names]
    for tracker in trackers:
        tracker.log_hyperparams(dict(settings))
    return trackers


def _open_tracker(name: Logger, folder: Path) -> Any:
    try:
        if name == "tensorboard":
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            return TensorBoardLogger(root_dir=folder, name="tensorboard", version="")
        if name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            return WandbLogger(name=folder.name, save_dir=folder)
        from lightning.pytorch.loggers import MLFlowLogger

        return MLFlowLogger(experiment_name=folder.name, save_dir=str(folder / "mlruns"))
    except ModuleNotFoundError as error:
        packages = "tensorboard" if name == "tensorboard" else f"{name} lightning"
        raise ConfigError(f"loggers: {name} needs what is not installed: pip install {packages}") from error


def loss_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its losses as columns: `losses` {"class": …} becomes `class_loss`."""
    row = dict(values)
    losses: Mapping[str, float] = row.pop("losses", {})
    return {**row, **{f"{name}_loss": value for name, value in losses.items()}}


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03, or 2:03 within an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory_gb() -> float:
    """The largest amount of memory used so far in GB: of the GPU where one is in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)
