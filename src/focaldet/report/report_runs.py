"""`focaldet report`: the page of one run made anew, or several runs on one page."""

import os
from collections.abc import Sequence
from pathlib import Path

from focaldet.config import make_folder
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset, FileSource
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.report.kept_detections import open_kept_detections, require_same_images, run_seed
from focaldet.report.run_report import write_report
from focaldet.report.side_by_side import write_side_by_side


def report_runs(
    runs: Sequence[str | Path],
    data: DataConfig | str | Path | None = None,
    *,
    split: str = "val",
    out: Path | None = None,
) -> Path:
    """Write the page of a run, or one page with several runs side by side; nothing is trained or detected for it.

    The detections are those that a run has kept: of `eval-<split>` or, for other `data`, of `eval-<data>-<split>`,
    where the run was evaluated on it, else those of the best evaluation of its training.

    Args:
        runs: run folders.
        data: the images and annotations that were evaluated; by default those of each run.
        split: train, val, test, or a split's own name in the data.
        out: the page; by default `report.html` in the folder of the run, of another split than val in that of its
            evaluation, and of several runs in the folder that all lie in.

    Raises:
        ConfigError: no run, a folder that is not a run, one without detections, or runs that were evaluated with
            different limits of detections.
        DataError: the data cannot be read, or the detections are of other images; names the run and the data.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise ConfigError("report: name at least one run folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("report: a run is named twice")
    first = open_kept_detections(folders[0], data, split=split)
    source = FileSource(first.dataset)
    if len(folders) > 1:
        others = [open_kept_detections(folder, data, split=split, like=first) for folder in folders[1:]]
        for other in others:
            require_same_images(first, other)
        path = out or _common_folder(folders) / "report.html"
        make_folder(path.parent)
        return write_side_by_side([first, *others], source, path)
    path = out or (first.run / "report.html" if split == "val" else first.path.with_name("report.html"))
    make_folder(path.parent)
    training = first.training or open_training_split(first.config, first.dataset, seed=run_seed(first.settings))
    return write_report(
        first.run,
        source,
        metrics=first.metrics,
        predictions=first.path,
        out=path,
        training=training,
        detector=first.detector,
    )


def open_training_split(config: DataConfig, evaluated: Dataset, *, seed: int) -> Dataset | None:
    """The images of the split that training takes; None where the data have none but those that were evaluated."""
    try:
        dataset = open_evaluation_split(config, "train", seed=seed)
    except (ConfigError, DataError):
        return None
    return None if dataset.fingerprint() == evaluated.fingerprint() else dataset


def _common_folder(folders: Sequence[Path]) -> Path:
    """The innermost folder that all of these lie in."""
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))
