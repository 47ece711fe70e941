"""How time and memory grow with the boxes, classes, pixels, images and detections: a table, JSON, and a drawing.

    python benchmarks/growth.py                       # make bench-growth: one or two minutes of a core
    python benchmarks/growth.py --series predict --most 100000

Beside each series stands the exponent of a straight line through the upper half of its points, both axes logarithmic:
1 grows in proportion, 0 not at all. Seconds are those of the processor, by all threads together, so that other programs
count little. Memory is the peak of a process that the series has for itself.
With `--small` the series are short: whether it works, not how it grows. Only a whole run replaces what is kept in
`results/` and the drawing in `docs/`; others go to `build/benchmarks`.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from coco_evaluation import PER_IMAGE, made_up
from measure import interleaved, write_result
from PIL import Image

from focaldet.data.config import DataConfig
from focaldet.data.splits import open_split
from focaldet.evaluation.coco import evaluate_detections
from focaldet.models import LossContext, build
from focaldet.prediction import Predictor, predict_files
from focaldet.report.charts import COLORS, render_figure
from focaldet.training.config import RunConfig
from focaldet.training.state import start_state
from focaldet.training.step import train_step
from focaldet.types import Batch, ImageSize, Target

REPOSITORY = Path(__file__).resolve().parent.parent
SCRATCH, DRAWING = REPOSITORY / "build" / "benchmarks", REPOSITORY / "docs" / "growth.svg"
TRAINED, DETECTING = "retinanet_mobilenet_v2_fpn", "yolov2_tiny"
IMAGES_A_STEP, CLASSES, BOXES, SIDE_PX = 2, 10, 10, 256
THUMBNAIL_PX = 64  # of the images to predict and to read the annotations of
BOXES_AN_IMAGE = 7  # of the annotations, as in COCO
MOST_LINKS = 50_000  # to one file


@dataclass(frozen=True)
class Growth:
    """A series: `make` gives what is timed for a size of it, and may write into a folder; `axis` is what grows."""

    title: str
    axis: str
    sizes: Sequence[int]
    make: Callable[[int, Path], Callable[[], object]]
    has_memory: bool = False


def noise_batch(*, boxes: int, classes: int, side: int) -> Batch:
    """Images of noise with so many boxes each, of a hundredth to a third of the side."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES_A_STEP, 3, side, side), generator=rng, dtype=torch.uint8)
    sides = side * (0.01 + 0.32 * torch.rand(IMAGES_A_STEP, boxes, 2, generator=rng).square())
    corners = (side - sides) * torch.rand(IMAGES_A_STEP, boxes, 2, generator=rng)
    labels = torch.randint(classes, (IMAGES_A_STEP, boxes), generator=rng)
    targets = tuple(
        Target(torch.cat([corner, corner + size], 1), label, torch.zeros(boxes, dtype=torch.bool))
        for corner, size, label in zip(corners, sides, labels, strict=True)
    )
    indices, sizes = tuple(range(IMAGES_A_STEP)), (ImageSize(side, side),) * IMAGES_A_STEP
    return Batch(images, sizes, targets, indices, sizes, tuple(map(str, indices)))


def training_step(*, boxes: int = BOXES, classes: int = CLASSES, side: int = SIDE_PX) -> Callable[[], object]:
    """A step of the training engine on two images."""
    torch.manual_seed(0)
    config = RunConfig(model=TRAINED, weights=None)
    detector = build(TRAINED, num_classes=classes)
    state = start_state(detector, config, context=LossContext(), device=torch.device("cpu"))
    batch = noise_batch(boxes=boxes, classes=classes, side=side)
    return lambda: train_step(state, [batch], module=state.detector, config=config, rate=1e-6)


def link_images(folder: Path, number: int) -> list[str]:
    """The names of so many images in a folder, all of them one small JPEG."""
    folder.mkdir(parents=True)
    names = [f"{index}.jpg" for index in range(number)]
    pixels = torch.randint(256, (THUMBNAIL_PX, THUMBNAIL_PX, 3), generator=torch.Generator().manual_seed(0))
    for start in range(0, number, MOST_LINKS):
        Image.fromarray(pixels.byte().numpy()).save(folder / names[start])
        for name in names[start + 1 : start + MOST_LINKS]:
            os.link(folder / names[start], folder / name)
    return names


