"""YOLOv2: one grid of cells, boxes around clustered shapes ("YOLO9000: Better, Faster, Stronger", 2016).

    images → backbone → C5 → 3×3 3×3 ──────────────────────────┐
                      → C4 → 1×1 → reorganized to the grid of C5 ┴→ 3×3 → 1×1 → S · (4 + 1 + K) numbers a cell

It is the network of darknet's yolov2.cfg, the one that was released: the paper's text has no 1×1 before the
reorganisation. The loss is that of darknet's region layer, of which the paper prints no equation.

Axes: B images, S anchors per cell, A anchors of all cells, K classes, G objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from focaldet.config import Fraction, validate_fields
from focaldet.errors import ConfigError
from focaldet.models.base import Detector, DetectorConfig, LossContext, Margins
from focaldet.nets import build_backbone
from focaldet.nets.backbone import NUM_STAGES
from focaldet.nets.darknet import ConvLeaky, reorganize
from focaldet.nets.heads import logit
from focaldet.nets.norm import NormKind
from focaldet.ops import padded
from focaldet.ops.boxes import clip, elementwise_iou
from focaldet.ops.grids import Grid
from focaldet.ops.losses.focal import balanced_focal_loss, focal_loss
from focaldet.ops.matching import Matches, PositiveFraction
from focaldet.ops.nms import class_nms
from focaldet.ops.region import (
    decode_in_cells,
    encode_in_cells,
    grid_anchors,
    match_cells,
    responsible_anchors,
)
from focaldet.ranges import (
    BackboneName,
    Channels,
    ClassCount,
    Factor,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Shapes,
)
from focaldet.types import Detections, Images, ImageSize, ImageSizes, Preprocessing, Target

STRIDE_PX = 32

CellShapes = Annotated[tuple[tuple[Factor, Factor], ...], Shapes]
COCO_ANCHORS: CellShapes = (
    (0.57273, 0.677385),
    (1.87446, 2.06253),
    (3.33843, 5.47434),
    (7.88282, 3.52778),
    (9.77052, 9.16828),
)
VOC_ANCHORS: CellShapes = (
    (1.3221, 1.73145),
    (3.19275, 4.00944),
    (5.05587, 8.09892),
    (9.47112, 4.84053),
    (11.2364, 10.0071),
)


@validate_fields
@dataclass(frozen=True, slots=True)
class YOLOv2LossConfig:
    """The loss of darknet's region layer: half of summed squares and a cross entropy, divided by the images.

    The anchor of an object is pulled to its box with `box_weight` · (2 - w h), w and h the box as fractions
    of the input, and its objectness to the IoU of box and object (to 1 without `rescore`) with `object_weight`. All
    others are pulled to 0 with `no_object_weight`, but for those whose box overlaps an object by more than `ignore_iou`
    or lies in an ignored box by `ignore_coverage`. Until `warmup_images` were seen, every other box is pulled to its
    anchor with `warmup_weight`.

    With `objectness` focal the α-balanced focal loss (eq. 5 of its paper) replaces both squares, times
    `object_weight`: object or not is then one decision per anchor, and α and γ do what `no_object_weight` did.
    """

    box_weight: NonNegativeFloat = 1.0
    object_weight: NonNegativeFloat = 5.0
    no_object_weight: NonNegativeFloat = 1.0
    class_weight: NonNegativeFloat = 1.0
    ignore_iou: Fraction = 0.6
    ignore_coverage: PositiveFraction = 0.5
    rescore: bool = True
    warmup_images: NonNegativeInt = 12_800
    warmup_weight: NonNegativeFloat = 0.01
    objectness: Literal["squared", "focal"] = "squared"
    alpha: Fraction | None = 0.25
    gamma: NonNegativeFloat = 2.0


@validate_fields
@dataclass(frozen=True, slots=True)
class YOLOv2DetectConfig:
    """From raw outputs to detections: threshold on objectness × class, best `top_k` pairs, NMS per class.

    darknet keeps every pair above its threshold and every detection; COCO scores the best 100. With `across_classes` a
    box suppresses those of all classes, so that one object has one answer where classes look alike.
    """

    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.005
    top_k: PositiveInt = 4000
    nms_iou: Fraction = 0.45
    max_detections: PositiveInt = 100
    across_classes: bool = False


@validate_fields
@dataclass(frozen=True, slots=True)
class YOLOv2Config(DetectorConfig):
    """Everything that defines a YOLOv2; the defaults are those of the released network for COCO.

    `anchors` are (width, height) in cells of 32 px; `focaldet anchors` computes them for your data. `width` and
    `passthrough` are the channels of the added 3×3 convolutions and of the 1×1 before the reorganisation.
    `norm_momentum` is the weight of a batch in BatchNorm's statistics. `prior` is the objectness of a fresh network,
    which darknet starts from a bias of 0.
    """

    num_classes: ClassCount = 80
    backbone: BackboneName = "darknet19"
    norm: NormKind = "batch"
    norm_eps: NonNegativeFloat = 1e-5
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    frozen_stages: Annotated[int, Field(ge=0, le=NUM_STAGES)] = 0
    width: Channels = 1024
    passthrough: Channels = 64
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.5
    anchors: CellShapes = COCO_ANCHORS
    loss: YOLOv2LossConfig = field(default_factory=YOLOv2LossConfig)
    detect: YOLOv2DetectConfig = field(default_factory=YOLOv2DetectConfig)

    def __post_init__(self) -> None:
        DetectorConfig.__post_init__(self)
        if self.passthrough % 4:
            raise ConfigError(f"passthrough: must be a multiple of 4 to be reorganized, got {self.passthrough}")

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "YOLOv2":
        """The network with random weights."""
        return YOLOv2(self, class_names=class_names, preprocessing=preprocessing)

    def grids(self, image: ImageSize) -> tuple[Grid, ...]:
        """The anchors of the one map; how well they fit is a matter of width and height alone."""
        first = grid_anchors(self.anchors, stride_px=STRIDE_PX, height=1, width=1)
        cells = (image.height // STRIDE_PX, image.width // STRIDE_PX)
        return (Grid(f"stride {STRIDE_PX}", first, (STRIDE_PX, STRIDE_PX), cells, by_shape=True),)


class YOLOv2Outputs(NamedTuple):
    """Raw outputs: class logits, objectness logit and (tx, ty, tw, th) of every anchor; the anchors, in the middle of
    their cells (pixels); and height and width of the grid in cells.
    """

    logits: Float[Tensor, "B A K"]
    objectness: Float[Tensor, "B A"]
    deltas: Float[Tensor, "B A 4"]
    anchors: Float[Tensor, "A 4"]
    grid: tuple[int, int]


class YOLOv2(Detector):
    """Backbone, passthrough, and one convolution that predicts everything."""

    config: YOLOv2Config

    def __init__(self, config: YOLOv2Config, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__(config, class_names=class_names, preprocessing=preprocessing)
        c = config
        self.backbone = build_backbone(c.backbone, norm=c.norm, eps=c.norm_eps, stride_in_1x1=False)
        self.backbone.freeze(c.frozen_stages)
        c4, c5 = self.backbone.channels[2:]
        self.top = nn.Sequential(
            ConvLeaky(c5, c.width, 3, norm=c.norm, eps=c.norm_eps),
            ConvLeaky(c.width, c.width, 3, norm=c.norm, eps=c.norm_eps),
        )
        self.passthrough = ConvLeaky(c4, c.passthrough, 1, norm=c.norm, eps=c.norm_eps)
        self.merge = ConvLeaky(c.width + 4 * c.passthrough, c.width, 3, norm=c.norm, eps=c.norm_eps)
        self.predict = nn.Conv2d(c.width, len(c.anchors) * (5 + c.num_classes), 1)
        nn.init.normal_(self.predict.weight, std=0.01)
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)
        with torch.no_grad():
            bias = self.predict.bias
            bias.view(len(c.anchors), -1)[:, 4] = logit(c.prior)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = c.norm_momentum

    def forward(self, images: Images, sizes: ImageSizes, targets: Sequence[Target] | None = None) -> YOLOv2Outputs:
        """What the grid predicts for padded RGB images in 0…255, whose sides are multiples of 32 px.

        Raises:
            ConfigError: a side is none (`Preprocessing.size_divisor` is not 32).
        """
        height, width = images.shape[-2:]
        if height % STRIDE_PX or width % STRIDE_PX:
            raise ConfigError(
                f"YOLOv2 takes images whose sides are multiples of {STRIDE_PX} px, got {width} × {height}"
            )
        c4, c5 = self.backbone(self.normalize(images))[2:]
        # darknet's route lists the passthrough first, and the weights of `merge` follow that order.
        merged = self.merge(torch.cat([reorganize(self.passthrough(c4)), self.top(c5)], dim=1))
        cells = self.predict(merged).permute(0, 2, 3, 1)
        values = cells.reshape(cells.shape[0], -1, 5 + self.config.num_classes).float()
        grid = (height // STRIDE_PX, width // STRIDE_PX)
        anchors = grid_anchors(
            self.config.anchors, stride_px=STRIDE_PX, height=grid[0], width=grid[1], device=images.device
        )
        # Split, and not sliced: OpenVINO 2026.4 loses one of the slices.
        deltas, objectness, logits = values.split([4, 1, self.config.num_classes], dim=-1)
        return YOLOv2Outputs(logits, objectness.squeeze(-1), deltas, anchors, grid)

    def losses(self, outputs: YOLOv2Outputs, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """`box`, `object` and `class` loss: sums over the batch, divided by its images."""
        config = self.config.loss
        is_warming_up = context.images_seen < config.warmup_images
        parts: list[tuple[Tensor, ...]] = []
        for image, target in enumerate(targets):
            predicted = self._boxes(outputs, image).detach()
            matches = self._matches(predicted, target, outputs.grid)
            chosen = matches.foreground.nonzero().squeeze(1)
            boxes = target.boxes[matches.box_index[chosen]]
            labels = target.labels[matches.box_index[chosen]]
            overlaps = elementwise_iou(predicted[chosen], boxes)
            parts.append(
                (
                    self._box_loss(outputs, image, chosen=chosen, boxes=boxes, is_warming_up=is_warming_up),
                    self._object_loss(outputs.objectness[image], matches, chosen=chosen, overlaps=overlaps),
                    F.cross_entropy(outputs.logits[image, chosen], labels, reduction="none").sum(),
                )
            )
        box, objectness, classes = (torch.stack(column).mean() for column in zip(*parts, strict=True))
        return {"box": box, "object": objectness, "class": classes * config.class_weight}

    def margins(self, outputs: YOLOv2Outputs, targets: Sequence[Target]) -> Margins:
        """x_t of the decision between object and background, of every anchor that the loss counts."""
        positive, negative = [], []
        for image, target in enumerate(targets):
            matches = self._matches(self._boxes(outputs, image), target, outputs.grid)
            objectness = outputs.objectness[image]
            positive.append(objectness[matches.foreground])
            negative.append(-objectness[~matches.foreground & ~matches.ignored])
        return Margins(torch.cat(positive), torch.cat(negative))

    def detect(self, outputs: YOLOv2Outputs, sizes: Sequence[ImageSize]) -> list[Detections]:
        """At most `max_detections` objects an image, in the frame of the resized image."""
        return [self._detect_one(outputs, image, size) for image, size in enumerate(sizes)]

    def detect_padded(self, images: Images, sizes: Int64[Tensor, "B 2"]) -> padded.PaddedDetections:
        """As `forward` and `detect`, in tensors of fixed shapes."""
        config, outputs = self.config.detect, self(images, sizes)
        pairs = outputs.logits.softmax(-1) * outputs.objectness.sigmoid()[..., None]
        scores, anchor, label = padded.best_pairs(pairs, config.top_k, fill=0.0)
        boxes = decode_in_cells(padded.take_rows(outputs.deltas, anchor), outputs.anchors[anchor], stride_px=STRIDE_PX)
        limits = padded.NMSLimits(config.nms_iou, config.score_threshold, config.max_detections)
        kinds = torch.zeros_like(label) if config.across_classes else label
        kept = padded.nms_labeled(boxes, scores, kinds, limits, num_classes=self.config.num_classes)
        inside = padded.clip_to_sizes(boxes, sizes)
        return padded.select_best(inside, scores[:, None], kept[:, None], most=config.max_detections, labels=label)

    def _boxes(self, outputs: YOLOv2Outputs, image: int) -> Float[Tensor, "A 4"]:
        return decode_in_cells(outputs.deltas[image], outputs.anchors, stride_px=STRIDE_PX)

    def _matches(self, predicted: Float[Tensor, "A 4"], target: Target, grid: tuple[int, int]) -> Matches:
        config, (height, width) = self.config, grid
        return match_cells(
            predicted,
            responsible_anchors(target.boxes, config.anchors, stride_px=STRIDE_PX, height=height, width=width),
            target.boxes,
            target.ignored,
            ignore_iou=config.loss.ignore_iou,
            ignore_coverage=config.loss.ignore_coverage,
        )

    def _box_loss(
        self, outputs: YOLOv2Outputs, image: int, *, chosen: Tensor, boxes: Float[Tensor, "P 4"], is_warming_up: bool
    ) -> Float[Tensor, ""]:
        """Half of the weighted squares over σ(tx), σ(ty), tw, th."""
        config, deltas = self.config.loss, outputs.deltas[image]
        wanted = encode_in_cells(boxes, outputs.anchors[chosen], stride_px=STRIDE_PX)
        sides = (boxes[:, 2:] - boxes[:, :2]) / STRIDE_PX
        fraction = sides.prod(1) / (outputs.grid[0] * outputs.grid[1])
        predicted = torch.cat([deltas[:, :2].sigmoid(), deltas[:, 2:]], dim=1)
        loss = ((predicted[chosen] - wanted).square().sum(1) * (2 - fraction)).sum() * config.box_weight
        if is_warming_up:
            squares = (predicted - predicted.new_tensor([0.5, 0.5, 0.0, 0.0])).square().sum(1)
            others = torch.ones_like(squares).index_fill(0, chosen, 0.0)
            loss = loss + (squares * others).sum() * config.warmup_weight
        return loss / 2

    def _object_loss(
        self,
        objectness: Float[Tensor, " A"],
        matches: Matches,
        *,
        chosen: Tensor,
        overlaps: Float[Tensor, " P"],
    ) -> Float[Tensor, ""]:
        """Half of the weighted squares over σ(to), or the focal loss instead."""
        config = self.config.loss
        if config.objectness == "focal":
            if config.alpha is None:
                losses = focal_loss(objectness, matches.foreground, gamma=config.gamma, ignore=matches.ignored)
            else:
                losses = balanced_focal_loss(
                    objectness, matches.foreground, alpha=config.alpha, gamma=config.gamma, ignore=matches.ignored
                )
            return losses.sum() * config.object_weight
        score = objectness.sigmoid()
        wanted = overlaps if config.rescore else torch.ones_like(overlaps)
        objects = (score[chosen] - wanted).square().sum() * config.object_weight
        background = score.square().masked_fill(matches.foreground | matches.ignored, 0.0).sum()
        return (objects + background * config.no_object_weight) / 2

    def _detect_one(self, outputs: YOLOv2Outputs, image: int, size: ImageSize) -> Detections:
        """NMS before the boxes are cut to the image, as darknet does it."""
        config = self.config.detect
        scores = (outputs.logits[image].softmax(-1) * outputs.objectness[image].sigmoid()[:, None]).reshape(-1)
        pairs = (scores > config.score_threshold).nonzero().squeeze(1)
        if len(pairs) > config.top_k:
            pairs = pairs[scores[pairs].topk(config.top_k).indices]
        anchor, label = pairs // self.config.num_classes, pairs % self.config.num_classes
        boxes = decode_in_cells(outputs.deltas[image, anchor], outputs.anchors[anchor], stride_px=STRIDE_PX)
        kinds = torch.zeros_like(label) if config.across_classes else label
        keep = class_nms(boxes, scores[pairs], kinds, iou=config.nms_iou, most=config.max_detections)
        inside = clip(boxes[keep], height=size.height, width=size.width)
        return Detections(inside, scores[pairs][keep], label[keep], self.class_names)
