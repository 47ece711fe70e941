"""Trainings whose process dies without a word, as the kernel ends one for lack of memory: none is begun for ever.

`results/<job>.started` is there while a job is under way. Only what nobody can catch leaves it behind.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from focaldet import config as configs
from focaldet.errors import ConfigError
from focaldet.files import write_json
from focaldet.ranges import NonNegativeInt, PositiveInt
from focaldet.training.run_folder import RunFolder, lock_run, runs_on_this_machine

MOST_DEATHS = 2  # in a row, before a job counts as one that cannot be trained


@dataclass(frozen=True, slots=True)
class JobStart:
    """Who began a job, how often its process had died before, and the moment of the state that was saved by then.

    `deaths` are those since that state; `saved` is None where there was none.
    """

    process: PositiveInt
    machine: str
    deaths: NonNegativeInt
    saved: int | None


@contextmanager
def mark_start(file: Path, run: Path) -> Iterator[int]:
    """Keep `file` while a job is under way; how often in a row its process has died without saving a new state.

    Whatever else ends the job, an error or a request to stop, removes the file.

    Args:
        file: the mark.
        run: the run folder of the job.

    Raises:
        TakenError: another process trains it.
        ConfigError: no folder can be made there.
    """
    state = RunFolder(run).state
    with lock_run(run):  # nobody trains it, so a mark is one that was left behind
        saved = state.stat().st_mtime_ns if state.is_file() else None
        deaths = _count_deaths(file, saved)
        configs.make_folder(file.parent)
        write_json(file, configs.to_dict(JobStart(os.getpid(), platform.node(), deaths, saved)))
    try:
        yield deaths
    finally:
        file.unlink(missing_ok=True)


def _count_deaths(file: Path, saved: int | None) -> int:
    """The deaths since the state that was saved at `saved`, the one that left the mark `file` included."""
    if not file.is_file():
        return 0
    try:
        start = configs.from_dict(JobStart, configs.read_mapping(file), source=str(file))
    except ConfigError:
        return 0
    if start.saved != saved:
        return 0
    is_alive = start.process != os.getpid() and runs_on_this_machine(start.process, start.machine)
    return start.deaths + (not is_alive)  # one that is alive evaluates
