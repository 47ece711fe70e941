"""The detectors of a comparison with all that was measured of each, and the differences between them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from focaldet.comparison.jobs import EVALUATIONS, PREDICTIONS, JobResult, read_metrics
from focaldet.comparison.systems import SYSTEMS, System, system_of
from focaldet.comparison.timing import DetectorTiming
from focaldet.data.dataset import Dataset
from focaldet.errors import CheckpointError, ConfigError
from focaldet.evaluation.bootstrap import (
    ApDifference,
    ApSample,
    SeedSpread,
    compare_samples,
    draw_splits,
    match_images,
    resampled_ap,
    seed_spread,
)
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.diagnostics import count_error_kinds
from focaldet.evaluation.error_kinds import OUTCOME_KINDS, classify_outcomes
from focaldet.evaluation.evaluator import ground_truth_of, open_evaluator
from focaldet.evaluation.results import read_results
from focaldet.evaluation.score_curves import measure_curves
from focaldet.models import PRESETS, FasterRCNNConfig, named_config
from focaldet.models.base import DetectorConfig
from focaldet.prediction import DEFAULT_SCORE
from focaldet.report.run_report import detections_per_image
from focaldet.types import Detections
from focaldet.weights import load_detector
from focaldet.weights.checkpoint import read_metadata, saved_config
from focaldet.weights.exported.graphs import is_exported
from focaldet.weights.sources import find_weights


@dataclass(frozen=True)
class ComparedDetector:
    """One detector of a comparison.

    Attributes:
        name: of the row: a detector, an added run, or the result of another program.
        backbone: of its network; None for the result of another program.
        two_stage: whether it is a Faster R-CNN; None where that is not known.
        system: the row of the paper's table that it is a member of.
        results: its trainings, one for each seed; those that failed have their reason.
        metrics: of each seed that did not fail.
        sample: AP of each seed and on the resampled splits; None where all failed.
        score: the score threshold of the highest F1 at IoU .5, with which objects are counted and images drawn.
        kinds: outcomes for every 100 objects at that score, by kind; see `count_kinds`.
        costs: what correcting each of TIDE's kinds of errors would add to AP50, in [0, 1].
        detections: of the first seed, image by image.
        timing: None where it was not measured.
    """

    name: str
    backbone: str | None
    two_stage: bool | None
    system: System | None
    results: tuple[JobResult, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    sample: ApSample | None = None
    score: float = DEFAULT_SCORE
    kinds: Mapping[str, float] | None = None
    costs: Mapping[str, float] | None = None
    detections: Sequence[Detections] = ()
    timing: DetectorTiming | None = None

    @property
    def error(self) -> str | None:
        """Why there is nothing to compare, from the first training; None where there is something."""
        return self.failures[0] if self.failures and not self.metrics else None

    def mean(self, field: str) -> float | None:
        """A number of `Metrics`, the mean over the seeds that have it."""
        values = [value for metrics in self.metrics if (value := getattr(metrics, field)) is not None]
        return sum(values) / len(values) if values else None

    @property
    def milliseconds(self) -> float | None:
        """The time of an image, the median over images and rounds."""
        timing = self.timing
        return None if timing is None else timing.total.median

    @property
    def failures(self) -> list[str]:
        """The reasons of the trainings that failed, one for each."""
        return [result.error for result in self.results if result.error is not None]

    def training_mean(self, field: str) -> float | None:
        """A number of `JobResult`, the mean over the trainings that know it, which is where it is not 0."""
        values = [value for result in self.results if result.error is None and (value := getattr(result, field))]
        return sum(values) / len(values) if values else None

    @property
    def images_seen(self) -> int | None:
        """Images that a seed was trained on, repetitions counted; the mean over the seeds. None where nobody knows."""
        mean = self.training_mean("images_seen")
        return None if mean is None else round(mean)

    @property
    def training_pflop(self) -> float | None:
        """10^15 operations of a training: three times those of the network for each image seen, at its test size."""
        gflop, seen = None if self.timing is None else self.timing.gflop, self.images_seen
        return None if gflop is None or seen is None else 3 * gflop * seen / 1e6


@dataclass(frozen=True)
class Comparison:
    """The outcome of `compare`; `page` is None where it was interrupted or only a part of the trainings was run.

    Attributes:
        out: the folder with all files.
        page: its `index.html`.
        rows: the detectors in the order of the paper's table.
        differences: AP of every pair.
        spread: how far AP differs between seeds.
        sentences: what can be concluded.
        interrupted: whether it was asked to stop; the same call continues.
    """

    out: Path
    page: Path | None = None
    rows: tuple[ComparedDetector, ...] = ()
    differences: tuple[ApDifference, ...] = ()
    spread: SeedSpread | None = None
    sentences: tuple[str, ...] = ()
    interrupted: bool = False


def cluster_keys(dataset: Dataset, pattern: str | None) -> list[str] | None:
    """The cluster of each image: the first group of `pattern` in its path, or all that it matches.

    An image without a match is a cluster of its own. None without a pattern.

    Raises:
        ConfigError: no path matches.
    """
    if pattern is None:
        return None
    keys, num_matches = [], 0
    for index in range(len(dataset)):
        path = str(dataset.path(index))
        match = re.search(pattern, path)
        group = None if match is None else match.group(1) if match.re.groups else match.group()
        num_matches += group is not None
        keys.append(path if group is None else f"cluster {group}")
    if not num_matches:
        raise ConfigError(f"cluster: {pattern!r} matches no image, such as {dataset.path(0) if len(dataset) else '-'}")
    return keys


def collect_rows(
    results: Sequence[JobResult],
    others: Mapping[str, tuple[Path, Metrics]],
    *,
    out: Path,
    dataset: Dataset,
    splits: Float64[Tensor, "S N"],
    timings: Mapping[str, DetectorTiming],
    architecture: Mapping[str, Any],
) -> list[ComparedDetector]:
    """The rows of all trainings and of the result files of other programs, in the order of the paper's table.

    `architecture` are the settings that were laid over those of every detector that was trained here.
    """
    grouped: dict[str, list[JobResult]] = {}
    for result in results:
        grouped.setdefault(result.detector, []).append(result)
    rows = []
    for name, members in grouped.items():
        config = _network_config(members[0], architecture)
        finished = [member for member in members if member.error is None]
        folders = [out / EVALUATIONS / member.name for member in finished]
        rows.append(
            ComparedDetector(
                name,
                backbone=None if config is None else config.backbone,
                two_stage=None if config is None else isinstance(config, FasterRCNNConfig),
                system=None if config is None else system_of(config),
                results=tuple(members),
                metrics=tuple(map(read_metrics, folders)),
                timing=timings.get(name),
                **_accuracy(name, [folder / PREDICTIONS for folder in folders], dataset, splits),
            )
        )
    for name, (path, metrics) in others.items():
        accuracy = _accuracy(name, [path], dataset, splits)
        rows.append(ComparedDetector(name, None, None, None, metrics=(metrics,), timing=timings.get(name), **accuracy))
    return sorted(rows, key=_order)


def _network_config(result: JobResult, architecture: Mapping[str, Any]) -> DetectorConfig | None:
    """The settings of the network of a training, as far as they are known; of one that was added those in its file."""
    if result.note:
        return _read_config(result.run)
    if result.model not in PRESETS:
        return None
    try:
        return named_config(result.model, architecture=architecture)
    except ConfigError:  # a detector that could not be built
        return PRESETS[result.model].config


def _read_config(run: Path) -> DetectorConfig | None:
    """The settings of the network that the weights of a run folder, or an exported file, state; None without any."""
    try:
        path = find_weights(run).path
        metadata = load_detector(path).metadata if is_exported(path) else read_metadata(path)
        return None if metadata is None else saved_config(metadata, path)
    except (CheckpointError, ConfigError):
        return None


def _order(row: ComparedDetector) -> tuple[bool, bool, int]:
    """Two-stage above one-stage above unknown, and within them as in the paper."""
    number = SYSTEMS.index(row.system) if row.system in SYSTEMS else len(SYSTEMS)
    return row.two_stage is None, not row.two_stage, number


def _accuracy(
    name: str, predictions: Sequence[Path], dataset: Dataset, splits: Float64[Tensor, "S N"]
) -> dict[str, Any]:
    """The fields of a row that come from its result files; none without a file."""
    if not predictions:
        return {}
    whole = torch.ones(1, len(dataset), dtype=torch.float64)
    read = [read_results(path, image_ids=dataset.image_ids.tolist(), classes=dataset.classes) for path in predictions]
    truth = ground_truth_of(dataset)
    matches = [match_images(truth, rows) for rows in read]
    aps = [float(resampled_ap(each, whole).nan_to_num(0.0)) for each in matches]
    resampled = torch.stack([resampled_ap(each, splits) for each in matches]).mean(dim=0)
    evaluator = open_evaluator(truth, read[0], with_metrics=False)
    best = measure_curves(evaluator, truth, read[0]).overall.best()
    score = DEFAULT_SCORE if best is None else best.score
    detections = detections_per_image(read[0], dataset)
    return {
        "sample": ApSample(name, tuple(aps), resampled),
        "score": score,
        "kinds": count_kinds(dataset, detections, score=score),
        "costs": {kind.name: kind.ap50_gain for kind in count_error_kinds(evaluator)},
        "detections": detections,
    }


def count_kinds(dataset: Dataset, detections: Sequence[Detections], *, score: float) -> dict[str, float]:
    """Outcomes for every 100 objects, as TIDE (Bolya et al. 2020) tells them apart, at one score threshold.

    Of the objects: detected, "missed", "wrong class", "poor box", which add up to 100. Of the false positives the same
    kinds with "extra " before them.
    """
    counts = dict.fromkeys((*OUTCOME_KINDS, *(f"extra {kind}" for kind in OUTCOME_KINDS)), 0)
    num_objects = 0
    for index, each in enumerate(detections):
        for outcome in classify_outcomes(each.above(score), dataset.target(index), score=score, least_score=score):
            counts[outcome.kind if outcome.index is not None else f"extra {outcome.kind}"] += 1
            num_objects += outcome.index is not None
    return {kind: 100 * count / max(1, num_objects) for kind, count in counts.items()}


def compare_rows(
    rows: Sequence[ComparedDetector], *, assumed: float, num_units: int, seed: int
) -> tuple[tuple[ApDifference, ...], SeedSpread]:
    """The difference of every pair of rows, the better one first, and the deviation between seeds.

    Args:
        rows: the detectors.
        assumed: the deviation between seeds where no detector has several.
        num_units: the number of images, or of clusters.
        seed: of the random draws.
    """
    samples = [row.sample for row in rows if row.sample is not None]
    spread = seed_spread(samples, assumed=assumed)
    samples.sort(key=lambda sample: -sample.mean)
    return tuple(compare_samples(samples, spread=spread, num_units=num_units, seed=seed)), spread


def resample(dataset: Dataset, *, num_splits: int, seed: int, pattern: str | None) -> Float64[Tensor, "S N"]:
    """The resampled splits that all rows are evaluated on."""
    return draw_splits(len(dataset), num_splits=num_splits, seed=seed, clusters=cluster_keys(dataset, pattern))
