"""What each process of `torchrun` does in test_ranks.py: `ranks.py FOLDER`."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from PIL import Image

from focaldet import prediction
from focaldet.errors import NonFiniteLossError
from focaldet.evaluation.evaluate import detect_all
from focaldet.models.retinanet import RetinaNet
from focaldet.prediction import Predictor, predict_files
from focaldet.runtime import join_processes
from focaldet.training import trainer
from focaldet.training.trainer import Trainer, train
from tests.evaluation.cases import BrightDetector, make_image
from tests.evaluation.test_evaluate import BOXES, Scenes
from tests.training.squares import ARCHITECTURE, small_run, squares

CPU = torch.device("cpu")
# With BatchNorm a rank would see the statistics of its own images only.
FROZEN = {**ARCHITECTURE, "norm": "frozen"}
EMPTY = {"everywhere": (), "one_image": tuple(range(1, 16))}


def train_both(folder):
    """20 steps of 4 images: with boxes in all images, and in one alone, so that a rank has none in every step."""
    torch.set_num_threads(1)
    for name, empty in EMPTY.items():
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
    plain, digests = Trainer._begin_phase, []

    def seen(self):
        plain(self)
        for detector in (self.state.detector, self.state.evaluated) if self.state.phase else ():
            state = detector.state_dict()
            digests.append(hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest())

    Trainer._begin_phase = seen
    phases = ({"epochs": 1}, {"epochs": 1, "learning_rate": 1e-4, "architecture": {"norm": "frozen"}})
    data = squares(16)
    train(small_run(folder / "phases", phases=phases, ema=0.9, evaluate_every=1), sources=(data, data))
    Trainer._begin_phase = plain
    return digests


def fail_on_one_rank(folder):
    """In the third update the second rank meets NaN; what each rank says about it."""
    plain = RetinaNet.losses

    def spoiled(self, outputs, targets, context):
        losses = plain(self, outputs, targets, context)
        broken = os.environ["RANK"] == "1" and context.images_seen == 8
        return {name: loss * float("nan") if broken else loss for name, loss in losses.items()}

    RetinaNet.losses = spoiled
    data = squares(16)
    try:
        train(small_run(folder / "broken"), sources=(data, data))
    except NonFiniteLossError as error:
        return str(error)
    finally:
        RetinaNet.losses = plain
    return "nothing"


def stop_on_one_rank(folder):
    """The second rank alone is asked to stop in the third update; whether this rank stopped."""
    plain = trainer.train_step

    def stopped(state, batches, **named):
        if named["rank"] == 1 and state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(state, batches, **named)

    trainer.train_step = stopped
    data = squares(16)
    interrupted = train(small_run(folder / "stopped"), sources=(data, data)).interrupted
    trainer.train_step = plain
    return interrupted


def write_images(folder):
    """Seven images of which one is broken."""
    folder.mkdir()
    for index, box in enumerate(BOXES[:7]):
        Image.fromarray(make_image(box=box).permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    (folder / "5.png").write_bytes(b"not an image")


def evaluate_and_predict(images, out):
    """A split evaluated and a folder of images predicted: the detections, and how many images were seen here."""
    prediction.ROUND_IMAGES, rounds = 2, prediction.ROUND_IMAGES
    detector = BrightDetector()
    with join_processes(CPU) as process:
        detections = detect_all(detector, Scenes(), batch_size=2, precision="fp32", fabric=process).detections
    seen_in_split = sum(map(len, detector.seen))
    result = predict_files(Predictor(detector, device="cpu"), [images], out, formats=("json", "csv"), batch_size=2)
    prediction.ROUND_IMAGES = rounds
    return {
        "boxes": [one.boxes[0].tolist() for one in detections],
        "seen": [seen_in_split, sum(map(len, detector.seen)) - seen_in_split],
        "predicted": [result.num_images, result.num_detections, [str(error) for error in result.failed]],
    }


def stop_after(run, steps, **settings):
    """A run of 8 steps that is asked to stop after so many; it is resumed where it was stopped before."""
    plain = trainer.train_step

    def stopped(state, batches, **named):
        if state.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(state, batches, **named)

    trainer.train_step = stopped
    data = squares(16)
    result = train(small_run(run, architecture=FROZEN, epochs=2, optimizer="sgd", **settings), sources=(data, data))
    trainer.train_step = plain
    return result.interrupted


if __name__ == "__main__":
    out = Path(sys.argv[1])
    if sys.argv[2:] == ["half"]:
        stop_after(out / "two_then_one", 2)
        stop_after(out / "one_then_two", 99, resume=True)
        sys.exit()
    train_both(out)
    report = {"phases": train_phases(out), "broken": fail_on_one_rank(out), "interrupted": stop_on_one_rank(out)}
    report["work"] = evaluate_and_predict(out / "images", out / "predicted")
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(report))
