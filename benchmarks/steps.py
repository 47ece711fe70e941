"""A training step of focaldet and of torchvision in both forms: same width, weights, images and boxes, interleaved.

One step is forward, losses, backward, clipping and optimizer (focaldet's with its moving average) on 8 images of
320 × 240 with 13 boxes each; reading images is left out.

    python benchmarks/steps.py --weights mobilenet_v2.safetensors
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import peer_torchvision
import torch
from measure import interleaved, write_result

from focaldet.models import LossContext, build
from focaldet.training.config import RunConfig
from focaldet.training.state import start_state
from focaldet.training.step import train_step
from focaldet.types import Batch, ImageSize, Target
from focaldet.weights import load_into

NUM_CLASSES, NUM_BOXES = 3, 13
SIZE = ImageSize(240, 320)


def make_batch(batch_size: int) -> Batch:
    """Noise with boxes of 20 to 120 px, padded to multiples of 32."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(batch_size, 3, 256, 320, dtype=torch.uint8)
    images[:, :, : SIZE.height] = torch.randint(256, (batch_size, 3, *SIZE), generator=generator, dtype=torch.uint8)
    sides = 20 + 100 * torch.rand(batch_size, NUM_BOXES, 2, generator=generator)
    room = torch.tensor([SIZE.width, SIZE.height]) - sides
    corners = room * torch.rand(batch_size, NUM_BOXES, 2, generator=generator)
    labels = torch.randint(NUM_CLASSES, (batch_size, NUM_BOXES), generator=generator)
    targets = tuple(
        Target(torch.cat([corner, corner + side], dim=1), label, torch.zeros(NUM_BOXES, dtype=torch.bool))
        for corner, side, label in zip(corners, sides, labels, strict=True)
    )
    numbers, sizes = tuple(range(batch_size)), (SIZE,) * batch_size
    return Batch(images, sizes, targets, numbers, sizes, tuple(map(str, numbers)))


def our_step(batch: Batch, weights: Path) -> Callable[[], object]:
    """A step of the training engine with its default settings."""
    config = RunConfig(model="retinanet_mobilenet_v2_fpn", precision="bf16")
    detector = build(config.model, num_classes=NUM_CLASSES)
    load_into(detector, weights)
    state = start_state(detector, config, context=LossContext(), device=torch.device("cpu"))
    return lambda: train_step(state, [batch], module=detector, config=config, rate=1e-5)


def peer_step(batch: Batch, weights: Path, *, form: str) -> Callable[[], object]:
    """A step of the peer's loop."""
    model = peer_torchvision.build(NUM_CLASSES, weights)
    if form == "bf16":
        model.to(memory_format=torch.channels_last)
    optimizer, _ = peer_torchvision.make_optimizer(model.train(), 1000)
    images = [image[:, : SIZE.height].float() / 255 for image in batch.images]
    targets = [{"boxes": target.boxes, "labels": target.labels} for target in batch.targets]
    return lambda: peer_torchvision.train_step(model, optimizer, images, targets, form=form)


def main() -> None:
    """Time, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2 in torchvision's key names")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=None, help="folder of the result file")
    chosen = parser.parse_args()
    batch = make_batch(chosen.batch_size)
    forms = {"focaldet": our_step(batch, chosen.weights)}
    forms |= {f"torchvision {form}": peer_step(batch, chosen.weights, form=form) for form in peer_torchvision.FORMS}
    seconds = interleaved(forms, rounds=chosen.rounds)
    for name, taken in seconds.items():
        ratios = {kind: seconds["focaldet"][kind] / taken[kind] for kind in ("min", "median")}
        print(
            f"{name:18} min {taken['min']:.3f} s  median {taken['median']:.3f} s  "
            f"focaldet / this: {ratios['min']:.2f} (min)  {ratios['median']:.2f} (median)"
        )
    print(write_result("steps", {"batch_size": chosen.batch_size, "seconds": seconds}, folder=chosen.out))


if __name__ == "__main__":
    main()
