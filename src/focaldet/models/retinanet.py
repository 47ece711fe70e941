"""RetinaNet: one stage, a feature pyramid and the focal loss ("Focal Loss for Dense Object Detection", 2017).

    images → backbone → C3 C4 C5 → pyramid → P3 … P7 ┬→ class subnet → logits   B A V
                                                     └→ box subnet   → deltas   B A 4

Axes: B images, A anchors of all levels, K classes, V class values per anchor, P positive anchors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from focaldet.config import Fraction, validate_fields
from focaldet.errors import ConfigError
from focaldet.models.base import Detector, DetectorConfig, LossContext, Margins
from focaldet.nets import build_backbone
from focaldet.nets.backbone import NUM_STAGES
from focaldet.nets.heads import Subnet, TowerInit, logit, prior_biases
from focaldet.nets.necks import PYRAMID_STRIDES_PX, FeaturePyramid
from focaldet.nets.norm import NormKind
from focaldet.ops import padded
from focaldet.ops.anchors import AnchorConfig, pyramid_anchors
from focaldet.ops.boxes import clip, decode, elementwise_iou, encode
from focaldet.ops.classifier import Classifier, class_logits, class_loss_sum, class_losses, decisions
from focaldet.ops.grids import Grid, pyramid_grids
from focaldet.ops.losses.focal import quality_focal_loss
from focaldet.ops.losses.normalize import Normalizer
from focaldet.ops.losses.regression import giou_loss, smooth_l1_loss
from focaldet.ops.matching import MatchConfig, Matches, match
from focaldet.ops.nms import class_nms
from focaldet.ops.sampling import MiningConfig, hardest
from focaldet.ranges import BackboneName, Channels, ClassCount, LayerCount, NonNegativeFloat, PositiveInt
from focaldet.types import Detections, Images, ImageSize, ImageSizes, Preprocessing, Target


@validate_fields
@dataclass(frozen=True, slots=True)
class LossConfig:
    """The α-balanced focal loss (eq. 5) and the box loss, summed and divided by `normalizer`.

    `alpha` None leaves the balance out. `beta` is the smooth-L1 corner on encoded boxes. With `across_ranks` the
    normalizer counts the positives of all processes.

    With `quality` an anchor of an object is to answer not 1 but the IoU of its predicted box with the object's: the
    focal loss for soft targets (Li et al. 2020, eq. 3, its β = `gamma`), without α. The score then says how well the
    box lies, too, and NMS keeps the best box.

    With `mining` only the hardest anchors count in the class loss, which is then their mean as in the paper of OHEM:
    divided by the number of chosen anchors of the batch (where `normalizer` is `image`, of the image, then the mean of
    images). Divided by the positives, a minibatch of constant size would weigh more the fewer objects there are. The
    box loss stays that of all positives.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"normaliser": "normalizer", "over_ranks": "across_ranks"}

    alpha: Fraction | None = 0.25
    gamma: NonNegativeFloat = 2.0
    normalizer: Normalizer = "batch"
    across_ranks: bool = True
    box: Literal["smooth_l1", "l1", "giou"] = "smooth_l1"
    beta: NonNegativeFloat = 0.11
    box_weight: NonNegativeFloat = 1.0
    mining: MiningConfig | None = None
    quality: bool = False

    def __post_init__(self) -> None:
        if self.quality and self.mining is not None:
            raise ConfigError("quality: soft targets and mining exclude each other; set it to false to mine")


@validate_fields
@dataclass(frozen=True, slots=True)
class DetectConfig:
    """From logits to detections: threshold, best `top_k` pairs of anchor and class per level, NMS per class.

    `clip_first` clips boxes to the image before NMS; detectron2 does so after it. With `across_classes` a box
    suppresses those of all classes, so that one object has one answer where classes look alike.
    """

    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05
    top_k: PositiveInt = 1000
    nms_iou: Fraction = 0.5
    max_detections: PositiveInt = 100
    clip_first: bool = True
    across_classes: bool = False


