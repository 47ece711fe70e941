"""Export presets with random weights, and compare what the files detect with what the detectors do: a row for each.

    python benchmarks/export_presets.py [NAME ...] [--formats onnx openvino torch] [--precision fp32 int8]
        [--images FOLDER] [--size 320] [--tiny] [--results FILE.json] [--core-minutes 60] [--table]
        [--num-images 20]

All presets by default. The images are 20 of those in the folder, evenly spread over their names, else 20 of the
embedded scenes: four at batch 1 and the others at batch 4. A detector whose input size is open gets them at 256 and 320
px, or at `--size` alone, which others are set to before they are exported. Detector and file each pad them by their own
rule, as for whoever uses them. Random weights are scaled so that scores differ and much is detected; what no graph can
say, `plus.scales`, is left out. `--tiny` takes the tests' small variants of the
architectures in place of the presets.

fp16 and int8 are precisions of OpenVINO alone; int8 is calibrated on the same 20 images, as `focaldet export` does it
without an AP, at the last of the sizes. Of int8 the detections with scores from .3 on are compared, of a detector whose
best scores are lower from their median on. A row is a detector, format and precision, with the seconds since the row
before it; FILE.json has it as soon as it is measured. Where FILE.json has it already, with an error too, it is not made
again: other images or sizes need another file. After `--core-minutes` of all cores no further detector is begun.
`--table` measures nothing and prints the rows of FILE.json as a table.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from focaldet.data.augment.geometry import resize_image
from focaldet.data.dataset import Classes, Dataset, FileSource, ImageSource, pack_paths
from focaldet.data.demo.dataset import DemoScenes
from focaldet.data.images import read_header
from focaldet.data.inputs import find_images
from focaldet.data.loading.collate import pad_images
from focaldet.data.problems import Problems
from focaldet.errors import ConfigError, FocaldetError
from focaldet.export.export import FORMAT_SUFFIXES, Format, convert_all, pick_least_score
from focaldet.export.images import ExportImages, pick_evenly
from focaldet.export.metadata import describe_export
from focaldet.export.proof import LIMITS, ExportPrecision, compare_detections
from focaldet.models import PRESETS, Detector, build
from focaldet.types import Detections, ImageSize
from focaldet.weights import Trained, load_detector, override_postprocess
from focaldet.weights.exported.detector import round_to_bytes

CLASSES = ("cat", "dog", "bird")
NUM_IMAGES, SINGLE, BATCH = 20, 4, 4
SIZES = (256, 320)
EXPORTABLE = {"faster_rcnn_r101_c4_plus": {"plus": {"scales": []}}}
Variant = tuple[Format, ExportPrecision]


def make_detector(name: str, architecture: dict, source: ImageSource) -> Detector:
    """A preset with random weights that detects something everywhere, with scores that differ.

    Its layers are scaled and its norms measured on images: else random weights grow or shrink from layer to layer until
    all scores are the same, and which of them are the best is chance.
    """
    torch.manual_seed(0)
    detector = build(name, class_names=CLASSES, architecture=architecture).eval()
    threshold = 0.001 if name.startswith("yolo") else 0.02
    detector.config = override_postprocess(detector.config, {"detect": {"score_threshold": threshold}})
    is_frozen = getattr(detector.config, "norm", None) == "frozen"
    norms = {"norm": "batch", "norm_eps": detector.config.norm_eps or 1e-5} if is_frozen else {}
    settled = build(name, class_names=CLASSES, architecture={**architecture, **norms})
    settle(settled, source)
    values = settled.state_dict()
    detector.load_state_dict({key: values[key] for key in detector.state_dict()})
    return detector


def settle(detector: Detector, source: ImageSource) -> None:
    """Scale convolutions and linear layers as the images come by, and give all BatchNorms what they see.

    Answers get a deviation of 1, boxes one of .3 (YOLOv2's, of one layer with its scores, 1), and biases of scores
    become about -3.
    """

    def scale(module: nn.Module, deviation: float, answer: torch.Tensor) -> torch.Tensor:
        if module in seen:  # the same layer for another level
            return answer
        seen.add(module)
        bias = 0.0 if module.bias is None else module.bias.view(-1, *[1] * (module.weight.ndim - 2))
        factor = deviation / (answer - bias).std().clamp(min=1e-6)
        module.weight.mul_(factor)
        return (answer - bias) * factor + bias

    detector.eval()
    seen, hooks = set(), []
    for path, module in detector.named_modules():
        last = path.rsplit(".", 1)[-1]
        is_box = "box" in path
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 1.0
        if isinstance(module, nn.Conv2d | nn.Linear):
            is_score = last == "predict" and not is_box
            deviation = 0.3 if is_box and last in ("boxes", "predict") else 1.0
            hooks.append(module.register_forward_hook(lambda m, _, y, d=deviation: scale(m, d, y)))
            if is_score and module.bias is not None:
                nn.init.normal_(module.bias, -3.0, 0.5)
    images, sizes = next(batches(detector, source, single=0))
    with torch.no_grad():
        detector(images, sizes)
    for hook in hooks:
        hook.remove()
    detector.eval()


def open_images(folder: Path | None, *, most: int = NUM_IMAGES) -> ImageSource:
    """So many images of a folder, without boxes; without a folder so many of the embedded scenes."""
    if folder is None:
        return DemoScenes("test", num_scenes=most, seed=0)
    paths = sorted(find_images([folder]))
    paths = [paths[index].absolute() for index in pick_evenly(len(paths), most)]
    path_bytes, path_offsets = pack_paths([str(path) for path in paths])
    none = torch.zeros(0)
    dataset = Dataset(
        name=folder.name,
        root=Path("/"),
        classes=Classes(CLASSES, (1, 2, 3)),
        image_ids=torch.arange(1, len(paths) + 1),
        sizes=torch.tensor([read_header(path) for path in paths], dtype=torch.int32),
        offsets=torch.zeros(len(paths) + 1, dtype=torch.int64),
        boxes=torch.zeros(0, 4, dtype=torch.float64),
        labels=none.int(),
        flags=none.byte(),
        areas=none.double(),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
    )
    return FileSource(dataset)


def set_size(detector: Detector, size: int) -> None:
    resize = detector.preprocessing.resize.with_sides(size=size)
    detector.preprocessing = replace(detector.preprocessing, resize=resize)


def batches(
    detector: Detector, source: ImageSource, *, single: int = SINGLE
) -> Iterator[tuple[torch.Tensor, list[ImageSize]]]:
    """The images as batches of one and of four, in bytes, as files take them, padded as the detector pads."""
    preprocessing, resize = detector.preprocessing, detector.preprocessing.resize
    images = [source.load(i, epoch=0)[0] for i in range(len(source.dataset))]
    images = [resize_image(image, resize, original=ImageSize(*image.shape[1:])) for image in images]
    starts = [*range(min(single, len(images))), *range(single, len(images), BATCH)]
    for start in starts:
        group = images[start : start + (1 if start < single else BATCH)]
        sizes = [ImageSize(*image.shape[1:]) for image in group]
        yield round_to_bytes(pad_images(group, preprocessing=preprocessing)), sizes


def detect(detector: Detector, source: ImageSource, sizes: Sequence[int]) -> list[Detections]:
    """The detections on all images at each of the sizes, the last of which the detector keeps."""
    detections = []
    for size in sizes:
        set_size(detector, size)
        with torch.no_grad():
            for images, shapes in batches(detector, source):
                detections += detector.detect(detector(images, shapes), shapes)
    return detections


def measure(
    name: str, architecture: dict, variants: Sequence[Variant], *, source: ImageSource, size: int | None = None
) -> Iterator[dict]:
    """A row for each file as soon as it is measured: what it differs by from the detector, or why there is none."""
    begin = time.perf_counter()
    detector = make_detector(name, architecture, source)
    is_fixed = detector.preprocessing.resize.is_square
    sizes = [size] if size is not None else [detector.preprocessing.resize.size] if is_fixed else SIZES
    right = detect(detector, source, sizes)
    for (kind, precision), write in convert_all(detector, ExportImages(source, source, ""), variants):
        row = {"preset": name, "format": kind, "precision": precision}
        try:
            if isinstance(write, ConfigError):
                raise write
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"model{FORMAT_SUFFIXES[kind]}"
                trained = Trained(detector, (), name)
                write(path, describe_export(trained, detector, name, format=kind, precision=precision), None)
                exported = load_detector(path).detector
                answers = detect(exported, source, sizes)
        except (FocaldetError, RuntimeError) as error:
            row |= {"error": describe(error)}
        else:
            least_score = pick_least_score(right, most=LIMITS[precision].least_score)
            row |= compare_detections(right, answers, least_score=least_score).to_dict()
            row["size_divisor"] = exported.preprocessing.size_divisor
        yield row | {"seconds": round(time.perf_counter() - begin, 1)}
        begin = time.perf_counter()


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def pick_variants(formats: Sequence[Format], precisions: Sequence[ExportPrecision]) -> list[Variant]:
    """The formats in the precisions that each of them has."""
    return [(kind, each) for kind in formats for each in precisions if each == "fp32" or kind == "openvino"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--formats", nargs="+", choices=[*FORMAT_SUFFIXES], default=["onnx", "openvino"])
    parser.add_argument("--precision", nargs="+", choices=[*LIMITS], default=["fp32"])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--core-minutes", type=float, default=float("inf"))
    parser.add_argument("--num-images", type=int, default=NUM_IMAGES)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table and options.results is None:
        parser.error("--table needs --results")
    if options.table:
        print(format_table(json.loads(options.results.read_text())))
        return
    detectors = {name: EXPORTABLE.get(name, {}) for name in PRESETS}
    if options.tiny:
        from tests.every_detector import test_plain_torch

        detectors = test_plain_torch.DETECTORS
    source, variants = (
        open_images(options.images, most=options.num_images),
        pick_variants(options.formats, options.precision),
    )
    rows = json.loads(options.results.read_text()) if options.results and options.results.is_file() else []
    for name in options.names or detectors:
        done = {(row["format"], row["precision"]) for row in rows if row["preset"] == name}
        missing = [variant for variant in variants if variant not in done]
        if not missing:
            continue
        if time.process_time() > 60 * options.core_minutes:
            print(f"--core-minutes are over: {name} and those behind it are not measured", file=sys.stderr)
            break
        for row in make_rows(name, detectors[name], missing, source=source, size=options.size):
            print(json.dumps(row), flush=True)
            rows.append(row)
            if options.results is not None:
                options.results.write_text(json.dumps(rows, indent=1) + "\n")


def make_rows(name: str, architecture: dict, variants: Sequence[Variant], **settings) -> Iterator[dict]:
    """As `measure`; where that fails as a whole, as in building a detector, rows that say why."""
    missing = [*variants]
    try:
        for row in measure(name, architecture, variants, **settings):
            missing.remove((row["format"], row["precision"]))
            yield row
    except Exception as error:
        for kind, precision in missing:
            yield {"preset": name, "format": kind, "precision": precision, "error": describe(error)}


def format_table(rows: Sequence[dict]) -> str:
    """A line of Markdown for each preset, with what its files in fp32 differ by and whether its int8 file answers."""
    variants = [("onnx", "fp32"), ("openvino", "fp32"), ("torch", "fp32"), ("openvino", "int8")]
    cells = {(row["preset"], row["format"], row["precision"]): row for row in rows}
    lines = ["| preset | ONNX | OpenVINO fp32 | torch | OpenVINO int8 |", "|---|---|---|---|---|"]
    for name in PRESETS:
        of_name = [cells.get((name, *variant)) for variant in variants]
        lines.append(f"| `{name}` | {' | '.join(map(format_cell, of_name))} |")
    return "\n".join(lines)


def format_cell(row: dict | None) -> str:
    """How many detections have a partner, and the largest differences of box and score; of int8 that it answers."""
    if row is None:
        return ""
    if "error" in row:
        return row["error"].split(": ", 1)[-1].replace("|", "\\|")
    if row["num_detections"] == 0:
        return "detects nothing"
    if row["precision"] == "int8":
        return "yes"
    count = "all" if row["unmatched"] == 0 else f"{row['matched']} matched, {row['unmatched']} not"
    px = f"{row['largest_px']:.0f}" if row["largest_px"] >= 1 else f"{row['largest_px']:.0e}"
    return f"{count}, {px} px, {row['largest_score']:.0e}".replace("e-0", "e-")


if __name__ == "__main__":
    main()
