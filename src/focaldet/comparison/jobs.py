"""The trainings of a comparison: each is run, evaluated and written down once, and resumed after a kill anywhere.

`runs/<job>` is the run folder, `evaluations/<job>` has its detections and metrics, and `results/<job>.json` comes last:
without it a job is not finished.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.comparison.machine import pick_computing
from focaldet.comparison.plan import RUNS, Job
from focaldet.comparison.started import MOST_DEATHS, mark_start
from focaldet.data.dataset import Classes, ImageSource
from focaldet.errors import CheckpointError, DataError, FocaldetError, OutOfMemoryError, TakenError
from focaldet.evaluation.coco import Metrics, evaluate_detections
from focaldet.evaluation.evaluate import detect_all, match_classes, relabel_detections
from focaldet.evaluation.inference import InferenceOptions, apply_options
from focaldet.evaluation.limits import answer_limit
from focaldet.evaluation.results import write_results
from focaldet.files import read_utf8, write_json
from focaldet.runtime import pick_device
from focaldet.training.config import RunConfig
from focaldet.training.run_folder import RunFolder
from focaldet.training.signals import StopSignal, stop_signal
from focaldet.training.state import initial_weights
from focaldet.training.trainer import train
from focaldet.weights import load_detector
from focaldet.weights.checkpoint import save_detector
from focaldet.weights.sources import find_weights
from focaldet.weights.thresholds import THRESHOLDS_KEY

RESULTS, EVALUATIONS = "results", "evaluations"
METRICS, PREDICTIONS = "metrics.json", "predictions.json"
DEATHS = (
    "its process was killed {deaths} times in a row without saving anything new, for lack of memory most likely: try a "
    "smaller size or batch_size, or accumulate; --retry trains it again"
)


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
        error: why it gave no detector; None where it gave one.
        wall_seconds: of the whole training, set-up included, breaks not; 0 where that is not known.
        device: that it was trained on, and with how many `threads`; empty where that is not known.
        note: what a reader must know of a run that was added.
        processes: that trained it together; 0 where that is not known.
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
    processes: int = 0

    @property
    def epochs(self) -> float | None:
        """Passes over the training images; None where it is not known how many these are."""
        return self.images_seen / self.num_images if self.num_images else None

    @property
    def start(self) -> str | None:
        """What it started from, in a word; None where that is not known, as of an exported file."""
        is_known = self.images_seen or not self.note
        return (self.initial or "random") if is_known else None


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

    A detector that cannot be trained or evaluated has a result with the reason, as has one whose process died twice in
    a row without saving a new state. The weights get the scores with the largest F1 where the evaluated images are
    those of validation.

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
    result = JobResult(job.name, run.model, run.model, run.seed, run.out, None, 0, len(sources[0].dataset), 0.0)
    try:
        with mark_start(out / RESULTS / f"{job.name}.started", run.out) as deaths:
            if deaths >= MOST_DEATHS:
                raise OutOfMemoryError(DEATHS.format(deaths=deaths))
            result = replace(result, initial=initial_weights(run))
            trained = train(replace(run, resume=RunFolder(run.out).config.exists()), sources=sources)
            if trained.interrupted:
                return None
            seen = count_images(read_ending(run.out), run)
            result = replace(result, images_seen=seen, seconds=trained.seconds_training, wall_seconds=trained.seconds)
            result = replace(result, **_read_computing(run.out))
            if not _evaluate_job(job, out, sources[1], evaluated, options=options):
                return None
    except (DataError, TakenError):
        raise
    except Exception as error:  # one detector of many: the others go on
        if is_disk_full(error):
            raise
        kind = "" if isinstance(error, FocaldetError) else f"{type(error).__name__}: "
        result = replace(result, error=" ".join(f"{kind}{error}".split()) or type(error).__name__)
    write_result(out, result)
    return result


def _evaluate_job(
    job: Job, out: Path, validation: ImageSource, evaluated: ImageSource, *, options: InferenceOptions
) -> bool:
    """Evaluate a job that is trained; False when asked to stop.

    The thresholds that `predict` takes are those of the validation images: images that are kept for a test do not
    choose them.
    """
    with stop_signal() as stop:
        metrics = evaluate_run(job.run.out, evaluated, out / EVALUATIONS / job.name, options=options, stop=stop)
        if metrics is None or stop:
            return False
    if evaluated.dataset.fingerprint() == validation.dataset.fingerprint():
        _store_thresholds(job.run.out, metrics)
    return True


def _read_computing(run: Path) -> dict[str, Any]:
    """Device, threads and processes of a training, whoever collects it; nothing where its folder does not say it."""
    file = RunFolder(run).environment
    known = configs.read_mapping(file) if file.is_file() else {}
    kinds = {"device": str, "threads": int, "processes": int}
    return {name: known[name] for name, kind in kinds.items() if type(known.get(name)) is kind}


def write_result(out: Path, result: JobResult) -> None:
    """Write `results/<name>.json`, whole or not at all."""
    configs.make_folder(out / RESULTS)
    write_json(out / RESULTS / f"{result.name}.json", configs.to_dict(result))


def is_disk_full(error: BaseException | None) -> bool:
    """Whether it, or what it comes from, says that no space is left."""
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


def count_images(ending: Mapping[str, Any], run: RunConfig) -> int:
    """The images that a training has seen, by its `read_ending`; an estimate for older runs, which do not say it."""
    seen = ending.get("images_seen")
    return seen if type(seen) is int else int(ending["step"]) * run.batch_size


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


def evaluate_run(
    run: Path, source: ImageSource, out: Path, *, options: InferenceOptions, stop: StopSignal | None = None
) -> Metrics | None:
    """The metrics of a run's weights on the images of `source`, the same as of `focaldet eval`, written to `out`.

    An exported file is run as it is: device and precision of `options` are not for it.
    None, and nothing is written, where `stop` is set on the way.

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
    try:
        timed = detect_all(detector, source, options=options, progress=partial(_go_on, stop))
    except _StoppedError:
        return None
    detections = {
        index: relabel_detections(each, match, dataset.classes) for index, each in enumerate(timed.detections)
    }
    metrics = evaluate_detections(dataset, detections, image_limit=answer_limit(detector))
    metrics = replace(metrics, notes=(*match.notes, *metrics.notes))
    configs.make_folder(out)
    write_results(out / PREDICTIONS, dataset, detections)
    write_json(out / METRICS, {"split": dataset.name} | metrics.to_dict())
    return metrics


class _StoppedError(Exception):
    """Leaves an evaluation under way; never leaves this file."""


def _go_on(stop: StopSignal | None, done: int, total: int | None) -> None:
    """Leave the evaluation once it is asked to stop."""
    del done, total
    if stop:
        raise _StoppedError


def read_metrics(folder: Path) -> Metrics:
    """The metrics that `evaluate_run` wrote."""
    values = configs.read_mapping(folder / METRICS)
    return Metrics.from_dict({name: value for name, value in values.items() if name != "split"})
