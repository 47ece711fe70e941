"""Trains in processes that are killed again and again: `python kills.py FOLDER PLAN`; test_kills.py compares the ends.

PLAN is JSON: {run name: [kill, …]}. A kill is {"rows": r, "seconds": s} (SIGKILL from outside, so long after
metrics.csv has r rows), {"step": n} (in the middle of update n) or {"write": n, "fraction": f} (in write n of a file
that is saved, when the fraction f of it is on disk; 1 means before it is renamed, 2 just after), or {"phase": n} (phase
n has begun and has not made its first step). After the last kill the run is left to finish. Runs whose name begins with
"phases" have two. Each process is a fork of this one, which has done no more than import, so that a process costs
no start.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import hotcoco  # noqa: F401  imported here once instead of in every process
import lightning_fabric  # noqa: F401
import torch

from focaldet.training import trainer
from tests.training.squares import small_run, squares

# The first trains the heads with an average of the weights, the second, whose batches are smaller, all without one.
PHASES = (
    {"epochs": 2, "frozen_stages": 5, "schedule": "constant"},
    {"epochs": 2, "batch_size": 2, "learning_rate": 5e-4, "ema": None, "architecture": {"norm": "frozen"}},
)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arrange(kill):
    """Make this process die as `kill` says."""
    if "step" in kill:
        plain = trainer.train_step

        def step_killed(state, batches, **named):
            if state.step + 1 == kill["step"]:
                threading.Timer(0.01, die).start()
            return plain(state, batches, **named)

        trainer.train_step = step_killed
    elif "phase" in kill:
        following = trainer.next_state

        def next_killed(state, *args, **named):
            state = following(state, *args, **named)
            if state.phase + 1 == kill["phase"]:
                die()
            return state

        trainer.next_state = next_killed
    elif "write" in kill:
        count_writes(kill["write"], kill["fraction"])


def count_writes(number, fraction):
    """Die in write `number`: cut what was written, before it is renamed; or right after the renaming."""
    seen = []
    replace = Path.replace

    def killed(self, target):
        seen.append(target)
        if len(seen) < number:
            return replace(self, target)
        if fraction <= 1:
            os.truncate(self, int(fraction * self.stat().st_size))
        else:
            replace(self, target)
        die()
        return None

    Path.replace = killed


def kill_from_outside(child, metrics, *, rows, seconds):
    """Send SIGKILL some time after the file has so many rows; 0 rows: after the file is there."""
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= rows + (rows > 0)):
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)


def process(out, *, resume, kill, workers):
    """Train in a process of its own; whether it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            arrange(kill)
            data = squares(12, empty=(3,))
            length = {"phases": PHASES} if out.name.startswith("phases") else {"epochs": 4}
            trainer.train(
                small_run(out, resume=resume, workers=workers, ema=0.9, evaluate_every=2, save_steps=2, **length),
                sources=(data, data),
            )
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if "rows" in kill:
        kill_from_outside(child, out / "metrics.csv", **kill)
    _, ending = os.waitpid(child, 0)
    if os.WIFSIGNALED(ending):
        assert os.WTERMSIG(ending) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(ending) == 0, "training itself failed"
    return False


def main(folder, plan):
    """Carry out the plan; write which kills hit a living process."""
    report = {}
    for name, kills in plan.items():
        begin, hits = time.monotonic(), []
        for number, kill in enumerate([*kills, {}]):
            hits.append(process(folder / name, resume=number > 0, kill=kill, workers=2 * (number % 2)))
        assert not hits[-1], "nothing kills the last process"
        report[name] = {"hits": hits[:-1], "seconds": time.monotonic() - begin}
        (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
