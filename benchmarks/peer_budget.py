"""torchvision's RetinaNet and Faster R-CNN on the images and the budget of a `focaldet compare`, as rows of its table.

Both on MobileNetV2 with ImageNet weights and the pyramid of `peer_torchvision.py`, anchors from 16 px, AdamW at 1e-3 on
one cycle (backbone × .3), batch 8, horizontal flips, fp32. The images, the split and the ids come from focaldet's
reader, so that they are the same; network, loss, training loop and detections are torchvision's. The budget is that of
the whole training, set-up included, as in `compare`, and the schedule follows the clock.

    python benchmarks/peer_budget.py --data DIR --model retinanet --weights mobilenet_v2.safetensors \\
        --minutes 3 --size 320 --out peer.json
    focaldet compare --data DIR ... --results.torchvision_retinanet peer.json --times.torchvision_retinanet MS

`--out` is the result file; the trained weights are kept beside it. Called again, the script trains nothing and prints
the milliseconds of an image once more, from file to boxes: for a quiet machine.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from peer_torchvision import HALF, build, build_backbone, make_optimizer, train_step
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.io import ImageReadMode, read_image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import MultiScaleRoIAlign

from focaldet import DataConfig, RunConfig
from focaldet.comparison.added import evaluate_results
from focaldet.data.dataset import Dataset, FileSource, ImageSource
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.results import write_results
from focaldet.training.sources import open_sources
from focaldet.types import Detections

BATCH_SIZE, SCHEDULE_STEPS = 8, 10_000
TIMED_IMAGES, ROUNDS = 8, 10


def build_model(name: str, num_classes: int, weights: Path | None, *, size: int) -> GeneralizedRCNN:
    """The network; Faster R-CNN counts a class for the background, and starts its labels from 1."""
    if name == "retinanet":
        return build(num_classes, weights, size=size)
    shapes = ((0.5, 1.0, 2.0),) * 5
    return FasterRCNN(
        build_backbone(weights),
        num_classes + 1,
        min_size=size,
        max_size=size,
        image_mean=HALF,
        image_std=HALF,
        rpn_anchor_generator=AnchorGenerator(tuple((16 * 2**level,) for level in range(5)), shapes),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=2),
    )


def load_sample(source: ImageSource, index: int, *, first_label: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image in 0…1 with torchvision's target, mirrored half of the times; ignored boxes are left out."""
    image, target = source.load(index, epoch=0)
    boxes, labels = target.boxes[~target.ignored], target.labels[~target.ignored]
    if torch.rand(()) < 0.5:
        image = image.flip(-1)
        boxes = torch.stack([image.shape[-1] - boxes[:, 2], boxes[:, 1], image.shape[-1] - boxes[:, 0], boxes[:, 3]], 1)
    return image.float() / 255, {"boxes": boxes, "labels": labels + first_label}


def shuffled_batches(num_images: int) -> Iterator[list[int]]:
    """Batches of indices, epoch after epoch, the rest of an epoch dropped."""
    while True:
        order = torch.randperm(num_images).tolist()
        yield from (order[i : i + BATCH_SIZE] for i in range(0, num_images - BATCH_SIZE + 1, BATCH_SIZE))


def train(model: GeneralizedRCNN, source: ImageSource, *, first_label: int, begin: float, end: float) -> int:
    """Train from `begin` to `end` (of `time.monotonic`), the schedule turned by the time; the number of steps."""
    optimizer, schedule = make_optimizer(model, SCHEDULE_STEPS)
    batches, slowest = shuffled_batches(len(source.dataset)), 0.0
    model.train()
    for step in itertools.count():
        now = time.monotonic()
        if now + slowest >= end:
            return step
        while schedule.last_epoch < (SCHEDULE_STEPS - 1) * (now - begin) / (end - begin) - 1:
            schedule.step()
        pairs = [load_sample(source, index, first_label=first_label) for index in next(batches)]
        images, targets = zip(*pairs, strict=True)
        loss = train_step(model, optimizer, list(images), list(targets), form="plain")
        slowest = time.monotonic() - now
        if step % 20 == 0:
            print(f"step {step} loss {loss:.3f}", flush=True)
    raise AssertionError


@torch.inference_mode()
def detect(model: GeneralizedRCNN, image: Tensor, *, first_label: int) -> Detections:
    """What the network finds in an image in bytes."""
    output = model([image.float() / 255])[0]
    return Detections(output["boxes"], output["scores"], output["labels"] - first_label)


def measure_ms(model: GeneralizedRCNN, dataset: Dataset, *, first_label: int) -> float:
    """The time of an image, from its file to the boxes, as `focaldet compare` takes it: see comparison/timing.py."""
    paths = [dataset.path(i * len(dataset) // TIMED_IMAGES) for i in range(TIMED_IMAGES)]
    laps = []
    for number, path in itertools.product(range(ROUNDS + 1), paths):
        begin = time.perf_counter()
        detect(model, read_image(str(path), ImageReadMode.RGB), first_label=first_label)
        if number:
            laps.append(1e3 * (time.perf_counter() - begin))
    return float(numpy.median(laps))


def main() -> None:
    """Train where there are no weights yet, write the results, print AP and milliseconds."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val", help="the images to evaluate on, as of focaldet compare")
    parser.add_argument("--model", choices=["retinanet", "faster_rcnn"], required=True)
    parser.add_argument("--weights", type=Path, help="MobileNetV2 in torchvision's key names, input x / 127.5 - 1")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--size", type=int, default=320, help="long side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True, help="result file to write, in COCO's format")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    torch.manual_seed(words.seed)
    source, validation, _ = open_sources(RunConfig(data=DataConfig(path=words.data), seed=words.seed), None)
    if words.split != "val":
        data = DataConfig(path=words.data)
        validation = FileSource(open_evaluation_split(data, words.split, seed=words.seed))
    dataset, first_label = validation.dataset, int(words.model == "faster_rcnn")
    model = build_model(words.model, len(dataset.classes.names), words.weights, size=words.size)
    weights_file = words.out.with_suffix(".safetensors")
    if weights_file.exists():
        model.load_state_dict(load_file(weights_file))
    else:
        steps = train(model, source, first_label=first_label, begin=time.monotonic(), end=begin + 60 * words.minutes)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights_file)
        print(f"{steps} steps, {steps * BATCH_SIZE / len(source.dataset):.1f} epochs, {time.monotonic() - begin:.0f} s")
    model.eval()
    if not words.out.exists():
        detections = {
            i: detect(model, validation.load(i, epoch=0)[0], first_label=first_label) for i in range(len(dataset))
        }
        write_results(words.out, dataset, detections)
    ((_, metrics),) = evaluate_results({words.model: words.out}, dataset).values()
    milliseconds = measure_ms(model, dataset, first_label=first_label)
    print(json.dumps({"model": words.model, "ap": metrics.ap, "ap50": metrics.ap50, "ms": round(milliseconds, 1)}))


if __name__ == "__main__":
    main()
