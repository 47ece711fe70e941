"""The trainings of a comparison: each is run, evaluated and written down once, and resumed after a kill anywhere.

`runs/<job>` is the run folder, `evaluations/<job>` has its detections and metrics, and `results/<job>.json` comes last:
without it a job is not finished.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from focaldet import config as configs
from focaldet.comparison.machine import pick_computing
from focaldet.comparison.plan import RUNS, Job
from focaldet.data.dataset import Classes, ImageSource
from focaldet.errors import CheckpointError, DataError, FocaldetError, TakenError
from focaldet.evaluation.coco import Metrics, evaluate_detections
from focaldet.evaluation.evaluate import detect_all, match_classes, relabel_detections
from focaldet.evaluation.inference import InferenceOptions, apply_options
from focaldet.evaluation.limits import answer_limit
from focaldet.evaluation.results import write_results
from focaldet.files import read_utf8, write_json
from focaldet.runtime import pick_device
from focaldet.training.run_folder import RunFolder
from focaldet.training.state import initial_weights
from focaldet.training.trainer import train
from focaldet.weights import load_detector
from focaldet.weights.checkpoint import save_detector
from focaldet.weights.sources import find_weights
from focaldet.weights.thresholds import THRESHOLDS_KEY

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
        num_images: images of an epoch; 0 where that is not known.
        seconds: of its training steps, loading included.
        error: why there is no detector; None where there is one.
        wall_seconds: of the whole training, set-up included, breaks not; 0 where that is not known.
        device: that it was trained on, and with how many `threads`; empty where that is not known.
        note: what a reader must know of a run that was added.
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
    wall_seconds: float = 0.0
    device: str = ""
    threads: int = 0
    note: str = ""

    @property
    def epochs(self) -> float:
        """Passes over the training images."""
        return self.images_seen / max(1, self.num_images)


def read_result(out: Path, name: str) -> JobResult | None:
    """The result of a finished job; None where it is not finished.

    The folder of its run is looked for below `out`, wherever that was when it was written.

    Raises:
        ConfigError: the file is damaged.
    """
    path = out / RESULTS / f"{name}.json"
    if not path.exists():
        return None
    result = configs.from_dict(JobResult, configs.read_mapping(path), source=str(path))
    folder = out / RUNS / name
    return replace(result, run=folder) if folder.is_dir() else result


def run_job(
    job: Job,
    out: Path,
    *,
    sources: tuple[ImageSource, ImageSource],
    evaluated: ImageSource,
    options: InferenceOptions,
) -> JobResult | None:
    """Train, evaluate and write down one job; None where it was asked to stop, and is saved.

    A detector that cannot be trained or evaluated has a result with the reason. The weights get the scores with the
    largest F1 on the evaluated images.

    Args:
        job: the training.
        out: folder of the comparison.
        sources: the images to train on, and those that a training calls its validation images.
        evaluated: the images to evaluate on.
        options: how the trained detector is run.

    Raises:
        DataError: images that cannot be read; all others would meet it too.
        TakenError: another process trains it.
        CheckpointError: the disk is full.
    """
    run = job.run
    num_images = len(sources[0].dataset)
    result = JobResult(job.name, run.model, run.model, run.seed, run.out, None, 0, num_images, 0.0)
    result = replace(result, device=str(pick_device(run.device)), threads=torch.get_num_threads())
    try:
        result = replace(result, initial=initial_weights(run))
        trained = train(replace(run, resume=RunFolder(run.out).config.exists()), sources=sources)
        if trained.interrupted:
            return None
        seen = count_steps(run.out) * run.batch_size
        result = replace(result, images_seen=seen, seconds=trained.seconds_training, wall_seconds=trained.seconds)
        metrics = evaluate_run(run.out, evaluated, out / EVALUATIONS / job.name, options=options)
        _store_thresholds(run.out, metrics)
    except (DataError, TakenError):
        raise
    except Exception as error:  # one detector of many: the others go on
        if is_disk_full(error):
            raise
        kind = "" if isinstance(error, FocaldetError) else f"{type(error).__name__}: "
        result = replace(result, error=" ".join(f"{kind}{error}".split()) or type(error).__name__)
    write_result(out, result)
    return result


def write_result(out: Path, result: JobResult) -> None:
    """Write `results/<name>.json`, whole or not at all."""
    configs.make_folder(out / RESULTS)
    write_json(out / RESULTS / f"{result.name}.json", configs.to_dict(result))


def is_disk_full(error: BaseException | None) -> bool:
    """Whether it, or what it comes from, says that there is no space left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in configs.NO_SPACE:
            return True
        error = error.__cause__
    return False


def _store_thresholds(run: Path, metrics: Metrics) -> None:
    """Write the weights of a run again, with the scores from which on its detections are best taken."""
    trained, thresholds = load_detector(run), metrics.score_thresholds
    metadata = trained.metadata
    if thresholds is None or metadata is None:
        return
    save_detector(
        find_weights(run).path,
        trained.detector,
        classes=Classes(trained.detector.class_names, trained.category_ids),
        license=metadata.license,
        extra={**metadata.extra, THRESHOLDS_KEY: thresholds.to_text()},
    )


def count_steps(run: Path) -> int:
    """The updates of a run that has ended, from its `events.jsonl`.

    Raises:
        CheckpointError: the run has not ended.
    """
    return int(read_ending(run)["step"])


def read_ending(run: Path) -> dict[str, Any]:
    """The record with which the log of a run that has ended closes.

    Raises:
        CheckpointError: the run has not ended.
    """
    path = RunFolder(run).events
    lines = read_utf8(path).splitlines() if path.is_file() else []
    endings = [record for record in map(_read_event, lines) if record.get("event") == "finished" and "step" in record]
    if not endings:
        raise CheckpointError(f"{run}: this training has not ended; continue it with focaldet train --resume")
    return endings[-1]


def _read_event(line: str) -> dict[str, Any]:
    """One record of the log; an empty one for a line that a kill has cut."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def evaluate_run(run: Path, source: ImageSource, out: Path, *, options: InferenceOptions) -> Metrics:
    """The metrics of a run's weights on the images of `source`, the same as of `focaldet eval`, written to `out`.

    An exported file is run as it is: device and precision of `options` are not for it.

    Raises:
        CheckpointError: no weights, or damaged ones.
        ConfigError: no class in common.
    """
    dataset = source.dataset
    device, precision = pick_computing(run, device=options.device, precision=options.precision)
    options = replace(options, device=device, precision=precision)
    detector = apply_options(load_detector(run, allow_nonfinite=options.allow_nonfinite).detector, options).to(
        pick_device(options.device)
    )
    match = match_classes(detector.class_names, dataset.classes, num_classes=detector.config.num_classes)
    timed = detect_all(detector, source, options=options)
    detections = {
        index: relabel_detections(each, match, dataset.classes) for index, each in enumerate(timed.detections)
    }
    metrics = evaluate_detections(dataset, detections, image_limit=answer_limit(detector))
    metrics = replace(metrics, notes=(*match.notes, *metrics.notes))
    configs.make_folder(out)
    write_results(out / PREDICTIONS, dataset, detections)
    write_json(out / METRICS, {"split": dataset.name} | metrics.to_dict())
    return metrics


def read_metrics(folder: Path) -> Metrics:
    """The metrics that `evaluate_run` wrote."""
    values = configs.read_mapping(folder / METRICS)
    return Metrics.from_dict({name: value for name, value in values.items() if name != "split"})
