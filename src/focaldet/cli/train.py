"""`focaldet train`."""

from pathlib import Path

from focaldet.cli.flags import Data, RunFlags
from focaldet.cli.output import CLEAN, INTERRUPTED
from focaldet.cli.settings import run_settings
from focaldet.training.trainer import train


def train_command(data: Data = None, *, config: Path | None = None, run: RunFlags = None) -> int:
    """Train a detector.

    Args:
        config: YAML file of settings; flags that are typed overrule it. The run folder keeps one.
    """
    result = train(run_settings(run, file=config, data=data))
    if result.interrupted:
        return INTERRUPTED
    if result.best is not None:
        print(f"look at  {result.out / 'report.html'}")
    print(f"next     focaldet predict {result.out} IMAGE --out drawn/")
    return CLEAN
