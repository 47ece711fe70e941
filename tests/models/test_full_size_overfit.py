"""The published networks at their published size overfit some real images, from random weights.

Those with one stage learn four images at their own size, those with two stages two images with a short side of 256.

What is wrong anywhere between images and score (channel order, priors, matching, losses, decoding) shows here.
DSSD513 begins with the SSD513 that has just overfit them, as its recipe does, and trains its decoder. Every training is
a program of its own, so that its memory can be measured. Alone, with `pytest -m prove -s`, it takes about two hours.
"""

import csv
import json
import os
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.prove

KIB_PER_GIB = 1024**2  # Linux counts `ru_maxrss` in KiB
MOST_GIB = 16
MOST_SECONDS = 30 * 60
FROZEN_ENCODER = ["norm", "frozen", "extra-norm", "frozen", "decoder.norm", "batch", "decoder.frozen-encoder", "true"]


def overfit(out, data, *flags, num_images=4):
    """The run folder after a training on some images, which must end with a good score in time and in memory."""
    command = [sys.executable, "-m", "focaldet", "train", "--data", data, "--out", out, "--overfit", str(num_images)]
    command += ["--batch-size", str(num_images), "--learning-rate", "1e-3", "--backbone-factor", "1.0"]
    command += ["--evaluate-every", "2", *flags]
    log = out.with_suffix(".log")
    begun = time.perf_counter()
    with log.open("w") as stream:
        program = subprocess.Popen(
            [str(word) for word in command],
            stdout=stream,
            stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())},
        )
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
    seconds, peak_gib = time.perf_counter() - begun, usage.ru_maxrss / KIB_PER_GIB
    assert status == 0, log.read_text()[-2000:]
    with (out / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    losses = [round(float(row["loss"]), 3) for row in rows if row["kind"] == "step"]
    scores = [round(float(row["ap50"]), 3) for row in rows if row["kind"] == "evaluation"]
    print(json.dumps({"run": out.name, "ap50": scores, "seconds": seconds, "gib": peak_gib, "loss": losses[::8]}))
    assert scores[-1] >= 0.9
    assert seconds <= MOST_SECONDS
    assert peak_gib <= MOST_GIB
    return out


@pytest.fixture(scope="module")
def ssd513(real_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("full_size") / "ssd513"
    return overfit(out, real_data / "bccd", "--model", "ssd513_r101", "--epochs", "8")


def test_ssd513(ssd513):
    assert (ssd513 / "weights" / "best.safetensors").is_file()


def test_dssd513(ssd513, real_data, tmp_path):
    architecture = [f"--architecture.{word}" if index % 2 == 0 else word for index, word in enumerate(FROZEN_ENCODER)]
    overfit(
        tmp_path / "dssd513",
        real_data / "bccd",
        *("--model", "dssd513_r101", "--weights", ssd513, "--epochs", "8", *architecture),
    )


def test_yolov2(real_data, tmp_path):
    # Two fields are made for runs of half a million updates: statistics that move by .01, a warm-up of 12 800 images.
    architecture = ["--architecture.norm-momentum", "0.1", "--architecture.loss.warmup-images", "64"]
    flags = ["--model", "yolov2", "--size", "416", "--epochs", "8", *architecture]
    overfit(tmp_path / "yolov2", real_data / "bccd", *flags)


# Nothing is pre-trained, so all layers learn. The mean over a region's cells says nothing of it where GroupNorm has
# levelled each region by itself: what looks at regions with half of a classifier learns with BatchNorm. Few regions,
# half of them positive, show conv5 all there is. Anchors made for a short side of 600 px are too large for one of 256:
# 64 px for the smallest, and a platelet has 20.
C4 = {"norm": "batch", "region.sampling.count": "32", "region.sampling.positives": "0.5"}
FROM_27_PX = C4 | {"anchors.base-scale": "1.7", "straddle-px": "null"}
INCEPTION = FROM_27_PX | {"proposals.objects-join": "true"}
TWO_STAGES = {
    "faster_rcnn_r50_fpn": {"norm": "group"},
    "faster_rcnn_r101_fpn": {"norm": "group"},
    "faster_rcnn_x101_32x8d_fpn": {"norm": "group"},
    "faster_rcnn_r101_c4": C4,
    "faster_rcnn_r101_c4_plus": FROM_27_PX,
    "faster_rcnn_inception_resnet_v2": INCEPTION,
    "faster_rcnn_inception_resnet_v2_tdm": INCEPTION,
}


@pytest.mark.parametrize("name", TWO_STAGES)
def test_two_stages(name, real_data, tmp_path):
    settings = {"tower-init": "he", "frozen-stages": "0"} | TWO_STAGES[name]
    architecture = [word for key, value in settings.items() for word in (f"--architecture.{key}", value)]
    epochs = "8" if name.endswith("_fpn") else "14"
    size = ("--short-side", "256", "--max-side", "342", "--epochs", epochs)
    overfit(tmp_path / name, real_data / "bccd", "--model", name, *size, *architecture, num_images=2)
