"""`focaldet compare`."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from focaldet.cli import Switch, flag_name
from focaldet.cli.flags import Data, RunFlags, flags_of
from focaldet.cli.output import CLEAN, FAILED, INTERRUPTED, print_table, say
from focaldet.cli.settings import read_settings, run_settings
from focaldet.comparison.compare import compare, describe_budget, find_finished, open_inputs, write_job_files
from focaldet.comparison.config import DEFAULT_MINUTES, CompareConfig
from focaldet.comparison.folder import read_record
from focaldet.comparison.numbers import summary_rows
from focaldet.comparison.plan import (
    EVALUATED_ONCE,
    SAVE_MINUTES,
    SAVED_OFTEN,
    count_job_processes,
    estimate_minutes,
    plan_jobs,
    shard_jobs,
)
from focaldet.comparison.systems import SMALL_DETECTORS, TABLES
from focaldet.errors import ConfigError
from focaldet.models import find_preset
from focaldet.training.config import AUTO, RunConfig

COMPARE_OUT = Path("runs/compare")
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}
TIMING_MINUTES = 0.2  # of each detector, a guess
FOR_ONE_TRAINING = {
    "model": "is for one training; use --models",
    "resume": "is for one training; use the same command, which continues",
    "evaluate_every": EVALUATED_ONCE,
    "save_minutes": SAVED_OFTEN,
}
"""Settings of a training that a comparison has no use for, and what is said of each."""

if TYPE_CHECKING:
    CompareFields = dict[str, Any]
else:
    CompareFields = flags_of(CompareConfig, group=Group("Comparison", sort_key=0))
CompareFlags = Annotated[CompareFields | None, Parameter(name="*")]


def compare_command(
    data: Data = None,
    *,
    preset: Annotated[Literal["paper", "small"] | None, Parameter(group=Group("Comparison", sort_key=0))] = None,
    budget: Annotated[str | None, Parameter(group=Group("Comparison", sort_key=0))] = None,
    options: CompareFlags = None,
    config: Path | None = None,
    run: RunFlags = None,
    dry_run: Switch = False,
    jobs: Annotated[Switch, Parameter(name="--write-jobs")] = False,
) -> int:
    """Train detectors alike on your data and write the paper's results table and Figure 2.

    Args:
        preset: The detectors of the paper's table at full size, or a small member of each family, instead of --models.
        budget: Time of each training, such as 90s, 10m or 2h, instead of --epochs. Without both it is 10m.
        config: YAML file of settings; flags that are typed overrule it.
        dry_run: Print the trainings with estimated minutes, and train nothing.
        jobs: Write the settings of each training to the folder jobs and print its command, for torchrun or SLURM; train
            nothing.
    """
    values = dict(options or {})
    if dry_run and jobs:
        raise ConfigError("compare: give either --dry-run or --write-jobs")
    if preset is not None:
        if "models" in values:
            raise ConfigError("compare: give either --models or --preset")
        values["models"] = TABLES[preset]
    comparison = CompareConfig(**values)
    for model in comparison.models:
        find_preset(model)
    settings, size = _compare_settings(run, config, data, budget, has_own_sizes=preset == "paper")
    if size:
        say(size)
    if dry_run:
        _print_plan(settings, comparison)
        return CLEAN
    if jobs:
        _print_jobs(write_job_files(settings, comparison), settings)
        return CLEAN
    result = compare(settings, comparison, log=say)
    if result.interrupted:
        return INTERRUPTED
    if result.page is not None:
        say()
        print_table(summary_rows(result), left={0})
        say("", *result.sentences, f"look at  {result.page}")
        return CLEAN if any(row.error is None for row in result.rows) else FAILED
    return CLEAN


def read_budget(text: str) -> float:
    """Minutes of a budget such as 90s, 10m or 2h; a plain number is minutes.

    Raises:
        ConfigError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if match is None or not float(match[1]):
        raise ConfigError(f"--budget: must be a time such as 90s, 10m or 2h, got {text!r}")
    return float(match[1]) * SECONDS[match[2] or "m"] / 60


