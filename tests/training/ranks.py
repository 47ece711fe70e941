"""What each process of `torchrun` does in test_ranks.py: `ranks.py FOLDER`."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from focaldet.errors import NonFiniteLossError
from focaldet.training.assembly import Parts
from focaldet.training.step import Update
from focaldet.training.trainer import train
from tests.training.squares import ARCHITECTURE, small_run, squares

# With BatchNorm a rank would see the statistics of its own images only.
FROZEN = {**ARCHITECTURE, "norm": "frozen"}
BOXES = {"everywhere": (), "one_image": tuple(range(1, 16))}


def train_both(folder):
    """20 steps of 4 images: with boxes in all images, and in one alone, so that a rank has none in every step."""
    torch.set_num_threads(1)
    for name, empty in BOXES.items():
        data = squares(16, empty=empty)
        config = small_run(
            folder / name,
            architecture=FROZEN,
            epochs=5,
            optimizer="sgd",
            learning_rate=2e-3,
            evaluate_every=5,
            ema=0.9,
        )
        train(config, sources=(data, data))


def train_phases(folder):
    """Two phases, BatchNorm trained in the first: each rank counts statistics of its own images. What the second begins
    with, as a digest.
    """
    plain, digests = Parts.begin_next_phase, []

    def seen(self):
        plain(self)
        for detector in (self.work.learner.detector, self.work.learner.evaluated):
            state = detector.state_dict()
            digests.append(hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest())

    Parts.begin_next_phase = seen
    phases = ({"epochs": 1}, {"epochs": 1, "learning_rate": 1e-4, "architecture": {"norm": "frozen"}})
    data = squares(16)
    train(small_run(folder / "phases", phases=phases, ema=0.9, evaluate_every=1), sources=(data, data))
    Parts.begin_next_phase = plain
    return digests


def fail_on_one_rank(folder):
    """In the third update the second rank meets NaN; what each rank says about it."""
    plain = Update._losses

    def spoiled(self, batch):
        losses = plain(self, batch)
        broken = self.rank == 1 and self.context.images_seen == 8
        return {name: loss * float("nan") if broken else loss for name, loss in losses.items()}

    Update._losses = spoiled
    data = squares(16)
    try:
        train(small_run(folder / "broken"), sources=(data, data))
    except NonFiniteLossError as error:
        return str(error)
    finally:
        Update._losses = plain
    return "nothing"


def stop_on_one_rank(folder):
    """The second rank alone is asked to stop in the third update; whether this rank stopped."""
    plain = Update.__call__

    def stopped(self, batches, *, step, rate):
        if self.rank == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batches, step=step, rate=rate)

    Update.__call__ = stopped
    data = squares(16)
    interrupted = train(small_run(folder / "stopped"), sources=(data, data)).interrupted
    Update.__call__ = plain
    return interrupted


if __name__ == "__main__":
    out = Path(sys.argv[1])
    train_both(out)
    told = {"phases": train_phases(out), "broken": fail_on_one_rank(out), "interrupted": stop_on_one_rank(out)}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(told))
