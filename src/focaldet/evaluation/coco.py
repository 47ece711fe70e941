"""The twelve COCO metrics, over all classes and per class, from a dataset and the detections of its images.

Axes: N images, K classes, D detections, T IoU thresholds, R recall thresholds, S size ranges, M detection limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
from jaxtyping import Float64

from focaldet import config as configs
from focaldet.data.dataset import Dataset
from focaldet.data.formats.text import quantity
from focaldet.errors import ConfigError
from focaldet.evaluation.diagnostics import ConfusionMatrix, count_confusion
from focaldet.evaluation.evaluator import (
    LOWER_LIMITS,
    MAX_DETECTIONS,
    CocoGroundTruth,
    ground_truth_of,
    open_evaluator,
    rank_classes,
)
from focaldet.evaluation.results import ResultRows, result_rows
from focaldet.evaluation.score_curves import measure_curves
from focaldet.types import Detections
from focaldet.weights.thresholds import ScoreThresholds

SIZE_RANGES = ("all", "small", "medium", "large")  # by area: below 32², to 96², above, in pixels of the original image
AP50, AP75 = 0, 5  # indices on axis T
HIGHEST_LIMIT = 2  # index on axis M of the highest limit of detections
HIGHER_LIMIT = "focaldet eval --max-detections raises the limit"

HEADLINES: dict[str, tuple[str, str]] = {
    "ap": ("AP", "mean over IoU .50 to .95"),
    "ap50": ("AP50", "IoU .50"),
    "ap75": ("AP75", "IoU .75"),
    "ap_small": ("AP small", "area below 32² px"),
    "ap_medium": ("AP medium", "area 32² to 96² px"),
    "ap_large": ("AP large", "area above 96² px"),
    "ar1": ("AR1", "recall with 1 detection per image and class"),
    "ar10": ("AR10", "recall with 10"),
    "ar100": ("AR100", "recall with 100"),
    "ar_small": ("AR small", "recall with 100, area below 32² px"),
    "ar_medium": ("AR medium", "recall with 100, area 32² to 96² px"),
    "ar_large": ("AR large", "recall with 100, area above 96² px"),
}
"""The twelve numbers in COCO's order: field of `Metrics` → name and meaning for people."""


def headline(field: str, *, max_detections: int) -> tuple[str, str]:
    """Name and meaning of one of the twelve numbers, with the limit that was used instead of COCO's 100."""
    name, meaning = HEADLINES[field]
    limit = str(max_detections)
    return name.replace("AR100", f"AR{limit}"), meaning.replace("with 100", f"with {limit}")


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal, for example "41.5"; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The metrics of one class, as in `Metrics`; `num_boxes` does not count ignored boxes.

    `category_id` is the id in the file that was evaluated on; None for a class that only the training split has.
    """

    name: str
    category_id: int | None
    num_boxes: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of COCO, each in [0, 1].

    A metric is None where COCO's own tool prints −1: no box has that size or class. A class without boxes has
    no part in the means. `max_detections` is how many detections of each image and class count, the best ones; where it
    is not COCO's 100, it replaces 100 in `ar100` and the three after it. `notes` say what a reader must know,
    such as classes that the detector does not have, or what the limit has cut.

    `score_thresholds` are the scores with the largest F1, None where no detection is right; `confusion` counts which
    classes are taken for which at the one over all classes.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: tuple[ClassMetrics, ...] = ()
    num_images: int = 0
    num_boxes: int = 0
    num_detections: int = 0
    milliseconds_per_image: float | None = None
    max_detections: int = MAX_DETECTIONS
    notes: tuple[str, ...] = ()
    score_thresholds: ScoreThresholds | None = None
    confusion: ConfusionMatrix | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; inverse of `from_dict`."""
        return configs.to_dict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Metrics":
        """The metrics that `to_dict` wrote."""
        return configs.from_dict(Metrics, values, source="metrics")


def evaluate_detections(
    dataset: Dataset,
    detections: Mapping[int, Detections],
    *,
    max_detections: int = MAX_DETECTIONS,
    image_limit: int | None = None,
) -> Metrics:
    """The COCO metrics of `detections`, given by the index of their image, in pixels of the stored images.

    An image that is not among them counts as one without detections. Labels are those of the dataset. At most the
    `max_detections` best detections per image and class count; what that cuts is in the notes, and what the detector
    cannot reach that answers with at most `image_limit` objects an image, where that is known. Boxes flagged as crowd
    or difficult are ignored: missing them costs nothing, and detections that lie on them (intersection over the area of
    the detection, any number of them) are neither right nor wrong.

    Raises:
        IndexError: an index or label is not in the dataset.
        ConfigError: `max_detections` is below 11, COCO's next limit being 10.
    """
    rows = result_rows(detections)
    for name, values, limit in [
        ("indices", rows.image_indices, len(dataset)),
        ("labels", rows.labels, len(dataset.classes.names)),
    ]:
        lowest, highest = (int(values.min()), int(values.max())) if len(values) else (0, -1)
        if lowest < 0 or highest >= limit:
            raise IndexError(f"{name} must be in 0…{limit - 1}, got {lowest}…{highest}")
    truth = ground_truth_of(dataset)
    return compute_metrics(truth, rows, max_detections=max_detections, data=dataset.name, image_limit=image_limit)


