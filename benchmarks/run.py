"""Every operation beside torchvision's, all rows interleaved in one run: a table, JSON, and a drawing for the docs.

Each row runs on the same numbers in both programs, A/B/A/B…; only the ratios of one run compare, so they are what is
written first. The load of the machine stands beside them. With `--device cuda` the rows run there, with `--small` on
numbers so few that the script is known to work within seconds, anywhere. Only a whole run replaces what is kept in
`results/`; others go to `build/benchmarks`.

    python benchmarks/run.py                      # the CPU, every row
    python benchmarks/run.py --rows "NMS 5000 × 80" matching
    python benchmarks/run.py --device cuda        # `gpu.py` has these rows, too
"""

import argparse
import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from losses import case as focal_case
from losses import fused, torchvision_pattern
from measure import interleaved, wait_for_device, write_result
from photographs import UncachedSource, write_photographs
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, read_image
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou
from torchvision.transforms import v2

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.loading.loader import Loader
from focaldet.evaluation.inference import detect_batch
from focaldet.models import build, find_preset
from focaldet.ops.anchors import AnchorConfig, pyramid_anchors
from focaldet.ops.matching import MatchConfig, match
from focaldet.ops.nms import class_nms
from focaldet.ops.roi import PoolConfig, pool_pyramid
from focaldet.runtime import pick_precision
from focaldet.types import ImageSize

STRIDES_PX, FINEST = (4, 8, 16, 32), 2
SCRATCH = Path(__file__).resolve().parent.parent / "build" / "benchmarks"
EVERY_ROW = ("",)  # the name of each contains it


@dataclass(frozen=True)
class Row:
    """One row of the table: both forms, and the speed-up over torchvision below which something has broken."""

    focaldet: Callable[[], object]
    torchvision: Callable[[], object]
    guard: float


def build_rows(device: torch.device, *, small: bool) -> dict[str, Callable[[], Row]]:
    """The rows by name; each is made, with its tensors, when it is asked for."""
    rows: dict[str, Callable[[], Row]] = {
        "focal loss, forward + backward": lambda: focal_row(device, anchors=2000 if small else 120_000),
        "RoIAlign, forward": lambda: roi_row(device, small=small, learns=False),
        "RoIAlign, forward + backward": lambda: roi_row(device, small=small, learns=True),
    }
    for boxes in (100, 500):
        count = boxes // 10 if small else boxes
        rows[f"matching × {boxes}"] = lambda count=count: matching_row(device, count, small=small)
    for number, classes, most, guard in (
        (5_000, 80, None, 0.8),
        (20_000, 80, None, 0.8),
        (5_000, 80, 100, 2.0),
        (5_000, 5, 1000, 0.8),
        (10_000, 5, 2000, 0.8),
    ):
        name = f"NMS {number} × {classes}" + (f", best {most}" if most else "")
        count = number // 20 if small else number
        rows[name] = lambda n=count, k=classes, most=most, guard=guard: nms_row(device, n, k, most=most, guard=guard)
    for preset in ("none", "light"):
        text = "flips" if preset == "none" else "flips; ours with scale and color too"
        rows[f"loading JPEGs of 480 × 640 to 800, {text}"] = lambda preset=preset: loader_row(preset, small=small)
    for name in ("retinanet", "faster_rcnn"):
        rows[f"predict {name} R50"] = lambda name=name: predict_row(device, name, side=128 if small else 512)
    return rows


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_boxes(count: int, *, frame: ImageSize, most_px: float, device: torch.device) -> Tensor:
    """Boxes of 8 px to `most_px`, most of them small, inside the frame."""
    rng = generator()
    sides = 8 + torch.rand(count, 2, generator=rng).square() * torch.tensor([most_px, most_px * 0.7])
    corners = torch.rand(count, 2, generator=rng) * (torch.tensor([frame.width, frame.height]) - sides).clamp(min=0)
    return torch.cat([corners, corners + sides], 1).to(device)


def focal_row(device: torch.device, *, anchors: int) -> Row:
    """The fused focal loss of integer labels and its gradient, 80 classes."""
    logits, labels = (tensor.to(device) for tensor in focal_case(anchors, 80))

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        def run() -> Tensor:
            x = logits.detach().requires_grad_()
            return torch.autograd.grad(loss(x, labels), x)[0]

        return run

    return Row(step(fused), step(torchvision_pattern), 1.0)


