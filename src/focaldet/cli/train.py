"""`focaldet train`."""

from pathlib import Path
from typing import Any

from focaldet.cli import Switch
from focaldet.cli.dry_run import list_settings, print_settings
from focaldet.cli.flags import Data, TrainFlags
from focaldet.cli.output import CLEAN, INTERRUPTED, print_json, print_rates, progress, say
from focaldet.cli.settings import read_settings, run_settings, with_data
from focaldet.errors import ConfigError
from focaldet.training.rate_finder import find_rate
from focaldet.training.timing import read_clock
from focaldet.training.trainer import train


def train_command(
    data: Data = None,
    *,
    config: Path | None = None,
    run: TrainFlags = None,
    dry_run: Switch = False,
    find_lr: Switch = False,
    json: Switch = False,
) -> int:
    """Train a detector. Without --config, what is not typed of --model, --size and --epochs is decided from the data.

    Args:
        config: YAML file of settings; flags that are typed overrule it. The run folder keeps one.
        dry_run: Print every setting and where it comes from, and train nothing.
        find_lr: Try learning rates for some hundred steps, print the loss at each and one to take, and write nothing.
        json: Print the settings of --dry-run as JSON.
    """
    begin = read_clock()
    run, config, data = _resumed_run(run or {}, config, data)
    if json and not dry_run:
        raise ConfigError("train: --json is for --dry-run; a training writes metrics.csv and events.jsonl")
    settings, choices = run_settings(run, file=config, data=data, auto=True)
    if dry_run:
        rows = list_settings(settings, typed=with_data(run, data), file=read_settings(config), choices=choices)
        if json:
            print_json([row._asdict() for row in rows])
        else:
            print_settings(settings, rows)
        return CLEAN
    notes = [f"auto: {choice}" for choice in choices]
    if find_lr:
        for note in notes:
            say(note)
        with progress("find-lr") as seen:
            curve = find_rate(settings, log=say, progress=seen)
        print_rates(curve)
        return CLEAN
    result = train(settings, notes=notes, begin=begin)
    if result.interrupted:
        return INTERRUPTED
    if result.best is not None:
        say(f"look at  {result.out / 'report.html'}")
    say(f"next     focaldet predict {result.out} IMAGE --out drawn/")
    return CLEAN


def _resumed_run(
    run: dict[str, Any], config: Path | None, data: Path | None
) -> tuple[dict[str, Any], Path | None, Path | None]:
    """With `--resume` a run folder is enough, as `--out` or instead of the data: its settings are in it."""
    if not run.get("resume") or config is not None:
        return run, config, data
    if data is not None and "out" not in run and (data / "config.yaml").is_file():
        run, data = {**run, "out": data}, None
    saved = Path(run.get("out", "")) / "config.yaml"
    if data is None and "data" not in run and "out" in run and saved.is_file():
        config = saved
    return run, config, data
