"""Images per second from files to detections: reading, resizing, network and suppression, in batches of 8.

    python benchmarks/predict.py RUN IMAGE... [--size 320]

RUN is a run folder, a weights file, or a preset with random weights. Prints the minimum and median of the rounds.
"""

import argparse
from pathlib import Path

from measure import interleaved

import focaldet
from focaldet.prediction import Predictor


def main() -> None:
    """Time rounds over the same images, the first of which does not count."""
    parser = argparse.ArgumentParser(description="Images per second of a detector.")
    parser.add_argument("run")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--size", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    options = focaldet.InferenceOptions(size=chosen.size)
    if Path(chosen.run).exists():
        predictor = focaldet.load(chosen.run, options=options)
    else:
        predictor = Predictor(focaldet.build(chosen.run, num_classes=3), options=options)
    paths = [path for given in chosen.images for path in (sorted(given.glob("*.*")) if given.is_dir() else [given])]
    (seconds,) = interleaved({"predict": lambda: predictor(paths)}, rounds=chosen.rounds).values()
    rates = ", ".join(f"{name} {len(paths) / seconds[name]:.1f}" for name in ("median", "min"))
    print(f"{predictor}: {len(paths)} images, images per second: {rates}")


if __name__ == "__main__":
    main()
