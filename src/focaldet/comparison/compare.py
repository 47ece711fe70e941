"""`focaldet compare`: train detectors alike, evaluate them alike, and write the paper's table and Figure 2."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from focaldet.comparison.added import add_earlier, check_names, evaluate_results
from focaldet.comparison.compare_page import write_compare_page
from focaldet.comparison.config import CompareConfig
from focaldet.comparison.folder import COMPARE_PAGE, comparison_record, open_compare_folder
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
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.inference import InferenceOptions
from focaldet.report.image_pairs import even_indices
from focaldet.runtime import torch_settings
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
        run: the settings of every training; `model` and `evaluate_every` are not used, `seed` is the first seed.
        config: which detectors, and how accuracy and time are measured.
        log: called with a line before and after every training.

    Raises:
        ConfigError: a setting is out of range or would make the trainings unequal, or `run.out` is the folder of
            something else or of a comparison with other settings or data.
        DataError: data or results of another program that cannot be read.
    """
    log = log or (lambda _: None)
    jobs = plan_jobs(run, config)
    if run.resume:
        raise ConfigError("resume: the same command without it continues a comparison")
    train_source, validation, messages = open_sources(run, None)
    for message in messages:
        log(message)
    sources, evaluated = (train_source, validation), _open_evaluated(run, config, validation)
    names = check_names(config)
    cluster_keys(evaluated.dataset, config.cluster)
    others = evaluate_results(config.results, evaluated.dataset)
    record = comparison_record(run, train_source, evaluated)
    open_compare_folder(run.out, record, overwrite=run.overwrite)
    options = InferenceOptions(device=run.device, precision=run.precision, workers=run.workers)
    # Torch does not know the quota of a container.
    threads = run.threads or min(torch.get_num_threads(), usable_cores())
    with torch_settings(threads=threads, deterministic=run.deterministic):
        added = add_earlier(names, run.out, evaluated, options=options, record=record, add=config.add)
        part = shard_jobs(fit_anchors(jobs, train_source.dataset, log=log), config.part)
        results = _run_jobs(part, run, sources, evaluated, options=options, config=config, log=log)
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
        return _conclude(run, config, results, others, evaluated, record=record, log=log)


def write_job_files(run: RunConfig, config: CompareConfig) -> list[Path]:
    """Write the settings of each training to `jobs` in the folder of a comparison, which is begun; train nothing.

    Each file is for `focaldet train --config`, also under `torchrun` or SLURM. `compare` then takes what was trained.

    Raises:
        ConfigError, DataError: as `compare`.
    """
    jobs = plan_jobs(run, config)
    source, validation, _ = open_sources(run, None)
    record = comparison_record(run, source, _open_evaluated(run, config, validation))
    open_compare_folder(run.out, record, overwrite=run.overwrite)
    return write_jobs(run.out, shard_jobs(fit_anchors(jobs, source.dataset), config.part))


def _open_evaluated(run: RunConfig, config: CompareConfig, validation: ImageSource) -> ImageSource:
    """The images to evaluate on: the validation images of the trainings, or those of another split."""
    if config.split == "val":
        return validation
    return FileSource(open_evaluation_split(run.data, config.split, seed=run.seed))


def _run_jobs(
    jobs: Sequence[Job],
    run: RunConfig,
    sources: tuple[ImageSource, ImageSource],
    evaluated: ImageSource,
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
                result = run_job(job, run.out, sources=sources, evaluated=evaluated, options=options)
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
    others: Mapping[str, tuple[Path, Metrics]],
    evaluated: ImageSource,
    *,
    record: Mapping[str, Any],
    log: Log,
) -> Comparison:
    """Measure times, compare, and write all files."""
    dataset = evaluated.dataset
    timing = _measure_times(run, config, results, evaluated, log=log)
    timings = {} if timing is None else dict(timing.detectors)
    timings |= {name: DetectorTiming(Spread(ms, ms, ms, 1, ms), {}) for name, ms in config.times.items()}
    log(f"bootstrap: {quantity(config.resamples, 'resampled split')}")
    splits = resample(dataset, num_splits=config.resamples, seed=run.seed, pattern=config.cluster)
    rows = collect_rows(
        results,
        others,
        out=run.out,
        dataset=dataset,
        splits=splits,
        timings=timings,
        architecture=run.architecture,
    )
    keys = cluster_keys(dataset, config.cluster)
    num_clusters = None if keys is None else len({*keys})
    pairs, spread = compare_rows(
        rows, assumed=config.seed_deviation / 100, num_units=num_clusters or len(dataset), seed=run.seed
    )
    sentences = conclude(
        rows, pairs, spread, num_images=len(dataset), num_clusters=num_clusters, budget_ms=config.budget_ms
    )
    comparison = Comparison(run.out, run.out / COMPARE_PAGE, tuple(rows), pairs, spread, sentences)
    write_numbers(comparison, record=record, timing=timing)
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
    computed = {(each.device, each.threads) for each in results if each.device and not each.note}
    if len(computed) > 1:
        on = ", ".join(sorted(f"{device} with {quantity(threads, 'thread')}" for device, threads in computed))
        notes.append(f"the trainings ran on different machines or numbers of threads ({on})")
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
