"""How many threads beside other programs: by times that are made up, and by a real thread that waits."""

import itertools
import multiprocessing
import os
import sys
import threading
import time

import pytest

from focaldet import cores
from focaldet.cores import FREE_SECONDS, CoreTimes, CoreWatch, read_core_times, usable_cores


def watch_of(threads, rows, monkeypatch, *, usable=8):
    """A watch that reads these times one after another, and the numbers of threads that it comes to."""
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    times = iter(CoreTimes(*row) for row in rows)
    watch = CoreWatch(threads, every_seconds=0.0, read_times=lambda: next(times))
    numbers = []
    for _ in rows[1:]:
        changed = watch.look()
        assert changed == (watch.threads != (numbers[-1] if numbers else min(threads, usable)))
        numbers.append(watch.threads)
    return numbers


def run_of(seconds, *, waiting, free, begin=(0.0, 0.0, 0.0)):
    """Times of a second each, of which threads wait and cores are free for so many seconds."""
    clock, waited, unused = begin
    return [(clock + n, waited + n * waiting, unused + n * free) for n in range(seconds + 1)]


def test_alone_the_number_stays(monkeypatch):
    assert watch_of(4, run_of(6, waiting=0.1, free=0.2), monkeypatch) == [4] * 6


def test_two_threads_that_wait_half_of_the_time_become_one_and_stay_one(monkeypatch):
    assert watch_of(2, run_of(30, waiting=1.0, free=0.0), monkeypatch) == [2] + [1] * 29


def test_what_is_waited_for_ones_own_helpers_does_not_count(monkeypatch):
    """Processes that load images and threads that read them: the sums must not depend on how many there are."""
    rows = [(*row, 1.0 * n) for n, row in enumerate(run_of(30, waiting=1.0, free=0.0))]
    assert watch_of(2, rows, monkeypatch) == [2] * 30
    rows = [(*row, 0.4 * n) for n, row in enumerate(run_of(30, waiting=1.0, free=0.0))]
    assert watch_of(2, rows, monkeypatch) == [2] + [1] * 29, "the rest is that of other programs"


def test_one_busy_moment_changes_nothing(monkeypatch):
    rows = [(0.0, 0.0, 0.0), (1.0, 4.0, 0.0), (2.0, 4.1, 0.0), (3.0, 8.1, 0.0), (4.0, 8.2, 0.0)]
    assert watch_of(4, rows, monkeypatch) == [4] * 4


def test_when_the_other_program_has_ended_the_threads_come_back(monkeypatch):
    busy = run_of(2, waiting=4.0, free=0.0)
    alone = run_of(40, waiting=0.0, free=3.0, begin=busy[-1])[1:]
    numbers = watch_of(8, busy + alone, monkeypatch)
    assert numbers[:2] == [8, 4] and numbers[-1] == 8
    assert numbers.index(8, 2) == pytest.approx(2 + FREE_SECONDS, abs=2)


def test_threads_that_came_back_too_soon_wait_longer_the_next_time(monkeypatch):
    rows = run_of(2, waiting=2.0, free=0.0)
    for _ in range(2):
        for waiting, free, seconds in ((0.0, 1.0, 11), (2.0, 0.0, 2)):
            rows += run_of(seconds, waiting=waiting, free=free, begin=rows[-1])[1:]
    numbers = watch_of(2, rows, monkeypatch)
    assert [number for number, _ in itertools.groupby(numbers)] == [2, 1, 2, 1]


def test_a_quota_limits_from_the_beginning(monkeypatch):
    assert watch_of(8, run_of(3, waiting=0.0, free=8.0), monkeypatch, usable=2) == [2] * 3


def test_a_system_that_tells_nothing_changes_nothing(monkeypatch):
    assert watch_of(4, [(float(n), None, None) for n in range(5)], monkeypatch) == [4] * 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.cfs_quota_us": "50000\n", "period": "100000\n"}, 1),
        ({"cpu.cfs_quota_us": "-1\n", "period": "100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({}, 8),
    ],
)
def test_the_quota_of_a_container(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cores, "QUOTA_FILES", (str(tmp_path / "cpu.max"), str(tmp_path / "cpu.cfs_quota_us")))
    monkeypatch.setattr(cores, "PERIOD_FILE", str(tmp_path / "period"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell how long threads wait for a core")
def test_linux_tells_these_times():
    first, second = read_core_times(), read_core_times()
    assert first.waited is not None and first.free is not None
    assert second.clock > first.clock and second.free >= first.free


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what threads and processes took")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("helper", [threading.Thread, multiprocessing.get_context("fork").Process])
def test_the_time_of_helpers_is_known_while_they_live(helper):
    leave = multiprocessing.get_context("fork").Event()
    before = read_core_times()
    working = helper(target=lambda: (spin(0.1), leave.wait(20)), daemon=True)
    working.start()
    end, helped = time.monotonic() + 20, 0.0
    while helped < 0.09 and time.monotonic() < end:
        time.sleep(0.05)
        helped = read_core_times().helped - before.helped
    leave.set()
    working.join()
    assert 0.09 <= helped < 1
