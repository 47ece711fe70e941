"""`focaldet compare`: train detectors alike, evaluate them alike, and write the paper's table and Figure 2."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from focaldet.comparison.added import add_earlier, check_added, check_names, evaluate_results, read_job_results
from focaldet.comparison.compare_page import write_compare_page
from focaldet.comparison.config import CompareConfig
from focaldet.comparison.folder import (
    COMPARE_PAGE,
    check_compare_folder,
    comparison_record,
    open_compare_folder,
    read_record,
)
from focaldet.comparison.jobs import RESULTS, JobResult, read_result, run_job
from focaldet.comparison.numbers import write_numbers
from focaldet.comparison.plan import Job, fit_anchors, plan_jobs, shard_jobs, write_jobs
from focaldet.comparison.rows import Comparison, cluster_keys, collect_rows, compare_rows, resample
from focaldet.comparison.sentences import conclude
from focaldet.comparison.timing import DetectorTiming, Spread, TimingReport, measure_or_read
from focaldet.cores import usable_cores
from focaldet.data.dataset import FileSource, ImageSource
from focaldet.data.formats.text import quantity
from focaldet.errors import ConfigError, TakenError
from focaldet.evaluation.bootstrap import SEED_DEVIATION
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.inference import InferenceOptions
from focaldet.report.image_pairs import even_indices
from focaldet.runtime import pick_device, torch_settings
from focaldet.training.config import RunConfig
from focaldet.training.sources import open_sources

Log = Callable[[str], None]


def compare(
    run: RunConfig,
    config: CompareConfig = CompareConfig(),  # noqa: B008  frozen
    *,
    log: Log | None = None,
) -> Comparison:
    """Train every detector with every seed on the same images and budget, and write what it shows to `run.out`.

    The budget is `run.minutes` or `run.epochs`. Evaluated are the last weights, once, so that none is chosen on the
    images that it is evaluated on. `index.html` is the page; `compare.json`, `.csv`, `.md` and `.tex`,
    `differences.csv`, `figure.png` and `.svg` have its numbers.

    Called again, it keeps finished trainings and resumes an interrupted one, wherever it was killed; `run.overwrite`
    starts over. A detector that cannot be trained is a row with the reason.

    Args:
        run: the settings of every training; `model` is not used, `seed` is the first seed. The state is saved at least
            every minute.
        config: which detectors, and how accuracy and time are measured.
        log: called with a line before and after every training.

    Raises:
        ConfigError: a setting is out of range or would make the trainings unequal, or `run.out` is the folder of
            something else or of a comparison with other settings or data.
        DataError: data or results of another program that cannot be read.
        CheckpointError: a run that is added has not ended or has no weights, or the disk is full.
    """
    log = log or (lambda _: None)
    jobs = plan_jobs(run, config)
    if run.resume:
        raise ConfigError("resume: the same command without it continues a comparison")
    pick_device(run.device)  # one that is not there is refused here, not by every training
    inputs = open_inputs(run, config)
    for message in inputs.messages:
        log(message)
    evaluated, record = inputs.evaluated, inputs.record
    open_compare_folder(run.out, record, overwrite=run.overwrite)
    options = InferenceOptions(device=run.device, precision=run.precision, workers=run.workers)
    # Torch does not know the quota of a container.
    threads = run.threads or min(torch.get_num_threads(), usable_cores())
    with torch_settings(threads=threads, deterministic=run.deterministic):
        added = add_earlier(inputs.names, run.out, evaluated, options=options, add=config.add)
        part = shard_jobs(fit_anchors(jobs, inputs.sources[0].dataset, log=log), config.part)
        results = _run_jobs(part, run, inputs, options=options, config=config, log=log)
        if results is None:
            return Comparison(run.out, interrupted=True)
        finished = sum(read_result(run.out, job.name) is not None for job in jobs)
        if config.shard is not None:
            number, count = config.part
            log(f"part {number} of {count} is done; {finished} of {len(jobs)} trainings are finished")
            return Comparison(run.out)
        if finished < len(jobs):
            left = quantity(len(jobs) - finished, "training")
            log(f"{left} not finished: others are at work in this folder; the same command makes the page afterwards")
            return Comparison(run.out)
        results = [result for job in jobs if (result := read_result(run.out, job.name)) is not None]
        job_names = {job.name for job in jobs}
        results += [result for result in added if result.name not in job_names]
        return _conclude(run, config, results, inputs, log=log)


def write_job_files(run: RunConfig, config: CompareConfig) -> list[Path]:
    """Write the settings of each training to `jobs` in the folder of a comparison, which is begun; train nothing.

    Each file is for `focaldet train --config`, also under `torchrun` or SLURM. `compare` then takes what was trained.

    Raises:
        ConfigError, DataError: as `compare`.
    """
    jobs, inputs = plan_jobs(run, config), open_inputs(run, config)
    open_compare_folder(run.out, inputs.record, overwrite=run.overwrite)
    return write_jobs(run.out, shard_jobs(fit_anchors(jobs, inputs.sources[0].dataset), config.part))


@dataclass(frozen=True, slots=True)
class CompareInputs:
    """All that a comparison is given, as it is before anything is trained or written.

    Attributes:
        sources: the images to train on, and those that a training calls its validation images.
        evaluated: the images to evaluate on.
        names: the row of each run or file that is added.
        others: the result file of each other program, with its metrics.
        record: what must stay the same in one comparison.
        messages: what is to be said of the data.
    """

    sources: tuple[ImageSource, ImageSource]
    evaluated: ImageSource
    names: dict[Path, str]
    others: dict[str, tuple[Path, Metrics]]
    record: dict[str, Any]
    messages: tuple[str, ...]


def open_inputs(run: RunConfig, config: CompareConfig) -> CompareInputs:
    """Look at all that a comparison is given; nothing is trained or written.

    Raises:
        ConfigError: two rows would have one name, what is added is nothing that can be compared, a pattern of clusters
            matches nothing, or `run.out` is the folder of something else.
        DataError: data or results of another program that cannot be read.
        CheckpointError: a run that is added has not ended, or has no weights.
    """
    train_source, validation, messages = open_sources(run, None)
    evaluated, names = _open_evaluated(run, config, validation), check_names(config)
    cluster_keys(evaluated.dataset, config.cluster)
    record = comparison_record(run, train_source, evaluated)
    check_added(names, record, config.add)
    check_compare_folder(run.out, record, overwrite=run.overwrite)
    others = evaluate_results(config.results, evaluated.dataset)
    return CompareInputs((train_source, validation), evaluated, names, others, record, tuple(messages))


def find_finished(run: RunConfig, config: CompareConfig) -> dict[str, str]:
    """What became of the jobs that will not be run, by name: "finished", "failed", or "added" for another comparison's.

    Those that failed are run again with `config.retry`, and with `run.overwrite` all but those that are added.
    """
    added = [result for path in config.add if read_record(path) is not None for result in read_job_results(path)]
    here = [] if run.overwrite else read_job_results(run.out)
    words = {result.name: "added" if result.error is None else "failed" for result in added}
    words |= {result.name: "finished" if result.error is None else "failed" for result in here}
    return {name: word for name, word in words.items() if not (config.retry and word == "failed")}


def _open_evaluated(run: RunConfig, config: CompareConfig, validation: ImageSource) -> ImageSource:
    """The images to evaluate on: the validation images of the trainings, or those of another split."""
    if config.split == "val":
        return validation
    return FileSource(open_evaluation_split(run.data, config.split, seed=run.seed))


def _run_jobs(
    jobs: Sequence[Job],
    run: RunConfig,
    inputs: CompareInputs,
    *,
    options: InferenceOptions,
    config: CompareConfig,
    log: Log,
) -> list[JobResult] | None:
    """The results of all jobs, of which those that are finished are read; None where one was asked to stop.

    A job that another process is at work on is left to it.
    """
    results, seconds = list[JobResult](), list[float]()
    for number, job in enumerate(jobs, 1):
        progress = f"training {number}/{len(jobs)}  {job.name}"
        result = read_result(run.out, job.name)
        if result is None or (config.retry and result.error is not None):
            log(f"{progress}{_time_left(seconds, len(jobs) - number + 1)}")
            begin = time.monotonic()
            try:
                result = run_job(job, run.out, sources=inputs.sources, evaluated=inputs.evaluated, options=options)
            except TakenError as error:
                log(f"{progress}  left to the other process: {error}")
                (run.out / RESULTS / f"{job.name}.json").unlink(missing_ok=True)  # of a failure before, with --retry
                continue
            seconds.append(time.monotonic() - begin)
            if result is None:
                again = "the same command without --overwrite" if run.overwrite else "the same command"
                log(f"stopped in {progress}; {again} continues")
                return None
        log(f"{progress}  {'done' if result.error is None else f'failed: {result.error}'}")
        results.append(result)
    return results


def _time_left(seconds: Sequence[float], num_jobs: int) -> str:
    """The time for so many jobs in words, from that of the jobs before; empty without any."""
    if not seconds:
        return ""
    minutes = num_jobs * sum(seconds) / len(seconds) / 60
    return f"  about {minutes:.0f} min left" if minutes >= 1 else "  less than a minute left"


def _conclude(
    run: RunConfig,
    config: CompareConfig,
    results: Sequence[JobResult],
    inputs: CompareInputs,
    *,
    log: Log,
) -> Comparison:
    """Measure times, compare, and write all files."""
    evaluated = inputs.evaluated
    dataset = evaluated.dataset
    timing = _measure_times(run, config, results, evaluated, log=log)
    timings = {} if timing is None else dict(timing.detectors)
    timings |= {name: DetectorTiming(Spread(ms, ms, ms, 1, ms), {}) for name, ms in config.times.items()}
    log(f"bootstrap: {quantity(config.resamples, 'resampled split')}")
    splits = resample(dataset, num_splits=config.resamples, seed=run.seed, pattern=config.cluster)
    rows = collect_rows(
        results,
        inputs.others,
        out=run.out,
        dataset=dataset,
        splits=splits,
        timings=timings,
        architecture=run.architecture,
    )
    keys = cluster_keys(dataset, config.cluster)
    num_clusters = None if keys is None else len({*keys})
    assumed = SEED_DEVIATION if config.seed_deviation is None else config.seed_deviation / 100
    pairs, spread = compare_rows(rows, assumed=assumed, num_units=num_clusters or len(dataset), seed=run.seed)
    sentences = conclude(
        rows, pairs, spread, num_images=len(dataset), num_clusters=num_clusters, budget_ms=config.budget_ms
    )
    comparison = Comparison(run.out, run.out / COMPARE_PAGE, tuple(rows), pairs, spread, sentences)
    write_numbers(comparison, record=inputs.record, timing=timing)
    metric_notes = [f"{row.name}: {note}" for row in rows for metrics in row.metrics for note in metrics.notes]
    write_compare_page(
        run.out / COMPARE_PAGE,
        rows,
        differences=pairs,
        sentences=sentences,
        timing=timing,
        source=evaluated,
        budget=describe_budget(run),
        budget_seconds=None if run.minutes is None else 60 * run.minutes,
        notes=tuple(dict.fromkeys([*metric_notes, *_notes_on_runs(results)])),
    )
    return comparison


def _notes_on_runs(results: Sequence[JobResult]) -> list[str]:
    """What a reader must know of runs that were added, and of trainings on different machines."""
    notes = [f"{result.detector}: {result.note}" for result in results if result.note]
    computed = {
        (each.device.split(":")[0], each.threads, max(1, each.processes))
        for each in results
        if each.device and not each.note
    }
    if len(computed) > 1:
        texts = [
            f"{device} with {quantity(threads, 'thread')}"
            + (f" in each of {processes} processes" if processes > 1 else "")
            for device, threads, processes in sorted(computed)
        ]
        notes.append(f"the trainings ran on different machines or numbers of threads ({', '.join(texts)})")
    return notes


def describe_budget(run: RunConfig) -> str:
    """What every training is given, in words."""
    if run.minutes is None:
        return quantity(run.epochs, "epoch")
    return f"{60 * run.minutes:.0f} s" if run.minutes < 2 else f"{run.minutes:g} min"


def _measure_times(
    run: RunConfig, config: CompareConfig, results: Sequence[JobResult], evaluated: ImageSource, *, log: Log
) -> TimingReport | None:
    """The times of one training of each detector; None where no detector was trained or the images are not files."""
    runs: dict[str, Path] = {}
    for result in results:
        if result.error is None:
            runs.setdefault(result.detector, result.run)
    dataset = evaluated.dataset
    if not runs or not isinstance(evaluated, FileSource):
        return None
    return measure_or_read(
        run.out,
        runs,
        [dataset.path(index) for index in even_indices(len(dataset), config.timed_images)],
        rounds=config.rounds,
        batch_size=config.throughput_batch,
        device=run.device,
        precision=run.precision,
        log=log,
        marks={result.detector: result.name for result in results if result.note},
    )
