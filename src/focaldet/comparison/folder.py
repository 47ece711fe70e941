"""The folder of a comparison: which settings and data it is of, and what an earlier one left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.comparison.jobs import EVALUATIONS, RESULTS
from focaldet.comparison.plan import JOBS, RUNS
from focaldet.comparison.timing import TIMING_RECORD
from focaldet.data.dataset import ImageSource
from focaldet.files import write_json
from focaldet.training.config import FREE_ON_RESUME, RunConfig
from focaldet.training.run_folder import continues_record, remove_folder

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


def check_compare_folder(out: Path, record: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether `out` is the folder of this comparison already; nothing is written.

    Raises:
        ConfigError: it contains something else, or, without `overwrite`, a comparison with other settings or data.
    """
    file = out / COMPARE_RECORD
    return out.exists() and continues_record(out, file, record, kind="comparison", overwrite=overwrite)


def open_compare_folder(out: Path, record: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make `out` the folder of this comparison; what an earlier one left is removed with `overwrite`.

    Raises:
        ConfigError: it contains something else, or a comparison with other settings or data.
    """
    if check_compare_folder(out, record, overwrite=overwrite):
        return
    configs.make_folder(out)
    if (out / COMPARE_RECORD).exists():  # in a new folder others may have begun meanwhile
        for name in (TIMING_RECORD, *PAGES):
            (out / name).unlink(missing_ok=True)
        for name in (RESULTS, EVALUATIONS, RUNS, JOBS):  # a result stands for a run that is there, so it goes first
            remove_folder(out / name)
    write_record(out, {"identity": dict(record)})
