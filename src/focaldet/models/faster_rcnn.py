"""Faster R-CNN with a feature pyramid: two stages (Ren et al. 2015; Lin et al. 2016, "Feature Pyramid Networks").

    images → backbone → C2 … C5 → pyramid → P2 … P6 → proposal head → objectness B A, deltas B A 4 → regions R 4
                                          └ P2 … P5 → pooled at the regions → head → logits R V, boxes R K 4

Axes: B images, A anchors of all levels, R regions of all images, N regions of one image, K classes, V = K + 1 class
values, the background's last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from focaldet.config import Share
from focaldet.errors import ConfigError
from focaldet.models.base import Detector, LossContext, Margins
from focaldet.models.stages import (
    FirstStage,
    RegionMatches,
    StageConfig,
    anchor_losses,
    minibatch,
    region_losses,
    regions_matched,
)
from focaldet.nets import build_backbone
from focaldet.nets.backbone import NUM_STAGES
from focaldet.nets.heads import TowerInit, logit, prior_biases
from focaldet.nets.necks import REGION_STRIDES_PX, RegionPyramid
from focaldet.nets.norm import NormKind
from focaldet.nets.regions import FourConvolutions, ProposalHead, RegionPredictor, TwoLayers
from focaldet.ops.anchors import AnchorConfig, pyramid_anchors
from focaldet.ops.boxes import clip, decode
from focaldet.ops.classifier import Classifier, decisions
from focaldet.ops.frames import content_sizes
from focaldet.ops.grids import Grid, pyramid_grids
from focaldet.ops.matching import MatchConfig
from focaldet.ops.nms import class_nms
from focaldet.ops.proposals import ProposalConfig, has_sides, propose
from focaldet.ops.roi import PoolConfig, pool_pyramid
from focaldet.ops.sampling import SampleConfig
from focaldet.types import Detections, ImageSize, Preprocessing, Target

FINEST_LEVEL = 2
MIN_SIDE_PX = 1e-2  # detections that the image's border cut to nothing are none; torchvision's number

Four = tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]


@dataclass(frozen=True, slots=True)
class RegionDetectConfig:
    """From the second stage to detections: threshold, NMS per class, the best of all."""

    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05
    nms_iou: Share = 0.5
    max_detections: PositiveInt = 100


def _first_stage() -> StageConfig:
    matching = MatchConfig(foreground_iou=0.7, background_iou=0.3, low_quality="any")
    return StageConfig(matching, SampleConfig(), beta=1 / 9)


def _second_stage() -> StageConfig:
    return StageConfig(MatchConfig(background_iou=0.5), SampleConfig(count=512, positives=0.25), beta=1.0)


@dataclass(frozen=True, slots=True)
class FasterRCNNConfig:
    """Everything that defines a Faster R-CNN; the defaults are the pyramid paper's with ResNet-50, trained jointly.

    `anchors`: one size a level, 32…512 px at P2…P6. `proposal_depth` is the number of 3×3 convolutions of the proposal
    head, `head` the network on each region: `2fc` or torchvision's `4conv1fc`, whose norm is that of the backbone, as
    is the pyramid's with `neck_norm`. `anchor_weights` and `region_weights` multiply the encoded boxes of the stages.
    `background_box` keeps the box rows of the background, as torchvision and Detectron do; detectron2 has none.

    `straddle_px` leaves anchors that cross the image's border by more out of training (Detectron: 0). `prior` is π,
    the probability that a fresh network gives an object at an anchor, and each class at a region, under the focal loss.
    """

    num_classes: PositiveInt = 80
    backbone: str = "resnet50"
    norm: NormKind = "frozen"
    norm_eps: NonNegativeFloat = 1e-5
    stride_in_1x1: bool = False
    frozen_stages: Annotated[int, Field(ge=0, le=NUM_STAGES)] = 2
    width: PositiveInt = 256
    neck_norm: bool = False
    proposal_depth: PositiveInt = 1
    tower_init: TowerInit = "normal"
    anchors: AnchorConfig = field(default_factory=lambda: AnchorConfig(base_scale=8.0, scales=(1.0,)))
    anchor_weights: Four = (1.0, 1.0, 1.0, 1.0)
    pooling: PoolConfig = field(default_factory=PoolConfig)
    head: Literal["2fc", "4conv1fc"] = "2fc"
    head_width: PositiveInt = 1024
    region_weights: Four = (10.0, 10.0, 5.0, 5.0)
    background_box: bool = True
    straddle_px: NonNegativeFloat | None = None
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    rpn: StageConfig = field(default_factory=_first_stage)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    region: StageConfig = field(default_factory=_second_stage)
    detect: RegionDetectConfig = field(default_factory=RegionDetectConfig)

    def __post_init__(self) -> None:
        if self.norm == "batch" and self.norm_eps == 0:
            raise ConfigError("norm_eps: trained BatchNorm divides by a batch's own deviation, so it must be above 0")

    @property
    def classifier(self) -> Classifier:
        """How the classes of a region are told apart."""
        return "softmax"

    @property
    def first_probability(self) -> float:
        """What a fresh network gives every class at every region."""
        return self.prior if self.region.loss == "focal" else 1 / (self.num_classes + 1)

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "FasterRCNN":
        """The network with random weights."""
        return FasterRCNN(self, class_names=class_names, preprocessing=preprocessing)

    def grids(self, image: ImageSize) -> tuple[Grid, ...]:
        """The anchors of P2…P6."""
        return pyramid_grids(self.anchors, strides_px=REGION_STRIDES_PX, image=image)


class FasterRCNNOutputs(NamedTuple):
    """Raw outputs: those of the first stage, the regions and the image of each, class logits and encoded boxes."""

    first: FirstStage
    regions: Float[Tensor, "R 4"]
    image_index: Int64[Tensor, " R"]
    logits: Float[Tensor, "R V"]
    deltas: Float[Tensor, "R K 4"]


class FasterRCNN(Detector):
    """Backbone, pyramid, proposal head, and a head on the regions."""

    config: FasterRCNNConfig

    def __init__(self, config: FasterRCNNConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__(config, class_names=class_names, preprocessing=preprocessing)
        c = config
        self.backbone = build_backbone(c.backbone, norm=c.norm, eps=c.norm_eps, stride_in_1x1=c.stride_in_1x1)
        self.backbone.freeze(c.frozen_stages)
        self.pyramid = RegionPyramid(
            self.backbone.channels, c.width, norm=c.norm if c.neck_norm else None, eps=c.norm_eps
        )
        self.proposal_head = ProposalHead(
            c.width,
            depth=c.proposal_depth,
            per_cell=c.anchors.per_cell,
            bias=logit(c.prior) if c.rpn.loss == "focal" else 0.0,
            tower_init=c.tower_init,
        )
        self.region_head: TwoLayers | FourConvolutions = (
            TwoLayers(c.width, c.pooling.size, c.head_width)
            if c.head == "2fc"
            else FourConvolutions(c.width, c.pooling.size, c.head_width, norm=c.norm, eps=c.norm_eps)
        )
        is_focal = c.region.loss == "focal"
        even = (0.0,) * (c.num_classes + 1)
        biases = prior_biases("softmax", num_classes=c.num_classes, prior=c.prior) if is_focal else even
        self.predictor = RegionPredictor(c.head_width, biases=biases, background_box=c.background_box)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that come from ImageNet."""
        return list(self.backbone.parameters())

    def forward(
        self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"], targets: Sequence[Target] | None = None
    ) -> FasterRCNNOutputs:
        """Both stages for padded RGB images in 0…255; with `targets` the second sees a sample around their boxes."""
        levels, first = self.first_stage(images)
        regions, image_index = self.regions(first, targets)
        frame_px = (images.shape[-2], images.shape[-1])
        return FasterRCNNOutputs(
            first, regions, image_index, *self.second_stage(levels, regions, image_index, frame_px=frame_px)
        )

    def first_stage(
        self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]
    ) -> tuple[list[Tensor], FirstStage]:
        """The maps of the pyramid, and what the proposal head makes of them."""
        levels = self.pyramid(self.backbone(self.normalise(images)))
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        anchors = pyramid_anchors(
            self.config.anchors,
            strides_px=REGION_STRIDES_PX,
            shapes=shapes,
            image=(images.shape[-2], images.shape[-1]),
            device=images.device,
        )
        sizes = tuple(height * width * self.config.anchors.per_cell for height, width in shapes)
        objectness, deltas = self.proposal_head(levels)
        frames = content_sizes(images, self.preprocessing.rgb_padding)
        return levels, FirstStage(objectness, deltas, anchors, sizes, frames)

    @torch.no_grad()
    def regions(
        self, first: FirstStage, targets: Sequence[Target] | None
    ) -> tuple[Float[Tensor, "R 4"], Int64[Tensor, " R"]]:
        """Where the second stage looks: the best proposals, or with `targets` a sample of them and of the objects."""
        config = self.config.proposals
        deltas = first.deltas / first.deltas.new_tensor(self.config.anchor_weights)
        found = [
            propose(
                first.objectness[place],
                deltas[place],
                first.anchors,
                level_sizes=first.level_sizes,
                frame=frame,
                limits=config.detect if targets is None else config.train,
                nms_iou=config.nms_iou,
            )
            for place, frame in enumerate(first.frames)
        ]
        if targets is not None:
            found = [
                minibatch(regions, target, self.config.region) for regions, target in zip(found, targets, strict=True)
            ]
        index = [torch.full_like(regions[:, 0], place, dtype=torch.int64) for place, regions in enumerate(found)]
        return torch.cat(found), torch.cat(index)

    def second_stage(
        self,
        levels: Sequence[Tensor],
        regions: Float[Tensor, "R 4"],
        image_index: Int64[Tensor, " R"],
        *,
        frame_px: tuple[int, int],
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "R K 4"]]:
        """Class logits and encoded boxes of the regions; the coarsest map serves proposals alone."""
        pooled = pool_pyramid(
            levels[:-1], regions, image_index, finest=FINEST_LEVEL, frame_px=frame_px, config=self.config.pooling
        )
        logits, deltas = self.predictor(self.region_head(pooled))
        return logits, deltas

    def losses(self, outputs: FasterRCNNOutputs, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """`objectness` and `anchor_box` of the first stage, `class` and `box` of the second."""
        c = self.config
        objectness, anchor_box = anchor_losses(
            outputs.first, targets, context, config=c.rpn, straddle_px=c.straddle_px, weights=c.anchor_weights
        )
        class_, box = region_losses(
            outputs.logits,
            outputs.deltas,
            outputs.regions,
            self._matched(outputs, targets),
            context,
            config=c.region,
            weights=c.region_weights,
        )
        return {"objectness": objectness, "anchor_box": anchor_box, "class": class_, "box": box}

    def margins(self, outputs: FasterRCNNOutputs, targets: Sequence[Target]) -> Margins:
        """x_t of the class of every region that the second stage saw and its loss counts."""
        matched = self._matched(outputs, targets)
        trained = ~matched.ignored
        return Margins(*decisions(outputs.logits[trained], matched.labels[trained], self.config.classifier))

    def _matched(self, outputs: FasterRCNNOutputs, targets: Sequence[Target]) -> RegionMatches:
        return regions_matched(
            outputs.regions,
            outputs.image_index,
            targets,
            config=self.config.region.matching,
            num_classes=self.config.num_classes,
        )

    def detect(self, outputs: FasterRCNNOutputs, sizes: Sequence[ImageSize]) -> list[Detections]:
        """At most `max_detections` objects an image, in the frame of the resized image."""
        deltas = outputs.deltas / outputs.deltas.new_tensor(self.config.region_weights)
        boxes = decode(deltas, outputs.regions[:, None].expand_as(deltas))
        likely = outputs.logits.softmax(-1)[:, :-1]
        members = [outputs.image_index == place for place in range(len(sizes))]
        return [self._detect_one(likely[of], boxes[of], size) for of, size in zip(members, sizes, strict=True)]

    def _detect_one(self, likely: Float[Tensor, "N K"], boxes: Float[Tensor, "N K 4"], size: ImageSize) -> Detections:
        config = self.config.detect
        clipped = clip(boxes, height=size.height, width=size.width)
        wanted = (likely > config.score_threshold) & has_sides(clipped, least_px=MIN_SIDE_PX)
        region, label = wanted.nonzero().unbind(1)
        found, scores = clipped[region, label], likely[region, label]
        keep = class_nms(found, scores, label, iou=config.nms_iou)[: config.max_detections]
        return Detections(found[keep], scores[keep], label[keep], self.class_names)
