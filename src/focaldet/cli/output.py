"""What the commands give back and print: exit statuses, tables, numbers, JSON, errors in one line, progress."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pydantic

from focaldet.check.report import aligned
from focaldet.evaluation.coco import HEADLINES, Metrics, percent
from focaldet.runtime import is_first_process

CLEAN, FAILED, USAGE, UNREADABLE, INTERRUPTED = 0, 1, 2, 3, 130  # exit statuses


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """Something to call with (done, all): a bar on the terminal, nothing where stderr is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Of the processes that `torchrun` or SLURM started, only the first one writes to stdout."""
    if is_first_process():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def print_error(error: Exception) -> None:
    """One line on stderr."""
    text = str(error)
    if isinstance(error.__cause__, pydantic.ValidationError):  # of a flag's range; its own text takes four lines
        text = f"{text.partition('. ')[0]}: {error.__cause__.errors()[0]['msg']}"
    print("focaldet:", " ".join(text.split()), file=sys.stderr)


def print_json(value: Any) -> None:
    """`value` on stdout for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=1))


def print_metrics(metrics: Metrics) -> None:
    """The 12 numbers in percent, then a line per class."""
    lines = [[name, percent(getattr(metrics, field)), meaning] for field, (name, meaning) in HEADLINES.items()]
    print_table(lines, left={0, 2})
    classes = [[row.name, str(row.num_boxes), *map(percent, (row.ap, row.ap50, row.ap75))] for row in metrics.per_class]
    if len(classes) > 1:
        print()
        print_table([["CLASS", "BOXES", "AP", "AP50", "AP75"], *classes], left={0})
    speed = "" if metrics.milliseconds_per_image is None else f", {metrics.milliseconds_per_image:.1f} ms per image"
    print(f"\n{metrics.num_images} images, {metrics.num_boxes} boxes, {metrics.num_detections} detections{speed}")
    for note in metrics.notes:
        print(f"note: {note}")


def print_table(rows: Sequence[Sequence[str]], *, left: set[int]) -> None:
    """Columns two spaces apart; those in `left` start at the left, numbers end at the right."""
    print(*aligned(rows, left=left), sep="\n")
