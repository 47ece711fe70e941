"""What a run tells: `metrics.csv`, `events.jsonl`, the progress on the terminal, and trackers that were asked for.

A `RunLog` hands every record to its sinks. A record has a kind: "step", "evaluation", or the name of an event.
"""

import csv
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from focaldet.errors import ConfigError
from focaldet.training.config import Logger

STEP_COLUMNS = ("seconds", "images_per_second", "learning_rate", "gradient_norm", "loss")
SECONDS_BETWEEN_LINES = 10.0
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@runtime_checkable
class Sink(Protocol):
    """Takes records and keeps those it is interested in."""

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take one record."""

    def close(self) -> None:
        """Write what is left and let go of files."""


class RunLog:
    """The sinks of a run; processes other than the first have none."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks

    def write(self, kind: str, **values: Any) -> None:
        """Hand one record to every sink."""
        for sink in self.sinks:
            sink.write(kind, values)

    @property
    def num_rows(self) -> int:
        """The rows of metrics.csv so far."""
        return sum(sink.num_rows for sink in self.sinks if isinstance(sink, MetricsFile))

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


class MetricsFile:
    """`metrics.csv`: a row per logged step and per evaluation, `kind` telling which; what a row does not have is empty.

    The columns are `kind`, `epoch`, `step`, those of a step, one `<name>_loss` per loss, and `evaluation_columns`; in a
    run with phases `phase` comes after `kind`. Of a file that is already there, `keep_rows` rows stay: those written
    after the state that a run resumes from.
    """

    def __init__(
        self, path: Path, *, evaluation_columns: Sequence[str], log_every: int = 1, keep_rows: int = 0
    ) -> None:
        self.evaluation_columns, self.log_every, self.num_rows = tuple(evaluation_columns), log_every, keep_rows
        self.path = path
        kept = path.read_bytes().splitlines(keepends=True)[: keep_rows + 1] if keep_rows else []
        self.columns = next(csv.reader([kept[0].decode()]), []) if kept else []
        self.losses: list[str] = []
        self.file = self._opened()
        self.file.truncate(sum(map(len, kept)))

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        # The first row can be an evaluation's, which has no losses: the header takes them from steps that get no row.
        if kind == "step":
            losses = [name for name in flat(values) if name.endswith("_loss")]
            if not self.columns:
                self.losses = losses
            elif new := [name for name in losses if name not in self.columns]:
                self._widen(new)
        if kind == "evaluation" or (kind == "step" and values["step"] % self.log_every == 0):
            self._row({"kind": kind, **flat(values)})

    def _row(self, row: dict[str, Any]) -> None:
        if not self.columns:
            lead = ["kind", "phase"] if "phase" in row else ["kind"]
            self.columns = [*lead, "epoch", "step", *STEP_COLUMNS, *self.losses, *self.evaluation_columns]
            csv.writer(self.file, lineterminator="\n").writerow(self.columns)
        shown = [row.get(column, "") for column in self.columns]
        csv.writer(self.file, lineterminator="\n").writerow(
            [f"{value:.7g}" if isinstance(value, float) else value for value in shown]
        )
        self.num_rows += 1

    def _widen(self, losses: Sequence[str]) -> None:
        """Give the losses that a later phase brings columns beside the others."""
        place = max(number for number, name in enumerate(self.columns, start=1) if name.endswith("loss"))
        self.columns[place:place] = losses
        self.file.close()
        with self.path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        part = self.path.with_name(f".{self.path.name}.partial")
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        part.replace(self.path)
        self.file = self._opened()

    def _opened(self) -> TextIO:
        return self.path.open("a", encoding="utf-8", newline="", buffering=1)

    def close(self) -> None:
        self.file.close()


class EventsFile:
    """`events.jsonl`: one JSON object per event, with the time; the history of all starts, so never cut."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        if kind != "step":
            record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **values}
            self.file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


class Display:
    """The terminal: a progress bar and a line per event; without a terminal a plain line every ten seconds."""

    def __init__(self, *, total_steps: int, done_steps: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout)
        self.total_steps, self.last_line = total_steps, time.monotonic()
        self.progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("train", total=total_steps, completed=done_steps, status="")
        self.progress.start()

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "step":
            self._step(values)
        elif "text" in values:
            self.console.print(values["text"], soft_wrap=True, markup=False, highlight=False)

    def _step(self, values: Mapping[str, Any]) -> None:
        status = self.status(values)
        self.progress.update(self.task, completed=values["step"], status=status)
        due = time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and (due or values["step"] == self.total_steps):
            self.last_line = time.monotonic()
            line = f"step {values['step']}/{self.total_steps}  epoch {values['epoch']}  {status}"
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def status(self, values: Mapping[str, Any]) -> str:
        """One line: time left, each loss, images per second, learning rate, memory."""
        left = (self.total_steps - values["step"]) * values["seconds"]
        losses = "  ".join(f"{name} {value:.4f}" for name, value in values["losses"].items())
        return (
            f"ETA {clock(left)}  {losses}  {values['images_per_second']:.1f} images/s  "
            f"lr {values['learning_rate']:.2e}  {memory_gb():.1f} GB"
        )

    def close(self) -> None:
        self.progress.stop()


class Trackers:
    """TensorBoard, Weights & Biases or MLflow through Fabric's loggers."""

    def __init__(self, names: Sequence[Logger], *, folder: Path, settings: Mapping[str, Any]) -> None:
        self.loggers = [_tracker(name, folder) for name in names]
        for logger in self.loggers:
            logger.log_hyperparams(dict(settings))

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        if kind in ("step", "evaluation"):
            numbers = {name: value for name, value in flat(values).items() if isinstance(value, int | float)}
            step = numbers.pop("step")
            for logger in self.loggers:
                logger.log_metrics({f"{kind}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        for logger in self.loggers:
            logger.finalize("success")


def _tracker(name: Logger, folder: Path) -> Any:
    """Raise ConfigError where the package of the tracker is not installed."""
    try:
        if name == "tensorboard":
            from lightning.fabric.loggers.tensorboard import TensorBoardLogger

            return TensorBoardLogger(root_dir=folder, name="tensorboard", version="")
        if name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            return WandbLogger(name=folder.name, save_dir=folder)
        from lightning.pytorch.loggers import MLFlowLogger

        return MLFlowLogger(experiment_name=folder.name, save_dir=str(folder / "mlruns"))
    except ModuleNotFoundError as error:
        message = f"loggers: {name} needs a package that is not installed: pip install {PACKAGES[name]}"
        raise ConfigError(message) from error


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
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
