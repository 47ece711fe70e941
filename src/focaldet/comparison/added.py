"""What was made before a comparison: runs, exported files, other comparisons, and results of other programs."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.comparison.config import CompareConfig
from focaldet.comparison.folder import read_record
from focaldet.comparison.jobs import (
    EVALUATIONS,
    METRICS,
    RESULTS,
    JobResult,
    count_images,
    evaluate_run,
    read_ending,
    read_result,
    write_result,
)
from focaldet.data.dataset import Dataset, ImageSource
from focaldet.data.formats.text import quantity
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import Metrics, compute_metrics
from focaldet.evaluation.evaluator import MAX_DETECTIONS, ground_truth_of
from focaldet.evaluation.inference import InferenceOptions
from focaldet.evaluation.results import read_results
from focaldet.report.side_by_side import name_runs
from focaldet.training.config import RunConfig
from focaldet.training.run_folder import RunFolder, differences
from focaldet.training.state import initial_weights
from focaldet.weights import Metadata, load_detector
from focaldet.weights.download import sha256
from focaldet.weights.exported.graphs import is_exported
from focaldet.weights.sources import find_weights


def check_names(config: CompareConfig) -> dict[Path, str]:
    """The row of each run or file that is added; an added comparison brings the names of its detectors.

    Raises:
        ConfigError: an added path is nothing that can be compared, or two rows would have one name.
    """
    single = [path for path in config.add if read_record(path) is None]
    for path in single:
        if not is_exported(path) and not RunFolder(path).config.is_file():
            raise ConfigError(f"add: {path} is neither a run folder, an exported file nor the folder of a comparison")
    if twice := [path for path, count in Counter(path.resolve() for path in config.add).items() if count > 1]:
        raise ConfigError(f"add: {twice[0]} is named twice")
    added = [read_job_results(path) for path in config.add if path not in single]
    jobs = Counter(result.name for results in added for result in results)
    if twice_trained := [name for name, count in jobs.items() if count > 1]:
        raise ConfigError(f"add: two of the comparisons have a training {twice_trained[0]}; add one of them")
    trained = {*config.models, *(result.detector for results in added for result in results)}
    taken, names = trained | {*config.results}, {}
    for path, name in zip(single, name_runs(single), strict=True):
        names[path] = f"{name} (added)" if name in taken else name
    if both := sorted(trained & {*config.results}):
        raise ConfigError(f"results: {both[0]!r} is the name of a detector that is trained; take another one")
    return names


def evaluate_results(results: Mapping[str, Path], dataset: Dataset) -> dict[str, tuple[Path, Metrics]]:
    """The result file of each other program with its metrics, on the same images and boxes as all detectors.

    Raises:
        DataError: a file that cannot be read, or that is of other images or classes.
    """
    truth, evaluated = ground_truth_of(dataset), {}
    for name, path in results.items():
        rows = read_results(path, image_ids=dataset.image_ids.tolist(), classes=dataset.classes)
        metrics = compute_metrics(truth, rows, max_detections=MAX_DETECTIONS, data=dataset.name)
        evaluated[name] = path, metrics
    return evaluated


def add_earlier(
    names: Mapping[Path, str],
    out: Path,
    evaluated: ImageSource,
    *,
    options: InferenceOptions,
    add: tuple[Path, ...],
) -> list[JobResult]:
    """The results of the runs, exported files and comparisons that were made before.

    Those of a comparison become jobs of this one: they are not trained again.

    Args:
        names: the row of each run or file.
        out: the folder of this comparison.
        evaluated: the images to evaluate on.
        options: how the detectors are run.
        add: all that is added, which `check_added` has looked at.

    Raises:
        CheckpointError: weights that are damaged.
    """
    results = []
    for path in add:
        if path in names:
            results.append(_add_run(path, names[path], out, evaluated=evaluated, options=options))
        else:
            results += _add_comparison(path, out, evaluated, options=options)
    return results


def check_added(names: Mapping[Path, str], record: Mapping[str, Any], add: tuple[Path, ...]) -> None:
    """Make sure that what is added can be: `names` are the rows of runs and files, `record` is of this comparison.

    Raises:
        ConfigError: a comparison with other settings or data.
        CheckpointError: a run has not ended, or has no weights.
    """
    for path in add:
        if path in names:
            find_weights(path)
            if not is_exported(path):
                read_ending(path)
        elif changed := differences(record, read_record(path) or record):
            raise ConfigError(f"add: {path} is a comparison with other settings or data: {'; '.join(changed)}")


def _add_comparison(path: Path, out: Path, evaluated: ImageSource, *, options: InferenceOptions) -> list[JobResult]:
    """The results of the finished jobs of another comparison, evaluated and written down for this one."""
    results = []
    for other in read_job_results(path):
        result = read_result(out, other.name)
        if result is None:
            result = other
            if result.error is None:
                evaluate_run(result.run, evaluated, out / EVALUATIONS / result.name, options=options)
            write_result(out, result)
        results.append(result)
    return results


def read_job_results(path: Path) -> list[JobResult]:
    """The results of the finished jobs of a comparison."""
    names = [file.stem for file in sorted((path / RESULTS).glob("*.json"))]
    return [result for name in names if (result := read_result(path, name)) is not None]


def _add_run(path: Path, name: str, out: Path, *, evaluated: ImageSource, options: InferenceOptions) -> JobResult:
    """A run or an exported file, evaluated on the images of this comparison; once for the same weights."""
    mark = weights_mark(path)
    plain = re.sub(r"[^\w.-]", "_", name)
    job = f"added-{plain}-{mark}"
    describe = _describe_file if is_exported(path) else _describe_run
    result = describe(path, name, job, evaluated)
    if not (out / EVALUATIONS / job / METRICS).exists():
        evaluate_run(path, evaluated, out / EVALUATIONS / job, options=options)
    return result


def weights_mark(path: Path) -> str:
    """Eight letters that differ where the weights of a run or an exported file do."""
    weights = find_weights(path).path
    files = [weights, weights.with_suffix(".bin")] if weights.suffix == ".xml" else [weights]
    return hashlib.sha256("".join(sha256(file) for file in files if file.is_file()).encode()).hexdigest()[:8]


def _describe_file(path: Path, name: str, job: str, evaluated: ImageSource) -> JobResult:
    """What an exported file says of the training of its detector: on which data, of which it has the fingerprints."""
    metadata = load_detector(path).metadata
    model, known = (None, None) if metadata is None else (metadata.model, _read_fingerprints(metadata))
    text = "how it was trained is not known here"
    if known is not None:
        text = _describe_overlap(known, evaluated.dataset, is_best=True)  # export takes the best weights of a run
    return JobResult(job, name, model or name, 0, path, None, 0, 0, 0.0, note=f"an exported file; {text}")


def _read_fingerprints(metadata: Metadata) -> dict[str, Any] | None:
    """Those of the data of a training, by what they were for; None where the file of its detector lacks them."""
    try:
        training = json.loads(metadata.extra.get("training", ""))
    except (ValueError, RecursionError):
        return None
    known = training.get("data") if isinstance(training, dict) else None
    return known if isinstance(known, dict) else None


def _describe_run(path: Path, name: str, job: str, evaluated: ImageSource) -> JobResult:
    """What the folder of a run says of its training, and what makes it unlike those of this comparison."""
    folder = RunFolder(path)
    run = configs.from_dict(RunConfig, configs.read_mapping(folder.config), source=str(folder.config))
    ending = read_ending(path)
    seen = count_images(ending, run)
    values = configs.read_mapping(folder.environment) if folder.environment.is_file() else {}
    overlap = _describe_overlap(values.get("data"), evaluated.dataset, is_best=folder.best.is_file())
    has_whole_epochs = run.minutes is None and run.patience is None and not run.phases
    return JobResult(
        job,
        name,
        run.model,
        run.seed,
        path,
        initial_weights(run),
        seen,
        round(seen / max(1, run.epochs)) if has_whole_epochs else 0,
        float(ending.get("seconds_training", 0.0)),
        wall_seconds=float(ending.get("seconds", 0.0)),
        note=f"{_describe_budget(run)}; {overlap}",
    )


def _describe_budget(run: RunConfig) -> str:
    budget = quantity(run.epochs, "epoch") if run.minutes is None else f"{run.minutes:g} min"
    return f"trained before, for {budget}"


def _describe_overlap(fingerprints: Any, dataset: Dataset, *, is_best: bool) -> str:
    """How the images that are evaluated were used in a training; `is_best` says which of its weights are compared."""
    known, mark = fingerprints if isinstance(fingerprints, dict) else {}, dataset.fingerprint()
    if known.get("train") == mark:
        return "it was trained on the images that are evaluated, so its AP is too high"
    if known.get("validation") == mark:
        return "its weights were chosen on these images" if is_best else "its last weights, as of the others"
    return "with another division of the data or other data: images evaluated here may be among those it was trained on"