@validate_fields
@dataclass(frozen=True, slots=True)
class RetinaNetConfig(DetectorConfig):
    """Everything that defines a RetinaNet; the defaults are the paper's with ResNet-50.

    `stride_in_1x1` is the paper's MSRA form; torchvision's ImageNet weights want it in the 3×3, the default here.
    `frozen_stages` counts the stem and the stages after it. `prior` is π, the probability a fresh network gives every
    class at every anchor. `head_norm` puts GroupNorm into the subnets, `tower_init` is how they start (`nets.heads`).
    `p6_from` and `p7_relu` are the pyramid's two variants, and `neck_norm` puts GroupNorm into it (`nets.necks`).
    `classifier` softmax is for comparison: one softmax over the classes and a background class instead of K sigmoids.
    Everything keeps its meaning: `loss.alpha` weighs objects and 1 - `loss.alpha` background, `loss.gamma` 0 is the
    cross entropy, and `prior` leaves 1 - K π to the background, which must be above 0.
    """

    num_classes: ClassCount = 80
    backbone: BackboneName = "resnet50"
    norm: NormKind = "frozen"
    norm_eps: NonNegativeFloat = 1e-5
    stride_in_1x1: bool = False
    frozen_stages: Annotated[int, Field(ge=0, le=NUM_STAGES)] = 2
    width: Channels = 256
    p6_from: Literal["C5", "P5"] = "C5"
    p7_relu: bool = True
    neck_norm: bool = False
    head_depth: LayerCount = 4
    head_norm: bool = False
    tower_init: TowerInit = "normal"
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    classifier: Classifier = "sigmoid"
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    matching: MatchConfig = field(default_factory=MatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)

    def __post_init__(self) -> None:
        DetectorConfig.__post_init__(self)
        if self.loss.quality and self.classifier != "sigmoid":
            raise ConfigError("loss.quality: soft targets need the sigmoid classifier; set it to false")

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "RetinaNet":
        """The network with random weights."""
        return RetinaNet(self, class_names=class_names, preprocessing=preprocessing)

    def grids(self, image: ImageSize) -> tuple[Grid, ...]:
        """The anchors of P3…P7."""
        by_center = self.matching.rule == "adaptive"
        return pyramid_grids(self.anchors, strides_px=PYRAMID_STRIDES_PX, image=image, by_center=by_center)


class RetinaNetOutputs(NamedTuple):
    """Raw outputs: logits and encoded boxes of every anchor, the anchors, and how many of them each level has.

    A softmax classifier has V = K + 1 logits, the background's last, others V = K.
    """

    logits: Float[Tensor, "B A V"]
    deltas: Float[Tensor, "B A 4"]
    anchors: Float[Tensor, "A 4"]
    level_sizes: tuple[int, ...]


