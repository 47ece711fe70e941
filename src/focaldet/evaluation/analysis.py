"""Everything that a report says of one detector's detections on one set of images."""

from dataclasses import dataclass, replace

from focaldet.data.dataset import Dataset
from focaldet.evaluation.coco import Metrics, compute_metrics
from focaldet.evaluation.diagnostics import (
    Calibration,
    ConfusionMatrix,
    ErrorKind,
    ImageScore,
    count_confusion,
    count_error_kinds,
    measure_calibration,
    score_images,
    slice_ap,
)
from focaldet.evaluation.error_kinds import Outcome, classify_outcomes
from focaldet.evaluation.evaluator import MAX_DETECTIONS, CocoGroundTruth, ground_truth_of, open_evaluator
from focaldet.evaluation.intervals import Interval, Resampled, bootstrap_intervals, count_rounds, resample_metrics
from focaldet.evaluation.results import ResultRows
from focaldet.evaluation.score_curves import ScoreCurves, measure_curves
from focaldet.types import Detections

DEFAULT_REPORT_SCORE = 0.3  # where no detection is right
CROWD_GROUPS = 3  # by the number of objects in an image


@dataclass(frozen=True, slots=True)
class Analysis:
    """The numbers, curves and errors of detections on a dataset.

    Attributes:
        metrics: the COCO numbers; `intervals` are 95 % intervals by their fields, of `rounds` bootstrap rounds.
        curves: precision, recall and F1 from each score on.
        score: the score with the largest F1; what is counted by detection is counted from it on.
        confusion: None with very many classes.
        error_kinds: TIDE's kinds.
        calibration: of all detections.
        images: right, wrong and missed in each image.
        groups: AP of images with few and with many objects, by a name for the group, and how many images it has.
        resampled: the numbers on resampled splits, for comparisons.
    """

    metrics: Metrics
    intervals: dict[str, Interval]
    rounds: int
    curves: ScoreCurves
    score: float
    confusion: ConfusionMatrix | None
    error_kinds: tuple[ErrorKind, ...]
    calibration: Calibration
    images: list[ImageScore]
    groups: dict[str, tuple[int, float | None]]
    resampled: Resampled


def analyze_detections(
    dataset: Dataset, rows: ResultRows, *, metrics: Metrics | None = None, image_limit: int | None = None
) -> Analysis:
    """Everything about the detections in `rows` on `dataset`.

    `metrics` are taken where they are known already, and with them the limit of detections that they were computed
    with; COCO's limit otherwise. `image_limit` is the most objects of an image that the detector answers with.
    """
    truth = ground_truth_of(dataset)
    limit = MAX_DETECTIONS if metrics is None else metrics.max_detections
    evaluator = open_evaluator(truth, rows, max_detections=limit)
    curves = measure_curves(evaluator, truth, rows)
    if metrics is None:
        metrics = compute_metrics(truth, rows, max_detections=limit, data=dataset.name, image_limit=image_limit)
    thresholds = curves.thresholds(dataset.name)
    score = DEFAULT_REPORT_SCORE if thresholds is None else thresholds.overall.score
    groups = group_by_objects(truth)
    ap = slice_ap(evaluator, truth, groups)
    resampled = resample_metrics(truth, rows, max_detections=limit)
    return Analysis(
        metrics=replace(metrics, score_thresholds=thresholds),
        intervals=bootstrap_intervals(resampled),
        rounds=count_rounds(len(dataset)),
        curves=curves,
        score=score,
        confusion=count_confusion(evaluator, truth, score=score),
        error_kinds=count_error_kinds(evaluator),
        calibration=measure_calibration(evaluator, truth),
        images=score_images(truth, rows, score=score, max_detections=limit),
        groups={name: (len(groups[name]), value) for name, value in ap.items()},
        resampled=resampled,
    )


def group_by_objects(truth: CocoGroundTruth) -> dict[str, list[int]]:
    """The images in up to three groups of about the same size, by how many objects they have.

    One group, of all images, where they do not differ.
    """
    counts = [0] * len(truth.image_ids)
    for image in truth.image_indices[~truth.ignored].tolist():
        counts[image] += 1
    ordered = sorted(counts)
    bounds = sorted(
        {ordered[len(ordered) * part // CROWD_GROUPS] for part in range(CROWD_GROUPS)} if ordered else set()
    )
    groups: dict[str, list[int]] = {}
    for low, after in zip(bounds, [*bounds[1:], None], strict=True):
        high = ordered[-1] if after is None else after - 1
        name = f"{low}" if low == high else f"{low} to {high}"
        groups[name] = [image for image, count in enumerate(counts) if low <= count <= high]
    return groups


def confident_outcomes(dataset: Dataset, detections: list[Detections], *, score: float) -> list[list[Outcome]]:
    """The outcomes of the objects and false positives of each image, with the detections of at least `score` alone."""
    return [
        classify_outcomes(each.above(score), dataset.target(index), score=score, least_score=score)
        for index, each in enumerate(detections)
    ]
