"""`focaldet report`: the page of one run made anew, or several runs on one page."""

import os
from collections.abc import Sequence
from pathlib import Path

from focaldet.config import from_dict, make_folder, read_mapping
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset, FileSource
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.evaluate import open_evaluation_split, read_run_settings, run_data_config
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

    The detections are those that a run has kept: of `eval-<split>`, where the run was evaluated on it, else those of
    the best evaluation of its training.

    Args:
        runs: run folders.
        data: the images and annotations that were evaluated; by default those of the first run.
        split: train, val, test, or a split's own name in the data.
        out: the page; by default `report.html` in the folder of the run, of another split than val in that of its
            evaluation, and of several runs in the folder that all lie in.

    Raises:
        ConfigError: no run, a folder that is not a run, or one without detections.
        DataError: the data cannot be read, or the detections are of other images.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise ConfigError("report: name at least one run folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("report: a run is named twice")
    predictions = [_find_predictions(folder, split) for folder in folders]
    settings = read_run_settings(folders[0])
    config = run_data_config(data, settings)
    dataset = open_evaluation_split(config, split, seed=settings.get("seed", 0))
    if len(folders) > 1:
        path = out or _common_folder(folders) / "report.html"
        make_folder(path.parent)
        return write_side_by_side(list(zip(folders, predictions, strict=True)), FileSource(dataset), path)
    (run,) = folders
    path = out or (run / "report.html" if split == "val" else predictions[0].with_name("report.html"))
    make_folder(path.parent)
    return write_report(
        run,
        FileSource(dataset),
        metrics=_read_metrics(predictions[0]),
        predictions=predictions[0],
        out=path,
        training=open_training_split(config, dataset, seed=settings.get("seed", 0)),
    )


def open_training_split(config: DataConfig, evaluated: Dataset, *, seed: int) -> Dataset | None:
    """The images of the split that training takes; None where the data have none but those that were evaluated."""
    try:
        dataset = open_evaluation_split(config, "train", seed=seed)
    except (ConfigError, DataError):
        return None
    return None if dataset.fingerprint() == evaluated.fingerprint() else dataset


def _find_predictions(run: Path, split: str) -> Path:
    """The result file of a run for a split.

    Raises:
        ConfigError: it is not a run, or was not evaluated on the split.
    """
    if not run.is_dir():
        raise ConfigError(f"report: {run} is not a run folder")
    candidates = [run / f"eval-{split}" / "predictions.json", *([run / "predictions.json"] if split == "val" else [])]
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(
        f"report: {run} has no detections on {split}: say focaldet eval {run} --split {split} first "
        "(focaldet monitor shows a run that is being trained)"
    )


def _read_metrics(predictions: Path) -> Metrics | None:
    """The numbers that `eval` wrote beside its detections: they have the time of an image; None where it did not."""
    path = predictions.with_name("metrics.json")
    if not path.is_file():
        return None
    values = {name: value for name, value in read_mapping(path).items() if name not in ("split", "data")}
    return from_dict(Metrics, values, source=str(path), warn_renamed=False)


def _common_folder(folders: Sequence[Path]) -> Path:
    """The innermost folder that all of these lie in."""
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))
