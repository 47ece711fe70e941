"""Whether RetinaNet still learns: a training of some minutes whose AP must not fall below a bar.

The images are blood cells (FOCALDET_DATA or ../shared/data has bccd) or, where those are absent, fixed scenes with
large digits. Each bar is the mean of ten runs with ten seeds minus four deviations; `--measure 10` measures them anew.

    python benchmarks/guard.py [--data digits] [--measure 10]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from focaldet import evaluate

HERE = Path(__file__).parent
MODEL = "retinanet_efficientnet_lite0_fpn"
FLAGS = {"bccd": ["--epochs", "6", "--size", "192"], "digits": ["--epochs", "6", "--size", "128"]}
BARS = {"bccd": 0.0, "digits": 0.0}


def find_data(name: str | None) -> str:
    """The data set to train on: the one named, or blood cells where they are."""
    return name or ("bccd" if (real_data() / "bccd").is_dir() else "digits")


def real_data() -> Path:
    return Path(os.environ.get("FOCALDET_DATA", HERE.parent.parent / "shared" / "data"))


def train_once(name: str, data: Path, out: Path, *, seed: int) -> float:
    """AP on the validation images after a training at the defaults."""
    command = [sys.executable, "-m", "focaldet", "train", "--data", str(data), "--model", MODEL, "--seed", str(seed)]
    command += [*FLAGS[name], "--evaluate-every", "100", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return evaluate(out, split="val").ap or 0.0


def main() -> None:
    """Train, say what came of it, and fail below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(BARS))
    parser.add_argument("--measure", type=int, default=1, help="how many seeds to train; with one, the bar counts")
    words = parser.parse_args()
    name, aps = find_data(words.data), []
    with tempfile.TemporaryDirectory() as folder:
        data = real_data() / "bccd"
        if name == "digits":
            data = Path(folder) / "digits"
            scenes = ["--height", "100", "200", "--most", "3"]
            subprocess.run([sys.executable, str(HERE / "digit_scenes.py"), str(data), *scenes], check=True)
        for seed in range(words.measure):
            begin = time.monotonic()
            aps.append(train_once(name, data, Path(folder) / f"run{seed}", seed=seed))
            print(f"{name}, seed {seed}: AP {100 * aps[-1]:.1f} in {time.monotonic() - begin:.0f} s", flush=True)
    if len(aps) > 1:
        mean, deviation = statistics.mean(aps), statistics.stdev(aps)
        print(f"mean {100 * mean:.1f}, deviation {100 * deviation:.2f}: bar {100 * (mean - 4 * deviation):.1f}")
    elif aps[0] < BARS[name]:
        sys.exit(f"RetinaNet learns less than it did: AP {100 * aps[0]:.1f}, the bar is {100 * BARS[name]:.1f}")


if __name__ == "__main__":
    main()
