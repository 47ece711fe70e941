"""`focaldet compare`: train detectors alike, evaluate them alike, and write the paper's table and Figure 2."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.comparison.compare_page import write_compare_page
from focaldet.comparison.config import CompareConfig
from focaldet.comparison.figure import mark_rows, write_trade_off
from focaldet.comparison.jobs import (
    EVALUATIONS,
    RESULTS,
    JobResult,
    add_results,
    read_result,
    run_job,
)
from focaldet.comparison.plan import RUNS, Job, plan_jobs, shard_jobs, write_jobs
from focaldet.comparison.rows import ComparedDetector, Comparison, cluster_keys, collect_rows, compare_rows, resample
from focaldet.comparison.sentences import conclude
from focaldet.comparison.table import latex_table, markdown_table, number_columns
from focaldet.comparison.timing import DetectorTiming, Spread, TimingReport, time_detectors
from focaldet.data.dataset import FileSource, ImageSource
from focaldet.data.formats.split_names import pick
from focaldet.data.formats.text import quantity
from focaldet.data.splits import find_parts
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import evaluate_files, percent
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.inference import InferenceOptions
from focaldet.files import write_csv, write_json, write_text
from focaldet.runtime import torch_settings
from focaldet.training.config import FREE_ON_RESUME, RunConfig
from focaldet.training.run_folder import differences
from focaldet.training.sources import open_sources

COMPARE_RECORD, TIMING_RECORD, COMPARE_PAGE = "compare.json", "timing.json", "index.html"
VARIED_SETTINGS = FREE_ON_RESUME | {"model", "seed", "evaluate_every"}
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
    sources = train_source, validation
    evaluated = _open_evaluated(run, config, validation)
    record = comparison_record(run, train_source, evaluated)
    _open_compare_folder(run.out, record, overwrite=run.overwrite)
    options = InferenceOptions(device=run.device, precision=run.precision, workers=run.workers)
    with torch_settings(threads=run.threads, deterministic=run.deterministic):
        added = _add_earlier(run.out, config, evaluated, options=options, record=record)
        part = shard_jobs(jobs, config.part)
        results = _run_jobs(part, run.out, sources, evaluated, options=options, retry=config.retry, log=log)
        if results is None:
            return Comparison(run.out, interrupted=True)
        if config.shard is not None:
            finished = sum(read_result(run.out, job.name) is not None for job in jobs)
            log(
                f"part {config.shard[0]} of {config.shard[1]} is done; {finished} of {len(jobs)} trainings are finished"
            )
            return Comparison(run.out)
        names = {result.name for result in results}
        results += [result for result in added if result.name not in names]
        return _conclude(run, config, results, evaluated, record=record, log=log)


def write_job_files(run: RunConfig, config: CompareConfig) -> list[Path]:
    """Write the settings of each training to `jobs` in the folder of a comparison, which is begun; train nothing.

    Each file is for `focaldet train --config`, also under `torchrun` or SLURM. `compare` then takes what was trained.

    Raises:
        ConfigError, DataError: as `compare`; or the validation images are drawn by the seed, so that the trainings of
            two seeds would not have the same ones.
    """
    jobs = plan_jobs(run, config)
    if config.seeds > 1 and pick(find_parts(run.data), "val") is None:
        raise ConfigError("write_jobs: name a validation split with data.val; each seed would hold out other images")
    source, validation, _ = open_sources(run, None)
    record = comparison_record(run, source, _open_evaluated(run, config, validation))
    _open_compare_folder(run.out, record, overwrite=run.overwrite)
    return write_jobs(run.out, shard_jobs(jobs, config.part))


def comparison_record(run: RunConfig, train_source: ImageSource, evaluated: ImageSource) -> dict[str, Any]:
    """What must stay the same in one comparison: the settings of its trainings, and its data."""
    settings = {name: value for name, value in configs.to_dict(run).items() if name not in VARIED_SETTINGS}
    data = {"train": train_source.dataset.fingerprint(), "evaluated": evaluated.dataset.fingerprint()}
    return {"settings": settings, "data": data}


def read_record(path: Path) -> dict[str, Any] | None:
    """The settings and data of the comparison in a folder; None where it has none."""
    file = path / COMPARE_RECORD
    identity = configs.read_mapping(file).get("identity") if file.is_file() else None
    return identity if isinstance(identity, dict) else None


def _open_evaluated(run: RunConfig, config: CompareConfig, validation: ImageSource) -> ImageSource:
    """The images to evaluate on: the validation images of the trainings, or those of another split."""
    if config.split == "val":
        return validation
    return FileSource(open_evaluation_split(run.data, config.split, seed=run.seed))


def _open_compare_folder(out: Path, record: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make `out` the folder of this comparison; what an earlier one left is removed with `overwrite`.

    Raises:
        ConfigError: it contains something else, or a comparison with other settings or data.
    """
    configs.make_folder(out)
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    is_comparison = (out / COMPARE_RECORD).exists()
    if names and not is_comparison:
        raise ConfigError(f"out: {out} contains {names[0]!r} and is not the folder of a comparison")
    if is_comparison and not overwrite:
        before = read_record(out)
        if before is None:
            raise ConfigError(f"{out / COMPARE_RECORD}: the settings are missing; start over with --overwrite")
        if changed := differences(record, before):
            raise ConfigError(
                f"out: {out} contains a comparison with other settings: {'; '.join(changed)}; continue with its "
                "settings, take another --out, or start over with --overwrite"
            )
        return
    (out / TIMING_RECORD).unlink(missing_ok=True)
    for name in (RUNS, EVALUATIONS, RESULTS):
        old = out / f".{name}.overwritten"  # out of sight in one move: a kill leaves nothing half removed
        shutil.rmtree(old, ignore_errors=True)
        if (out / name).exists():
            (out / name).rename(old)
            shutil.rmtree(old)
    _write_record(out, {"identity": dict(record)})


