"""How sure a difference in AP is: a paired bootstrap over images, with the deviation between seeds.

A resampled split has every image (or every cluster of images) as often as it was drawn. All detectors are evaluated on
the same resampled splits, so that what is hard about an image is hard for both sides of a difference.

`hotcoco.compare` has no clusters of images, no seeds and no values of single splits, and in version 1.3 an image that
was drawn twice counts once, which makes its intervals too narrow by a quarter. The tests hold this file against a new
evaluation of every resampled split, and against hotcoco where repeated images count once.

Axes: S resampled splits, N images, D detections of a class, T IoU thresholds, M matched detections.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from focaldet.evaluation.evaluator import (
    MAX_DETECTIONS,
    CocoGroundTruth,
    open_evaluator,
    rank_classes,
    rank_images,
)
from focaldet.evaluation.results import ResultRows

NUM_SPLITS = 2000
INTERVAL_LEVEL = 0.95
SEED_DEVIATION = 0.01  # of AP, between seeds on a few hundred images, where a comparison has only one seed
RECALLS = numpy.linspace(0.0, 1.0, 101)  # of COCO's AP
CHUNK_VALUES = 4_000_000  # numbers of one step, 32 MB


class ClassMatches(NamedTuple):
    """The detections of one class in all images, best first, and what COCO's matching made of them."""

    image_indices: Int64[Tensor, " D"]
    scores: Float64[Tensor, " D"]
    is_match: Bool[Tensor, "T D"]
    is_ignored: Bool[Tensor, "T D"]
    num_objects: Float64[Tensor, " N"]


def match_images(
    truth: CocoGroundTruth, rows: ResultRows, *, max_detections: int = MAX_DETECTIONS
) -> list[ClassMatches]:
    """The matches of a result file with the objects of `truth`, by label; ignored objects do not count."""
    evaluator = open_evaluator(truth, rows, max_detections=max_detections, with_metrics=False)
    image_rank, class_rank = rank_images(truth), rank_classes(truth)
    index_of = numpy.argsort(image_rank)
    every_area = evaluator.params.area_rng[0]
    cells: dict[int, list[dict[str, Any]]] = {}
    for cell in evaluator.eval_imgs:
        if cell is not None and list(cell["aRng"]) == list(every_area):
            cells.setdefault(cell["category_id"], []).append(cell)
    num_thresholds = len(evaluator.params.iou_thrs)
    return [_class_matches(cells.get(int(rank), []), index_of, num_thresholds=num_thresholds) for rank in class_rank]


def _class_matches(
    cells: Sequence[Mapping[str, Any]], index_of: Int64[numpy.ndarray, " N"], *, num_thresholds: int
) -> ClassMatches:
    """The columns of one class from the evaluator's cell of each image, in the order of their ids."""
    cells = sorted(cells, key=lambda cell: cell["image_id"])
    num_objects = torch.zeros(len(index_of), dtype=torch.float64)
    for cell in cells:
        num_objects[index_of[cell["image_id"]]] = sum(not ignored for ignored in cell["gtIgnore"])
    scores = numpy.array([score for cell in cells for score in cell["dtScores"]], dtype=numpy.float64)
    order = numpy.argsort(-scores, kind="stable")
    images = [index_of[cell["image_id"]] for cell in cells for _ in cell["dtScores"]]
    columns = []
    for name in ("dtMatched", "dtIgnore"):
        parts = [numpy.array(cell[name], dtype=bool).reshape(num_thresholds, -1) for cell in cells]
        columns.append(numpy.concatenate([*parts, numpy.zeros((num_thresholds, 0), dtype=bool)], axis=1)[:, order])
    matched, ignored = map(torch.from_numpy, columns)
    image_indices = torch.from_numpy(numpy.array(images, dtype=numpy.int64)[order])
    return ClassMatches(image_indices, torch.from_numpy(scores[order]), matched & ~ignored, ignored, num_objects)