def roi_row(device: torch.device, *, small: bool, learns: bool) -> Row:
    """1000 regions of 256 channels and 7 × 7 cells from a pyramid of 800 × 1216, channels last as networks leave it."""
    frame, channels, count = (ImageSize(128, 160), 16, 40) if small else (ImageSize(800, 1216), 256, 1000)
    rng, regions = generator(), random_boxes(count, frame=frame, most_px=frame.width * 0.9, device=device)
    maps = [
        torch.randn(1, channels, frame.height // stride, frame.width // stride, generator=rng)
        .contiguous(memory_format=torch.channels_last)
        .to(device)
        .requires_grad_(learns)
        for stride in STRIDES_PX
    ]
    index = torch.zeros(count, dtype=torch.int64, device=device)
    peer = MultiScaleRoIAlign([str(level) for level in range(4)], 7, 2)
    named = {str(level): features for level, features in enumerate(maps)}

    def finish(pooled: Tensor) -> object:
        return torch.autograd.grad(pooled.sum(), maps) if learns else pooled

    config = PoolConfig(kind="align_legacy")
    return Row(
        lambda: finish(pool_pyramid(maps, regions, index, finest=FINEST, frame_px=tuple(frame), config=config)),
        lambda: finish(peer(named, [regions], [tuple(frame)])),
        3.0 if device.type == "cpu" else 0.9,
    )


def matching_row(device: torch.device, count: int, *, small: bool) -> Row:
    """RetinaNet's anchors of an image of 640 × 1024 and its objects, low-quality matches included."""
    frame, strides = ImageSize(128, 160) if small else ImageSize(640, 1024), (8, 16, 32, 64, 128)
    shapes = tuple((-(-frame.height // stride), -(-frame.width // stride)) for stride in strides)
    anchors = pyramid_anchors(AnchorConfig(), strides_px=strides, shapes=shapes, image=tuple(frame), device=device)
    boxes = random_boxes(count, frame=frame, most_px=frame.width / 2, device=device)
    nothing = torch.zeros(count, dtype=torch.bool, device=device)
    peer, config = Matcher(0.5, 0.4, allow_low_quality_matches=True), MatchConfig(low_quality="any")
    return Row(
        lambda: match(anchors, boxes, nothing, config),
        lambda: peer(box_iou(boxes, anchors)),
        1.5 if device.type == "cpu" else 0.5,
    )


def nms_row(device: torch.device, count: int, classes: int, *, most: int | None, guard: float) -> Row:
    """Boxes that nearly all survive: the longest case."""
    rng = generator()
    corners = torch.rand(count, 2, generator=rng) * 1200
    boxes = torch.cat([corners, corners + 5 + torch.rand(count, 2, generator=rng) * 60], 1).to(device)
    scores = torch.rand(count, generator=rng).to(device)
    labels = torch.randint(0, classes, (count,), generator=rng).to(device)
    return Row(
        lambda: class_nms(boxes, scores, labels, iou=0.5, most=most),
        lambda: batched_nms(boxes, scores, labels, 0.5)[:most],
        guard,
    )


def loader_row(preset: str, *, small: bool) -> Row:
    """Twelve photographs from file to batches of four, short side 800; torchvision flips, resizes and pads."""
    folder = Path(tempfile.mkdtemp(prefix="focaldet-loader-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    size = ImageSize(48, 64) if small else ImageSize(480, 640)
    source = UncachedSource(write_photographs(folder, number=12, size=size))
    paths = [source.dataset.path(index) for index in range(len(source.dataset))]
    preprocessing = find_preset("retinanet_r50_fpn").preprocessing
    if small:
        preprocessing = replace(preprocessing, resize=preprocessing.resize.with_sides(short_side=96, max_side=160))
    augment = AugmentConfig(preset=preset, flip_horizontal=0.5)
    loader = Loader(source, preprocessing=preprocessing, batch_size=4, seed=0, augment=augment)
    side, most = (96, 160) if small else (800, 1333)
    change = v2.Compose([v2.RandomHorizontalFlip(), v2.Resize(side, max_size=most, antialias=True)])
    transform = GeneralizedRCNNTransform(side, most, [0.0] * 3, [1.0] * 3)

    def torchvision() -> object:
        warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
        for first in range(0, len(paths), 4):
            shown = [
                change(tv_tensors.Image(read_image(str(path), ImageReadMode.RGB))) for path in paths[first : first + 4]
            ]
            transform.batch_images(shown, size_divisible=32)
        return None

    return Row(lambda: list(loader.epoch(0)), torchvision, 0.3)


def predict_row(device: torch.device, name: str, *, side: int) -> Row:
    """One square image through the whole detector with random weights, in the precision that the device is best at."""
    torch.manual_seed(0)
    precision = pick_precision(None, device=device)
    detector = build(f"{name}_r50_fpn", num_classes=80).eval().to(device, memory_format=torch.channels_last)
    make = retinanet_resnet50_fpn if name == "retinanet" else fasterrcnn_resnet50_fpn
    peer = make(weights=None, weights_backbone=None, num_classes=81, min_size=side, max_size=side)
    peer.eval().to(device, memory_format=torch.channels_last)
    size, image = ImageSize(side, side), torch.randint(256, (3, side, side), generator=generator(), dtype=torch.uint8)

    @torch.no_grad()
    def torchvision() -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return peer([image.to(device).float() / 255])

    def focaldet() -> object:
        return detect_batch(detector, image[None], sizes=[size], original_sizes=[size], precision=precision)

    return Row(focaldet, torchvision, 0.8)


def measure(rows: Mapping[str, Row], *, rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Seconds of both forms of every row, all of them in turn, and how many times as fast focaldet is."""
    forms = {}
    for name, row in rows.items():
        forms |= {f"{name} · focaldet": row.focaldet, f"{name} · torchvision": row.torchvision}
    forms = {name: wait_for_device(form, device) for name, form in forms.items()}
    seconds = interleaved(forms, rounds=rounds)
    result = {}
    for name, row in rows.items():
        each = {program: seconds[f"{name} · {program}"] for program in ("focaldet", "torchvision")}
        ratio = {kind: each["torchvision"][kind] / each["focaldet"][kind] for kind in ("min", "median")}
        result[name] = {"speed-up": ratio, "guard": row.guard, "seconds": each}
    return result


def print_table(result: Mapping[str, Mapping[str, Any]]) -> None:
    """A Markdown table, as LOG.md takes it."""
    print("| row | focaldet, ms | torchvision, ms | times as fast (minimum / median) |\n|---|---|---|---|")
    for name, row in result.items():
        mine, peer = (1e3 * row["seconds"][program]["min"] for program in ("focaldet", "torchvision"))
        ratio = row["speed-up"]
        print(f"| {name} | {mine:.1f} | {peer:.1f} | {ratio['min']:.1f} / {ratio['median']:.1f} |")


def draw(result: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A bar for each row: how many times as fast as torchvision."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names, ratios = [*result][::-1], [row["speed-up"]["min"] for row in result.values()][::-1]
    figure = Figure(figsize=(8, 0.4 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.barh(names, ratios, color="#2a6fb0"), fmt="%.1f ×", padding=3)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times as fast as torchvision, one interleaved run")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "focaldet"}):
        figure.savefig(path, metadata={"Date": None})


def choose_folder(chosen: argparse.Namespace) -> Path | None:
    """Where the result goes: only a whole run replaces the one that is kept with the source (None)."""
    is_whole = tuple(chosen.rows) == EVERY_ROW and not chosen.small
    return chosen.out or (None if is_whole else SCRATCH)


def main() -> None:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=[*EVERY_ROW], help="rows whose name contains one of these words")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="few numbers: whether it works, not how fast")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="folder of the result file and the drawing")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    makers = build_rows(device, small=chosen.small)
    rows = {name: make() for name, make in makers.items() if any(word in name for word in chosen.rows)}
    load = os.getloadavg()
    result = measure(rows, rounds=chosen.rounds, device=device)
    print_table(result)
    values = {"small": chosen.small, "load before": load, "load after": os.getloadavg(), "rows": result}
    path = write_result(f"run_{device.type}", values, folder=choose_folder(chosen))
    draw(result, path.with_suffix(".svg"))
    print(path)


if __name__ == "__main__":
    main()
