"""How sure a difference in AP is: a paired bootstrap over images, with the deviation between seeds.

A resampled split has every image (or every cluster of images) as often as it was drawn. All detectors are evaluated on
the same resampled splits, so that what is hard about an image is hard for both sides of a difference.

`hotcoco.compare` has no clusters of images, no seeds and no values of single splits, and in version 1.3 an image that
was drawn twice counts once, which makes its intervals too narrow by a quarter. The tests hold this file against a new
evaluation of every resampled split, and against hotcoco where repeated images count once.

Axes: S resampled splits, N images, D detections of a class, T IoU thresholds, M matched detections.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
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
IMAGES_AT_ONCE = 500  # whose matches the evaluator hands over


class ClassMatches(NamedTuple):
    """The detections of one class in all images, best first, and what COCO's matching made of them.

    `ranks` count the detections of an image from its best one on, from 0.
    """

    image_indices: Int64[Tensor, " D"]
    scores: Float64[Tensor, " D"]
    ranks: Int64[Tensor, " D"]
    is_match: Bool[Tensor, "T D"]
    is_ignored: Bool[Tensor, "T D"]
    num_objects: Float64[Tensor, " N"]


class _Cell(NamedTuple):
    """What COCO's matching made of one class in one image."""

    image_index: int
    scores: Float64[numpy.ndarray, " d"]
    is_match: Bool[numpy.ndarray, "T d"]
    is_ignored: Bool[numpy.ndarray, "T d"]
    num_objects: int


def match_images(
    truth: CocoGroundTruth, rows: ResultRows, *, max_detections: int = MAX_DETECTIONS
) -> list[ClassMatches]:
    """The matches of a result file with the objects of `truth`, by label; ignored objects do not count."""
    return match_sizes(truth, rows, max_detections=max_detections, num_sizes=1)[0]


def match_sizes(
    truth: CocoGroundTruth, rows: ResultRows, *, max_detections: int = MAX_DETECTIONS, num_sizes: int | None = None
) -> list[list[ClassMatches]]:
    """As `match_images`, for objects of all sizes, then for small, medium and large ones alone: the others are ignored.

    `num_sizes` are the first ones of these; all by default.
    """
    evaluator = open_evaluator(truth, rows, max_detections=max_detections, with_metrics=False)
    index_of, class_rank = numpy.argsort(rank_images(truth)), rank_classes(truth)
    ranges = [tuple(each) for each in evaluator.params.area_rng][:num_sizes]
    num_thresholds = len(evaluator.params.iou_thrs)
    cells: dict[tuple[Any, int], list[_Cell]] = {}
    for cell in _match_cells(evaluator):
        size = tuple(cell["aRng"])
        if size in ranges:
            cells.setdefault((size, cell["category_id"]), []).append(_read_match_cell(cell, index_of, num_thresholds))
    return [
        [
            _class_matches(cells.get((size, int(rank)), []), num_images=len(index_of), num_thresholds=num_thresholds)
            for rank in class_rank
        ]
        for size in ranges
    ]


def _match_cells(evaluator: Any) -> Iterator[Mapping[str, Any]]:
    """The evaluator's cells of class, size and image, sorted by image; of few images at once, since they are large."""
    ids = list(evaluator.params.img_ids)
    for begin in range(0, len(ids), IMAGES_AT_ONCE):
        if len(ids) > IMAGES_AT_ONCE:
            evaluator.params.img_ids = ids[begin : begin + IMAGES_AT_ONCE]
            evaluator.evaluate()
        cells = [cell for cell in evaluator.eval_imgs if cell is not None]
        yield from sorted(cells, key=lambda cell: cell["image_id"])


def _read_match_cell(cell: Mapping[str, Any], index_of: Int64[numpy.ndarray, " N"], num_thresholds: int) -> _Cell:
    """One of the evaluator's cells."""
    matched, ignored = (
        numpy.array(cell[name], dtype=bool).reshape(num_thresholds, -1) for name in ("dtMatched", "dtIgnore")
    )
    return _Cell(
        int(index_of[cell["image_id"]]),
        numpy.array(cell["dtScores"], dtype=numpy.float64),
        matched & ~ignored,
        ignored,
        sum(not is_ignored for is_ignored in cell["gtIgnore"]),
    )


