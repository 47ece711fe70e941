"""`focaldet report` and `focaldet monitor`: what was trained, and what is being trained."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet.cli import Switch
from focaldet.cli.flags import SPLIT_HELP, Data, DataParts, optional_data_config
from focaldet.cli.output import say
from focaldet.report.monitor import watch_run
from focaldet.report.report_runs import report_runs


def report_command(
    *runs: Annotated[str, Parameter(help="Run folders.")],
    data: Data = None,
    parts: DataParts = None,
    split: Annotated[str, Parameter(help=SPLIT_HELP)] = "val",
    out: Path | None = None,
) -> None:
    """Write the page of a run anew, or one page with several runs side by side.

    Args:
        out: The page; by default report.html in the run folder, or in the folder that all of several runs lie in.
    """
    say(f"look at  {report_runs(runs, optional_data_config(data, parts), split=split, out=out)}")


def monitor_command(run: Path, /, *, seconds: float = 5.0, once: Switch = False) -> None:
    """Show a run while it is being trained, here and as a page that reloads itself.

    Args:
        run: Run folder.
        seconds: Time between two looks at it.
        once: Look once and stop.
    """
    say(f"look at  {watch_run(run, seconds=seconds, once=once)}")
