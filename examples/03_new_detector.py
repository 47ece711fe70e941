"""A detector of your own in one file: every object is predicted at the cell of its center, without anchors.

Registered under a name it is a detector like every other; this program is the command line `focaldet` with it:

    python examples/03_new_detector.py train DIR --model center_net --out runs/center
    python examples/03_new_detector.py eval runs/center

Axes: B images, H W pixels, N cells of an image, K classes, G objects of an image.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

import focaldet
from focaldet.cli import main
from focaldet.config import validate_fields
from focaldet.models import Detector, DetectorConfig, LossContext, Preset
from focaldet.nets import build_backbone
from focaldet.nets.heads import Subnet, logit
from focaldet.nets.norm import NormKind
from focaldet.ops.boxes import clip
from focaldet.ops.losses.fused import focal_loss_sum
from focaldet.ops.losses.regression import giou_loss
from focaldet.ops.nms import class_nms
from focaldet.types import Detections, Images, ImageSize, ImageSizes, Preprocessing, Target

STRIDE_PX = 16


@validate_fields
@dataclass(frozen=True)
class CenterNetConfig(DetectorConfig):
    """The settings; they are stored with the weights, which rebuild the network from them."""

    num_classes: int = 80
    backbone: str = "mobilenet_v2"
    norm: NormKind = "batch"
    width: int = 64

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "CenterNet":
        return CenterNet(self, class_names=class_names, preprocessing=preprocessing)


class CenterNetOutputs(NamedTuple):
    """Of every cell: the logits of the classes, a box (xyxy pixels) and the center of the cell (x, y)."""

    logits: Float[Tensor, "B N K"]
    boxes: Float[Tensor, "B N 4"]
    centers: Float[Tensor, "N 2"]


class CenterNet(Detector):
    """A backbone, its map of stride 16, and a subnet each for classes and the distances to the sides of the box."""

    def __init__(self, config: CenterNetConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__(config, class_names=class_names, preprocessing=preprocessing)
        self.backbone = build_backbone(config.backbone, norm=config.norm, eps=1e-5, stride_in_1x1=False)
        self.neck = nn.Conv2d(self.backbone.channels[2], config.width, 1)
        self.classes = Subnet(config.width, depth=1, per_cell=1, values=config.num_classes, bias=logit(0.01))
        self.sides = Subnet(config.width, depth=1, per_cell=1, values=4)

    def forward(
        self,
        images: Images,
        sizes: ImageSizes,  # noqa: ARG002  every cell predicts, whether padding or not
        targets: Sequence[Target] | None = None,  # noqa: ARG002  no region depends on them
    ) -> CenterNetOutputs:
        features = self.neck(self.backbone(self.normalize(images))[2])
        rows, columns = (torch.arange(cells, device=images.device) for cells in features.shape[2:])
        centers = (torch.cartesian_prod(rows, columns).flip(1) + 0.5) * STRIDE_PX
        sides = STRIDE_PX * self.sides([features]).clamp(max=6).exp()
        boxes = torch.cat([centers - sides[..., :2], centers + sides[..., 2:]], dim=-1)
        return CenterNetOutputs(self.classes([features]), boxes, centers)

    def losses(self, outputs: CenterNetOutputs, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        labels = torch.full(outputs.logits.shape[:2], self.config.num_classes, device=outputs.logits.device)
        predicted, truth = [], []
        for index, target in enumerate(targets):
            boxes = target.boxes[~target.ignored]
            cells = torch.cdist((boxes[:, :2] + boxes[:, 2:]) / 2, outputs.centers).argmin(1)
            labels[index, cells] = target.labels[~target.ignored]
            predicted.append(outputs.boxes[index, cells])
            truth.append(boxes)
        normalizer = context.normalizers(torch.tensor([len(boxes) for boxes in truth], device=labels.device))[0]
        box_loss = giou_loss(torch.cat(predicted), torch.cat(truth)).sum()
        return {"class": focal_loss_sum(outputs.logits, labels) / normalizer, "box": box_loss / normalizer}

    def detect(self, outputs: CenterNetOutputs, sizes: Sequence[ImageSize]) -> list[Detections]:
        images = zip(outputs.logits.sigmoid(), outputs.boxes, sizes, strict=True)
        return [self._detect_one(scores, boxes, size) for scores, boxes, size in images]

    def _detect_one(self, scores: Float[Tensor, "N K"], boxes: Float[Tensor, "N 4"], size: ImageSize) -> Detections:
        best, index = scores.flatten().topk(min(1000, scores.numel()))
        labels = index % scores.shape[1]
        chosen = clip(boxes[index // scores.shape[1]], height=size.height, width=size.width)
        keep = class_nms(chosen, best, labels, iou=0.5, most=100)
        return Detections(chosen[keep], best[keep], labels[keep], self.class_names)


if __name__ == "__main__":
    focaldet.register("center_net", Preset(CenterNetConfig()))
    sys.exit(main())
