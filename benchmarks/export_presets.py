"""Export presets with random weights, and compare what the files detect with what the detectors do: a row for each.

    python benchmarks/export_presets.py [NAME ...] [--formats onnx openvino torch] [--tiny] [--results FILE.json]

The images are 20 of the embedded scenes at two sizes, at batch 1 and 4. The class layers get weights that let them
detect much. `--tiny` takes the tests' small variants of the architectures in place of the presets.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from focaldet.data.augment.geometry import resize_image
from focaldet.data.demo.dataset import DemoScenes
from focaldet.data.loading.collate import pad_images
from focaldet.errors import FocaldetError
from focaldet.export.export import FORMAT_SUFFIXES, convert_all
from focaldet.export.images import ExportImages
from focaldet.export.metadata import describe_export
from focaldet.export.proof import compare_detections
from focaldet.models import PRESETS, Detector, build
from focaldet.types import Detections, ImageSize
from focaldet.weights import Trained, load_detector, override_postprocess
from focaldet.weights.exported.detector import round_to_bytes

CLASSES = ("cat", "dog", "bird")


def make_detector(name: str, architecture: dict) -> Detector:
    """A preset whose class layers detect something everywhere."""
    torch.manual_seed(0)
    detector = build(name, class_names=CLASSES, architecture=architecture).eval()
    threshold = 0.001 if name.startswith("yolo") else 0.02
    detector.config = override_postprocess(detector.config, {"detect": {"score_threshold": threshold}})
    for path, module in detector.named_modules():
        last = path.rsplit(".", 1)[-1]
        if isinstance(module, nn.Conv2d) and (last in ("classes", "objectness") or path.endswith("predict")):
            nn.init.normal_(module.weight, std=0.05)
            if "box_subnet" not in path and module.bias is not None and last == "predict":
                nn.init.normal_(module.bias, -2.0, 1.0)
        if isinstance(module, nn.Linear) and last == "classes":
            nn.init.normal_(module.weight, std=0.1)
    return detector


def batches(detector: Detector, size: int | None) -> list[tuple[torch.Tensor, list[ImageSize]]]:
    """The scenes as batches of one and of four images, in bytes, as files take them."""
    resize = detector.preprocessing.resize
    if size is not None:
        resize = resize.with_sides(size=size)
    preprocessing = replace(detector.preprocessing, resize=resize)
    scenes = DemoScenes("test", num_scenes=10, seed=0)
    images = [scenes.load(i, epoch=0)[0] for i in range(10)]
    images = [resize_image(image, resize, original=ImageSize(*image.shape[1:])) for image in images]
    groups = [images[:1], images[1:2], images[2:6], images[6:10]]
    return [
        (round_to_bytes(pad_images(group, preprocessing=preprocessing)), [ImageSize(*i.shape[1:]) for i in group])
        for group in groups
    ]


def detect(detector: Detector, pairs) -> list[Detections]:
    with torch.no_grad():
        return [each for images, sizes in pairs for each in detector.detect(detector(images, sizes), sizes)]


def measure(name: str, architecture: dict, formats: list[str]) -> list[dict]:
    """What each format's file differs by from the detector."""
    detector = make_detector(name, architecture)
    scenes = DemoScenes("test", num_scenes=1, seed=0)
    is_fixed = detector.preprocessing.resize.is_square
    pairs = [pair for size in ((None,) if is_fixed else (256, 320)) for pair in batches(detector, size)]
    right = detect(detector, pairs)
    begin, rows = time.perf_counter(), []
    writers = convert_all(detector, ExportImages(scenes, scenes, ""), [(each, "fp32") for each in formats])
    for (kind, precision), write in writers.items():
        if isinstance(write, FocaldetError):
            raise write
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{FORMAT_SUFFIXES[kind]}"
            trained = Trained(detector, (), name)
            write(path, describe_export(trained, detector, name, format=kind, precision=precision), None)
            seen = compare_detections(right, detect(load_detector(path).detector, pairs))
        seconds = time.perf_counter() - begin
        rows.append({"preset": name, "format": kind, "seconds": round(seconds, 1), **seen.to_dict()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    variants = {name: {} for name in PRESETS}
    if options.tiny:
        from tests.every_detector import test_plain_torch

        variants = test_plain_torch.DETECTORS
    rows = []
    for name in options.names or variants:
        try:
            new = measure(name, variants[name], options.formats)
        except Exception as error:
            new = [{"preset": name, "format": "", "error": f"{type(error).__name__}: {error}".splitlines()[0]}]
        for row in new:
            print(json.dumps(row), flush=True)
        rows += new
        if options.results is not None:
            options.results.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