def _class_matches(cells: Sequence[_Cell], *, num_images: int, num_thresholds: int) -> ClassMatches:
    """The columns of one class from the cell of each image, in the order of their ids."""
    num_objects = torch.zeros(num_images, dtype=torch.float64)
    for cell in cells:
        num_objects[cell.image_index] = cell.num_objects
    no_matches = numpy.zeros((num_thresholds, 0), dtype=bool)
    every = [*cells, _Cell(0, numpy.zeros(0), no_matches, no_matches, 0)]
    scores = numpy.concatenate([cell.scores for cell in every])
    order = numpy.argsort(-scores, kind="stable")
    counts = [len(cell.scores) for cell in every]
    return ClassMatches(
        torch.from_numpy(numpy.repeat([cell.image_index for cell in every], counts)[order]),
        torch.from_numpy(scores[order]),
        torch.from_numpy(numpy.concatenate([numpy.arange(count) for count in counts])[order]),
        torch.from_numpy(numpy.concatenate([cell.is_match for cell in every], axis=1)[:, order]),
        torch.from_numpy(numpy.concatenate([cell.is_ignored for cell in every], axis=1)[:, order]),
        num_objects,
    )


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
    return resampled_precision(classes, splits, thresholds=thresholds).mean(dim=0)


def resampled_precision(
    classes: Sequence[ClassMatches], splits: Float64[Tensor, "S N"], *, thresholds: Sequence[int] | None = None
) -> Float64[Tensor, "T S"]:
    """AP in [0, 1] at each IoU threshold on each of `splits`; see `resampled_ap`."""
    per_class = [_class_precision(each, splits, thresholds=thresholds) for each in classes]
    return torch.stack(per_class).nanmean(dim=0) if per_class else splits.new_full((1, len(splits)), math.nan)


def _class_precision(
    matches: ClassMatches, splits: Float64[Tensor, "S N"], *, thresholds: Sequence[int] | None
) -> Float64[Tensor, "T S"]:
    """AP of one class at each threshold on each split; NaN where it has no object there."""
    num_objects = splits @ matches.num_objects
    picked = list(range(len(matches.is_match)) if thresholds is None else thresholds)
    columns = (~matches.is_ignored[picked].all(0)).nonzero().flatten()  # what is always ignored has no part in it
    images, is_match, is_ignored = (each[..., columns] for each in (matches.image_indices, *matches[3:5]))
    result = splits.new_zeros(len(picked), len(splits))
    size = max(1, CHUNK_VALUES // max(1, len(images)))
    for begin in range(0, len(splits), size):
        part = slice(begin, begin + size)
        counts = splits[part][:, images]
        everything = counts.cumsum(1)
        for row, threshold in enumerate(picked):
            ignored = is_ignored[threshold]
            seen = (counts * ~ignored).cumsum(1) if bool(ignored.any()) else everything
            hits = is_match[threshold].nonzero().flatten()
            result[row, part] = _mean_precision(counts[:, hits], seen[:, hits], num_objects[part])
    return result.where(num_objects > 0, math.nan)


def resampled_recall(
    classes: Sequence[ClassMatches], splits: Float64[Tensor, "S N"], *, limit: int | None = None
) -> Float64[Tensor, " S"]:
    """AR in [0, 1] on each of `splits`, as COCO computes it; NaN where a split has no object.

    Only the best `limit` detections of each image and class count; by default all that were matched.
    """
    per_class = []
    for each in classes:
        counts = each.is_match if limit is None else each.is_match & (each.ranks < limit)
        per_image = torch.zeros_like(each.num_objects).index_add(0, each.image_indices, counts.double().mean(0))
        num_objects = splits @ each.num_objects
        per_class.append((splits @ per_image / num_objects).where(num_objects > 0, math.nan))
    return torch.stack(per_class).nanmean(dim=0) if per_class else splits.new_full((len(splits),), math.nan)


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
    do. Where both give the same on every split, the difference is 0 and nothing is added.
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