def _write_record(out: Path, value: Any) -> None:
    write_json(out / COMPARE_RECORD, value)


def _add_earlier(
    out: Path, config: CompareConfig, evaluated: ImageSource, *, options: InferenceOptions, record: Mapping[str, Any]
) -> list[JobResult]:
    """The results of the runs and comparisons that were made before.

    Raises:
        ConfigError: a folder is neither, or a comparison with other settings or data.
    """
    results = []
    for path in config.add:
        other = read_record(path)
        if other is not None and (changed := differences(record, other)):
            raise ConfigError(f"add: {path} is a comparison with other settings or data: {'; '.join(changed)}")
        results += add_results(path, out, evaluated, options=options, is_comparison=other is not None)
    return results


def _run_jobs(
    jobs: Sequence[Job],
    out: Path,
    sources: tuple[ImageSource, ImageSource],
    evaluated: ImageSource,
    *,
    options: InferenceOptions,
    retry: bool,
    log: Log,
) -> list[JobResult] | None:
    """The results of all jobs, of which those that are finished are read; None where one was asked to stop."""
    results, seconds = list[JobResult](), list[float]()
    for number, job in enumerate(jobs, 1):
        progress = f"training {number}/{len(jobs)}  {job.name}"
        result = read_result(out, job.name)
        if result is None or (retry and result.error is not None):
            log(f"{progress}{_time_left(seconds, len(jobs) - number + 1)}")
            begin = time.monotonic()
            result = run_job(job, out, sources=sources, evaluated=evaluated, options=options)
            seconds.append(time.monotonic() - begin)
            if result is None:
                log(f"stopped in {progress}; the same command continues")
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
    evaluated: ImageSource,
    *,
    record: Mapping[str, Any],
    log: Log,
) -> Comparison:
    """Measure times, compare, and write all files."""
    dataset = evaluated.dataset
    others = {name: (path, evaluate_files(path, run.data, split=config.split)) for name, path in config.results.items()}
    timing = _measure_times(run, config, results, evaluated, log=log)
    timings = {} if timing is None else dict(timing.detectors)
    timings |= {name: DetectorTiming(Spread(ms, ms, ms, 1), {}) for name, ms in config.times.items()}
    log(f"bootstrap: {quantity(config.resamples, 'resampled split')}")
    splits = resample(dataset, num_splits=config.resamples, seed=run.seed, pattern=config.cluster)
    rows = collect_rows(results, others, out=run.out, dataset=dataset, splits=splits, timings=timings)
    keys = cluster_keys(dataset, config.cluster)
    num_units = len(dataset) if keys is None else len({*keys})
    pairs, spread = compare_rows(rows, assumed=config.seed_deviation / 100, num_units=num_units, seed=run.seed)
    sentences = conclude(rows, pairs, spread, num_images=len(dataset), budget_ms=config.budget_ms)
    comparison = Comparison(run.out, run.out / COMPARE_PAGE, tuple(rows), pairs, spread, sentences)
    _write_numbers(comparison, record=record, timing=timing)
    notes = dict.fromkeys(note for row in rows for metrics in row.metrics for note in metrics.notes)
    write_compare_page(
        run.out / COMPARE_PAGE,
        rows,
        differences=pairs,
        sentences=sentences,
        timing=timing,
        source=evaluated,
        budget=describe_budget(run),
        notes=tuple(notes),
    )
    return comparison


