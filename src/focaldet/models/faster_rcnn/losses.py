"""The losses of the two stages of a Faster R-CNN: matching, sampling, and what the sampled boxes cost.

The labels of the second stage count the background as class K, the one class of the first is 0.

Axes: B images, A anchors of all levels, R regions of all images, N M regions of one image, P positives, K classes,
V class values of a box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from focaldet.config import Fraction, validate_fields
from focaldet.models.base import LossContext
from focaldet.ops.boxes import encode
from focaldet.ops.classifier import Classifier, class_loss_sum
from focaldet.ops.losses.regression import smooth_l1_loss
from focaldet.ops.matching import MatchConfig, match
from focaldet.ops.proposals import ProposalConfig, match_inside, propose
from focaldet.ops.sampling import SampleConfig, sample_balanced
from focaldet.ranges import NonNegativeFloat
from focaldet.types import Target


@validate_fields
@dataclass(frozen=True, slots=True)
class StageConfig:
    """How one of the two stages is trained: matching, sampling and losses.

    `loss` "cross_entropy" is divided, as the box loss, by the sampled boxes. "focal" is the focal loss with `alpha` and
    `gamma`, divided by the positives; in the first stage it is that of all anchors, without sampling. `beta` is the
    corner of smooth L1 on the encoded boxes.
    """

    matching: MatchConfig
    sampling: SampleConfig
    beta: NonNegativeFloat
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    alpha: Fraction | None = 0.25
    gamma: NonNegativeFloat = 2.0
    box_weight: NonNegativeFloat = 1.0


def default_rpn_stage() -> StageConfig:
    """The paper's: 256 anchors of an image, half of them positive."""
    matching = MatchConfig(foreground_iou=0.7, background_iou=0.3, low_quality="any")
    return StageConfig(matching, SampleConfig(), beta=1 / 9)


def default_roi_stage() -> StageConfig:
    """The pyramid paper's: 512 regions of an image, a quarter of them positive."""
    return StageConfig(MatchConfig(background_iou=0.5), SampleConfig(count=512, positives=0.25), beta=1.0)


class RPNOutputs(NamedTuple):
    """Raw outputs of the RPN, the anchors, how many each level has, and (height, width) of the images."""

    objectness: Float[Tensor, "B A"]
    deltas: Float[Tensor, "B A 4"]
    anchors: Float[Tensor, "A 4"]
    level_sizes: tuple[int, ...]
    image_sizes: Float[Tensor, "B 2"]


class FasterRCNNOutputs(NamedTuple):
    """Raw outputs: those of the RPN, the regions and the image of each, class logits and encoded boxes."""

    rpn: RPNOutputs
    regions: Float[Tensor, "R 4"]
    image_index: Int64[Tensor, " R"]
    logits: Float[Tensor, "R V"]
    deltas: Float[Tensor, "R K 4"]


class RegionTargets(NamedTuple):
    """For each region: its class (K for background), whether the loss ignores it, and the box it overlaps most."""

    labels: Int64[Tensor, " R"]
    ignored: Bool[Tensor, " R"]
    boxes: Float[Tensor, "R 4"]


@torch.no_grad()
def sample_regions(
    regions: Float[Tensor, "N 4"], target: Target, config: StageConfig, *, objects_join: bool = True
) -> Float[Tensor, "M 4"]:
    """The regions of one image that the second stage trains on: a random sample of proposals and ground-truth boxes.

    It comes from torch's own generator, which the engine seeds before every step. Without `objects_join` it is one of
    proposals alone.
    """
    candidates = torch.cat([regions, target.boxes[~target.ignored]]) if objects_join else regions
    matches = match(candidates, target.boxes, target.ignored, config.matching)
    noise = torch.rand(len(candidates), device=candidates.device)
    return candidates[sample_balanced(noise, matches.foreground, matches.ignored, config=config.sampling)]


