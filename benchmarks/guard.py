"""Whether RetinaNet still learns: a training of two minutes whose AP must not fall below a bar.

It is on blood cells or, without `--data`, on fixed scenes of the embedded digits. The bar is the mean of ten runs with
ten seeds minus four deviations (`MEASURED`); `--measure 10` measures these anew. `.ci/run` calls this.

    python benchmarks/guard.py [--data DIR/bccd] [--measure 10] [--first-seed 0]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from focaldet import evaluate
from focaldet.data.demo.dataset import write_demo

MODEL = "retinanet_efficientnet_lite0_fpn"
FLAGS = {
    "bccd": ("--epochs", "6", "--size", "192"),
    "digits": ("--epochs", "4", "--size", "192", "--augment.preset", "none"),  # mirrored, digits are no digits
}
NUM_SCENES = {"num_train": 280, "num_test": 80}

# AP in percent of ten seeds from 0 on (LOG.md, 2026-12-01); where there are fewer, nothing is a failure.
MEASURED: dict[str, Sequence[float]] = {
    "bccd": (28.4, 32.8, 31.0, 32.1, 28.8, 31.8, 30.0, 30.2, 27.9, 30.0),
    "digits": (),
}
LEAST_SEEDS = 10


def compute_bar(aps: Sequence[float]) -> float | None:
    """Four deviations below the mean of the AP of ten seeds or more; None of fewer."""
    return statistics.mean(aps) - 4 * statistics.stdev(aps) if len(aps) >= LEAST_SEEDS else None


def data_flags(data: Path | None, scratch: Path) -> list[str]:
    """The images as flags of `focaldet train`: those in `data`, else scenes that are written into `scratch`."""
    if data is not None:
        return ["--data", str(data)]
    write_demo(scratch, seed=0, **NUM_SCENES)
    return ["--data", str(scratch), "--data.val", str(scratch / "instances_test.json")]


def train_once(images: list[str], flags: Sequence[str], out: Path, *, seed: int) -> float:
    """AP in percent on the validation images after a training from the weights that come with focaldet."""
    command = [sys.executable, "-m", "focaldet", "train", *images, "--model", MODEL, "--seed", str(seed)]
    command += [*flags, "--evaluate-every", "100", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 100 * (evaluate(out, split="val").ap or 0.0)


def judge_seeds(aps: Sequence[float], *, bar: float | None) -> str | None:
    """What is wrong with the AP of one seed, if anything; of several seeds the bar that they would set is printed."""
    if len(aps) > 1:
        listed = ", ".join(f"{ap:.1f}" for ap in aps)
        mean, deviation = statistics.mean(aps), statistics.stdev(aps)
        print(f"({listed}): mean {mean:.1f}, deviation {deviation:.2f}, bar {mean - 4 * deviation:.1f}")
        return None
    if bar is None:
        print("no bar: ten seeds were not measured (--measure 10)")
        return None
    return None if aps[0] >= bar else f"RetinaNet learns less than it did: AP {aps[0]:.1f}, the bar is {bar:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, say what came of it, and fail below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of bccd; without it the embedded digits are taken")
    parser.add_argument("--measure", type=int, default=1, help="how many seeds to train; with one, the bar counts")
    parser.add_argument("--first-seed", type=int, default=0)
    words = parser.parse_args(arguments)
    name, aps = "digits" if words.data is None else "bccd", []
    with tempfile.TemporaryDirectory() as folder:
        images = data_flags(words.data, Path(folder) / "digits")
        for seed in range(words.first_seed, words.first_seed + words.measure):
            begin = time.monotonic()
            aps.append(train_once(images, FLAGS[name], Path(folder) / f"run{seed}", seed=seed))
            print(f"{name}, seed {seed}: AP {aps[-1]:.1f} in {time.monotonic() - begin:.0f} s", flush=True)
    if (problem := judge_seeds(aps, bar=compute_bar(MEASURED[name]))) is not None:
        sys.exit(problem)


if __name__ == "__main__":
    main()
