"""The peer: a plain torchvision RetinaNet loop on a Pascal VOC folder, as its users write it.

The same network as `retinanet_mobilenet_v2_fpn` in torchvision's parts (MobileNetV2, FPN and subnets 96 wide, anchors
of 3 × 3 shapes), the same ImageNet weights, size, epochs and batch. torchvision's anchors begin at 32 px; the loop gets
those of our preset, from 16 px, unless `--anchor-px 32` says otherwise: with its own it misses small objects. Of its
two forms `plain` is torchvision as it comes (fp32, contiguous), `bf16` adds autocast and channels-last. Nothing of
focaldet is used here.

    python benchmarks/peer_torchvision.py --data bccd --weights mobilenet_v2.safetensors --form bf16 --seed 0
"""

import argparse
import contextlib
import io
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import write_result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import read_image
from torchvision.models import mobilenet_v2
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

WIDTH = 96
HALF = [0.5, 0.5, 0.5]
FORMS = ("plain", "bf16")
NUMBERS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)


@dataclass(frozen=True)
class Sample:
    """One annotated image of a VOC folder: xyxy boxes in pixels, class names."""

    path: Path
    size: tuple[int, int]
    boxes: list[list[float]]
    names: list[str]


def read_voc(folder: Path, split: str) -> list[Sample]:
    """The images of a split; boxes without area are skipped."""
    names = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    return [_read_sample(folder, name) for name in names]