def describe_budget(run: RunConfig) -> str:
    """What every training is given, in words."""
    if run.minutes is None:
        return quantity(run.epochs, "epoch")
    return f"{60 * run.minutes:.0f} s" if run.minutes < 2 else f"{run.minutes:g} min"


def _measure_times(
    run: RunConfig, config: CompareConfig, results: Sequence[JobResult], evaluated: ImageSource, *, log: Log
) -> TimingReport | None:
    """The times of one training of each detector, measured once for the same trainings and settings.

    None where no detector was trained or the images are not files.
    """
    runs: dict[str, Path] = {}
    for result in results:
        if result.error is None:
            runs.setdefault(result.detector, result.run)
    dataset = evaluated.dataset
    if not runs or not isinstance(evaluated, FileSource):
        return None
    count = min(config.timed_images, len(dataset))
    images = [dataset.path(number * len(dataset) // count) for number in range(count)]
    key = {
        "runs": {name: str(path) for name, path in runs.items()},
        "images": list(map(str, images)),
        "rounds": config.rounds,
        "batch": config.throughput_batch,
        "computing": [run.threads, run.device, run.precision],
    }
    file = run.out / TIMING_RECORD
    saved = configs.read_mapping(file) if file.exists() else {}
    if saved.get("key") == key:
        return _read_timing(saved["report"], source=str(file))
    report = time_detectors(
        runs,
        images,
        rounds=config.rounds,
        batch_size=config.throughput_batch,
        device=run.device,
        precision=run.precision,
        log=log,
    )
    write_json(file, {"key": key, "report": configs.to_dict(report)})
    return report


def _read_timing(values: Mapping[str, Any], *, source: str) -> TimingReport:
    """The report that was written as plain values."""
    timings = {
        name: configs.from_dict(DetectorTiming, each, source=source) for name, each in values["detectors"].items()
    }
    report = configs.from_dict(TimingReport, {**values, "detectors": {}}, source=source)
    return replace(report, detectors=timings)


def _write_numbers(comparison: Comparison, *, record: Mapping[str, Any], timing: TimingReport | None) -> None:
    """Write `compare.json`, `.csv`, `.md` and `.tex`, `differences.csv` and the figure."""
    out, rows = comparison.out, comparison.rows
    columns = [number_columns(row) for row in rows]
    heads = ("first", "second", "mean", "low", "high", "probability", "p_value", "adjusted")
    pairs = [{name: getattr(each, name) for name in heads} for each in comparison.differences]
    if columns:
        write_csv(out / "compare.csv", list(columns[0]), (list(each.values()) for each in columns))
    write_csv(out / "differences.csv", heads, ([each[name] for name in heads] for each in pairs))
    write_text(out / "compare.md", markdown_table(rows))
    write_text(out / "compare.tex", latex_table(rows))
    write_trade_off(out / "figure", rows, mark_rows(rows))
    _write_record(
        out,
        {
            "identity": dict(record),
            "detectors": [column | _seed_values(row) for column, row in zip(columns, rows, strict=True)],
            "differences": pairs,
            "sentences": list(comparison.sentences),
            "timing": None if timing is None else configs.to_dict(timing),
        },
    )


def _seed_values(row: ComparedDetector) -> dict[str, Any]:
    """AP of each seed and the kinds of errors, for the record."""
    return {
        "ap_of_seeds": [] if row.sample is None else list(row.sample.ap),
        "kinds": dict(row.kinds or {}),
        "ap50_costs": dict(row.costs or {}),
        "per_class": [{each.name: each.ap for each in metrics.per_class} for metrics in row.metrics],
    }


def summary_rows(comparison: Comparison) -> list[list[str]]:
    """The table for a terminal: detector, the six numbers, milliseconds."""
    fields = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    lines = [["DETECTOR", "AP", "AP50", "AP75", "APS", "APM", "APL", "MS"]]
    for row in comparison.rows:
        if row.error is not None:
            lines.append([f"{row.name}  failed: {row.error}", *[""] * (len(fields) + 1)])
            continue
        time_ms = "-" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        lines.append([row.name, *(percent(row.mean(field)) for field in fields), time_ms])
    return lines
