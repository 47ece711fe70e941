"""How the two stages of a Faster R-CNN learn: who is an object, which boxes train, and what they cost.

The labels of the second stage count the background as class K, the one class of the first is 0.

Axes: B images, A anchors of all levels, R regions of all images, N M regions of one image, P positives, K classes,
V class values of a box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import NonNegativeFloat
from torch import Tensor

from focaldet.config import Fraction, validated
from focaldet.models.base import LossContext
from focaldet.ops.boxes import encode
from focaldet.ops.classifier import Classifier, class_loss_sum
from focaldet.ops.losses.normalize import divisors
from focaldet.ops.losses.regression import smooth_l1_loss
from focaldet.ops.matching import MatchConfig, match
from focaldet.ops.proposals import ProposalConfig, match_inside, propose
from focaldet.ops.sampling import SampleConfig, balanced
from focaldet.types import Target


@validated
@dataclass(frozen=True, slots=True)
class StageConfig:
    """How one of the two stages learns: which boxes are objects, how many train, and what they cost.

    `loss` "cross_entropy" is divided, as the box loss, by the boxes that train. "focal" is the focal loss with `alpha`
    and `gamma`, divided by the positives; in the first stage all anchors train then, without lots. `beta` is the corner
    of smooth L1 on the encoded boxes.
    """

    matching: MatchConfig
    sampling: SampleConfig
    beta: NonNegativeFloat
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    alpha: Fraction | None = 0.25
    gamma: NonNegativeFloat = 2.0
    box_weight: NonNegativeFloat = 1.0


class FirstStage(NamedTuple):
    """Raw outputs of the proposal head, the anchors, how many each level has, and (height, width) of the pictures."""

    objectness: Float[Tensor, "B A"]
    deltas: Float[Tensor, "B A 4"]
    anchors: Float[Tensor, "A 4"]
    level_sizes: tuple[int, ...]
    frames: Float[Tensor, "B 2"]


class FasterRCNNOutputs(NamedTuple):
    """Raw outputs: those of the first stage, the regions and the image of each, class logits and encoded boxes."""

    first: FirstStage
    regions: Float[Tensor, "R 4"]
    image_index: Int64[Tensor, " R"]
    logits: Float[Tensor, "R V"]
    deltas: Float[Tensor, "R K 4"]


class RegionMatches(NamedTuple):
    """For each region: its class (K for background), whether the loss leaves it out, and the box it overlaps most."""

    labels: Int64[Tensor, " R"]
    ignored: Bool[Tensor, " R"]
    boxes: Float[Tensor, "R 4"]


@torch.no_grad()
def minibatch(
    regions: Float[Tensor, "N 4"], target: Target, config: StageConfig, *, objects_join: bool = True
) -> Float[Tensor, "M 4"]:
    """The regions of one image that the second stage trains on, drawn by lot from proposals and objects.

    torch's own generator draws: the engine seeds it before every step. Without `objects_join` proposals are alone.
    """
    every = torch.cat([regions, target.boxes[~target.ignored]]) if objects_join else regions
    found = match(every, target.boxes, target.ignored, config.matching)
    lots = torch.rand(len(every), device=every.device)
    return every[balanced(lots, found.foreground, found.ignored, config=config.sampling)]


@torch.no_grad()
def drawn_regions(
    first: FirstStage,
    targets: Sequence[Target] | None,
    *,
    weights: Sequence[float],
    proposals: ProposalConfig,
    config: StageConfig,
) -> tuple[Float[Tensor, "R 4"], Int64[Tensor, " R"]]:
    """The regions of all images and the image of each: the best proposals, or with `targets` a minibatch by lot.

    `weights` are those that the encoded boxes of the first stage were multiplied by.
    """
    deltas = first.deltas / first.deltas.new_tensor(weights)
    found = [
        propose(
            first.objectness[place],
            deltas[place],
            first.anchors,
            level_sizes=first.level_sizes,
            frame=frame,
            limits=proposals.detect if targets is None else proposals.train,
            nms_iou=proposals.nms_iou,
        )
        for place, frame in enumerate(first.frames)
    ]
    if targets is not None:
        found = [
            minibatch(regions, target, config, objects_join=proposals.objects_join)
            for regions, target in zip(found, targets, strict=True)
        ]
    index = [torch.full_like(regions[:, 0], place, dtype=torch.int64) for place, regions in enumerate(found)]
    return torch.cat(found), torch.cat(index)


def anchor_losses(
    first: FirstStage,
    targets: Sequence[Target],
    context: LossContext,
    *,
    config: StageConfig,
    straddle_px: float | None,
    weights: Sequence[float],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The objectness and the box loss of the first stage; torch's generator draws the anchors that train."""
    matched = [
        match_inside(
            first.anchors,
            target.boxes,
            target.ignored,
            frame=frame,
            straddle_px=straddle_px,
            config=config.matching,
        )
        for target, frame in zip(targets, first.frames, strict=True)
    ]
    foreground = torch.stack([found.foreground for found in matched])
    trained = ~torch.stack([found.ignored for found in matched])
    if config.loss == "cross_entropy":
        trained = balanced(torch.rand_like(first.objectness), foreground, ~trained, config=config.sampling)
    positive = foreground & trained
    rows = zip(targets, matched, positive, strict=True)
    boxes = torch.cat([target.boxes[found.box_index[row]] for target, found, row in rows])
    truth = encode(boxes, first.anchors.expand_as(first.deltas)[positive])
    return _losses(
        config,
        first.objectness[..., None],
        (~positive).long(),
        trained,
        deltas=first.deltas[positive],
        truth=truth * truth.new_tensor(weights),
        classifier="sigmoid",
        context=context,
    )


