"""Faster R-CNN in tensors of fixed shapes: what is exported of it.

Every image has the same number of regions; those beyond what there are have no area and no score. All levels pool all
regions, and each region takes what its own level gave.

Axes: B images, N regions of an image, R = B N regions of all, K classes, D detections of an image, S cells of a side.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.models.faster_rcnn.losses import RPNOutputs
from focaldet.models.faster_rcnn.plus import PlusConfig
from focaldet.models.faster_rcnn.postprocess import MIN_DETECTION_SIDE_PX, FasterRCNNDetectConfig, decode_regions
from focaldet.ops.boxes import elementwise_iou
from focaldet.ops.padded import NMSLimits, PaddedDetections, clip_to_sizes, nms_mask, propose_padded, select_best
from focaldet.ops.proposals import MIN_REGION_SIDE_PX, ProposalConfig, clip_to_frame, has_sides
from focaldet.ops.roi import PoolConfig, pool, region_levels, sample_positions


@runtime_checkable
class PaddedConfig(Protocol):
    """What is asked here of the settings of a Faster R-CNN."""

    @property
    def plus(self) -> PlusConfig: ...
    @property
    def detect(self) -> FasterRCNNDetectConfig: ...
    @property
    def proposals(self) -> ProposalConfig: ...
    @property
    def pooling(self) -> PoolConfig: ...
    @property
    def anchor_weights(self) -> tuple[float, float, float, float]: ...
    @property
    def region_weights(self) -> tuple[float, float, float, float]: ...


class SecondStage(NamedTuple):
    """The parts of the second stage, and the maps that it pools from, the first of which has the number `finest`."""

    head: nn.Module
    predictor: nn.Module
    levels: Sequence[Tensor]
    finest: int
    frame_px: tuple[int, int]

    def vectors(self, regions: Float[Tensor, "B N 4"], config: PoolConfig) -> Float[Tensor, "R D"]:
        """The head's vector of each region."""
        pooled = pool_all(self.levels, regions, finest=self.finest, frame_px=self.frame_px, config=config)
        vectors: Tensor = self.head(pooled.to(self.levels[0].dtype))
        return vectors


class RegionScores(NamedTuple):
    """Box and probability of every class at every region of each image; the probability is 0 where there is none."""

    boxes: Float[Tensor, "B N K 4"]
    probabilities: Float[Tensor, "B N K"]


def detect_padded(
    rpn: RPNOutputs, stage: SecondStage, sizes: Int64[Tensor, "B 2"], *, config: PaddedConfig
) -> PaddedDetections:
    """What a Faster R-CNN detects, of the raw outputs of its first stage.

    Raises:
        ConfigError: with `plus.scales`, or a refinement of every class.
    """
    detect, refine, proposals = config.detect, config.plus.refine, config.proposals
    if config.plus.scales or (refine is not None and refine.boxes != "best_class"):
        raise ConfigError(
            "plus: a graph has no maps at several scales and no refinement of every class; export it without: "
            "--architecture.plus.scales [] --architecture.plus.refine.boxes best_class"
        )
    regions, is_region = propose_padded(
        rpn.objectness,
        rpn.deltas / rpn.deltas.new_tensor(config.anchor_weights),
        rpn.anchors,
        level_sizes=rpn.level_sizes,
        frames=rpn.image_sizes,
        limits=proposals.detect,
        nms_iou=proposals.nms_iou,
    )
    scores = score_regions(stage, regions, is_region, image_sizes=rpn.image_sizes, config=config)
    across = detect.across_classes
    if refine is None:
        limits = NMSLimits(detect.nms_iou, detect.score_threshold, detect.max_detections)
        return select_padded(scores, sizes, limits, across_classes=across)
    refined = refine_regions(scores, is_region, image_sizes=rpn.image_sizes)
    again = score_regions(stage, *refined, image_sizes=rpn.image_sizes, config=config)
    scores = RegionScores(*(torch.cat(pair, 1) for pair in zip(scores, again, strict=True)))
    limits = NMSLimits(refine.nms_iou, detect.score_threshold, detect.max_detections)
    return select_padded(scores, sizes, limits, vote_iou=refine.vote_iou, across_classes=across)


def score_regions(
    stage: SecondStage,
    regions: Float[Tensor, "B N 4"],
    is_region: Bool[Tensor, "B N"],
    *,
    image_sizes: Float[Tensor, "B 2"],
    config: PaddedConfig,
) -> RegionScores:
    """The second stage on the same number of regions of every image."""
    vectors = stage.vectors(regions, config.pooling)
    if config.plus.context:
        whole = torch.cat([torch.zeros_like(image_sizes), image_sizes.flip(1)], 1)[:, None]
        context = stage.vectors(whole, config.pooling)
        vectors = torch.cat([vectors, context.repeat_interleave(regions.shape[1], 0)], 1)
    logits, deltas = stage.predictor(vectors)
    boxes, probabilities = decode_regions(regions.flatten(0, 1), logits, deltas, weights=config.region_weights)
    shape = (-1, regions.shape[1], probabilities.shape[1])
    return RegionScores(boxes.reshape(*shape, 4), probabilities.reshape(shape) * is_region[..., None])


