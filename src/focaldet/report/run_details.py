"""What a page of several runs says of each by itself: folded, since one looks at it run by run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focaldet.data.dataset import ImageSource
from focaldet.evaluation.analysis import Analysis, analyze_detections, confident_outcomes
from focaldet.evaluation.error_pairs import pair_errors
from focaldet.evaluation.results import read_results
from focaldet.report.errors import confusion_parts, pair_table, threshold_table
from focaldet.report.evaluated import EvaluatedDetector
from focaldet.report.facts import environment_table
from focaldet.report.history import History, read_history
from focaldet.report.image_pairs import worst_images
from focaldet.report.kept_detections import KeptDetections
from focaldet.report.page import fold, section
from focaldet.report.run_report import detections_per_image, hard_link
from focaldet.types import Detections

NUM_WORST_OF_RUN = 3


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """One of the runs on a page, under a name of its own."""

    name: str
    folder: Path
    analysis: Analysis
    detections: list[Detections]
    history: History
    settings: dict[str, Any]
    detector: EvaluatedDetector


def read_reported_run(name: str, kept: KeptDetections, source: ImageSource) -> ReportedRun:
    """Everything that a page says of the detections of a run, which are of the images of `source`.

    Raises:
        DataError: the result file cannot be read or is of other images.
    """
    dataset = source.dataset
    rows = read_results(kept.path, image_ids=dataset.image_ids.tolist(), classes=dataset.classes)
    detector, detections = kept.detector, detections_per_image(rows, dataset)
    analysis = analyze_detections(dataset, rows, metrics=kept.metrics, image_limit=detector.image_limit)
    return ReportedRun(name, kept.run, analysis, detections, read_history(kept.run), kept.settings, detector)


def score_section(runs: Sequence[ReportedRun]) -> str:
    """The score with the largest F1 of each class."""
    return _fold_runs("From which score on", runs, lambda run: threshold_table(run.analysis))


def confusion_section(runs: Sequence[ReportedRun]) -> str:
    """The confusion matrix at the best score."""
    return _fold_runs(
        "Which class is taken for which", runs, lambda run: "".join(confusion_parts(run.analysis.confusion))
    )


def pair_section(runs: Sequence[ReportedRun], source: ImageSource) -> str:
    """The errors that come together in one image."""

    def pairs(run: ReportedRun) -> str:
        score = run.analysis.score
        outcomes = confident_outcomes(source.dataset, run.detections, score=score)
        return pair_table(pair_errors(outcomes, source.dataset.classes.names), score)

    return _fold_runs("Errors that come together", runs, pairs)


def worst_image_section(runs: Sequence[ReportedRun], source: ImageSource, *, page: Path) -> str:
    """The images with the most errors, and the explorers of all of them."""

    def images(run: ReportedRun) -> str:
        score = run.analysis.score
        worst = worst_images(source, run.detections, run.analysis.images, score=score, most=NUM_WORST_OF_RUN)
        return "".join([*(worst or ["<p>No image has an error.</p>"]), hard_link(run.folder, page, run.detector)])

    return _fold_runs("The worst images", runs, images)


def environment_section(runs: Sequence[ReportedRun]) -> str:
    """Versions, machine, seed and the fingerprints of the data."""
    return _fold_runs("Environment", runs, lambda run: environment_table(run.folder / "environment.json"))


def _fold_runs(heading: str, runs: Sequence[ReportedRun], describe: Callable[[ReportedRun], str]) -> str:
    """A part of a page with what there is to say of each run, under its name."""
    return section(heading, *(fold(run.name, describe(run)) for run in runs))
