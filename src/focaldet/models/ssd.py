"""SSD with a residual backbone (Liu et al. 2016; SSD321, SSD513 and their DSSD of Fu et al. 2017).

    images → backbone → C3, C5 → extra layers, each half as large → (decoder) → on every map ┬→ logits   B A V
                                                                                             └→ deltas   B A 4

With a decoder it is a DSSD: the maps go once more from coarse to fine before they predict.

Axes: B images, A priors of all maps, K classes, V class values per prior, N chosen priors, G objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from focaldet.config import validate_fields
from focaldet.errors import ConfigError
from focaldet.models.base import Detector, LossContext, Margins
from focaldet.models.ssd_settings import SSDDetectConfig, SSDLossConfig, SSDSettings
from focaldet.nets import build_backbone
from focaldet.nets.backbone import NUM_STAGES
from focaldet.nets.dssd import Decoder
from focaldet.nets.heads import TowerInit, prior_biases
from focaldet.nets.norm import NormKind
from focaldet.nets.ssd import ExtraLayers, HalvingLayers, LevelPredictor, SSDLayers, at_level, extra_strides
from focaldet.ops.boxes import clip, decode, encode
from focaldet.ops.classifier import class_loss_sum, decisions
from focaldet.ops.losses.regression import smooth_l1_loss
from focaldet.ops.matching import MatchConfig, Matches, match
from focaldet.ops.nms import class_nms
from focaldet.ops.padded import NMSLimits, PaddedDetections, clip_to_sizes, nms_mask, select_best, take_rows
from focaldet.ops.priors import PriorConfig, all_priors
from focaldet.ops.sampling import hardest_negatives
from focaldet.ranges import BackboneName, Channels, ClassCount, Factor, LayerCount, NonNegativeFloat, PerLevel
from focaldet.types import Detections, Images, ImageSize, ImageSizes, Preprocessing, Target

BACKBONE_STRIDES_PX = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}
DILATED_STRIDE_PX = 16  # of a C5 that is dilated instead of halved
PREDICTOR_STD = 0.01  # of the last convolutions under the focal loss, as RetinaNet's


@validate_fields
@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What makes an SSD a DSSD: deconvolution modules of `width` channels.

    `top_kernel` is that of the first transposed convolution, the cells of the second coarsest map. `inter_width` is
    that of a further 3×3 convolution each before the class and the box layer. `norm` is that of all these layers and
    the predictors', None as before the decoder. With `frozen_encoder` backbone and extra layers are not trained, as in
    the first of the two stages of training; their BatchNorm is then to be `frozen`, too.
    """

    width: Channels = 512
    top_kernel: Literal[2, 3] = 2
    inter_width: Channels | None = 512
    norm: NormKind | None = None
    frozen_encoder: bool = False


