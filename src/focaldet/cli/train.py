"""`focaldet train`."""

from pathlib import Path

from focaldet.cli import Switch
from focaldet.cli.dry_run import list_settings, print_settings
from focaldet.cli.flags import Data, RunFlags
from focaldet.cli.output import CLEAN, INTERRUPTED, print_json
from focaldet.cli.settings import read_settings, run_settings, with_data
from focaldet.errors import ConfigError
from focaldet.training.trainer import train


def train_command(
    data: Data = None,
    *,
    config: Path | None = None,
    run: RunFlags = None,
    dry_run: Switch = False,
    json: Switch = False,
) -> int:
    """Train a detector.

    Args:
        config: YAML file of settings; flags that are typed overrule it. The run folder keeps one.
        dry_run: Print every setting and where it comes from, and train nothing.
        json: Print the settings of --dry-run as JSON.
    """
    settings = run_settings(run, file=config, data=data)
    if settings.resume and data is not None and (data / "config.yaml").exists():
        raise ConfigError(f"train: {data} is a run folder; --resume takes no value: say --out {data} --resume")
    if json and not dry_run:
        raise ConfigError("train: --json is for --dry-run; a training writes metrics.csv and events.jsonl")
    if dry_run:
        rows = list_settings(settings, typed=with_data(run, data), file=read_settings(config))
        if json:
            print_json([row._asdict() for row in rows])
        else:
            print_settings(settings, rows)
        return CLEAN
    result = train(settings)
    if result.interrupted:
        return INTERRUPTED
    if result.best is not None:
        print(f"look at  {result.out / 'report.html'}")
    print(f"next     focaldet predict {result.out} IMAGE --out drawn/")
    return CLEAN