def _compare_settings(
    run: dict[str, Any] | None, file: Path | None, data: Path | None, budget: str | None, *, has_own_sizes: bool
) -> tuple[RunConfig, str]:
    """The settings of every training, and what is to be said of their size.

    Without epochs or minutes they have the default budget. Without a size all have the one that `train` would choose
    for these data, unless each is to have its own.

    Raises:
        ConfigError: two budgets, or a flag of one training alone.
    """
    typed, stated = dict(run or {}), read_settings(file)
    _refuse_without_effect(typed, stated, file)
    given = [name for name in ("epochs", "minutes") if name in typed] + ["budget"] * (budget is not None)
    if len(given) > 1:
        raise ConfigError(f"compare: give one of {' and '.join(f'--{name}' for name in given)}")
    if budget is not None:
        typed["minutes"] = read_budget(budget)
    elif not given and not {"epochs", "minutes", "phases"} & {*stated}:
        typed["minutes"] = DEFAULT_MINUTES
    has_size = has_own_sizes or {"size", "short_side", "max_side"} & {*typed, *stated}
    begun = read_record(Path(typed.get("out") or stated.get("out") or COMPARE_OUT))
    is_older = begun is not None and not typed.get("overwrite") and begun["settings"].get("size") is None
    if not has_size and not is_older:  # before all had one size, each had its preset's
        typed |= {"size": AUTO, "model": SMALL_DETECTORS[0]}
    settings, choices = run_settings(typed, file=file, data=data)
    said = "; ".join(f"{choice.setting} {choice.value} for all: {choice.reason}" for choice in choices)
    return settings if "out" in {*typed, *stated} else replace(settings, out=COMPARE_OUT), said


def _refuse_without_effect(typed: Mapping[str, Any], stated: Mapping[str, Any], file: Path | None) -> None:
    """Refuse settings that would be overwritten; `stated` are those of the `file`.

    Raises:
        ConfigError: names the setting, and where it is stated.
    """
    for name, reason in FOR_ONE_TRAINING.items():
        if (value := typed.get(name, stated.get(name))) in (None, False):
            continue
        is_small = name == "save_minutes" and isinstance(value, int | float) and value <= SAVE_MINUTES
        if not is_small:
            where = f"--{flag_name(name)}" if name in typed else f"{name} in {file}"
            raise ConfigError(f"compare: {where} {reason}")


def _print_plan(settings: RunConfig, comparison: CompareConfig) -> None:
    """A line for each training with its estimated minutes, and their sum; nothing is written.

    Raises:
        ConfigError, DataError, CheckpointError: what the comparison would be refused for.
    """
    jobs, inputs = shard_jobs(plan_jobs(settings, comparison), comparison.part), open_inputs(settings, comparison)
    finished = find_finished(settings, comparison)
    per_model: dict[str, float | None] = {}
    lines, total = [["TRAINING", "DETECTOR", "SEED", "MINUTES", ""]], 0.0
    for job in jobs:
        model, text, status = job.run.model, "", finished.get(job.name, "")
        if not status:
            if model not in per_model:
                per_model[model] = estimate_minutes(job, inputs.sources)
            minutes = per_model[model]
            total += minutes or 0.0
            text = "-" if minutes is None else f"{minutes:.1f}"
        lines.append([job.name, model, str(job.run.seed), text, status])
    print_table(lines, left={0, 1, 4})
    num_timed = len({job.run.model for job in jobs} | {*inputs.names.values()})
    say(f"\nbudget of each training: {describe_budget(settings)}; out {settings.out}")
    say(f"about {total:.0f} min of training, {TIMING_MINUTES * num_timed:.0f} min of measuring; nothing was written")
    if others := [*inputs.names.values(), *inputs.others]:
        say(f"beside them: {', '.join(others)}")
    if unknown := [model for model, minutes in per_model.items() if minutes is None]:
        say(f"cannot be trained like this: {', '.join(unknown)}")


def _print_jobs(paths: Sequence[Path], settings: RunConfig) -> None:
    """The command of each training, and how it is started on several devices."""
    count = count_job_processes(settings)
    start = "focaldet" if count == 1 else f"torchrun --nproc-per-node {count} -m focaldet"
    for path in paths:
        say(f"{start} train --config {shlex.quote(str(path))}")
    say(
        "on N GPUs: torchrun --nproc-per-node N -m focaldet train --config FILE",
        "in SLURM: srun --ntasks-per-node N --gpus-per-node N python -m focaldet train --config FILE",
        "then the same command without --write-jobs (and --overwrite) evaluates them and makes the page",
    )
