"""A detector of your own in one file: every object answers at the cell that holds its centre.

It has no anchors: a cell gives the probability of each class and the distances from its centre to the four sides of the
box. With its line in the table of names it trains, saves, loads and predicts as RetinaNet does.

    python examples/03_new_detector.py DIR --out runs/centre

Axes: B images, C channels, H W cells, N cells of an image, K classes, G objects of an image.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

import focaldet
from focaldet.models import Preset, register
from focaldet.models.base import Detector, DetectorConfig, LossContext
from focaldet.nets import NormKind, build_backbone
from focaldet.nets.heads import Subnet, logit
from focaldet.ops.boxes import clip
from focaldet.ops.losses.fused import focal_loss_sum
from focaldet.ops.losses.regression import giou_loss
from focaldet.ops.nms import class_nms
from focaldet.types import Detections, ImageSize, ImageSizes, Preprocessing, Target

STRIDE_PX = 16


@dataclass(frozen=True)
class CentreNetConfig(DetectorConfig):
    """Everything that defines the network; it is stored with the weights, which rebuild it."""

    num_classes: int = 80
    backbone: str = "mobilenet_v2"
    norm: NormKind = "frozen"
    width: int = 64
    prior: float = 0.01

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "CentreNet":
        """The network with random weights."""
        return CentreNet(self, class_names=class_names, preprocessing=preprocessing)


class CentreNetOutputs(NamedTuple):
    """Raw outputs per cell: class logits, boxes (xyxy pixels), and the number of cells in a row."""

    logits: Float[Tensor, "B N K"]
    boxes: Float[Tensor, "B N 4"]
    columns: int


class CentreNet(Detector):
    """Backbone, one map of stride 16, two subnets."""

    config: CentreNetConfig

    def __init__(self, config: CentreNetConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__(config, class_names=class_names, preprocessing=preprocessing)
        self.backbone = build_backbone(config.backbone, norm=config.norm, eps=1e-5, stride_in_1x1=False)
        self.neck = nn.Conv2d(self.backbone.channels[2], config.width, 1)
        bias = logit(config.prior)
        self.class_subnet = Subnet(config.width, depth=1, per_cell=1, values=config.num_classes, bias=bias)
        self.side_subnet = Subnet(config.width, depth=1, per_cell=1, values=4)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that come from ImageNet."""
        return list(self.backbone.parameters())

    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"],
        sizes: ImageSizes,  # noqa: ARG002  every cell answers for itself, padding or not
        targets: Sequence[Target] | None = None,  # noqa: ARG002  one stage
    ) -> CentreNetOutputs:
        """Logits and boxes of every cell."""
        cells = self.neck(self.backbone(self.normalize(images))[2])
        sides = STRIDE_PX * self.side_subnet([cells]).clamp(max=6).exp()
        centres = self._centres(cells.shape[2], cells.shape[3]).to(sides.device)
        boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=-1)
        return CentreNetOutputs(self.class_subnet([cells]), boxes, cells.shape[3])

    def losses(self, outputs: CentreNetOutputs, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """Focal loss over all cells, GIoU loss at the cells of objects, both over the number of objects."""
        labels, places, truth = [], [], []
        for target in targets:
            place, label = self._assign(outputs, target)
            labels.append(label)
            places.append(place)
            truth.append(target.boxes[~target.ignored])
        count = torch.tensor(float(sum(map(len, places))), device=outputs.logits.device)
        if context.all_reduce_sum is not None:
            count = context.all_reduce_sum(count) / context.num_ranks
        found = torch.cat([boxes[place] for boxes, place in zip(outputs.boxes, places, strict=True)])
        return {
            "class": focal_loss_sum(outputs.logits, torch.stack(labels)) / count.clamp(min=1),
            "box": giou_loss(found, torch.cat(truth)).sum() / count.clamp(min=1),
        }

    def detect(self, outputs: CentreNetOutputs, sizes: Sequence[ImageSize]) -> list[Detections]:
        """At most 100 objects an image."""
        return [
            self._detect_one(logits, boxes, size)
            for logits, boxes, size in zip(outputs.logits, outputs.boxes, sizes, strict=True)
        ]

    def _centres(self, rows: int, columns: int) -> Float[Tensor, "N 2"]:
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * STRIDE_PX

    def _assign(self, outputs: CentreNetOutputs, target: Target) -> tuple[Int64[Tensor, " G"], Int64[Tensor, " N"]]:
        """The cell of each object, and the class of each cell (K for background)."""
        boxes, kept = target.boxes[~target.ignored], target.labels[~target.ignored]
        column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE_PX).long().unbind(1)
        place = (row * outputs.columns + column).clamp(max=outputs.logits.shape[1] - 1)
        labels = torch.full((outputs.logits.shape[1],), self.config.num_classes, device=place.device)
        labels[place] = kept
        return place, labels

    def _detect_one(self, logits: Float[Tensor, "N K"], boxes: Float[Tensor, "N 4"], size: ImageSize) -> Detections:
        scores, place = logits.sigmoid().flatten().topk(min(1000, logits.numel()))
        label = place % logits.shape[1]
        chosen = clip(boxes[place // logits.shape[1]], height=size.height, width=size.width)
        keep = class_nms(chosen, scores, label, iou=0.5)[:100]
        return Detections(chosen[keep], scores[keep], label[keep], self.class_names)


def main() -> None:
    """Put the network into the table and train it."""
    parser = argparse.ArgumentParser(description="Train a detector of your own.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--out", type=Path, default=Path("runs/centre"))
    chosen = parser.parse_args()

    config = CentreNetConfig(norm="frozen" if chosen.weights else "batch")
    register("centre_net_mobilenet_v2", Preset(config))
    config = focaldet.RunConfig(
        data=focaldet.DataConfig(path=chosen.data),
        model="centre_net_mobilenet_v2",
        weights=chosen.weights,
        size=chosen.size,
        epochs=chosen.epochs,
        out=chosen.out,
    )
    result = focaldet.train(config)
    predictor = focaldet.load(result.out)
    print(f"trained {type(predictor.detector).__name__} for {result.epochs} epochs: {predictor.class_names}")


if __name__ == "__main__":
    main()
