"""The trainings of a comparison: each is run, evaluated and written down once, and resumed after a kill anywhere.

`runs/<job>` is the run folder, `evaluations/<job>` has its detections and metrics, and `results/<job>.json` comes last:
without it a job is not finished.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.comparison.plan import RUNS, Job
from focaldet.data.dataset import ImageSource
from focaldet.errors import CheckpointError, ConfigError, DataError, FocaldetError
from focaldet.evaluation.coco import Metrics, evaluate_detections
from focaldet.evaluation.evaluate import detect_all, match_classes, relabel_detections
from focaldet.evaluation.inference import InferenceOptions, apply_options
from focaldet.evaluation.results import write_results
from focaldet.files import read_utf8, write_json
from focaldet.runtime import pick_device
from focaldet.training.config import RunConfig
from focaldet.training.run_folder import RunFolder
from focaldet.training.state import initial_weights
from focaldet.training.trainer import train
from focaldet.weights import load_detector

RESULTS, EVALUATIONS = "results", "evaluations"
METRICS, PREDICTIONS = "metrics.json", "predictions.json"


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of one training.

    Attributes:
        name: of the job, and of its folders.
        detector: the row of the table that it belongs to: its model, or the name of a run that was added.
        model: name of the preset.
        seed: of the training.
        run: the run folder.
        initial: the weights that it started from; None for random ones.
        images_seen: images that it was trained on, repetitions counted.
        num_images: images of an epoch.
        seconds: of its training steps, loading included.
        error: why there is no detector; None where there is one.
    """

    name: str
    detector: str
    model: str
    seed: int
    run: Path
    initial: str | None
    images_seen: int
    num_images: int
    seconds: float
    error: str | None = None

    @property
    def epochs(self) -> float:
        """Passes over the training images."""
        return self.images_seen / max(1, self.num_images)


def read_result(out: Path, name: str) -> JobResult | None:
    """The result of a finished job; None where it is not finished.

    Raises:
        ConfigError: the file is damaged.
    """
    path = out / RESULTS / f"{name}.json"
    if not path.exists():
        return None
    return configs.from_dict(JobResult, configs.read_mapping(path), source=str(path))


def run_job(
    job: Job,
    out: Path,
    *,
    sources: tuple[ImageSource, ImageSource],
    evaluated: ImageSource,
    options: InferenceOptions,
) -> JobResult | None:
    """Train, evaluate and write down one job; None where it was asked to stop, and is saved.

    A detector that cannot be trained or evaluated has a result with the reason.

    Args:
        job: the training.
        out: folder of the comparison.
        sources: the images to train on, and those that a training calls its validation images.
        evaluated: the images to evaluate on.
        options: how the trained detector is run.
    """
    run = job.run
    num_images = len(sources[0].dataset)
    result = JobResult(job.name, run.model, run.model, run.seed, run.out, None, 0, num_images, 0.0)
    try:
        result = replace(result, initial=initial_weights(run))
        trained = train(replace(run, resume=RunFolder(run.out).config.exists()), sources=sources)
        if trained.interrupted:
            return None
        seen = count_steps(run.out) * run.batch_size
        result = replace(result, images_seen=seen, seconds=trained.seconds_training)
        evaluate_run(run.out, evaluated, out / EVALUATIONS / job.name, options=options)
    except DataError:
        raise  # all others would meet it too
    except Exception as error:  # one detector of many: the others go on
        kind = "" if isinstance(error, FocaldetError) else f"{type(error).__name__}: "
        result = replace(result, error=" ".join(f"{kind}{error}".split()) or type(error).__name__)
    write_result(out, result)
    return result


def write_result(out: Path, result: JobResult) -> None:
    """Write `results/<name>.json`, whole or not at all."""
    configs.make_folder(out / RESULTS)
    write_json(out / RESULTS / f"{result.name}.json", configs.to_dict(result))