def draw_splits(
    num_images: int, *, num_splits: int = NUM_SPLITS, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Float64[Tensor, "S N"]:
    """How often each image is in each resampled split.

    Args:
        num_images: images of the split.
        num_splits: resampled splits.
        seed: of the random draws.
        clusters: a key for each image, where images of one key (the frames of a film, the tiles of a scene) are not
            independent: whole clusters are drawn.
    """
    keys = list(range(num_images)) if clusters is None else list(clusters)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    rng = numpy.random.default_rng(seed)
    drawn = rng.multinomial(len(numbers), numpy.full(len(numbers), 1 / max(1, len(numbers))), size=num_splits)
    return torch.from_numpy(drawn[:, [numbers[key] for key in keys]].astype(numpy.float64))


def resampled_ap(
    classes: Sequence[ClassMatches], splits: Float64[Tensor, "S N"], *, thresholds: Sequence[int] | None = None
) -> Float64[Tensor, " S"]:
    """AP in [0, 1] on each of `splits`, as COCO computes it; NaN where a split has no object.

    Args:
        classes: the matches, by label.
        splits: how often each image is in each split; a row of ones is the split itself.
        thresholds: indices of the IoU thresholds to take the mean over; all by default.
    """
    per_class = [_class_ap(each, splits, thresholds=thresholds) for each in classes]
    return torch.stack(per_class).nanmean(dim=0) if per_class else splits.new_full((len(splits),), math.nan)


def _class_ap(
    matches: ClassMatches, splits: Float64[Tensor, "S N"], *, thresholds: Sequence[int] | None
) -> Float64[Tensor, " S"]:
    """AP of one class on each split; NaN where it has no object there."""
    num_objects = splits @ matches.num_objects
    num_detections = len(matches.image_indices)
    picked = range(len(matches.is_match)) if thresholds is None else thresholds
    result = splits.new_zeros(len(splits))
    size = max(1, CHUNK_VALUES // max(1, num_detections))
    for begin in range(0, len(splits), size):
        part = slice(begin, begin + size)
        counts = splits[part][:, matches.image_indices]
        everything = counts.cumsum(1)
        for threshold in picked:
            ignored = matches.is_ignored[threshold]
            seen = (counts * ~ignored).cumsum(1) if bool(ignored.any()) else everything
            hits = matches.is_match[threshold].nonzero().flatten()
            result[part] += _mean_precision(counts[:, hits], seen[:, hits], num_objects[part]) / len(picked)
    return result.where(num_objects > 0, math.nan)


def _mean_precision(
    hits: Float64[Tensor, "S M"], seen: Float64[Tensor, "S M"], num_objects: Float64[Tensor, " S"]
) -> Float64[Tensor, " S"]:
    """The mean of the precision at COCO's 101 recalls; precision can only be highest at a match.

    Args:
        hits: how often each matched detection counts.
        seen: how many detections there are up to it, itself included.
        num_objects: of each split.
    """
    if hits.shape[1] == 0:
        return num_objects.new_zeros(len(num_objects))
    true = hits.cumsum(1)
    precision = (true / seen).nan_to_num(0.0).flip(1).cummax(1).values.flip(1)
    recall = true / num_objects.clamp(min=1.0)[:, None]
    recalls = torch.from_numpy(RECALLS).expand(len(hits), -1).contiguous()
    index = torch.searchsorted(recall.contiguous(), recalls)
    padded = torch.cat([precision, precision.new_zeros(len(hits), 1)], dim=1)
    return padded.gather(1, index).mean(1)


@dataclass(frozen=True)
class ApSample:
    """AP of the trainings of one detector.

    Attributes:
        name: of the detector.
        ap: of each seed on the split itself, in [0, 1].
        resampled: the mean over the seeds on each resampled split.
    """

    name: str
    ap: tuple[float, ...]
    resampled: Float64[Tensor, " S"]

    @property
    def mean(self) -> float:
        """AP, the mean over the seeds."""
        return sum(self.ap) / len(self.ap)

    @property
    def deviation(self) -> float | None:
        """The standard deviation between the seeds; None with one seed."""
        return float(numpy.std(self.ap, ddof=1)) if len(self.ap) > 1 else None

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean over the images alone."""
        return percentiles(self.resampled)


@dataclass(frozen=True, slots=True)
class ApDifference:
    """AP of `first` minus that of `second`, in −1 … 1.

    Attributes:
        first: name of a detector.
        second: name of another.
        mean: the difference on the split itself.
        low: lower end of its 95 % interval, over images and seeds.
        high: upper end.
        probability: that `first` is better: the fraction of resampled splits where it is, half of those that are equal.
        p_value: of no difference, two-sided.
        adjusted: the p-value after Holm's correction for all pairs of the comparison.
    """

    first: str
    second: str
    mean: float
    low: float
    high: float
    probability: float
    p_value: float
    adjusted: float

    @property
    def is_real(self) -> bool:
        """Whether chance explains it in less than 5 % of such comparisons, all pairs counted."""
        return self.adjusted < 1 - INTERVAL_LEVEL


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """How far AP differs between seeds: the standard deviation, and its degrees of freedom, infinite where assumed."""

    deviation: float
    freedom: float

    @property
    def is_assumed(self) -> bool:
        """Whether no detector of the comparison has a second seed."""
        return math.isinf(self.freedom)


def seed_spread(samples: Sequence[ApSample], *, assumed: float = SEED_DEVIATION) -> SeedSpread:
    """The deviation between seeds, pooled over all detectors that have several; `assumed` where none has."""
    freedom = sum(len(sample.ap) - 1 for sample in samples)
    if not freedom:
        return SeedSpread(assumed, math.inf)
    squares = sum((ap - sample.mean) ** 2 for sample in samples for ap in sample.ap)
    return SeedSpread(math.sqrt(squares / freedom), float(freedom))


def compare_samples(
    samples: Sequence[ApSample], *, spread: SeedSpread, num_units: int | None = None, seed: int = 0
) -> list[ApDifference]:
    """The difference of every pair, in the order of `samples`.

    Few images tell less of their own deviation than resampling them shows: around their mean the differences are
    widened from a normal to Student's t distribution with `num_units` − 1 degrees of freedom (Hesterberg 2015, "What
    teachers should know about the bootstrap"). `num_units` is the number of images or clusters; None widens nothing.

    To the difference on each resampled split a random difference between seeds is added, of Student's t with the
    degrees of freedom of `spread`: an interval over images alone says that two trainings differ, not that two detectors
    do. Where both give the same on every split, there is no difference and nothing is added.
    """
    rng = numpy.random.default_rng(seed)
    pairs = combinations(samples, 2)
    rows = [_difference(first, second, spread=spread, num_units=num_units, rng=rng) for first, second in pairs]
    adjusted = adjust_p_values([row[-1] for row in rows])
    return [ApDifference(*row, each) for row, each in zip(rows, adjusted, strict=True)]


def _difference(
    first: ApSample, second: ApSample, *, spread: SeedSpread, num_units: int | None, rng: numpy.random.Generator
) -> tuple[str, str, float, float, float, float, float]:
    """All of a `ApDifference` but its adjusted p-value."""
    mean = first.mean - second.mean
    if num_units == 1 and mean:  # drawn again and again, one image says nothing of others
        return first.name, second.name, mean, -1.0, 1.0, 0.5, 1.0
    values = (first.resampled - second.resampled).nan_to_num(0.0)
    if bool((values != 0).any()):
        if num_units is not None and num_units > 1:
            freedom = num_units - 1
            widths = numpy.sqrt(num_units / rng.chisquare(freedom, len(values)))
            values = values.mean() + (values - values.mean()) * torch.from_numpy(widths)
        noise = rng.standard_normal(len(values)) if spread.is_assumed else rng.standard_t(spread.freedom, len(values))
        scale = spread.deviation * math.sqrt(1 / len(first.ap) + 1 / len(second.ap))
        values = values + torch.from_numpy(scale * noise)
    low, high = percentiles(values)
    above, below, num_splits = int((values > 0).sum()), int((values < 0).sum()), len(values)
    probability = (above + (num_splits - above - below) / 2) / num_splits
    least = min(num_splits - above, num_splits - below)
    p_value = min(1.0, 2 * (least + 1) / (num_splits + 1))
    if least == 0:  # beyond what so many splits can tell
        p_value = min(p_value, math.erfc(abs(mean) / max(float(values.std()), 1e-12) / math.sqrt(2)))
    return first.name, second.name, mean, low, high, probability, p_value


def percentiles(values: Float64[Tensor, " S"]) -> tuple[float, float]:
    """The ends of the 95 % interval; values that are not finite do not count."""
    finite = values[values.isfinite()]
    if not len(finite):
        return math.nan, math.nan
    tail = (1 - INTERVAL_LEVEL) / 2
    low, high = torch.quantile(finite, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's correction: with it, one false alarm in all comparisons together stays below 5 %."""
    order = sorted(range(len(p_values)), key=lambda number: p_values[number])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = highest
    return adjusted