def regions_matched(
    regions: Float[Tensor, "R 4"],
    image_index: Int64[Tensor, " R"],
    targets: Sequence[Target],
    *,
    config: MatchConfig,
    num_classes: int,
) -> RegionMatches:
    """What each region shows; regions of any image of the batch in any order."""
    labels = torch.full_like(image_index, num_classes)
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    boxes = regions.clone()
    for place, target in enumerate(targets):
        rows = (image_index == place).nonzero().squeeze(1)
        found = match(regions[rows], target.boxes, target.ignored, config)
        ignored[rows] = found.ignored
        if len(target.boxes):
            labels[rows] = torch.where(found.foreground, target.labels[found.box_index], labels[rows])
            boxes[rows] = target.boxes[found.box_index]
    return RegionMatches(labels, ignored, boxes)


def region_losses(
    logits: Float[Tensor, "R V"],
    deltas: Float[Tensor, "R K 4"],
    regions: Float[Tensor, "R 4"],
    matched: RegionMatches,
    context: LossContext,
    *,
    config: StageConfig,
    weights: Sequence[float],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The class and the box loss of the second stage: a softmax, and the box of the true class alone."""
    positive = (matched.labels < deltas.shape[1]) & ~matched.ignored
    truth = encode(matched.boxes[positive], regions[positive])
    return _losses(
        config,
        logits,
        matched.labels,
        ~matched.ignored,
        deltas=deltas[positive, matched.labels[positive]],
        truth=truth * truth.new_tensor(weights),
        classifier="softmax",
        context=context,
    )


def _losses(
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
    """The class loss of all boxes that train and the box loss of the P positives, both over what `config` counts."""
    is_focal = config.loss == "focal"
    num_trained = trained.sum()
    over = divisors(
        (torch.full_like(num_trained, len(deltas)) if is_focal else num_trained)[None],
        "batch",
        averages=context.averages,
        all_reduce_sum=context.all_reduce_sum,
        num_ranks=context.num_ranks,
    )[0]
    alpha, gamma = (config.alpha, config.gamma) if is_focal else (None, 0.0)
    class_loss = class_loss_sum(logits, labels, classifier=classifier, alpha=alpha, gamma=gamma, ignore=~trained)
    box_loss = smooth_l1_loss(deltas, truth, beta=config.beta).sum()
    return class_loss / over, box_loss / over * config.box_weight
