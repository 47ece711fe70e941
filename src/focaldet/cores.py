"""The processor's cores: how many a process may use, and what to do where other programs use them too.

The threads of torch wait for each other at the end of every operation, by spinning. Alone that is the fastest. Where
two programs have as many threads as there are cores, most of that waiting is for a thread that has no core, and both
come to less than a tenth of their speed; with fewer threads each they share the cores evenly.
"""

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# A look at the cores is taken after so many seconds, and at least so many of them are needed to act.
LOOK_SECONDS, LOOKS = 0.5, 2

# Threads that had no core for more than this fraction of the time are too many.
BUSY_FRACTION = 0.2

# Where cores were free for so many seconds more threads are tried; each time that was wrong the wait is multiplied.
FREE_SECONDS, MORE_PATIENCE = 10.0, 4.0
FREE_CORES = 0.8

QUOTA_FILES = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
PERIOD_FILE = "/sys/fs/cgroup/cpu/cpu.cfs_period_us"


def usable_cores() -> int:
    """The cores that this process may use by its affinity mask and by the quota of its container."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return number if quota is None else max(1, min(number, math.ceil(quota)))


def _quota() -> float | None:
    """The cores that the container may use at a time, on Linux; None without a limit."""
    for file in map(Path, QUOTA_FILES):
        with suppress(OSError, ValueError, ZeroDivisionError):
            words = file.read_text().split()
            if len(words) == 1:
                words.append(Path(PERIOD_FILE).read_text().strip())
            quota, period = (float(word) for word in words)  # no limit is written as "max" or -1
            return quota / period if quota > 0 else None
    return None


class CoreTimes(NamedTuple):
    """Seconds up to now: the clock's, those that threads that compute waited for a core, and cores were free.

    These two are None where the system does not tell them. `helped` are those in which this program's own helpers had
    a core: processes that load images, and threads that read them.
    """

    clock: float
    waited: float | None
    free: float | None
    helped: float = 0.0


def read_core_times() -> CoreTimes:
    """What Linux counts of this process and of the cores that it may use; elsewhere only the clock.

    The threads that compute are torch's own and the one that calls. All that Python has started beside are helpers.
    """
    waited = free = None
    helpers = {thread.native_id for thread in threading.enumerate()} - {threading.get_native_id()}
    helped = sum(_process_seconds(process.pid) for process in multiprocessing.active_children())
    with suppress(OSError, ValueError, IndexError):
        waited = 0.0
        for task in Path("/proc/self/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                ran, waiting = (int(word) / 1e9 for word in (task / "schedstat").read_text().split()[:2])
                is_helper = int(task.name) in helpers
                helped, waited = (helped + ran, waited) if is_helper else (helped, waited + waiting)
    with suppress(OSError, ValueError, IndexError, AttributeError):
        names, ticks = {f"cpu{core}" for core in os.sched_getaffinity(0)}, os.sysconf("SC_CLK_TCK")
        rows = [row.split() for row in Path("/proc/stat").read_text().splitlines() if row.startswith("cpu")]
        free = sum(int(row[4]) + int(row[5]) for row in rows if row[0] in names) / ticks
    return CoreTimes(time.perf_counter(), waited, free, helped)


def _process_seconds(pid: int | None) -> float:
    """Seconds that a process has had a core; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may have spaces
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class CoreWatch:
    """Decides how many threads a computation should have while other programs come and go.

    What the computation waits for its own helpers does not count: a number of threads that hung on them would change
    the sums with the number of processes that load.

    Attributes:
        threads: the number to have now, between 1 and `most`.
        waiting: the fraction of the time that the threads had no core because of others, at the last look.
    """

    def __init__(
        self,
        threads: int,
        *,
        every_seconds: float = LOOK_SECONDS,
        read_times: Callable[[], CoreTimes] = read_core_times,
    ) -> None:
        self.most, self.threads = threads, min(threads, usable_cores())
        self.waiting = 0.0
        self._every, self._read_times, self._last = every_seconds, read_times, read_times()
        self._busy_looks, self._free_since, self._patience = 0, self._last.clock, FREE_SECONDS
        self._raised = -math.inf

    def look(self) -> bool:
        """Whether `threads` is another number than before; to be called often, as between two steps."""
        if self._every and time.perf_counter() - self._last.clock < self._every:
            return False
        now, last = self._read_times(), self._last
        self._last, seconds = now, now.clock - last.clock
        if now.waited is None or last.waited is None or seconds <= 0:
            return False
        # Threads and processes that have ended since take their times with them.
        own = max(0.0, now.helped - last.helped)
        self.waiting = max(0.0, now.waited - last.waited - own) / (seconds * self.threads)
        if self.waiting > BUSY_FRACTION:
            return self._take_fewer(now)
        self._busy_looks = 0
        return self._take_more(now, last)

    def _take_fewer(self, now: CoreTimes) -> bool:
        self._busy_looks, self._free_since = self._busy_looks + 1, now.clock
        if self._busy_looks < LOOKS or self.threads == 1:
            return False
        if now.clock - self._raised < self._patience:  # more threads were one too many soon after they were taken
            self._patience *= MORE_PATIENCE
        self._busy_looks, self.threads = 0, max(1, int(self.threads * (1 - self.waiting)))
        return True

    def _take_more(self, now: CoreTimes, last: CoreTimes) -> bool:
        if now.free is None or last.free is None or now.free - last.free < FREE_CORES * (now.clock - last.clock):
            self._free_since = now.clock
        if self.threads >= min(self.most, usable_cores()) or now.clock - self._free_since < self._patience:
            return False
        self.threads, self._raised, self._free_since = min(self.most, self.threads * 2), now.clock, now.clock
        return True