def number_images(regions: Float[Tensor, "B N 4"]) -> Int64[Tensor, " R"]:
    """The image of each region, as one list."""
    return torch.arange(regions.shape[0], device=regions.device)[:, None].expand(-1, regions.shape[1]).flatten()


def pool_all(
    levels: Sequence[Tensor],
    regions: Float[Tensor, "B N 4"],
    *,
    finest: int,
    frame_px: tuple[int, int],
    config: PoolConfig,
) -> Float[Tensor, "R C S S"]:
    """As `ops.roi.pool_pyramid`, of the regions of all images."""
    every, index = regions.flatten(0, 1), number_images(regions)
    level = region_levels(every, finest=finest, coarsest=finest + len(levels) - 1, canonical_px=config.canonical_px)
    pooled = None
    for number, features in enumerate(levels, start=finest):
        if config.kind == "crop_resize":
            part = crop_all(features, regions, size=config.size, frame_px=frame_px)
        else:
            part = pool(features, every, index, stride_px=2**number, frame_px=frame_px, config=config)
        pooled = part if pooled is None else torch.where((level == number)[:, None, None, None], part, pooled)
    assert pooled is not None
    return pooled


def crop_all(
    features: Float[Tensor, "B C H W"], regions: Float[Tensor, "B N 4"], *, size: int, frame_px: tuple[int, int]
) -> Float[Tensor, "R C S S"]:
    """As `ops.roi.crop_and_resize`, all regions of an image in one call."""
    every, (height, width) = regions.flatten(0, 1), features.shape[-2:]
    y, in_map_y = sample_positions(every[:, 1], every[:, 3], size, frame=frame_px[0], cells=height)
    x, in_map_x = sample_positions(every[:, 0], every[:, 2], size, frame=frame_px[1], cells=width)
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
    inside = in_map_y[:, :, None] & in_map_x[:, None, :]
    rows = grid.reshape(regions.shape[0], -1, size, 2)
    crops = F.grid_sample(features, rows, padding_mode="border", align_corners=True)
    cells = crops.reshape(*features.shape[:2], -1, size, size).transpose(1, 2).flatten(0, 1)
    # Chosen and not multiplied: `inside` are no features, and what computes it is decoding, which int8 leaves alone.
    return torch.where(inside[:, None], cells, 0.0)


def refine_regions(
    scores: RegionScores, is_region: Bool[Tensor, "B N"], *, image_sizes: Float[Tensor, "B 2"]
) -> tuple[Float[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
    """As `plus.boxes_to_refine` with `best_class`: the regions of the second pass, and which of them there are."""
    best = scores.probabilities.argmax(2)[..., None, None].expand(-1, -1, 1, 4)
    boxes = clip_to_frame(scores.boxes.gather(2, best).squeeze(2), image_sizes[:, None])
    is_kept = has_sides(boxes, least_px=MIN_REGION_SIDE_PX) & is_region
    return boxes * is_kept[..., None], is_kept


def select_padded(
    scores: RegionScores,
    sizes: Int64[Tensor, "B 2"],
    limits: NMSLimits,
    *,
    vote_iou: float | None = None,
    across_classes: bool = False,
) -> PaddedDetections:
    """As `postprocess.select_detections` of every image; with `vote_iou` the kept boxes are voted on."""
    count, num_classes = scores.boxes.shape[1:3]
    boxes = clip_to_sizes(scores.boxes.transpose(1, 2).flatten(1, 2), sizes)
    values = scores.probabilities.transpose(1, 2).flatten(1)
    is_candidate = (values > limits.least_score) & has_sides(boxes, least_px=MIN_DETECTION_SIDE_PX)
    values = torch.where(is_candidate, values, 0.0)
    # A class of an image has its own boxes: it is a group of its own, or all classes are one.
    group = num_classes * count if across_classes else count
    kept = nms_mask(boxes.reshape(-1, group, 4), values.reshape(-1, 1, group), *limits)
    labels = torch.arange(num_classes, device=boxes.device).repeat_interleave(count)[None].expand_as(values)
    best = select_best(boxes, values[:, None], kept.reshape(values.shape)[:, None], most=limits.most, labels=labels)
    if vote_iou is None:
        return best
    shape = (-1, num_classes, count)
    voted = vote_padded(best, boxes.reshape(*shape, 4), values.reshape(shape), iou=vote_iou)
    return best._replace(boxes=clip_to_sizes(voted, sizes))


def vote_padded(
    best: PaddedDetections, boxes: Float[Tensor, "B K N 4"], scores: Float[Tensor, "B K N"], *, iou: float
) -> Float[Tensor, "B D 4"]:
    """As `ops.nms.vote`: each box becomes the mean of those of its class that overlap it, weighted by their scores."""
    count = boxes.shape[2]
    of_class = best.labels[..., None].expand(-1, -1, count)
    candidates = boxes.gather(1, of_class[..., None].expand(-1, -1, -1, 4))
    overlaps = elementwise_iou(best.boxes[:, :, None].expand_as(candidates), candidates)
    weights = ((overlaps >= iou) * scores.gather(1, of_class)).double()
    total = weights.sum(2, keepdim=True)
    mean = (weights[..., None] * candidates).sum(2) / torch.where(total > 0, total, 1.0)
    is_there = (best.scores > 0)[..., None]
    return torch.where(is_there, mean.to(boxes.dtype), 0.0)
