"""How far the numbers of an evaluation would move with other images of the same kind: a bootstrap over the images."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

from focaldet.evaluation.coco import HEADLINES
from focaldet.evaluation.evaluator import CocoGroundTruth, open_evaluator
from focaldet.evaluation.results import ResultRows

ROUNDS, FEWEST_ROUNDS = 1000, 100
ROUNDS_TIMES_IMAGES = 500_000  # half a minute at COCO's size, of 5000 images and 80 classes
CONFIDENCE = 0.95
# hotcoco 1.3 counts an image that was drawn several times once, so that its rounds are samples of 1 − 1/e of the images
# without repetition, whose deviation is smaller by this factor (`bootstrap.py`, whose tests hold hotcoco against it).
TOO_NARROW = math.sqrt(math.e - 1)


class Interval(NamedTuple):
    """Both ends of an interval; those of a metric are in [0, 1], those of a difference in [−1, 1]."""

    low: float
    high: float


class Difference(NamedTuple):
    """By how much a metric of B is above that of A, its interval, and the probability that it is above."""

    value: float
    interval: Interval
    probability: float


def bootstrap_intervals(truth: CocoGroundTruth, evaluator: Any, *, rounds: int | None = None) -> dict[str, Interval]:
    """The 95 % interval of each of the twelve numbers that exists, by its field of `Metrics`.

    Computed by hotcoco as the difference to a detector without any detections, whose numbers are 0 in every round.

    Args:
        truth: the ground truth.
        evaluator: an `open_evaluator` of the detections against it.
        rounds: how often the images are drawn again; by default `count_rounds`.
    """
    no_rows = ResultRows(truth.image_indices[:0], truth.labels[:0], truth.xywh[:0], truth.areas[:0])
    nothing = open_evaluator(truth, no_rows, max_detections=evaluator.params.max_dets[-1])
    differences = compare_metrics(nothing, evaluator, rounds=rounds)
    return {field: Interval(max(0.0, each.interval.low), each.interval.high) for field, each in differences.items()}


def compare_metrics(evaluator_a: Any, evaluator_b: Any, *, rounds: int | None = None) -> dict[str, Difference]:
    """How much B is above A in each of the twelve numbers that exists, in a paired bootstrap over the images.

    Both are evaluators of the same images.
    """
    from hotcoco import compare

    num_images = len(evaluator_b.coco_gt.imgs)
    if not num_images:
        return {}
    rounds = rounds or count_rounds(num_images)
    result = compare(evaluator_a, evaluator_b, n_bootstrap=rounds, seed=0, confidence=CONFIDENCE)
    differences = {}
    for field, key in zip(HEADLINES, result["metric_keys"], strict=True):
        if result["metrics_b"][key] >= 0 and result["metrics_a"][key] >= 0:
            differences[field] = _widen(result["deltas"][key], result["ci"][key], rounds=rounds)
    return differences


def _widen(value: float, ends: Mapping[str, float], *, rounds: int) -> Difference:
    """A difference with the interval and the probability that whole samples would give it."""
    low, high = (max(-1.0, min(1.0, value + (ends[end] - value) * TOO_NARROW)) for end in ("lower", "upper"))
    fraction = ends["prob_positive"]
    normal, least = NormalDist(), 0.5 / rounds
    probability = normal.cdf(normal.inv_cdf(max(least, min(1 - least, fraction))) / TOO_NARROW)
    return Difference(value, Interval(low, high), probability)


def count_rounds(num_images: int) -> int:
    """How often so many images are drawn again: `ROUNDS`, and less often where that would take minutes."""
    return max(FEWEST_ROUNDS, min(ROUNDS, ROUNDS_TIMES_IMAGES // max(1, num_images)))
