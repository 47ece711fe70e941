"""`python -m tests.comparison.killed_jobs DATA OUT`: a comparison of one detector, three times, killed where it trains.

Each is a fork of this process, which has done no more than import; printed is how each ended.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from focaldet.comparison import jobs
from focaldet.comparison.compare import compare
from tests.comparison.tiny_detectors import ONE, tiny_comparison, tiny_presets, tiny_settings


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def run_once(data, out):
    """Compare in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            jobs.train = die
            with tiny_presets():
                compare(tiny_settings(data, out), tiny_comparison(models=(ONE,)))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for _ in range(3):
        print(run_once(*map(Path, sys.argv[1:])), flush=True)
