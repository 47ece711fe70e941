"""Dimension clusters: the shapes of anchors that fit given boxes best ("YOLO9000", section 2).

Axes: M boxes, S clusters.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from focaldet.errors import ConfigError

RESTARTS, MAX_ROUNDS = 5, 300


class Clusters(NamedTuple):
    """(width, height) of the clusters, by area from small to large, and the mean IoU of each box with its best one."""

    sizes: Float64[Tensor, "S 2"]
    average_iou: float


def centered_iou(first: Float64[Tensor, "M 2"], second: Float64[Tensor, "S 2"]) -> Float64[Tensor, "M S"]:
    """IoU of every pair of (width, height) at a common center, in (0, 1]; all sides must be positive."""
    shared = torch.minimum(first[:, None], second[None]).prod(-1)
    return shared / (first.prod(-1)[:, None] + second.prod(-1)[None] - shared)


def average_iou(sizes: Float64[Tensor, "M 2"], clusters: Float64[Tensor, "S 2"]) -> float:
    """The mean IoU of each box with the cluster that fits it best."""
    return float(centered_iou(sizes, clusters).amax(1).mean())


def cluster_sizes(sizes: Float64[Tensor, "M 2"], *, num_clusters: int, seed: int) -> Clusters:
    """k-means over (width, height) with the distance 1 - IoU; a cluster is the mean of its boxes.

    The best of some runs from different starts, and of all rounds of each: a round of this k-means can make the average
    IoU worse, because the mean is not the shape of the best IoU. The same for the same seed.

    Raises:
        ConfigError: fewer shapes than clusters, or fewer than one cluster.
    """
    different = len(torch.unique(sizes, dim=0))
    if not 1 <= num_clusters <= different:
        raise ConfigError(f"clusters: must be in 1…{different}, the number of different shapes, got {num_clusters}")
    generator = torch.Generator().manual_seed(seed)
    best = max(
        (_run(sizes, num_clusters, generator) for _ in range(RESTARTS)), key=lambda clusters: clusters.average_iou
    )
    return best._replace(sizes=best.sizes[best.sizes.prod(1).argsort(stable=True)])


def _run(sizes: Float64[Tensor, "M 2"], num_clusters: int, generator: torch.Generator) -> Clusters:
    """The best round from one start."""
    clusters = _initial_clusters(sizes, num_clusters, generator)
    best, previous = Clusters(clusters, 0.0), None
    for _ in range(MAX_ROUNDS):
        fit, nearest = centered_iou(sizes, clusters).max(1)
        if (iou := float(fit.mean())) > best.average_iou:
            best = Clusters(clusters, iou)
        if previous is not None and torch.equal(nearest, previous):
            break
        clusters, previous = _means(sizes, nearest, clusters), nearest
    return best


def _initial_clusters(
    sizes: Float64[Tensor, "M 2"], num_clusters: int, generator: torch.Generator
) -> Float64[Tensor, "S 2"]:
    """Boxes to start from, each drawn in proportion to its squared distance from those before (k-means++)."""
    chosen = sizes[torch.randint(len(sizes), (1,), generator=generator)]
    while len(chosen) < num_clusters:
        distance = (1 - centered_iou(sizes, chosen).amax(1)).clamp(min=0).square()
        index = torch.multinomial(distance, 1, generator=generator) if len(sizes) < 1 << 24 else distance.argmax()[None]
        chosen = torch.cat([chosen, sizes[index]])
    return chosen


def _means(
    sizes: Float64[Tensor, "M 2"], nearest: Int64[Tensor, " M"], clusters: Float64[Tensor, "S 2"]
) -> Float64[Tensor, "S 2"]:
    """The mean of the boxes of each cluster; a cluster without boxes stays where it is."""
    counts = nearest.bincount(minlength=len(clusters)).unsqueeze(1)
    sums = torch.zeros_like(clusters).index_add_(0, nearest, sizes)
    return torch.where(counts > 0, sums / counts.clamp(min=1), clusters)
