"""The folder of a comparison: which settings and data it is of, and what an earlier one left."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.comparison.jobs import EVALUATIONS, RESULTS
from focaldet.comparison.plan import JOBS, RUNS
from focaldet.comparison.timing import TIMING_RECORD
from focaldet.data.dataset import ImageSource
from focaldet.errors import ConfigError
from focaldet.files import write_json
from focaldet.training.config import FREE_ON_RESUME, RunConfig
from focaldet.training.run_folder import differences

COMPARE_RECORD, COMPARE_PAGE = "compare.json", "index.html"
PAGES = (COMPARE_PAGE, "compare.csv", "compare.md", "compare.tex", "differences.csv", "figure.png", "figure.svg")
VARIED_SETTINGS = FREE_ON_RESUME | {"model", "seed", "evaluate_every"}


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


def write_record(out: Path, value: Any) -> None:
    """Write what `read_record` reads; `value` may have more than the identity."""
    write_json(out / COMPARE_RECORD, value)


def open_compare_folder(out: Path, record: Mapping[str, Any], *, overwrite: bool) -> None:
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
    for name in (TIMING_RECORD, *PAGES):
        (out / name).unlink(missing_ok=True)
    for name in (RESULTS, EVALUATIONS, RUNS, JOBS):  # a result stands for a run that is there, so it goes first
        old = out / f".{name}.overwritten"  # out of sight in one move: a kill leaves nothing half removed
        shutil.rmtree(old, ignore_errors=True)
        if (out / name).exists():
            (out / name).rename(old)
            shutil.rmtree(old)
    write_record(out, {"identity": dict(record)})
