"""A sweep that kills itself: `python kill_sweep.py FOLDER UPDATES`, when it would begin one update more."""

import os
import signal
import sys
from pathlib import Path

import torch

from focaldet.study.sweep import study_sweep
from focaldet.training import trainer
from tests.training.squares import small_run, squares

DATA = squares(6)
FEW = {"gammas": (0.0, 2.0), "alphas": (0.25, None)}


def of_squares(out, **changes):
    """Four updates a setting, saved after each."""
    settings = {"epochs": 2, "evaluate_every": 2, "batch_size": 3, "save_steps": 1, "threads": 1}
    return small_run(out, **{**settings, **changes})


def main(out, updates):
    plain = trainer.train_step

    def step_or_die(state, batches, **named):
        nonlocal updates
        updates -= 1
        if updates < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(state, batches, **named)

    trainer.train_step = step_or_die
    study_sweep(of_squares(out), sources=(DATA, DATA), **FEW)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
