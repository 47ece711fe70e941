"""SSD as TensorFlow's Object Detection API has it (Huang et al. 2016, section 3.1): thin layers on a mobile backbone.

    images → MobileNetV2 → C4, C5 → four extra layers, each half as large → on every map ┬→ logits   B A K
                                                                                         └→ deltas   B A 4

Losses and detections are those of `models/ssd.py`. The released networks decide every class by a sigmoid and learn one
more for the background, which nothing asks in detection and which is left out here.

Axes: B images, A priors of all maps, K classes.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from focaldet.config import validate_fields
from focaldet.errors import ConfigError
from focaldet.models.ssd import BACKBONE_STRIDES_PX, PREDICTOR_STD, SSD
from focaldet.models.ssd_settings import SSDDetectConfig, SSDLossConfig, SSDSettings
from focaldet.nets import build_backbone
from focaldet.nets.backbone import NUM_STAGES
from focaldet.nets.heads import prior_biases
from focaldet.nets.mobilenet import MobileLayers
from focaldet.nets.norm import NormKind
from focaldet.nets.ssd import HalvingLayers, MapPredictor
from focaldet.ops.matching import MatchConfig
from focaldet.ops.priors import ScalePriorConfig
from focaldet.ranges import BackboneName, ClassCount, EvenChannels, Factor, NonNegativeFloat, PerLevel
from focaldet.types import Preprocessing


@validate_fields
@dataclass(frozen=True, slots=True)
class TensorFlowSSDConfig(SSDSettings):
    """Everything that defines such an SSD; the defaults are those of ssd_mobilenet_v2_coco.

    `sources` are the maps of the backbone that predict; the extra layers, one for each of `extra_widths`, follow the
    last of them. `extra_norm` is their normalization, None as `norm`. `kernel` is that of the two convolutions that
    predict on a map. `variances` divide the encoded boxes: 1 / 10 and 1 / 5. `prior` is π, the probability that a fresh
    network gives every class under the focal loss.
    """

    num_classes: ClassCount = 80
    backbone: BackboneName = "mobilenet_v2_tf"
    norm: NormKind = "frozen"
    norm_eps: NonNegativeFloat = 1e-3
    frozen_stages: Annotated[int, Field(ge=0, le=NUM_STAGES)] = 0
    sources: Annotated[tuple[Literal["C2", "C3", "C4", "C5"], ...], PerLevel] = ("C4", "C5")
    extra_widths: Annotated[tuple[EvenChannels, ...], Field(max_length=16)] = (512, 256, 256, 128)
    extra_norm: NormKind | None = None
    kernel: Literal[1, 3] = 3
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    variances: tuple[Factor, Factor, Factor, Factor] = (0.1, 0.1, 0.2, 0.2)
    priors: ScalePriorConfig = field(default_factory=ScalePriorConfig)
    matching: MatchConfig = field(default_factory=lambda: MatchConfig(background_iou=0.5, low_quality="bipartite"))
    loss: SSDLossConfig = field(default_factory=lambda: SSDLossConfig(kind="focal"))
    detect: SSDDetectConfig = field(
        default_factory=lambda: SSDDetectConfig(score_threshold=0.01, top_k=100, nms_iou=0.6, max_detections=100)
    )

    def __post_init__(self) -> None:
        SSDSettings.__post_init__(self)
        if list(self.sources) != sorted(set(self.sources)):
            raise ConfigError(f"sources: must go from fine to coarse, each once, got {', '.join(self.sources)}")
        if self.priors.num_levels != len(self.sources) + len(self.extra_widths):
            raise ConfigError(
                f"priors.num_levels: must be {len(self.sources) + len(self.extra_widths)}, one for each of the sources "
                f"and extra_widths, got {self.priors.num_levels}"
            )

    @property
    def strides_px(self) -> tuple[int, ...]:
        """The distance of the cells of each map."""
        strides = [BACKBONE_STRIDES_PX[name] for name in self.sources]
        return (*strides, *(strides[-1] * 2**number for number in range(1, len(self.extra_widths) + 1)))

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "TensorFlowSSD":
        """The network with random weights."""
        return TensorFlowSSD(self, class_names=class_names, preprocessing=preprocessing)


class TensorFlowSSD(SSD):
    """Backbone, extra layers, and two convolutions on each map."""

    def add_layers(self) -> None:
        """Add everything that has weights."""
        c = self.config
        assert isinstance(c, TensorFlowSSDConfig)
        self.backbone = build_backbone(c.backbone, norm=c.norm, eps=c.norm_eps, stride_in_1x1=False)
        self.backbone.freeze(c.frozen_stages)
        self.decoder = None
        self.source_maps = [list(BACKBONE_STRIDES_PX).index(name) for name in c.sources]
        widths = [self.backbone.channels[number] for number in self.source_maps]
        layers = MobileLayers(c.extra_norm or c.norm, c.norm_eps, same=True)
        self.extras = HalvingLayers(widths[-1], c.extra_widths, layers=layers)
        biases = prior_biases(c.classifier, num_classes=c.num_classes, prior=c.first_probability)
        self.predictors = nn.ModuleList(
            MapPredictor(width, kernel=c.kernel, per_cell=c.priors.counts[level], biases=biases, std=PREDICTOR_STD)
            for level, width in enumerate([*widths, *c.extra_widths])
        )