class RetinaNet(Detector):
    """Backbone, feature pyramid, and a subnet each for classes and boxes."""

    config: RetinaNetConfig

    def __init__(self, config: RetinaNetConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__(config, class_names=class_names, preprocessing=preprocessing)
        c = config
        if c.loss.quality and type(self).class_loss is not RetinaNet.class_loss:
            name = type(self).__name__
            raise ConfigError(f"loss.quality: replaces `class_loss`, which {name} overrides; set it to false")
        self.backbone = build_backbone(c.backbone, norm=c.norm, eps=c.norm_eps, stride_in_1x1=c.stride_in_1x1)
        self.backbone.freeze(c.frozen_stages)
        channels = self.backbone.channels[1:]
        self.pyramid = FeaturePyramid(channels, c.width, p6_from=c.p6_from, p7_relu=c.p7_relu, norm=c.neck_norm)
        biases = prior_biases(c.classifier, num_classes=c.num_classes, prior=c.prior)
        subnet = partial(
            Subnet, c.width, depth=c.head_depth, per_cell=c.anchors.per_cell, norm=c.head_norm, tower_init=c.tower_init
        )
        self.class_subnet = subnet(values=len(biases), bias=biases)
        self.box_subnet = subnet(values=4)

    def forward(self, images: Images, sizes: ImageSizes, targets: Sequence[Target] | None = None) -> RetinaNetOutputs:
        """Logits and encoded boxes of all anchors for padded RGB images in 0…255."""
        levels = self.pyramid(self.backbone(self.normalize(images))[1:])
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        config = self.config.anchors
        anchors = pyramid_anchors(
            config,
            strides_px=PYRAMID_STRIDES_PX,
            shapes=shapes,
            image=(images.shape[-2], images.shape[-1]),
            device=images.device,
        )
        level_sizes = tuple(height * width * config.per_cell for height, width in shapes)
        return RetinaNetOutputs(self.class_subnet(levels), self.box_subnet(levels), anchors, level_sizes)

    def losses(self, outputs: RetinaNetOutputs, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """`class` and `box` loss of the batch, normalized as the config says (section 4.1)."""
        config = self.config.loss
        matches, labels, ignored = self._assign_anchors(outputs, targets)
        positives = torch.stack([m.foreground.sum() for m in matches])
        normalizers = partial(context.normalizers, across_ranks=config.across_ranks)
        box_normalizers = class_normalizers = normalizers(positives, config.normalizer)
        if config.mining is not None:
            class_normalizers = normalizers((~ignored).sum(1), "image" if config.normalizer == "image" else "batch")
        box_losses, qualities = [], []
        for target, match_, deltas in zip(targets, matches, outputs.deltas, strict=True):
            chosen = match_.foreground.nonzero().squeeze(1)
            boxes, anchors = target.boxes[match_.box_index[chosen]], outputs.anchors[chosen]
            box_losses.append(self._box_loss(deltas[chosen], anchors, boxes))
            if config.quality:
                quality = elementwise_iou(decode(deltas[chosen].detach(), anchors), boxes)
                qualities.append(quality.new_zeros(len(deltas)).index_put((chosen,), quality))
        if config.quality:
            class_loss = self._quality_loss(outputs.logits, labels, torch.stack(qualities), ignored, class_normalizers)
        else:
            class_loss = self.class_loss(outputs.logits, labels, ignored, class_normalizers)
        return {"class": class_loss, "box": (torch.stack(box_losses) / box_normalizers).sum() * config.box_weight}

    def margins(self, outputs: RetinaNetOutputs, targets: Sequence[Target]) -> Margins:
        """x_t of every anchor and class, of a softmax of every anchor; without what the class loss ignores."""
        _, labels, ignored = self._assign_anchors(outputs, targets)
        return Margins(*decisions(outputs.logits[~ignored].float(), labels[~ignored], self.config.classifier))

    def detect(self, outputs: RetinaNetOutputs, sizes: Sequence[ImageSize]) -> list[Detections]:
        """At most `max_detections` objects an image, in the frame of the resized image."""
        return [self._detect_one(outputs, image, size) for image, size in enumerate(sizes)]

    def detect_padded(self, images: Images, sizes: Int64[Tensor, "B 2"]) -> padded.PaddedDetections:
        """As `forward` and `detect`, in tensors of fixed shapes."""
        config, outputs = self.config.detect, self(images, sizes)
        logits = class_logits(outputs.logits, self.config.classifier)
        start, chosen = 0, []
        for size in outputs.level_sizes:
            values, anchor, label = padded.best_pairs(logits[:, start : start + size], config.top_k, fill=-torch.inf)
            chosen.append((values.sigmoid(), anchor + start, label))
            start = start + size
        scores, anchor, label = (torch.cat(parts, 1) for parts in zip(*chosen, strict=True))
        boxes = decode(padded.take_rows(outputs.deltas, anchor), outputs.anchors[anchor])
        clipped = padded.clip_to_sizes(boxes, sizes)
        compared = clipped if config.clip_first else boxes
        kinds = torch.zeros_like(label) if config.across_classes else label
        limits = padded.NMSLimits(config.nms_iou, config.score_threshold, config.max_detections)
        kept = padded.nms_labeled(compared, scores, kinds, limits, num_classes=self.config.num_classes)
        return padded.select_best(clipped, scores[:, None], kept[:, None], most=config.max_detections, labels=label)

    def _assign_anchors(
        self, outputs: RetinaNetOutputs, targets: Sequence[Target]
    ) -> tuple[list[Matches], Int64[Tensor, "B A"], Bool[Tensor, "B A"]]:
        """The matches of each image, the class of each anchor (K for background), and which the class loss ignores.

        It ignores what is neither object nor background, and with `mining` what is easy.
        """
        config, levels = self.config, outputs.level_sizes
        matches = [match(outputs.anchors, t.boxes, t.ignored, config.matching, level_sizes=levels) for t in targets]
        pairs = zip(targets, matches, strict=True)
        labels = torch.stack([m.labels(t.labels, background=config.num_classes) for t, m in pairs])
        ignored = torch.stack([m.ignored for m in matches])
        if config.loss.mining is not None:
            ignored = self._ignore_easy(outputs, labels, ignored)
        return matches, labels, ignored

    @torch.no_grad()
    def _ignore_easy(
        self, outputs: RetinaNetOutputs, labels: Int64[Tensor, "B A"], ignored: Bool[Tensor, "B A"]
    ) -> Bool[Tensor, "B A"]:
        """The anchors that are not among the hardest of their image, or were ignored before."""
        config = self.config.loss
        assert config.mining is not None
        kind = self.config.classifier
        losses = class_losses(
            outputs.logits, labels, classifier=kind, alpha=config.alpha, gamma=config.gamma, ignore=ignored
        )
        objects = labels < self.config.num_classes
        rows = zip(losses, objects, ignored, strict=True)
        return ~torch.stack([hardest(row[0], outputs.anchors, *row[1:], config=config.mining) for row in rows])

    def class_loss(
        self,
        logits: Float[Tensor, "B A V"],
        labels: Int64[Tensor, "B A"],
        ignored: Bool[Tensor, "B A"],
        normalizers: Float[Tensor, " B"],
    ) -> Float[Tensor, ""]:
        """The classification loss of a batch: of each image divided by its own of `normalizers`, then summed.

        Override it to train with a loss of your own; `quality` must be off then. It is one pass where all images have
        the same normalizer.
        """
        config, kind = self.config.loss, self.config.classifier
        total = partial(class_loss_sum, classifier=kind, alpha=config.alpha, gamma=config.gamma)
        if config.normalizer != "image":
            return total(logits, labels, ignore=ignored) / normalizers[0]
        rows = zip(logits, labels, ignored, strict=True)
        losses = torch.stack([total(row, classes, ignore=skipped) for row, classes, skipped in rows])
        return (losses / normalizers).sum()

    def _quality_loss(
        self,
        logits: Float[Tensor, "B A K"],
        labels: Int64[Tensor, "B A"],
        qualities: Float[Tensor, "B A"],
        ignored: Bool[Tensor, "B A"],
        normalizers: Float[Tensor, " B"],
    ) -> Float[Tensor, ""]:
        """As `class_loss`, where the target of an object's class is the quality in [0, 1] of the anchor's box."""
        config = self.config
        is_class = labels[..., None] == torch.arange(config.num_classes, device=labels.device)
        skipped = ignored[..., None].expand_as(logits)
        losses = quality_focal_loss(logits, is_class * qualities[..., None], beta=config.loss.gamma, ignore=skipped)
        return (losses.sum((1, 2)) / normalizers).sum()

    def _box_loss(
        self, deltas: Float[Tensor, "P 4"], anchors: Float[Tensor, "P 4"], boxes: Float[Tensor, "P 4"]
    ) -> Float[Tensor, ""]:
        config = self.config.loss
        if config.box == "giou":
            return giou_loss(decode(deltas, anchors), boxes).sum()
        beta = config.beta if config.box == "smooth_l1" else 0.0
        return smooth_l1_loss(deltas, encode(boxes, anchors), beta=beta).sum()

    def _detect_one(self, outputs: RetinaNetOutputs, image: int, size: ImageSize) -> Detections:
        config = self.config.detect
        logits = class_logits(outputs.logits[image], self.config.classifier)
        anchor, label, best = self._candidates(logits, outputs.level_sizes)
        boxes = decode(outputs.deltas[image, anchor], outputs.anchors[anchor])
        clipped = clip(boxes, height=size.height, width=size.width)
        scores = best.sigmoid()
        compared = clipped if config.clip_first else boxes
        kinds = torch.zeros_like(label) if config.across_classes else label
        keep = class_nms(compared, scores, kinds, iou=config.nms_iou, most=config.max_detections)
        return Detections(clipped[keep], scores[keep], label[keep], self.class_names)

    def _candidates(
        self, logits: Float[Tensor, "A K"], level_sizes: tuple[int, ...]
    ) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"], Float[Tensor, " N"]]:
        """Anchor, class and logit of the best pairs of each level.

        The threshold is applied to the logits: the sigmoid of all A × K would cost more than everything else here.
        """
        config = self.config.detect
        flat, num_classes = logits.reshape(-1), logits.shape[1]
        limit = logit(config.score_threshold) if config.score_threshold > 0 else -torch.inf
        bounds = torch.tensor([0, *level_sizes]).cumsum(0).tolist()
        chosen = []
        for start, stop in pairwise(bounds):
            level = flat[start * num_classes : stop * num_classes]
            candidates = (level > limit).nonzero().squeeze(1)
            if len(candidates) > config.top_k:
                candidates = candidates[level[candidates].topk(config.top_k).indices]
            chosen.append(candidates + start * num_classes)
        pairs = torch.cat(chosen)
        return pairs // num_classes, pairs % num_classes, flat[pairs]
