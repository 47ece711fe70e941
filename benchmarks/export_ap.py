"""AP of a trained detector and of its exported files, at several batch sizes and, where it is open, image sizes.

    python benchmarks/export_ap.py RUN --data DIR [--sizes 256 320] [--batches 1 4] [--formats onnx-fp32 openvino-int8]
    [--results FILE.json]

Each row has the AP (0 to 100) of a format at one size and batch, and how far it lies from that of the detector in torch
at the same size and batch.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from focaldet import evaluate
from focaldet.data.config import DataConfig
from focaldet.evaluation.inference import InferenceOptions, apply_options
from focaldet.export.benchmark import VARIANTS
from focaldet.export.export import FORMAT_SUFFIXES, convert_all
from focaldet.export.graph import fixed_size
from focaldet.export.images import open_export_images
from focaldet.export.metadata import describe_export
from focaldet.weights import load_detector


def main() -> None:
    names = [f"{kind}-{precision}" for kind, precision in VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--formats", nargs="+", choices=names, default=names)
    parser.add_argument("--results", type=Path)
    words = parser.parse_args()
    trained = load_detector(words.run)
    options = InferenceOptions(device="cpu", precision="fp32")
    detector = apply_options(trained.detector, options).float().eval()
    images = open_export_images(words.run, detector, data=words.data, split=words.split)
    sizes = (words.sizes or [None]) if fixed_size(detector.preprocessing) is None else [None]
    settings = [(size, batch) for size in sizes for batch in words.batches]

    def measure(spec: Any, size: int | None, batch: int, precision: Any) -> float:
        chosen = replace(InferenceOptions(batch_size=batch, size=size, device="cpu"), precision=precision)
        with tempfile.TemporaryDirectory() as out:
            data = DataConfig(path=words.data)
            return 100 * (evaluate(spec, data, split=words.split, out=Path(out), options=chosen).ap or 0.0)

    rows: list[dict[str, Any]] = []
    right: dict[tuple[int | None, int], float] = {}

    def note(name: str, setting: tuple[int | None, int], ap: float) -> None:
        row = {"run": Path(words.run).name, "format": name, "size": setting[0], "batch": setting[1], "ap": ap}
        rows.append(row | {"difference": ap - right.setdefault(setting, ap)})
        print(json.dumps(rows[-1]), flush=True)
        if words.results is not None:
            words.results.write_text(json.dumps(rows, indent=1) + "\n")

    for setting in settings:
        note("torch, eager", setting, measure(words.run, *setting, "fp32"))
    variants = [variant for variant, name in zip(VARIANTS, names, strict=True) if name in words.formats]
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for (kind, precision), write in convert_all(detector, images, variants):
            if isinstance(write, Exception):
                raise write
            path = Path(folder) / f"{precision}{FORMAT_SUFFIXES[kind]}"
            write(path, describe_export(trained, detector, words.run, format=kind, precision=precision), None)
            for setting in settings:
                note(f"{kind} {precision}", setting, measure(path, *setting, None))
    print(f"{time.perf_counter() - begin:.0f} s to convert and measure")


if __name__ == "__main__":
    main()
