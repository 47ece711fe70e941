"""How far the numbers of an evaluation would move with other images of the same kind: a bootstrap over the images.

Axes: S resampled splits, N images; the first split is that of the evaluation itself.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from focaldet.evaluation.bootstrap import draw_splits, match_sizes, percentiles, resampled_precision, resampled_recall
from focaldet.evaluation.coco import AP50, AP75
from focaldet.evaluation.evaluator import LOWER_LIMITS, MAX_DETECTIONS, CocoGroundTruth
from focaldet.evaluation.results import ResultRows

ROUNDS, FEWEST_ROUNDS = 1000, 100
ROUNDS_TIMES_IMAGES = 500_000  # half a minute at COCO's size, of 5000 images and 80 classes

Resampled = Mapping[str, Float64[Tensor, " S"]]
"""A number on every split, by its field of `Metrics`."""


class Interval(NamedTuple):
    """Both ends of an interval; those of a metric are in [0, 1], those of a difference in [−1, 1]."""

    low: float
    high: float


class Difference(NamedTuple):
    """By how much a metric of B is above that of A, its interval, and the probability that it is above."""

    value: float
    interval: Interval
    probability: float


def resample_metrics(
    truth: CocoGroundTruth, rows: ResultRows, *, max_detections: int = MAX_DETECTIONS, rounds: int | None = None
) -> dict[str, Float64[Tensor, " S"]]:
    """Those of the twelve numbers that exist, on the images themselves and on `rounds` resampled splits of them.

    The splits are the same for all detectors on the same images. NaN where a split has no such object.

    Args:
        truth: the ground truth.
        rows: the detections.
        max_detections: how many detections of each image and class count.
        rounds: how often the images are drawn again; by default `count_rounds`.
    """
    num_images = len(truth.image_ids)
    if not num_images:
        return {}
    drawn = draw_splits(num_images, num_splits=rounds or count_rounds(num_images))
    splits = torch.cat([torch.ones_like(drawn[:1]), drawn])
    every, *sizes = match_sizes(truth, rows, max_detections=max_detections)
    precision = resampled_precision(every, splits)
    values = {"ap": precision.mean(0), "ap50": precision[AP50], "ap75": precision[min(AP75, len(precision) - 1)]}
    for name, classes in zip(("small", "medium", "large"), sizes, strict=True):
        values[f"ap_{name}"] = resampled_precision(classes, splits).mean(0)
        values[f"ar_{name}"] = resampled_recall(classes, splits)
    for limit in LOWER_LIMITS:
        values[f"ar{limit}"] = resampled_recall(every, splits, limit=limit)
    values["ar100"] = resampled_recall(every, splits)
    return {field: each for field, each in values.items() if bool(each[0].isfinite())}


def bootstrap_intervals(resampled: Resampled) -> dict[str, Interval]:
    """The 95 % interval of each number."""
    return {field: Interval(*percentiles(each[1:])) for field, each in resampled.items()}


def compare_metrics(first: Resampled, second: Resampled) -> dict[str, Difference]:
    """How much the second detector is above the first in each number that both have, in a paired bootstrap.

    Both are of the same images and as many rounds.
    """
    differences = {}
    for field in first:
        if field in second:
            value, *_ = (difference := second[field] - first[field]).tolist()
            drawn = difference[1:][difference[1:].isfinite()]
            above = ((drawn > 0).double() + (drawn == 0).double() / 2).mean()
            differences[field] = Difference(value, Interval(*percentiles(drawn)), float(above))
    return differences


def count_rounds(num_images: int) -> int:
    """How often so many images are drawn again: `ROUNDS`, and less often where that would take minutes."""
    return max(FEWEST_ROUNDS, min(ROUNDS, ROUNDS_TIMES_IMAGES // max(1, num_images)))