@torch.no_grad()
def propose_regions(
    rpn: RPNOutputs,
    targets: Sequence[Target] | None,
    *,
    weights: Sequence[float],
    proposals: ProposalConfig,
    config: StageConfig,
) -> tuple[Float[Tensor, "R 4"], Int64[Tensor, " R"]]:
    """The regions of all images and the image of each: the best proposals, or with `targets` a random sample of them.

    `weights` are those that the encoded boxes of the RPN were multiplied by.
    """
    deltas = rpn.deltas / rpn.deltas.new_tensor(weights)
    proposed = [
        propose(
            rpn.objectness[image],
            deltas[image],
            rpn.anchors,
            level_sizes=rpn.level_sizes,
            frame=frame,
            limits=proposals.detect if targets is None else proposals.train,
            nms_iou=proposals.nms_iou,
        )
        for image, frame in enumerate(rpn.image_sizes)
    ]
    if targets is not None:
        proposed = [
            sample_regions(regions, target, config, objects_join=proposals.objects_join)
            for regions, target in zip(proposed, targets, strict=True)
        ]
    index = [torch.full_like(regions[:, 0], image, dtype=torch.int64) for image, regions in enumerate(proposed)]
    return torch.cat(proposed), torch.cat(index)


def rpn_losses(
    rpn: RPNOutputs,
    targets: Sequence[Target],
    context: LossContext,
    *,
    config: StageConfig,
    straddle_px: float | None,
    weights: Sequence[float],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The objectness and the box loss of the RPN; torch's own generator samples the anchors that are trained."""
    matches = [
        match_inside(rpn.anchors, t.boxes, t.ignored, frame=frame, straddle_px=straddle_px, config=config.matching)
        for t, frame in zip(targets, rpn.image_sizes, strict=True)
    ]
    foreground = torch.stack([m.foreground for m in matches])
    trained = ~torch.stack([m.ignored for m in matches])
    if config.loss == "cross_entropy":
        trained = sample_balanced(torch.rand_like(rpn.objectness), foreground, ~trained, config=config.sampling)
    positive = foreground & trained
    rows = zip(targets, matches, positive, strict=True)
    boxes = torch.cat([target.boxes[m.box_index[row]] for target, m, row in rows])
    truth = encode(boxes, rpn.anchors.expand_as(rpn.deltas)[positive])
    return _stage_losses(
        config,
        rpn.objectness[..., None],
        (~positive).long(),
        trained,
        deltas=rpn.deltas[positive],
        truth=truth * truth.new_tensor(weights),
        classifier="sigmoid",
        context=context,
    )


def match_regions(
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    targets: Sequence[Target],
    *,
    config: MatchConfig,
    num_classes: int,
) -> RegionTargets:
    """The class and box that each region is trained for; regions of any image of the batch in any order."""
    labels = torch.full_like(image_index, num_classes)
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    boxes = regions.clone()
    for image, target in enumerate(targets):
        rows = (image_index == image).nonzero().squeeze(1)
        matches = match(regions[rows], target.boxes, target.ignored, config)
        ignored[rows] = matches.ignored
        labels[rows] = matches.labels(target.labels, background=num_classes)
        if len(target):
            boxes[rows] = target.boxes[matches.box_index]
    return RegionTargets(labels, ignored, boxes)


def roi_losses(
    logits: Float[Tensor, "R V"],
    deltas: Float[Tensor, "R K 4"],
    regions: Float[Tensor, "R 4"],
    region_targets: RegionTargets,
    context: LossContext,
    *,
    config: StageConfig,
    weights: Sequence[float],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The class and the box loss of the second stage: a softmax, and the box of the true class alone."""
    labels, ignored, boxes = region_targets
    positive = (labels < deltas.shape[1]) & ~ignored
    truth = encode(boxes[positive], regions[positive])
    return _stage_losses(
        config,
        logits,
        labels,
        ~ignored,
        deltas=deltas[positive, labels[positive]],
        truth=truth * truth.new_tensor(weights),
        classifier="softmax",
        context=context,
    )


def _stage_losses(
    config: StageConfig,
    logits: Float[Tensor, "*A V"],
    labels: Int64[Tensor, "*A"],
    trained: Bool[Tensor, "*A"],
    *,
    deltas: Float[Tensor, "P 4"],
    truth: Float[Tensor, "P 4"],
    classifier: Classifier,
    context: LossContext,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The class loss of all trained boxes and the box loss of the P positives, divided by what `config` counts."""
    is_focal = config.loss == "focal"
    num_trained = trained.sum()
    counted = (torch.full_like(num_trained, len(deltas)) if is_focal else num_trained)[None]
    normalizer = context.normalizers(counted)[0]
    alpha, gamma = (config.alpha, config.gamma) if is_focal else (None, 0.0)
    class_loss = class_loss_sum(logits, labels, classifier=classifier, alpha=alpha, gamma=gamma, ignore=~trained)
    box_loss = smooth_l1_loss(deltas, truth, beta=config.beta).sum()
    return class_loss / normalizer, box_loss / normalizer * config.box_weight