@validate_fields
@dataclass(frozen=True, slots=True)
class SSDConfig(SSDSettings):
    """Everything that defines an SSD; the defaults are SSD513's.

    `stride_in_1x1`, `ceil_pool` and `dilated_c5` make the backbone the original's. `sources` are the maps of the
    backbone that predict; the extra layers (`extra_width` channels) follow the last of them, as many as `priors` has
    further levels: `extra_kernels` of 2×2 halve a map, those of 3×3 go over it cell by cell, with `extra_paddings`
    around it. `extra_norm` is that of all layers behind the backbone, None as `norm`. `module_widths` are the inner
    widths of the prediction modules, `kernels` those of the last convolutions. In all four the last number holds for
    all further levels. `tower_init` is how the layers behind the backbone start.

    `variances` divide the encoded boxes. `prior` is π, the probability that a fresh network gives every class under
    the focal loss; with mining the softmax begins even, as in Caffe.
    """

    num_classes: ClassCount = 80
    backbone: BackboneName = "resnet101"
    norm: NormKind = "batch"
    norm_eps: NonNegativeFloat = 1e-3
    stride_in_1x1: bool = True
    ceil_pool: bool = True
    dilated_c5: bool = True
    frozen_stages: Annotated[int, Field(ge=0, le=NUM_STAGES)] = 0
    sources: Annotated[tuple[Literal["C2", "C3", "C4", "C5"], ...], PerLevel] = ("C3", "C5")
    extra_width: Annotated[int, Field(gt=0, le=16_384, multiple_of=4)] = 1024
    extra_kernels: Annotated[tuple[Literal[2, 3], ...], PerLevel] = (2,)
    extra_paddings: Annotated[tuple[LayerCount, ...], PerLevel] = (0,)
    extra_norm: NormKind | None = None
    module_widths: Annotated[tuple[Channels, ...], PerLevel] = (128, 512, 256)
    kernels: Annotated[tuple[Literal[1, 3, 5], ...], PerLevel] = (5, 5, 3)
    tower_init: TowerInit = "normal"
    decoder: DecoderConfig | None = None
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    variances: tuple[Factor, Factor, Factor, Factor] = (0.1, 0.1, 0.2, 0.2)
    priors: PriorConfig = field(default_factory=PriorConfig)
    matching: MatchConfig = field(default_factory=lambda: MatchConfig(background_iou=0.5, low_quality="bipartite"))
    loss: SSDLossConfig = field(default_factory=SSDLossConfig)
    detect: SSDDetectConfig = field(default_factory=SSDDetectConfig)

    def __post_init__(self) -> None:
        SSDSettings.__post_init__(self)
        if list(self.sources) != sorted(set(self.sources)):
            raise ConfigError(f"sources: must go from fine to coarse, each once, got {', '.join(self.sources)}")
        if self.priors.num_levels < len(self.sources):
            raise ConfigError(
                f"priors.starts_px: must have at least one level for each of the {len(self.sources)} sources, got "
                f"{self.priors.num_levels}"
            )
        if self.decoder and self.decoder.frozen_encoder and "batch" in (self.norm, self.extra_norm):
            raise ConfigError("decoder.frozen_encoder: norm and extra_norm must be frozen as well, or group")

    @property
    def strides_px(self) -> tuple[int, ...]:
        """The distance of the cells of each map."""
        known = BACKBONE_STRIDES_PX | ({"C5": DILATED_STRIDE_PX} if self.dilated_c5 else {})
        sources = [known[name] for name in self.sources]
        count = self.priors.num_levels - len(sources)
        return (*sources, *extra_strides(sources[-1], self.extra_kernels, count=count))

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "SSD":
        """The network with random weights."""
        return SSD(self, class_names=class_names, preprocessing=preprocessing)


class SSDOutputs(NamedTuple):
    """Raw outputs: logits and encoded boxes of every prior, the priors, and how many of them each level has.

    A softmax has V = K + 1 logits, the background's last, sigmoids V = K.
    """

    logits: Float[Tensor, "B A V"]
    deltas: Float[Tensor, "B A 4"]
    anchors: Float[Tensor, "A 4"]
    level_sizes: tuple[int, ...]


