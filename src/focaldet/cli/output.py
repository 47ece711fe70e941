"""What the commands give back and print: exit statuses, tables, numbers, JSON, errors in one line, progress.

Nothing here imports torch before it is needed: `focaldet --help` is quick.
"""

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focaldet.files import to_json_text
from focaldet.text import LONGEST_MESSAGE, align_columns, printable

if TYPE_CHECKING:
    from focaldet.evaluation.coco import Metrics
    from focaldet.training.rate_finder import RateCurve

LONGEST_LINE = 4 * LONGEST_MESSAGE  # characters; a table of many columns has some hundred
UNPRINTABLE = re.compile(r"[\x7f-\xa0\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]")
"""What JSON may hold as it is, and no terminal should get."""
RATE_BAR, MOST_RATES = 40, 40  # characters of the longest bar, and lines

CLEAN, FAILED, USAGE, UNREADABLE, INTERRUPTED = 0, 1, 2, 3, 130  # exit statuses


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """A function to call with (done, all): it moves a bar on the terminal, and does nothing where stderr is not one."""
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
    if is_first():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def is_first() -> bool:
    """Whether this is the first of the processes that `torchrun` or SLURM started, or the only one."""
    if not {"TORCHELASTIC_RUN_ID", "SLURM_JOB_NAME"} & {*os.environ}:
        return True
    from focaldet.runtime import is_first_process

    return is_first_process()


def open_streams() -> None:
    """Make sure that stdout and stderr can be written to: what their encoding lacks is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  to the end of the program
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Write what is left for stdout; where nobody reads it, or its disk is full, it goes nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(*lines: object, file: Any = None) -> None:
    """Lines of text on stdout or `file`; whatever names are in them, no terminal takes them for a command."""
    for line in lines or ("",):
        print(printable(line, most=LONGEST_LINE, keep="\n\t"), file=file or sys.stdout)


def print_error(error: Exception | str) -> None:
    """One line on stderr."""
    import pydantic

    text, cause = str(error), getattr(error, "__cause__", None)
    if isinstance(cause, pydantic.ValidationError):  # of a flag's range; its own text takes four lines
        text = f"{text.partition('. ')[0]}: {cause.errors()[0]['msg']}"
    say(f"focaldet: {printable(' '.join(text.split()), most=LONGEST_MESSAGE)}", file=sys.stderr)


def describe_system_error(error: OSError) -> str:
    """What the system refused, in one line: the file and the reason."""
    file = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{file}no space left on the disk; what was written before is whole"
    return f"{file}{error.strerror or error}"


def json_text(value: Any) -> str:
    """`value` as JSON, as all files and output of the commands have it."""
    return to_json_text(value, indent=1)


def print_json(value: Any) -> None:
    """`value` on stdout for programs."""
    print(UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], json_text(value)))


def print_metrics(metrics: "Metrics") -> None:
    """The 12 numbers in percent, then a line per class."""
    from focaldet.data.formats.text import quantity
    from focaldet.evaluation.coco import HEADLINES, headline, percent

    names = {field: headline(field, max_detections=metrics.max_detections) for field in HEADLINES}
    lines = [[name, percent(getattr(metrics, field)), meaning] for field, (name, meaning) in names.items()]
    print_table(lines, left={0, 2})
    classes = [[row.name, str(row.num_boxes), *map(percent, (row.ap, row.ap50, row.ap75))] for row in metrics.per_class]
    if len(classes) > 1:
        say()
        print_table([["CLASS", "BOXES", "AP", "AP50", "AP75"], *classes], left={0})
    counts = [
        quantity(metrics.num_images, "image"),
        quantity(metrics.num_boxes, "box", "boxes"),
        quantity(metrics.num_detections, "detection"),
    ]
    if metrics.milliseconds_per_image is not None:
        counts.append(f"{metrics.milliseconds_per_image:.1f} ms per image")
    say(f"\n{', '.join(counts)}")
    for note in metrics.notes:
        say(f"note: {note}")


def print_rates(curve: "RateCurve") -> None:
    """The loss at each learning rate as a table with bars, and the rate to take."""
    smooth = [trial.smooth for trial in curve.trials]
    most = max(smooth, default=1.0)
    rows = [["LEARNING RATE", "LOSS", "SMOOTHED", ""]]
    for trial in curve.trials[:: max(1, len(smooth) // MOST_RATES)]:
        bar = "█" * round(RATE_BAR * trial.smooth / most)
        rows.append([f"{trial.rate:.1e}", f"{trial.loss:.3f}", f"{trial.smooth:.3f}", bar])
    print_table(rows, left={3})
    if curve.suggestion is None:
        say("\nno rate made the loss fall: see what focaldet check says of the data")
    else:
        say(f"\ntake     --learning-rate {curve.suggestion:g}   (a third of that at the smallest loss)")


def print_table(rows: Sequence[Sequence[str]], *, left: set[int]) -> None:
    """Columns two spaces apart; those in `left` start at the left, numbers end at the right."""
    say(*align_columns(rows, left=left))
