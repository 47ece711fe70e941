"""RetinaNet in a training loop of your own: plain PyTorch, without focaldet's engine, data formats or settings.

python examples/05_own_loop.py --steps 200 --out squares.safetensors
"""

import argparse

import torch

import focaldet
from focaldet.models import LossContext

parser = argparse.ArgumentParser(description="Train RetinaNet on squares that are drawn here.")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--out", default="squares.safetensors")
chosen = parser.parse_args()
torch.manual_seed(0)


def draw_batch(count: int = 8) -> tuple[torch.Tensor, list[focaldet.ImageSize], list[focaldet.Target]]:
    """Images with one white or black square each, their sizes, and where the squares are."""
    images = torch.randint(60, 190, (count, 3, 64, 64), dtype=torch.uint8)
    corners, sides = torch.randint(2, 30, (count, 2)), torch.randint(16, 32, (count, 1))
    boxes, labels = torch.cat([corners, corners + sides], 1), torch.randint(0, 2, (count,))
    for image, (x1, y1, x2, y2), label in zip(images, boxes.tolist(), labels.tolist(), strict=True):
        image[:, y1:y2, x1:x2] = 255 * label
    targets = [
        focaldet.Target(box[None].float(), label[None], torch.tensor([False]))
        for box, label in zip(boxes, labels, strict=True)
    ]
    return images, [focaldet.ImageSize(64, 64)] * count, targets


architecture = {"norm": "batch", "width": 32, "head_depth": 1}
detector = focaldet.build("retinanet_mobilenet_v2_fpn", class_names=("black", "white"), architecture=architecture)
optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
context = LossContext()  # what the losses may know beside a batch; of one process and no moving average: nothing
for step in range(chosen.steps):
    images, sizes, targets = draw_batch()
    losses = detector.train().losses(detector(images, sizes), targets, context)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    if step % 10 == 0:
        print(step, {name: round(loss.item(), 3) for name, loss in losses.items()})

images, sizes, targets = draw_batch()
with torch.no_grad():
    detections = detector.eval().detect(detector(images, sizes), sizes)
for target, best in zip(targets, (each[:1] for each in detections), strict=True):
    print("drawn:", detector.class_names[target[0].label], target[0].box, "detected:", *best)
detector.save(chosen.out)  # focaldet.load opens it