def check_max_detections(number: int) -> None:
    """Raise ConfigError where so few detections of an image and class are to count that AR10 would have no meaning."""
    if number <= LOWER_LIMITS[-1]:
        raise ConfigError(f"max_detections: must be at least {LOWER_LIMITS[-1] + 1}, got {number}")


def compute_metrics(
    truth: CocoGroundTruth, rows: ResultRows, *, max_detections: int, data: str = "", image_limit: int | None = None
) -> Metrics:
    """The metrics of `rows` against `truth`, computed by hotcoco; `data` names the images.

    `image_limit` is the most objects of an image that the detector answers with, where that is known.

    Raises:
        ConfigError: see `evaluate_detections`.
    """
    check_max_detections(max_detections)
    evaluator = open_evaluator(truth, rows, max_detections=max_detections)
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    class_rank = rank_classes(truth)
    counts = numpy.bincount(truth.labels[~truth.ignored], minlength=len(class_rank))
    classes = zip(truth.classes.names, truth.classes.own_ids, counts.tolist(), class_rank, strict=True)
    headlines: dict[str, Any] = dict(zip(HEADLINES, map(_none_if_negative, evaluator.stats), strict=True))
    thresholds = measure_curves(evaluator, truth, rows).thresholds(data)
    return Metrics(
        **headlines,
        per_class=tuple(
            ClassMetrics(name, category, count, **_class_metrics(precision[:, :, rank], recall[:, rank]))
            for name, category, count, rank in classes
        ),
        num_images=len(truth.image_ids),
        num_boxes=int(counts.sum()),
        num_detections=len(rows.scores),
        max_detections=max_detections,
        notes=(*_describe_cut(truth, rows, max_detections=max_detections), *_describe_limit(truth, image_limit)),
        score_thresholds=thresholds,
        confusion=None if thresholds is None else count_confusion(evaluator, truth, score=thresholds.overall.score),
    )


def _describe_cut(truth: CocoGroundTruth, rows: ResultRows, *, max_detections: int) -> tuple[str, ...]:
    """What the limit takes away: objects that cannot all be detected, and detections that do not count."""
    num_classes = max(1, len(truth.classes))
    regular = ~truth.ignored
    objects = numpy.bincount(truth.image_indices[regular] * num_classes + truth.labels[regular])
    detections = numpy.bincount(rows.image_indices * num_classes + rows.labels)
    out_of_reach, cut = (int((counts - max_detections).clip(min=0).sum()) for counts in (objects, detections))
    parts = []
    if out_of_reach:
        images = len(numpy.unique(numpy.flatnonzero(objects > max_detections) // num_classes))
        parts.append(
            f"{quantity(images, 'image')} with more than {max_detections} objects of a class: "
            f"{out_of_reach} of {int(regular.sum())} objects are out of reach"
        )
    if cut:
        parts.append(f"{cut} of {len(rows.scores)} detections do not count")
    if not parts:
        return ()
    limit = f"the best {max_detections} detections of each image and class count{' in COCO' * (max_detections == 100)}"
    return (f"{limit}: {'; '.join(parts)}; {HIGHER_LIMIT}",)


def _describe_limit(truth: CocoGroundTruth, image_limit: int | None) -> tuple[str, ...]:
    """What a detector cannot reach that answers with at most `image_limit` objects an image, of all classes."""
    objects = numpy.bincount(truth.image_indices[~truth.ignored])
    if image_limit is None or not (objects > image_limit).any():
        return ()
    images, out_of_reach = int((objects > image_limit).sum()), int((objects - image_limit).clip(min=0).sum())
    return (
        f"the detector answers with at most {quantity(image_limit, 'object')} an image: "
        f"{quantity(images, 'image')} with more, "
        f"{out_of_reach} of {int(objects.sum())} objects are out of reach; {HIGHER_LIMIT}",
    )


def _class_metrics(
    precision: Float64[numpy.ndarray, "T R S M"], recall: Float64[numpy.ndarray, "T S M"]
) -> dict[str, float | None]:
    """Mean precision and recall of one class, all sizes first; −1 in the arrays is "no such box"."""
    values = {"ap50": precision[AP50, :, 0, HIGHEST_LIMIT], "ap75": precision[AP75, :, 0, HIGHEST_LIMIT]}
    for index, size in enumerate(SIZE_RANGES):
        values["ap" if size == "all" else f"ap_{size}"] = precision[:, :, index, HIGHEST_LIMIT]
        values["ar100" if size == "all" else f"ar_{size}"] = recall[:, index, HIGHEST_LIMIT]
    return {name: float(each[each > -1].mean()) if (each > -1).any() else None for name, each in values.items()}


def _none_if_negative(number: float) -> float | None:
    return float(number) if number > -1 else None
