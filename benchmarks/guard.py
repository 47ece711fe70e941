"""Whether RetinaNet still learns: a training of two minutes on blood cells whose AP must not fall below a bar.

The bar is the mean of ten runs with ten seeds minus four deviations (LOG.md, 2026-12-01); `--measure 10` measures it
anew. `.ci/run` calls this where the images are.

    python benchmarks/guard.py --data DIR/bccd [--measure 10] [--first-seed 0]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from focaldet import evaluate

MODEL, FLAGS = "retinanet_efficientnet_lite0_fpn", ("--epochs", "6", "--size", "192")
BAR = 0.238


def train_once(data: Path, out: Path, *, seed: int) -> float:
    """AP on the validation images after a training at the defaults, from the weights that come with focaldet."""
    command = [sys.executable, "-m", "focaldet", "train", "--data", str(data), "--model", MODEL, "--seed", str(seed)]
    command += [*FLAGS, "--evaluate-every", "100", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return evaluate(out, split="val").ap or 0.0


def main() -> None:
    """Train, say what came of it, and fail below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of bccd")
    parser.add_argument("--measure", type=int, default=1, help="how many seeds to train; with one, the bar counts")
    parser.add_argument("--first-seed", type=int, default=0)
    words = parser.parse_args()
    aps = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(words.first_seed, words.first_seed + words.measure):
            begin = time.monotonic()
            aps.append(train_once(words.data, Path(folder) / f"run{seed}", seed=seed))
            print(f"seed {seed}: AP {100 * aps[-1]:.1f} in {time.monotonic() - begin:.0f} s", flush=True)
    if len(aps) > 1:
        mean, deviation = statistics.mean(aps), statistics.stdev(aps)
        print(f"mean {100 * mean:.1f}, deviation {100 * deviation:.2f}: bar {100 * (mean - 4 * deviation):.1f}")
    elif aps[0] < BAR:
        sys.exit(f"RetinaNet learns less than it did: AP {100 * aps[0]:.1f}, the bar is {100 * BAR:.1f}")


if __name__ == "__main__":
    main()
