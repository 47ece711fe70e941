"""Faster R-CNN: two stages (Ren et al. 2015), on a feature pyramid (Lin et al. 2016) or on one map of a classifier.

    images → backbone → C2 … C5 → pyramid → P2 … P6 → RPN head → objectness B A, deltas B A 4 → regions R 4
                                          └ P2 … P5 → pooled at the regions → RoI head → logits R V, boxes R K 4

    images → C2 … C4 → one map → RPN head → objectness, deltas → regions
                               └ pooled at the regions → conv5 → mean → logits, boxes

Axes: B images, A anchors of all levels, R regions of all images, N regions of one image, K classes, V = K + 1 class
values, the background's last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from focaldet.config import validate_fields
from focaldet.errors import ConfigError
from focaldet.models.base import Detector, LossContext, Margins
from focaldet.models.faster_rcnn.build import (
    C4_STRIDE_PX,
    ComponentsConfig,
    Head,
    Trunk,
    build_components,
    refuse_unused_settings,
)
from focaldet.models.faster_rcnn.losses import (
    FasterRCNNOutputs,
    RegionTargets,
    RPNOutputs,
    StageConfig,
    default_roi_stage,
    default_rpn_stage,
    match_regions,
    propose_regions,
    roi_losses,
    rpn_losses,
)
from focaldet.models.faster_rcnn.padded import SecondStage, detect_padded
from focaldet.models.faster_rcnn.plus import (
    PlusConfig,
    ScaledMaps,
    append_whole_images,
    boxes_to_refine,
    max_over_scales,
    scale_maps,
)
from focaldet.models.faster_rcnn.postprocess import FasterRCNNDetectConfig, decode_regions, select_detections
from focaldet.nets.backbone import NUM_STAGES
from focaldet.nets.heads import TowerInit, logit, prior_biases
from focaldet.nets.necks import REGION_STRIDES_PX
from focaldet.nets.norm import NormKind
from focaldet.nets.regions import PooledTail, RegionPredictor, RPNHead, RPNHeadConfig
from focaldet.ops.anchors import AnchorConfig, pyramid_anchors
from focaldet.ops.classifier import Classifier, decisions
from focaldet.ops.grids import Grid, pyramid_grids
from focaldet.ops.matching import require_fixed_thresholds
from focaldet.ops.padded import PaddedDetections
from focaldet.ops.proposals import ProposalConfig
from focaldet.ops.roi import PoolConfig, pool_pyramid
from focaldet.ranges import BackboneName, Channels, ClassCount, Factor, NonNegativeFloat
from focaldet.types import Detections, Images, ImageSize, ImageSizes, Preprocessing, Target

Four = tuple[Factor, Factor, Factor, Factor]


@validate_fields
@dataclass(frozen=True, slots=True)
class FasterRCNNConfig(ComponentsConfig):
    """Everything that defines a Faster R-CNN; the defaults are the pyramid paper's with ResNet-50, trained jointly.

    `trunk` "pyramid" has one anchor size a level, 32…512 px at P2…P6. Its own are `width`, `neck_norm`,
    `head_width` and `head`, `2fc` or torchvision's `4conv1fc`, whose norm is the backbone's, as with `neck_norm` is the
    pyramid's.
    `trunk` "c4" cuts the backbone in two: its one map has the stride `output_stride`, or that of the finest map that
    modules of the widths `top_down` lead to; conv5 is the head. Anchors have the sizes that `anchors` says for stride
    16 on every such map.

    `anchor_weights` and `region_weights` multiply the encoded boxes of the stages. `background_box` keeps the box rows
    of the background, as torchvision and Detectron do; detectron2 has none. `plus` is what "+++" adds.

    `straddle_px` leaves anchors that cross the image's border by more out of training (Detectron: 0). `prior` is π,
    the probability that a fresh network gives an object at an anchor, and each class at a region, under the focal loss.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"proposal_head": "rpn_head"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"trunk": {"halves": "c4"}}

    num_classes: ClassCount = 80
    backbone: BackboneName = "resnet50"
    norm: NormKind = "frozen"
    norm_eps: NonNegativeFloat = 1e-5
    stride_in_1x1: bool = False
    frozen_stages: Annotated[int, Field(ge=0, le=NUM_STAGES)] = 2
    trunk: Trunk = "pyramid"
    output_stride: Literal[8, 16] = 16
    top_down: Annotated[tuple[Channels, ...], Field(max_length=2)] = ()
    width: Channels = 256
    neck_norm: bool = False
    rpn_head: RPNHeadConfig = field(default_factory=RPNHeadConfig)
    tower_init: TowerInit = "normal"
    anchors: AnchorConfig = field(default_factory=lambda: AnchorConfig(base_scale=8.0, scales=(1.0,)))
    anchor_weights: Four = (1.0, 1.0, 1.0, 1.0)
    pooling: PoolConfig = field(default_factory=PoolConfig)
    head: Head = "2fc"
    head_width: Channels = 1024
    region_weights: Four = (10.0, 10.0, 5.0, 5.0)
    background_box: bool = True
    plus: PlusConfig = field(default_factory=PlusConfig)
    straddle_px: NonNegativeFloat | None = None
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    rpn: StageConfig = field(default_factory=default_rpn_stage)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    region: StageConfig = field(default_factory=default_roi_stage)
    detect: FasterRCNNDetectConfig = field(default_factory=FasterRCNNDetectConfig)

    def __post_init__(self) -> None:
        ComponentsConfig.__post_init__(self)
        refuse_unused_settings(self)
        require_fixed_thresholds(self.rpn.matching, setting="rpn.matching", detector="the RPN")
        require_fixed_thresholds(self.region.matching, setting="region.matching", detector="the second stage")

    @property
    def classifier(self) -> Classifier:
        """How the class loss and scores of a region are computed."""
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
        """`anchors` for the strides of the levels."""
        if self.trunk == "pyramid":
            return self.anchors
        return replace(self.anchors, base_scale=self.anchors.base_scale * C4_STRIDE_PX / self.strides_px[0])

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "FasterRCNN":
        """The network with random weights."""
        return FasterRCNN(self, class_names=class_names, preprocessing=preprocessing)

    def grids(self, image: ImageSize) -> tuple[Grid, ...]:
        """The anchors of all levels."""
        return pyramid_grids(self.laid_anchors, strides_px=self.strides_px, image=image)


