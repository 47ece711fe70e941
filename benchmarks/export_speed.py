"""Milliseconds of an image in torch, in exported files, and in torchvision as it comes, all in turns.

    python benchmarks/export_speed.py RUN --files cells.xml cells-int8.xml --images FOLDER --size 320 \\
        [--torchvision mobilenet_v2 | resnet50] [--rounds 6] [--most 8] [--threads 2]

From the image's file to its boxes, with the fraction of each part. In an exported file what follows the network is part
of the graph. torchvision's RetinaNet has random weights, as many classes, the same size, and answers nothing; it reads
with torchvision.io and runs in fp32.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from peer_torchvision import build
from torchvision.io import ImageReadMode, read_image
from torchvision.models.detection import retinanet_resnet50_fpn

from focaldet import load
from focaldet.comparison.timing import IMAGE_PARTS, time_image
from focaldet.prediction import Predictor

Lap = Callable[[Path], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--files", nargs="*", type=Path, default=[])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--torchvision", choices=["mobilenet_v2", "resnet50"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    paths = sorted(words.images.glob("*.jpg"))[: words.most]
    eager = load(words.run, device="cpu", precision="fp32", size=words.size)
    rows = {"torch, eager fp32": lap_of(eager)}
    usual = load(words.run, device="cpu", size=words.size)
    if usual.precision != "fp32":
        rows[f"torch, eager {usual.precision}"] = lap_of(usual)
    rows |= {file.name: lap_of(load_file(file, words.size)) for file in words.files}
    if words.torchvision:
        rows = {"torchvision": lap_of_torchvision(words.torchvision, len(eager.class_names), words.size)} | rows
    laps: dict[str, list[list[float]]] = {name: [] for name in rows}
    for number in range(words.rounds + 1):
        for name, lap in rows.items():
            measured = [lap(path) for path in paths]
            laps[name] += measured if number else []
    first = numpy.median(numpy.sum(next(iter(laps.values())), axis=1))
    print(f"{len(paths)} images, {words.rounds} rounds, {words.threads} threads, long side {words.size} px")
    print(f"{'':30} {'ms':>7} {'p10':>7} {'p90':>7} {'ratio':>6}  fraction of {', '.join(IMAGE_PARTS)}")
    for name, values in laps.items():
        total = 1e3 * numpy.sum(values, axis=1)
        parts = numpy.sum(values, axis=0) / numpy.sum(values)
        low, median, high = numpy.quantile(total, [0.1, 0.5, 0.9])
        shown = " ".join(f"{part:.2f}" for part in parts) if len(parts) > 1 else ""
        print(f"{name:30} {median:7.1f} {low:7.1f} {high:7.1f} {1e3 * first / median:6.2f}  {shown}")


def load_file(file: Path, size: int) -> Predictor:
    """The detector of an exported file, at this size where that is open; else the file must have it."""
    predictor = load(file)
    fixed = predictor.detector.input_size
    if fixed is None:
        return load(file, size=size)
    if size not in fixed:
        raise SystemExit(f"{file}: takes images of {fixed.width} × {fixed.height} px, not --size {size}")
    return predictor


def lap_of(predictor: Predictor) -> Lap:
    return lambda path: time_image(predictor, path)


def lap_of_torchvision(backbone: str, num_classes: int, size: int) -> Lap:
    torch.manual_seed(0)
    if backbone == "mobilenet_v2":
        model = build(num_classes, None, size=size).eval()
    else:
        sides = {"min_size": size, "max_size": size}
        model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes, **sides).eval()

    def lap(path: Path) -> list[float]:
        begin = time.perf_counter()
        with torch.no_grad():
            model([read_image(str(path), ImageReadMode.RGB).float() / 255])
        return [time.perf_counter() - begin]

    return lap


if __name__ == "__main__":
    main()
