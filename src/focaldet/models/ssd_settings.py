"""The settings that every SSD has, whatever its layers: loss, detection, priors and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from focaldet.config import Fraction, validate_fields
from focaldet.models.base import DetectorConfig, level_cells
from focaldet.ops.classifier import Classifier
from focaldet.ops.grids import Grid, prior_grids
from focaldet.ops.matching import MatchConfig, require_fixed_thresholds
from focaldet.ops.priors import Priors
from focaldet.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from focaldet.types import ImageSize


@validate_fields
@dataclass(frozen=True, slots=True)
class SSDLossConfig:
    """The class loss, and smooth L1 with its corner at `beta` on the encoded boxes, over the matches of the batch.

    `kind` "mining" is the paper's: softmax cross entropy of the matched priors and of the hardest others, `ratio` to
    one in every image. "focal" is the focal loss of all priors instead, with a sigmoid for every class,
    "softmax_focal" that of a softmax; both take `alpha` and `gamma`. With `across_ranks` the matches of all processes
    count.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"over_ranks": "across_ranks"}

    kind: Literal["mining", "focal", "softmax_focal"] = "mining"
    ratio: PositiveFloat = 3.0
    alpha: Fraction | None = 0.25
    gamma: NonNegativeFloat = 2.0
    beta: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 1.0
    across_ranks: bool = True


@validate_fields
@dataclass(frozen=True, slots=True)
class SSDDetectConfig:
    """From logits to detections: threshold, the best `top_k` priors of each class, NMS per class, the best of all.

    With `across_classes` a box suppresses those of all classes, so that one object has one answer where classes look
    alike.
    """

    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.01
    top_k: PositiveInt = 400
    nms_iou: Fraction = 0.45
    max_detections: PositiveInt = 200
    across_classes: bool = False


class SSDSettings(DetectorConfig):
    """What is the same in every SSD, whatever its layers; the configs derived from it explain the settings."""

    __slots__ = ()

    num_classes: int
    sources: tuple[str, ...]
    prior: float
    variances: tuple[float, float, float, float]
    priors: Priors
    matching: MatchConfig
    loss: SSDLossConfig
    detect: SSDDetectConfig

    def __post_init__(self) -> None:
        DetectorConfig.__post_init__(self)
        require_fixed_thresholds(self.matching, setting="matching", detector="SSD")

    @property
    def classifier(self) -> Classifier:
        """Whether classes have sigmoids or a softmax: by the loss."""
        return "sigmoid" if self.loss.kind == "focal" else "softmax"

    @property
    def first_probability(self) -> float:
        """What a fresh network gives every class at every prior."""
        return 1 / (self.num_classes + 1) if self.loss.kind == "mining" else self.prior

    @property
    def strides_px(self) -> tuple[int, ...]:
        """The distance of the cells of each map."""
        raise NotImplementedError

    def grids(self, image: ImageSize) -> tuple[Grid, ...]:
        """The priors of all maps: those of the backbone by name, then E1, E2… of the extra layers."""
        cells = level_cells(self, per_cell=self.priors.counts, image=image)
        names = (*self.sources, *(f"E{number}" for number in range(1, len(cells) - len(self.sources) + 1)))
        return prior_grids(self.priors, names=names, strides_px=self.strides_px, cells=cells, image=image)