class FasterRCNN(Detector):
    """Backbone, pyramid or none, RPN head, and a head on the regions."""

    renamed_tensors = {"proposal_head.": "rpn_head.", "region_head.": "roi_head."}  # noqa: RUF012  typed in the base

    config: FasterRCNNConfig

    def __init__(self, config: FasterRCNNConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__(config, class_names=class_names, preprocessing=preprocessing)
        parts = build_components(config)
        self.backbone = parts.backbone
        self.backbone.freeze(config.frozen_stages)
        self.pyramid = parts.neck
        self.finest, self.num_pooled = parts.finest, parts.num_pooled
        self.rpn_head = RPNHead(
            parts.channels,
            config=config.rpn_head,
            per_cell=config.anchors.per_cell,
            dilation=C4_STRIDE_PX // parts.strides_px[0] if config.trunk == "c4" else 1,
            bias=logit(config.prior) if config.rpn.loss == "focal" else 0.0,
            tower_init=config.tower_init,
        )
        self.roi_head = parts.head
        if config.frozen_stages == NUM_STAGES and isinstance(parts.head, PooledTail):
            parts.head.freeze(1)
        biases: tuple[float, ...] = (0.0,) * (config.num_classes + 1)
        if config.region.loss == "focal":
            biases = prior_biases("softmax", num_classes=config.num_classes, prior=config.prior)
        width = parts.head.width * (1 + config.plus.context)
        self.predictor = RegionPredictor(width, biases=biases, background_box=config.background_box)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that come from ImageNet: of a C4 detector also those of conv5, the head."""
        head = self.roi_head
        tail = head.tail.parameters() if isinstance(head, PooledTail) else ()
        return [*super().backbone_parameters(), *tail]

    @property
    def pretrained(self) -> tuple[tuple[str, str], ...]:
        """As `Detector.pretrained`; conv5 of a classifier is the head where the backbone ends in C4."""
        tail = (("layer4.", "roi_head.tail."),) if self.config.trunk == "c4" else ()
        return (*tail, ("", "backbone."))

    def starts_from(self, other: object) -> tuple[str, ...]:
        """Top-down modules are put into a trained detector without them (the second phase of TDM)."""
        if not isinstance(other, FasterRCNNConfig) or other.top_down or not self.config.top_down:
            return ()
        return ("backbone.", "roi_head.tail.", "predictor.")

    def forward(self, images: Images, sizes: ImageSizes, targets: Sequence[Target] | None = None) -> FasterRCNNOutputs:
        """The raw outputs of both stages; with `targets` the second one gets a random sample around their boxes.

        Without targets `plus.refine` adds the regions of box refinement, `plus.scales` further maps to pool from.

        Raises:
            ConfigError: under `torch.export`, which cannot follow a number of regions that depends on numbers.
        """
        if torch.compiler.is_exporting():
            raise ConfigError(
                "Faster R-CNN cannot be exported by torch.export: its number of regions depends on the image"
            )
        config = self.config
        levels, rpn = self.first_stage(images, sizes)
        regions, index = propose_regions(
            rpn, targets, weights=config.anchor_weights, proposals=config.proposals, config=config.region
        )
        maps: tuple[ScaledMaps, ...] = (ScaledMaps(levels, _frame(images)),)
        if targets is None and config.plus.scales:
            maps = scale_maps(self.normalize(images), levels, scales=config.plus.scales, levels_of=self.levels)
        logits, deltas = self.second_stage(maps, regions, index, image_sizes=rpn.image_sizes)
        if targets is None and (refine := config.plus.refine) is not None:
            boxes, probabilities = decode_regions(regions, logits, deltas, weights=config.region_weights)
            refined = boxes_to_refine(boxes, probabilities, index, image_sizes=rpn.image_sizes, config=refine)
            outputs = self.second_stage(maps, *refined, image_sizes=rpn.image_sizes)
            pairs = zip((regions, index, logits, deltas), (*refined, *outputs), strict=True)
            regions, index, logits, deltas = (torch.cat(pair) for pair in pairs)
        return FasterRCNNOutputs(rpn, regions, index, logits, deltas)

    def levels(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps of normalized images that regions are proposed on and pooled from."""
        maps: list[Tensor] = self.backbone(x)
        return self.pyramid(maps) if self.pyramid is not None else maps[-1:]

    def first_stage(self, images: Images, sizes: ImageSizes) -> tuple[list[Tensor], RPNOutputs]:
        """The feature maps, and the raw outputs of the RPN on them."""
        levels = self.levels(self.normalize(images))
        shapes = tuple(_frame(level) for level in levels)
        config = self.config
        anchors = pyramid_anchors(
            config.laid_anchors, strides_px=config.strides_px, shapes=shapes, image=_frame(images), device=images.device
        )
        level_sizes = tuple(height * width * config.anchors.per_cell for height, width in shapes)
        objectness, deltas = self.rpn_head(levels)
        image_sizes = sizes if isinstance(sizes, Tensor) else torch.tensor(sizes)
        image_sizes = image_sizes.to(images.device, torch.float32, non_blocking=True)
        return levels, RPNOutputs(objectness, deltas, anchors, level_sizes, image_sizes)

    def second_stage(
        self,
        maps: Sequence[ScaledMaps],
        regions: Float[Tensor, "R 4"],
        image_index: Int64[Tensor, " R"],
        *,
        image_sizes: Float[Tensor, "B 2"],
    ) -> tuple[Float[Tensor, "R V"], Float[Tensor, "R K 4"]]:
        """Class logits and encoded boxes of the regions; `image_sizes` are (height, width)."""
        config = self.config
        if config.plus.context:
            every = append_whole_images(regions, image_index, image_sizes=image_sizes)
            vectors, whole = self._region_vectors(maps, *every).tensor_split([len(regions)])
            vectors = torch.cat([vectors, whole[image_index]], 1)
        else:
            vectors = self._region_vectors(maps, regions, image_index)
        logits, deltas = self.predictor(vectors)
        return logits, deltas

    def _region_vectors(
        self, maps: Sequence[ScaledMaps], regions: Float[Tensor, "R 4"], image_index: Int64[Tensor, " R"]
    ) -> Float[Tensor, "R D"]:
        """The head's vector of each region, pooled from `num_pooled` levels."""
        pooling = self.config.pooling

        def head(at: ScaledMaps, boxes: Tensor, index: Tensor) -> Tensor:
            levels = at.levels[: self.num_pooled]
            pooled = pool_pyramid(levels, boxes, index, finest=self.finest, frame_px=at.frame_px, config=pooling)
            vectors: Tensor = self.roi_head(pooled.to(self.dtype))
            return vectors

        return max_over_scales(regions, image_index, maps, head, canonical_px=pooling.canonical_px)

    def losses(self, outputs: FasterRCNNOutputs, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """`objectness` and `anchor_box` of the first stage, `class` and `box` of the second."""
        config = self.config
        stage, weights = config.rpn, config.anchor_weights
        objectness, anchor_box = rpn_losses(
            outputs.rpn, targets, context, config=stage, straddle_px=config.straddle_px, weights=weights
        )
        logits, deltas, regions = outputs.logits, outputs.deltas, outputs.regions
        matches, stage, weights = self._match_regions(outputs, targets), config.region, config.region_weights
        class_, box = roi_losses(logits, deltas, regions, matches, context, config=stage, weights=weights)
        return {"objectness": objectness, "anchor_box": anchor_box, "class": class_, "box": box}

    def margins(self, outputs: FasterRCNNOutputs, targets: Sequence[Target]) -> Margins:
        """x_t of the class of every region that the loss of the second stage counts."""
        labels, ignored, _ = self._match_regions(outputs, targets)
        return Margins(*decisions(outputs.logits[~ignored], labels[~ignored], self.config.classifier))

    def _match_regions(self, outputs: FasterRCNNOutputs, targets: Sequence[Target]) -> RegionTargets:
        config = self.config
        return match_regions(
            outputs.regions,
            outputs.image_index,
            targets,
            config=config.region.matching,
            num_classes=config.num_classes,
        )

    def detect(self, outputs: FasterRCNNOutputs, sizes: Sequence[ImageSize]) -> list[Detections]:
        """At most `max_detections` objects an image, in the frame of the resized image."""
        config, weights = self.config, self.config.region_weights
        boxes, probabilities = decode_regions(outputs.regions, outputs.logits, outputs.deltas, weights=weights)
        members = [outputs.image_index == image for image in range(len(sizes))]
        detected = [
            select_detections(boxes[of], probabilities[of], size=size, config=config.detect, refine=config.plus.refine)
            for of, size in zip(members, sizes, strict=True)
        ]
        return [Detections(*columns, self.class_names) for columns in detected]

    def detect_padded(self, images: Images, sizes: Int64[Tensor, "B 2"]) -> PaddedDetections:
        """As `forward` and `detect`, in tensors of fixed shapes; see `padded.detect_padded`."""
        levels, rpn = self.first_stage(images, sizes)
        stage = SecondStage(self.roi_head, self.predictor, levels[: self.num_pooled], self.finest, _frame(images))
        return detect_padded(rpn, stage, sizes, config=self.config)


def _frame(images: Tensor) -> tuple[int, int]:
    """(height, width)."""
    return images.shape[-2], images.shape[-1]