def prediction(number: int, folder: Path) -> Callable[[], object]:
    """Files of a folder to detections in a file, by a small detector with random weights."""
    link_images(folder / "images", number)
    torch.manual_seed(0)
    predictor = Predictor(build(DETECTING, num_classes=CLASSES), size=THUMBNAIL_PX, batch_size=8)
    return lambda: predict_files(predictor, [folder / "images"], folder / "out", score=0.01, drawn=False)


def evaluation(number: int, folder: Path) -> Callable[[], object]:
    """COCO's numbers of so many detections in memory."""
    del folder
    dataset, detections = made_up(max(number, PER_IMAGE))
    return lambda: evaluate_detections(dataset, detections)


def index_reading(number: int, folder: Path) -> Callable[[], object]:
    """A COCO file of so many images with seven boxes each, every image looked at, to a `Dataset`."""
    names = link_images(folder / "images", number)
    rng = torch.Generator().manual_seed(0)
    corners = (THUMBNAIL_PX / 2 * torch.rand(number * BOXES_AN_IMAGE, 2, generator=rng)).tolist()
    images = [
        {"id": index, "file_name": name, "height": THUMBNAIL_PX, "width": THUMBNAIL_PX}
        for index, name in enumerate(names, 1)
    ]
    annotations = [
        {
            "id": row,
            "image_id": 1 + row // BOXES_AN_IMAGE,
            "category_id": 1 + row % CLASSES,
            "bbox": [x, y, 20.5, 12.25],
            "area": 251.125,
            "iscrowd": 0,
        }
        for row, (x, y) in enumerate(corners)
    ]
    categories = [{"id": 1 + label, "name": f"class {label}"} for label in range(CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "images" / "annotations.json").write_text(json.dumps(document))
    return lambda: open_split(DataConfig(path=folder / "images"), "all", seed=0)


def build_series(*, small: bool, most: int | None) -> dict[str, Growth]:
    """The series by name; with `most` none has a larger size."""

    def sizes(*every: int) -> list[int]:
        return [size for size in (every[:2] if small else every) if most is None or size <= most]

    powers = (1, 3, 10, 30, 100, 300, 1000)
    images = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
    return {
        "boxes": Growth("training step", "boxes of an image", sizes(*powers), lambda n, _: training_step(boxes=n)),
        "classes": Growth("training step", "classes", sizes(*powers), lambda n, _: training_step(classes=n)),
        "side": Growth(
            "training step", "side of the images, px", sizes(64, 128, 256, 512, 768), lambda n, _: training_step(side=n)
        ),
        "predict": Growth("predict", "images", sizes(*images[: 5 if most is None else 7]), prediction, has_memory=True),
        "evaluate": Growth("evaluation", "detections", sizes(*images[1:], 300_000), evaluation, has_memory=True),
        "index": Growth("reading annotations", "images", sizes(*images[:5]), index_reading, has_memory=True),
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The slope of a straight line by least squares through the upper half of the points, both axes logarithmic."""
    upper = max(2, (len(x) + 1) // 2)
    if len(x) < 2 or min(y) <= 0:
        return None
    points = torch.tensor([x[-upper:], y[-upper:]], dtype=torch.float64).log()
    across, up = points - points.mean(1, keepdim=True)
    return float((across * up).sum() / across.square().sum())


def measure_steps(growth: Growth, *, rounds: int) -> dict[str, Any]:
    """Seconds of all sizes in turn, in this process."""
    forms = {str(size): growth.make(size, Path()) for size in growth.sizes}
    seconds = interleaved(forms, rounds=rounds, clock=time.process_time)
    return {"sizes": [*growth.sizes], "seconds": [seconds[str(size)]["min"] for size in growth.sizes]}


def measure_with_memory(growth: Growth) -> dict[str, Any]:
    """Seconds and peak memory of each size, from the smallest, in this process; the smallest also as a warm-up."""
    seconds, peaks = [], []
    for position, size in enumerate([growth.sizes[0], *growth.sizes]):
        with tempfile.TemporaryDirectory(prefix="focaldet-growth-") as folder:
            run = growth.make(size, Path(folder))
            forget_peak()
            taken = interleaved({"": run}, rounds=1, warmup=0, clock=time.process_time)[""]["min"]
            if position:
                seconds.append(taken)
                peaks.append(peak_mb())
            del run
    return {"sizes": [*growth.sizes], "seconds": seconds, "peak_mb": peaks}


def forget_peak() -> None:
    """Let the peak of this process begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The most memory that this process has had since then."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024 / 1e6


def measure_apart(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The series `name` in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="focaldet-growth-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--series", name, "--answer", str(answer)]
        subprocess.run(command, check=True)
        return json.loads(answer.read_text())


def add_exponents(row: Mapping[str, Any]) -> dict[str, Any]:
    """The series with an exponent for each of its columns."""
    columns = [column for column in ("seconds", "peak_mb") if column in row]
    return {**row, "exponents": {column: exponent(row["sizes"], row[column]) for column in columns}}


def describe(growth: Growth, row: Mapping[str, Any]) -> list[str]:
    """A line of the table for each column."""
    lines = []
    for column, power in row["exponents"].items():
        values = " · ".join(f"{value:.3g}" for value in row[column])
        sizes = " · ".join(f"{size:,}" for size in row["sizes"])
        power_text = "" if power is None else f"{power:.2f}"
        lines.append(f"| {growth.title}, {growth.axis}: {sizes} | {column}: {values} | {power_text} |")
    return lines


def draw_growth(series: Mapping[str, Growth], rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Small multiples: a panel for each column of each series, both axes logarithmic."""
    panels = [(name, column) for column in ("seconds", "peak_mb") for name in rows if column in rows[name]]
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)

    def draw(figure: Any) -> None:
        every = figure.subplots(lines, columns, squeeze=False).flat
        for axes, (name, column) in zip(every, panels, strict=False):
            draw_panel(axes, series[name], rows[name], column)
        for axes in [*every][len(panels) :]:
            axes.set_axis_off()

    inches = (3.6 * columns, 2.9 * lines)
    path.write_bytes(render_figure(draw, "svg", salt="growth", inches=inches, look={"font.size": 10}))


def draw_panel(axes: Any, growth: Growth, row: Mapping[str, Any], column: str) -> None:
    """One curve with its points, and what its exponent is."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    is_memory = column == "peak_mb"
    axes.plot(row["sizes"], row[column], marker="o", markersize=4, linewidth=2, color=COLORS[1 if is_memory else 0])
    axes.set(xscale="log", yscale="log", xlabel=growth.axis)
    low, high = min(row[column]), max(row[column])
    middle = math.sqrt(low * high)
    axes.set_ylim(min(low, middle / 4) / 1.3, max(high, middle * 4) * 1.3)  # what hardly grows is to look so
    for axis, span in ((axes.xaxis, row["sizes"][-1] / row["sizes"][0]), (axes.yaxis, high / low)):
        axis.set_major_locator(LogLocator(subs=(1.0,) if span > 50 else (1.0, 3.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())
    power = row["exponents"][column]
    axes.set_title(f"{growth.title}: {'peak, MB' if is_memory else 'CPU seconds'}", loc="left", fontsize=11)
    text = "" if power is None else f"n^{power:.2f}"
    axes.annotate(text, (0.04, 0.9), xycoords="axes fraction", fontsize=11, weight="bold")


def main() -> None:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", nargs="+", default=None, help="of boxes classes side predict evaluate index")
    parser.add_argument("--most", type=int, default=None, help="the largest size of any series")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="two sizes of each: whether it works, not how it grows")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result file and the drawing")
    parser.add_argument("--answer", type=Path, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    series = build_series(small=chosen.small, most=chosen.most)
    names = chosen.series or [*series]
    if chosen.answer is not None:
        chosen.answer.write_text(json.dumps(measure_with_memory(series[names[0]])))
        return
    arguments = ["--threads", str(chosen.threads), *(["--small"] if chosen.small else [])]
    arguments += [] if chosen.most is None else ["--most", str(chosen.most)]
    rows = {}
    print("| what | measured | exponent |\n|---|---|---|", flush=True)
    for name in names:
        growth = series[name]
        row = measure_apart(name, arguments) if growth.has_memory else measure_steps(growth, rounds=chosen.rounds)
        rows[name] = add_exponents(row)
        print(*describe(growth, rows[name]), sep="\n", flush=True)
    is_whole = chosen.series is None and chosen.most is None and not chosen.small
    values = {"small": chosen.small, "load after": os.getloadavg(), "series": rows}
    path = write_result("growth", values, folder=chosen.out or (None if is_whole else SCRATCH))
    is_kept = is_whole and chosen.out is None
    draw_growth(series, rows, DRAWING if is_kept else path.with_suffix(".svg"))
    print(path)


if __name__ == "__main__":
    main()
