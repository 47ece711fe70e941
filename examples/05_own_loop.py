"""RetinaNet in a training loop of your own: plain PyTorch, without focaldet's engine, data formats or settings.

python examples/05_own_loop.py --steps 200 --out squares.safetensors
"""

import argparse

import torch

import focaldet
from focaldet.models import LossContext


def draw_batch(count: int = 8) -> tuple[torch.Tensor, list[focaldet.ImageSize], list[focaldet.Target]]:
    """Images with one black or white square each, their sizes, and the box and label of each square."""
    images, targets = torch.randint(60, 190, (count, 3, 64, 64), dtype=torch.uint8), []
    for image in images:
        (x, y), side, label = torch.randint(2, 30, (2,)), torch.randint(16, 32, ()), torch.randint(0, 2, (1,))
        image[:, y : y + side, x : x + side] = 255 * label
        box = torch.stack([x, y, x + side, y + side]).float()
        targets.append(focaldet.Target(boxes=box[None], labels=label, ignored=torch.tensor([False])))
    return images, [focaldet.ImageSize(64, 64)] * count, targets


parser = argparse.ArgumentParser(description="Train RetinaNet on squares that are drawn here.")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--out", default="squares.safetensors")
arguments = parser.parse_args()

torch.manual_seed(0)
architecture = {"norm": "batch", "width": 32, "head_depth": 1}
detector = focaldet.build("retinanet_mobilenet_v2_fpn", class_names=("black", "white"), architecture=architecture)
optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
detector.train()
for step in range(arguments.steps):
    images, sizes, targets = draw_batch()
    losses = detector.losses(detector(images, sizes), targets, LossContext())
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    if step % 10 == 0:
        print(step, {name: round(loss.item(), 3) for name, loss in losses.items()})

detector.eval()
images, sizes, targets = draw_batch()
with torch.no_grad():
    detections = detector.detect(detector(images, sizes), sizes)
for target, detected in zip(targets, detections, strict=True):
    print("drawn:", detector.class_names[target[0].label], target[0].box, "detected:", *detected[:1])
detector.save(arguments.out)  # focaldet.load opens it