def count_steps(run: Path) -> int:
    """The updates of a run that has ended, from its `events.jsonl`.

    Raises:
        CheckpointError: the run has not ended.
    """
    path = RunFolder(run).events
    lines = read_utf8(path).splitlines() if path.is_file() else []
    steps = [record["step"] for record in map(_read_event, lines) if record.get("event") == "finished"]
    if not steps:
        raise CheckpointError(f"{run}: this training has not ended; continue it with focaldet train --resume")
    return int(steps[-1])


def _read_event(line: str) -> dict[str, Any]:
    """One record of the log; an empty one for a line that a kill has cut."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def evaluate_run(run: Path, source: ImageSource, out: Path, *, options: InferenceOptions) -> Metrics:
    """The metrics of a run's weights on the images of `source`, the same as of `focaldet eval`, written to `out`.

    Raises:
        CheckpointError: no weights, or damaged ones.
        ConfigError: no class in common.
    """
    dataset = source.dataset
    detector = apply_options(load_detector(run, allow_nonfinite=options.allow_nonfinite).detector, options).to(
        pick_device(options.device)
    )
    match = match_classes(detector.class_names, dataset.classes, num_classes=detector.config.num_classes)
    timed = detect_all(detector, source, options=options)
    detections = {
        index: relabel_detections(each, match, dataset.classes) for index, each in enumerate(timed.detections)
    }
    metrics = evaluate_detections(dataset, detections)
    metrics = replace(metrics, notes=(*match.notes, *metrics.notes))
    configs.make_folder(out)
    write_results(out / PREDICTIONS, dataset, detections)
    write_json(out / METRICS, {"split": dataset.name} | metrics.to_dict())
    return metrics


def read_metrics(folder: Path) -> Metrics:
    """The metrics that `evaluate_run` wrote."""
    values = configs.read_mapping(folder / METRICS)
    return Metrics.from_dict({name: value for name, value in values.items() if name != "split"})


def add_results(
    path: Path, out: Path, evaluated: ImageSource, *, options: InferenceOptions, is_comparison: bool
) -> list[JobResult]:
    """The result of a run that was trained before, or of all finished jobs of another comparison.

    Those of a comparison become jobs of this one: they are not trained again.

    Args:
        path: the run folder, or the folder of the comparison.
        out: the folder of this comparison.
        evaluated: the images to evaluate on.
        options: how the detectors are run.
        is_comparison: which of the two it is.

    Raises:
        ConfigError: it is not a run folder.
        CheckpointError: the run has not ended, or has no weights.
    """
    if not is_comparison:
        return [_add_run(path, out, evaluated=evaluated, options=options)]
    results = []
    for file in sorted((path / RESULTS).glob("*.json")):
        result = read_result(out, file.stem) or read_result(path, file.stem)
        if result is None:
            continue
        if not (out / RESULTS / file.name).exists():
            result = replace(result, run=path / RUNS / result.run.name)
            if result.error is None:
                evaluate_run(result.run, evaluated, out / EVALUATIONS / result.name, options=options)
            write_result(out, result)
        results.append(result)
    return results


def _add_run(path: Path, out: Path, *, evaluated: ImageSource, options: InferenceOptions) -> JobResult:
    """A run that was trained before, evaluated on the images of this comparison."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ConfigError(f"add: {path} is neither a run folder nor the folder of a comparison")
    name = re.sub(r"[^\w.-]", "_", path.resolve().name)
    run = configs.from_dict(RunConfig, configs.read_mapping(folder.config), source=str(folder.config))
    seen, seconds = count_steps(path) * run.batch_size, _seconds_of(folder)
    num_images = round(seen / max(1, run.epochs)) if run.minutes is None else 0
    result = JobResult(
        f"added-{name}", name, run.model, run.seed, path, initial_weights(run), seen, num_images, seconds
    )
    if not (out / EVALUATIONS / result.name / METRICS).exists():
        evaluate_run(path, evaluated, out / EVALUATIONS / result.name, options=options)
    return result


def _seconds_of(folder: RunFolder) -> float:
    """The training time of a run that has ended, from its log."""
    lines = read_utf8(folder.events).splitlines()
    spent = [record.get("seconds_training", 0.0) for record in map(_read_event, lines) if "seconds_training" in record]
    return float(spent[-1]) if spent else 0.0