class SSD(Detector):
    """Backbone, extra layers, and a predictor on each map."""

    config: SSDSettings
    extras: ExtraLayers | HalvingLayers
    predictors: nn.ModuleList

    def __init__(self, config: SSDSettings, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__(config, class_names=class_names, preprocessing=preprocessing)
        self.add_layers()

    def add_layers(self) -> None:
        """Add everything that has weights."""
        c = self.config
        assert isinstance(c, SSDConfig)
        self.backbone = build_backbone(
            c.backbone,
            norm=c.norm,
            eps=c.norm_eps,
            stride_in_1x1=c.stride_in_1x1,
            ceil_pool=c.ceil_pool,
            dilated_c5=c.dilated_c5,
        )
        layers = SSDLayers(c.extra_norm or c.norm, c.norm_eps, c.tower_init)
        self.source_maps = [list(BACKBONE_STRIDES_PX).index(name) for name in c.sources]
        widths = [self.backbone.channels[number] for number in self.source_maps]
        kernels = [at_level(c.extra_kernels, number) for number in range(c.priors.num_levels - len(widths))]
        self.extras = ExtraLayers(widths[-1], c.extra_width, kernels=kernels, paddings=c.extra_paddings, layers=layers)
        widths += [c.extra_width] * len(kernels)
        self.decoder = None
        if (decoder := c.decoder) is not None:
            layers = replace(layers, norm=decoder.norm or layers.norm)
            kernels = [2] * (len(c.sources) - 1) + kernels
            paddings = [0] * (len(c.sources) - 1) + list(c.extra_paddings)
            self.decoder = Decoder(
                widths, decoder.width, kernels=kernels, top_kernel=decoder.top_kernel, paddings=paddings, layers=layers
            )
            widths = [decoder.width] * (len(widths) - 1) + widths[-1:]
            self.backbone.requires_grad_(not decoder.frozen_encoder)
            self.extras.requires_grad_(not decoder.frozen_encoder)
        self.backbone.freeze(c.frozen_stages)
        self.predictors = nn.ModuleList(
            LevelPredictor(
                width,
                at_level(c.module_widths, level),
                kernel=at_level(c.kernels, level),
                per_cell=c.priors.counts[level],
                biases=prior_biases(c.classifier, num_classes=c.num_classes, prior=c.first_probability),
                std=None if c.loss.kind == "mining" else PREDICTOR_STD,
                inter_width=c.decoder.inter_width if c.decoder else None,
                layers=layers,
            )
            for level, width in enumerate(widths)
        )

    def starts_from(self, other: Any) -> tuple[str, ...]:
        """A DSSD starts from the encoder of a trained SSD."""
        is_encoder = isinstance(other, SSDConfig) and other.decoder is None
        return ("backbone.", "extras.") if is_encoder and self.decoder is not None else ()

    def levels(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps of normalized images that are predicted on, finest first."""
        maps = self.backbone(x)
        levels = [maps[number] for number in self.source_maps]
        levels += self.extras(levels[-1])
        return self.decoder(levels) if self.decoder is not None else levels

    def forward(self, images: Images, sizes: ImageSizes, targets: Sequence[Target] | None = None) -> SSDOutputs:
        """Logits and encoded boxes of all priors for padded RGB images in 0…255."""
        levels = self.levels(self.normalize(images))
        cells = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        config = self.config.priors
        priors = all_priors(
            config,
            strides_px=self.config.strides_px,
            cells=cells,
            image=(images.shape[-2], images.shape[-1]),
            device=images.device,
        )
        logits, deltas = zip(
            *(predict(level) for predict, level in zip(self.predictors, levels, strict=True)), strict=True
        )
        pairs = zip(cells, config.counts, strict=True)
        level_sizes = tuple(height * width * count for (height, width), count in pairs)
        return SSDOutputs(torch.cat(logits, dim=1), torch.cat(deltas, dim=1), priors, level_sizes)

    def losses(self, outputs: SSDOutputs, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """`class` and `box` loss, summed and divided by the matches of the batch (section 2.2 of the SSD paper)."""
        config = self.config.loss
        matches, labels, ignored = self._assign_priors(outputs, targets)
        positives = torch.stack([m.foreground.sum() for m in matches])
        normalizer = context.normalizers(positives, across_ranks=config.across_ranks)[0]
        box_losses = []
        for target, match_, deltas in zip(targets, matches, outputs.deltas, strict=True):
            chosen = match_.foreground.nonzero().squeeze(1)
            truth = encode(target.boxes[match_.box_index[chosen]], outputs.anchors[chosen]) / self._variances(outputs)
            box_losses.append(smooth_l1_loss(deltas[chosen], truth, beta=config.beta).sum())
        return {
            "class": self._class_loss(outputs.logits, labels, ignored) / normalizer,
            "box": torch.stack(box_losses).sum() / normalizer * config.box_weight,
        }

    def margins(self, outputs: SSDOutputs, targets: Sequence[Target]) -> Margins:
        """x_t of every decision that the class loss counts, with mining of the chosen priors alone."""
        _, labels, ignored = self._assign_priors(outputs, targets)
        return Margins(*decisions(outputs.logits[~ignored].float(), labels[~ignored], self.config.classifier))

    def detect(self, outputs: SSDOutputs, sizes: Sequence[ImageSize]) -> list[Detections]:
        """At most `max_detections` objects an image, in the frame of the resized image."""
        boxes = decode(outputs.deltas * self._variances(outputs), outputs.anchors.expand_as(outputs.deltas))
        return [self._detect_one(outputs.logits[image], boxes[image], size) for image, size in enumerate(sizes)]

    def detect_padded(self, images: Images, sizes: Int64[Tensor, "B 2"]) -> PaddedDetections:
        """As `forward` and `detect`, in tensors of fixed shapes."""
        config, outputs = self.config.detect, self(images, sizes)
        boxes = decode(outputs.deltas * self._variances(outputs), outputs.anchors.expand_as(outputs.deltas))
        clipped = clip_to_sizes(boxes, sizes)
        scores = self._probabilities(outputs.logits).transpose(1, 2)
        limits = NMSLimits(config.nms_iou, config.score_threshold, config.max_detections)
        if config.across_classes:
            return _select_across_classes(clipped, scores, limits, top_k=config.top_k)
        if scores.shape[2] > config.top_k:  # the best of each class alone take part
            scores = torch.where(scores >= scores.topk(config.top_k).values[..., -1:], scores, 0.0)
        return select_best(clipped, scores, nms_mask(clipped, scores, *limits), most=config.max_detections)

    def _probabilities(self, logits: Float[Tensor, "*A V"]) -> Float[Tensor, "*A K"]:
        return logits.softmax(-1)[..., :-1] if self.config.classifier == "softmax" else logits.sigmoid()

    def _variances(self, outputs: SSDOutputs) -> Float[Tensor, " 4"]:
        return outputs.deltas.new_tensor(self.config.variances)

    @torch.no_grad()
    def _assign_priors(
        self, outputs: SSDOutputs, targets: Sequence[Target]
    ) -> tuple[list[Matches], Int64[Tensor, "B A"], Bool[Tensor, "B A"]]:
        """The matches of each image, the class of each prior (K for background), and which the class loss ignores."""
        matches = [match(outputs.anchors, t.boxes, t.ignored, self.config.matching) for t in targets]
        foreground = torch.stack([m.foreground for m in matches])
        ignored = torch.stack([m.ignored for m in matches])
        pairs = zip(targets, matches, strict=True)
        labels = torch.stack([m.labels(t.labels, background=self.config.num_classes) for t, m in pairs])
        config = self.config.loss
        if config.kind == "mining":
            of_background = -F.log_softmax(outputs.logits.detach(), dim=-1)[..., -1]
            ignored = ~(foreground | hardest_negatives(of_background, foreground, ignored, ratio=config.ratio))
        return matches, labels, ignored

    def _class_loss(
        self, logits: Float[Tensor, "B A V"], labels: Int64[Tensor, "B A"], ignored: Bool[Tensor, "B A"]
    ) -> Float[Tensor, ""]:
        """The sum over the priors that count."""
        config, kind = self.config.loss, self.config.classifier
        if config.kind == "mining":  # a softmax of the few that are chosen
            logits, labels = logits[~ignored], labels[~ignored]
            nothing = torch.zeros_like(labels, dtype=torch.bool)
            return class_loss_sum(logits, labels, classifier=kind, alpha=None, gamma=0.0, ignore=nothing)
        return class_loss_sum(logits, labels, classifier=kind, alpha=config.alpha, gamma=config.gamma, ignore=ignored)

    def _detect_one(self, logits: Float[Tensor, "A V"], boxes: Float[Tensor, "A 4"], size: ImageSize) -> Detections:
        config = self.config.detect
        probabilities = self._probabilities(logits)
        best, prior = probabilities.T.topk(min(config.top_k, len(probabilities)), dim=1)
        label, rank = (best > config.score_threshold).nonzero().unbind(1)
        scores = best[label, rank]
        clipped = clip(boxes[prior[label, rank]], height=size.height, width=size.width)
        kinds = torch.zeros_like(label) if config.across_classes else label
        keep = class_nms(clipped, scores, kinds, iou=config.nms_iou, most=config.max_detections)
        return Detections(clipped[keep], scores[keep], label[keep], self.class_names)


def _select_across_classes(
    boxes: Float[Tensor, "B A 4"], scores: Float[Tensor, "B K A"], limits: NMSLimits, *, top_k: int
) -> PaddedDetections:
    """The best of the `top_k` priors of each class, where a box suppresses those of all classes."""
    best, prior = scores.topk(min(top_k, scores.shape[2]))
    labels = torch.arange(scores.shape[1], device=boxes.device)[None, :, None].expand_as(prior).flatten(1)
    chosen, values = take_rows(boxes, prior.flatten(1)), best.flatten(1)[:, None]
    kept = nms_mask(chosen, values, *limits)
    return select_best(chosen, values, kept, most=limits.most, labels=labels)
