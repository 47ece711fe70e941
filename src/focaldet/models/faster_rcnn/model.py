"""Faster R-CNN: two stages (Ren et al. 2015), on a feature pyramid (Lin et al. 2016) or on one map of a classifier.

    images → backbone → C2 … C5 → pyramid → P2 … P6 → proposal head → objectness B A, deltas B A 4 → regions R 4
                                          └ P2 … P5 → pooled at the regions → head → logits R V, boxes R K 4

    images → first half → one map → proposal head → objectness, deltas → regions
                                  └ pooled at the regions → second half → mean → logits, boxes

Axes: B images, A anchors of all levels, R regions of all images, N regions of one image, K classes, V = K + 1 class
values, the background's last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from focaldet.config import validated
from focaldet.errors import ConfigError
from focaldet.models.base import Detector, LossContext, Margins
from focaldet.models.faster_rcnn import build as region_parts
from focaldet.models.faster_rcnn.build import STRIDE_OF_HALVES_PX, Head, Parts
from focaldet.models.faster_rcnn.losses import (
    FasterRCNNOutputs,
    FirstStage,
    RegionMatches,
    StageConfig,
    anchor_losses,
    drawn_regions,
    region_losses,
    regions_matched,
)
from focaldet.models.faster_rcnn.plus import PlusConfig, View, largest_of_scales, second_look, views_of, with_pictures
from focaldet.models.faster_rcnn.postprocess import RegionDetectConfig, answers, best_boxes
from focaldet.nets.backbone import NUM_STAGES
from focaldet.nets.heads import TowerInit, logit, prior_biases
from focaldet.nets.necks import REGION_STRIDES_PX
from focaldet.nets.norm import NormKind
from focaldet.nets.regions import PooledTail, ProposalHead, ProposalHeadConfig, RegionPredictor
from focaldet.ops.anchors import AnchorConfig, pyramid_anchors
from focaldet.ops.classifier import Classifier, decisions
from focaldet.ops.grids import Grid, pyramid_grids
from focaldet.ops.matching import MatchConfig
from focaldet.ops.proposals import ProposalConfig
from focaldet.ops.roi import PoolConfig, pool_pyramid
from focaldet.ops.sampling import SampleConfig
from focaldet.types import Detections, ImageSize, ImageSizes, Preprocessing, Target

Four = tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]


def _first_stage() -> StageConfig:
    matching = MatchConfig(foreground_iou=0.7, background_iou=0.3, low_quality="any")
    return StageConfig(matching, SampleConfig(), beta=1 / 9)


def _second_stage() -> StageConfig:
    return StageConfig(MatchConfig(background_iou=0.5), SampleConfig(count=512, positives=0.25), beta=1.0)


@validated
@dataclass(frozen=True, slots=True)
class FasterRCNNConfig:
    """Everything that defines a Faster R-CNN; the defaults are the pyramid paper's with ResNet-50, trained jointly.

    `trunk` "pyramid" has one anchor size a level, 32…512 px at P2…P6. Its own are `width`, `neck_norm`,
    `head_width` and `head`, `2fc` or torchvision's `4conv1fc`, whose norm is the backbone's, as with `neck_norm` is the
    pyramid's.
    `trunk` "halves" cuts the backbone in two: its map has the stride `output_stride`, or that of the finest map that
    modules of the widths `top_down` lead to. Anchors are as large on every such map as `anchors` says for stride 16.

    `anchor_weights` and `region_weights` multiply the encoded boxes of the stages. `background_box` keeps the box rows
    of the background, as torchvision and Detectron do; detectron2 has none. `plus` is what "+++" adds.

    `straddle_px` leaves anchors that cross the image's border by more out of training (Detectron: 0). `prior` is π,
    the probability that a fresh network gives an object at an anchor, and each class at a region, under the focal loss.
    """

    num_classes: PositiveInt = 80
    backbone: str = "resnet50"
    norm: NormKind = "frozen"
    norm_eps: NonNegativeFloat = 1e-5
    stride_in_1x1: bool = False
    frozen_stages: Annotated[int, Field(ge=0, le=NUM_STAGES)] = 2
    trunk: Literal["pyramid", "halves"] = "pyramid"
    output_stride: Literal[8, 16] = 16
    top_down: Annotated[tuple[PositiveInt, ...], Field(max_length=2)] = ()
    width: PositiveInt = 256
    neck_norm: bool = False
    proposal_head: ProposalHeadConfig = field(default_factory=ProposalHeadConfig)
    tower_init: TowerInit = "normal"
    anchors: AnchorConfig = field(default_factory=lambda: AnchorConfig(base_scale=8.0, scales=(1.0,)))
    anchor_weights: Four = (1.0, 1.0, 1.0, 1.0)
    pooling: PoolConfig = field(default_factory=PoolConfig)
    head: Head = "2fc"
    head_width: PositiveInt = 1024
    region_weights: Four = (10.0, 10.0, 5.0, 5.0)
    background_box: bool = True
    plus: PlusConfig = field(default_factory=PlusConfig)
    straddle_px: NonNegativeFloat | None = None
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    rpn: StageConfig = field(default_factory=_first_stage)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    region: StageConfig = field(default_factory=_second_stage)
    detect: RegionDetectConfig = field(default_factory=RegionDetectConfig)

    def __post_init__(self) -> None:
        if self.norm == "batch" and self.norm_eps == 0:
            raise ConfigError("norm_eps: trained BatchNorm divides by a batch's own deviation, so it must be above 0")
        region_parts.require_used(self, trunk=self.trunk)

    @property
    def classifier(self) -> Classifier:
        """How the classes of a region are told apart."""
        return "softmax"

    @property
    def first_probability(self) -> float:
        """What a fresh network gives every class at every region."""
        return self.prior if self.region.loss == "focal" else 1 / (self.num_classes + 1)

    @property
    def strides_px(self) -> tuple[int, ...]:
        """The stride of every level."""
        if self.trunk == "pyramid":
            return REGION_STRIDES_PX
        return ((self.output_stride, 8, 4)[len(self.top_down)],)

    @property
    def laid_anchors(self) -> AnchorConfig:
        """The anchors as a multiple of the strides of the levels."""
        if self.trunk == "pyramid":
            return self.anchors
        return replace(self.anchors, base_scale=self.anchors.base_scale * STRIDE_OF_HALVES_PX / self.strides_px[0])

    def parts(self) -> Parts:
        """The networks that make the maps and look at regions, with random weights."""
        norms, size = region_parts.Norms(self.norm, self.norm_eps, self.stride_in_1x1), self.pooling.size
        if self.trunk == "halves":
            stride, widths = self.output_stride, self.top_down
            return region_parts.halved_parts(self.backbone, norms, stride, top_down=widths, pooled_size=size)
        return region_parts.pyramid_parts(
            self.backbone,
            norms,
            width=self.width,
            neck_norm=self.neck_norm,
            head=self.head,
            head_width=self.head_width,
            pooled_size=size,
        )

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "FasterRCNN":
        """The network with random weights."""
        return FasterRCNN(self, class_names=class_names, preprocessing=preprocessing)

    def grids(self, image: ImageSize) -> tuple[Grid, ...]:
        """The anchors of all levels."""
        return pyramid_grids(self.laid_anchors, strides_px=self.strides_px, image=image)


class FasterRCNN(Detector):
    """Backbone, pyramid or not, proposal head, and a head on the regions."""

    config: FasterRCNNConfig

    def __init__(self, config: FasterRCNNConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__(config, class_names=class_names, preprocessing=preprocessing)
        parts = config.parts()
        self.backbone = parts.backbone
        self.backbone.freeze(config.frozen_stages)
        self.pyramid = parts.neck
        self.finest, self.num_pooled = parts.finest, parts.num_pooled
        self.proposal_head = ProposalHead(
            parts.channels,
            config=config.proposal_head,
            per_cell=config.anchors.per_cell,
            dilation=STRIDE_OF_HALVES_PX // parts.strides_px[0] if config.trunk == "halves" else 1,
            bias=logit(config.prior) if config.rpn.loss == "focal" else 0.0,
            tower_init=config.tower_init,
        )
        self.region_head = parts.head
        if config.frozen_stages == NUM_STAGES and isinstance(parts.head, PooledTail):
            parts.head.freeze(1)
        biases: tuple[float, ...] = (0.0,) * (config.num_classes + 1)
        if config.region.loss == "focal":
            biases = prior_biases("softmax", num_classes=config.num_classes, prior=config.prior)
        width = parts.head.width * (1 + config.plus.context)
        self.predictor = RegionPredictor(width, biases=biases, background_box=config.background_box)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that come from ImageNet: with halves those of the second one too."""
        tail = self.region_head.tail.parameters() if isinstance(self.region_head, PooledTail) else ()
        return [*self.backbone.parameters(), *tail]

    @property
    def pretrained(self) -> tuple[tuple[str, str], ...]:
        """conv5 of a ResNet looks at regions where the backbone ends in C4."""
        tail = (("layer4.", "region_head.tail."),) if self.config.trunk == "halves" else ()
        return (*tail, ("", "backbone."))

    def starts_from(self, other: object) -> tuple[str, ...]:
        """Top-down modules go between the trained halves of a detector without them (the second phase of TDM)."""
        if not isinstance(other, FasterRCNNConfig) or other.top_down or not self.config.top_down:
            return ()
        return ("backbone.", "region_head.tail.", "predictor.")

    def forward(
        self,
        images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"],
        sizes: ImageSizes,
        targets: Sequence[Target] | None = None,
    ) -> FasterRCNNOutputs:
        """Both stages for padded RGB images in 0…255; with `targets` the second sees a sample around their boxes.

        Without, `plus.refine` adds the regions of the second look, `plus.scales` the maps that regions are cut from.
        """
        config = self.config
        levels, first = self.first_stage(images, sizes)
        regions, index = drawn_regions(
            first, targets, weights=config.anchor_weights, proposals=config.proposals, config=config.region
        )
        views: tuple[View, ...] = (View(levels, _frame(images)),)
        if targets is None and config.plus.scales:
            views = views_of(self.normalise(images), levels, scales=config.plus.scales, levels_of=self.levels)
        logits, deltas = self.second_stage(views, regions, index, frames=first.frames)
        if targets is None and (refine := config.plus.refine) is not None:
            boxes, likely = answers(regions, logits, deltas, weights=config.region_weights)
            again = second_look(boxes, likely, index, frames=first.frames, config=refine)
            more = self.second_stage(views, *again, frames=first.frames)
            pairs = zip((regions, index, logits, deltas), (*again, *more), strict=True)
            regions, index, logits, deltas = (torch.cat(pair) for pair in pairs)
        return FasterRCNNOutputs(first, regions, index, logits, deltas)

    def levels(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps of normalised images that regions are proposed on and cut from."""
        maps: list[Tensor] = self.backbone(x)
        return self.pyramid(maps) if self.pyramid is not None else maps[-1:]

    def first_stage(
        self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"], sizes: ImageSizes
    ) -> tuple[list[Tensor], FirstStage]:
        """The maps, and what the proposal head makes of them."""
        levels = self.levels(self.normalise(images))
        shapes = tuple(_frame(level) for level in levels)
        anchors = pyramid_anchors(
            self.config.laid_anchors,
            strides_px=self.config.strides_px,
            shapes=shapes,
            image=_frame(images),
            device=images.device,
        )
        level_sizes = tuple(height * width * self.config.anchors.per_cell for height, width in shapes)
        objectness, deltas = self.proposal_head(levels)
        frames = sizes if isinstance(sizes, Tensor) else torch.tensor(sizes)
        frames = frames.to(images.device, torch.float32, non_blocking=True)
        return levels, FirstStage(objectness, deltas, anchors, level_sizes, frames)

    def second_stage(
        self,
        views: Sequence[View],
        regions: Float[Tensor, "R 4"],
        image_index: Int64[Tensor, " R"],
        *,
        frames: Float[Tensor, "B 2"],
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "R K 4"]]:
        """Class logits and encoded boxes of the regions; `frames` are (height, width) of the pictures."""
        if self.config.plus.context:
            seen = with_pictures(regions, image_index, frames=frames)
            vectors, whole = self._vectors(views, *seen).tensor_split([len(regions)])
            vectors = torch.cat([vectors, whole[image_index]], 1)
        else:
            vectors = self._vectors(views, regions, image_index)
        logits, deltas = self.predictor(vectors)
        return logits, deltas

    def _vectors(
        self, views: Sequence[View], regions: Float[Tensor, "R 4"], image_index: Int64[Tensor, " R"]
    ) -> Float[Tensor, "R D"]:
        """What the head makes of the regions; the coarsest level of several serves proposals alone."""

        def look(view: View, own: Tensor, index: Tensor) -> Tensor:
            levels = view.levels[: self.num_pooled]
            pooled = pool_pyramid(
                levels, own, index, finest=self.finest, frame_px=view.frame_px, config=self.config.pooling
            )
            vectors: Tensor = self.region_head(pooled)
            return vectors

        canonical_px = self.config.pooling.canonical_px
        return largest_of_scales(regions, image_index, views, look, canonical_px=canonical_px)

    def losses(self, outputs: FasterRCNNOutputs, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """`objectness` and `anchor_box` of the first stage, `class` and `box` of the second."""
        config = self.config
        of_anchors, of_regions = config.anchor_weights, config.region_weights
        objectness, anchor_box = anchor_losses(
            outputs.first, targets, context, config=config.rpn, straddle_px=config.straddle_px, weights=of_anchors
        )
        seen = (outputs.logits, outputs.deltas, outputs.regions, self._matched(outputs, targets))
        class_, box = region_losses(*seen, context, config=config.region, weights=of_regions)
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
        weights = self.config.region_weights
        boxes, likely = answers(outputs.regions, outputs.logits, outputs.deltas, weights=weights)
        members = [outputs.image_index == place for place in range(len(sizes))]
        config, refine = self.config.detect, self.config.plus.refine
        found = [
            best_boxes(boxes[of], likely[of], size=size, config=config, refine=refine)
            for of, size in zip(members, sizes, strict=True)
        ]
        return [Detections(*best, self.class_names) for best in found]


def _frame(images: Tensor) -> tuple[int, int]:
    """(height, width)."""
    return images.shape[-2], images.shape[-1]