def _read_sample(folder: Path, name: str) -> Sample:
    root = ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot()
    objects = []
    for item in root.iter("object"):
        box = [float(item.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
        if box[2] > box[0] and box[3] > box[1]:
            objects.append((box, item.findtext("name", "")))
    size = (int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0")))
    return Sample(
        folder / "JPEGImages" / f"{name}.jpg", size, [box for box, _ in objects], [name for _, name in objects]
    )


class Samples(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images in 0…1 with torchvision's targets; half of them mirrored where `flip` is set."""

    def __init__(self, samples: list[Sample], classes: list[str], *, flip: bool) -> None:
        self.samples, self.classes, self.flip = samples, classes, flip

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = self.samples[index]
        image = read_image(str(sample.path)).float() / 255
        boxes = torch.tensor(sample.boxes).reshape(-1, 4)
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
            boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
        labels = torch.tensor([self.classes.index(name) for name in sample.names], dtype=torch.int64)
        return image, {"boxes": boxes, "labels": labels}


class FloatHead(RetinaNetHead):
    """torchvision's head with outputs in fp32: its losses and NMS are not made for bf16."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}


def build_backbone(weights: Path | None) -> BackboneWithFPN:
    """MobileNetV2 with a pyramid of five maps, 96 wide, strides 8 to 128; BatchNorm frozen."""
    body = mobilenet_v2(norm_layer=FrozenBatchNorm2d)
    if weights is not None:
        body.load_state_dict(load_file(weights))
    return BackboneWithFPN(
        body.features[:18], {"6": "0", "13": "1", "17": "2"}, [32, 96, 320], WIDTH, LastLevelP6P7(WIDTH, WIDTH)
    )


def build(num_classes: int, weights: Path | None, *, size: int = 320, anchor_px: int = 16) -> RetinaNet:
    """RetinaNet on MobileNetV2, 96 wide, its longer image side `size` pixels."""
    backbone = build_backbone(weights)
    # As `_default_anchorgen` of torchvision's file makes them from 32 px.
    sizes = tuple(tuple(int(side * 2 ** (k / 3)) for k in range(3)) for side in (anchor_px * 2**n for n in range(5)))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = FloatHead(WIDTH, anchors.num_anchors_per_location()[0], num_classes)
    return RetinaNet(
        backbone,
        num_classes,
        min_size=size,
        max_size=size,
        image_mean=HALF,
        image_std=HALF,
        anchor_generator=anchors,
        head=head,
    )


def make_optimizer(
    model: GeneralizedRCNN, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """AdamW at 1e-3 on one cycle, the backbone at .3 of it."""
    body = list(model.backbone.body.parameters())
    known = {id(parameter) for parameter in body}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    optimizer = torch.optim.AdamW([{"params": body}, {"params": rest}], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [3e-4, 1e-3], total_steps=total_steps)
    return optimizer, schedule


def train_step(
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
    *,
    form: str,
) -> float:
    """One update; the sum of the losses before it."""
    half = torch.autocast("cpu", torch.bfloat16) if form == "bf16" else contextlib.nullcontext()
    with half:
        losses = model(images, targets)
    loss = sum(losses.values())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return float(loss.detach())


def train(model: RetinaNet, samples: Samples, *, epochs: int, batch_size: int, form: str) -> float:
    """Seconds of the training loop, reading the images included."""
    if form == "bf16":
        model.to(memory_format=torch.channels_last)
    loader = DataLoader(
        samples, batch_size, shuffle=True, drop_last=True, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )
    optimizer, schedule = make_optimizer(model, epochs * len(loader))
    model.train()
    start = time.perf_counter()
    for epoch in range(epochs):
        for images, targets in loader:
            loss = train_step(model, optimizer, list(images), list(targets), form=form)
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs} loss {loss:.3f} {time.perf_counter() - start:.0f} s", flush=True)
    return time.perf_counter() - start


def coco_truth(samples: list[Sample], classes: list[str]) -> COCO:
    """The ground truth of `samples` as pycocotools reads it."""
    annotations = []
    for image_id, sample in enumerate(samples):
        for (x1, y1, x2, y2), name in zip(sample.boxes, sample.names, strict=True):
            width, height = x2 - x1, y2 - y1
            annotation = {"image_id": image_id, "category_id": classes.index(name) + 1, "bbox": [x1, y1, width, height]}
            annotations.append({**annotation, "id": len(annotations) + 1, "area": width * height, "iscrowd": 0})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "width": p.size[0], "height": p.size[1]} for i, p in enumerate(samples)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
        "annotations": annotations,
    }
    truth.createIndex()
    return truth


@torch.inference_mode()
def evaluate(model: RetinaNet, samples: Samples) -> dict[str, float]:
    """The 12 COCO numbers, by pycocotools, in fp32."""
    model.eval()
    results = []
    for position in range(len(samples)):
        objects = model([samples[position][0]])[0]
        rows = zip(objects["boxes"].tolist(), objects["scores"].tolist(), objects["labels"].tolist(), strict=True)
        results += [
            {"image_id": position, "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), score, label in rows
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_truth(samples.samples, samples.classes)
        judge = COCOeval(truth, truth.loadRes(results), "bbox") if results else None
        if judge is None:
            return dict.fromkeys(NUMBERS, 0.0)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(NUMBERS, (float(value) for value in judge.stats), strict=True))


def run(
    data: Path, weights: Path, *, form: str, seed: int, epochs: int, size: int, batch_size: int, anchor_px: int
) -> dict[str, object]:
    """Train on `train`, evaluate on `val`: seconds of training alone, and the 12 numbers."""
    torch.manual_seed(seed)
    training, validation = read_voc(data, "train"), read_voc(data, "val")
    classes = sorted({name for sample in training for name in sample.names})
    model = build(len(classes), weights, size=size, anchor_px=anchor_px)
    seconds = train(model, Samples(training, classes, flip=True), epochs=epochs, batch_size=batch_size, form=form)
    metrics = evaluate(model, Samples(validation, classes, flip=False))
    return {
        "form": form,
        "seed": seed,
        "epochs": epochs,
        "size": size,
        "batch_size": batch_size,
        "anchor_px": anchor_px,
        "seconds": seconds,
        **metrics,
    }


def main() -> None:
    """Train, evaluate, print one line, write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Pascal VOC folder with splits train and val")
    parser.add_argument(
        "--weights", type=Path, required=True, help="MobileNetV2 in torchvision's key names, input x / 127.5 - 1"
    )
    parser.add_argument("--form", choices=FORMS, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--size", type=int, default=320, help="long side in pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--anchor-px", type=int, default=16, help="side of the smallest anchor; 32 is torchvision's")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result file")
    chosen = parser.parse_args()
    result = run(
        chosen.data,
        chosen.weights,
        form=chosen.form,
        seed=chosen.seed,
        epochs=chosen.epochs,
        size=chosen.size,
        batch_size=chosen.batch_size,
        anchor_px=chosen.anchor_px,
    )
    path = write_result(f"peer_{chosen.data.name}_{chosen.form}_seed{chosen.seed}", result, folder=chosen.out)
    accuracy = f"AP {result['ap']:.4f} AP50 {result['ap50']:.4f}"
    print(f"torchvision {chosen.form} seed {chosen.seed}: {accuracy} in {result['seconds']:.0f} s: {path}")


if __name__ == "__main__":
    main()
