"""The detections that a run folder has kept, and the images that they are of: no others may be shown beside them.

All formats but COCO number their images 1, 2, 3 …, so that the ids of a result file do not tell data from other data:
the fingerprints do, which a training writes into `environment.json` and an evaluation into its `metrics.json`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from focaldet.config import from_dict, read_mapping
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset
from focaldet.data.splits import first_with_boxes, open_splits
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.evaluate import (
    FINGERPRINT,
    evaluation_folder,
    open_evaluation_split,
    read_run_settings,
    run_data_config,
)
from focaldet.evaluation.evaluator import MAX_DETECTIONS
from focaldet.report.evaluated import EvaluatedDetector, describe_run

RESULTS, NUMBERS, ENVIRONMENT = "predictions.json", "metrics.json", "environment.json"


@dataclass(frozen=True, slots=True)
class KeptDetections:
    """A result file of a run, and the images that it is of.

    Attributes:
        run: the run folder.
        path: the COCO result file.
        metrics: the numbers that `eval` wrote beside it; None where it did not.
        settings: those of the run.
        config: the data as they were opened.
        dataset: the images.
        training: the images that the run was trained on, where they were opened anyway.
        named: the data that were named; None for those of the run.
        split: which part of them.
    """

    run: Path
    path: Path
    metrics: Metrics | None
    settings: dict[str, Any]
    config: DataConfig
    dataset: Dataset
    training: Dataset | None = None
    named: DataConfig | None = None
    split: str = "val"

    @property
    def detector(self) -> EvaluatedDetector:
        """The detector of the run, and how it and the images are named."""
        return describe_run(self.run, data=self.named, split=self.split)

    @property
    def max_detections(self) -> int:
        """How many detections of each image and class counted in the evaluation."""
        return MAX_DETECTIONS if self.metrics is None else self.metrics.max_detections


def open_kept_detections(
    run: Path,
    data: DataConfig | str | Path | None = None,
    *,
    split: str,
    like: KeptDetections | None = None,
) -> KeptDetections:
    """The detections of a run on a split: those of its evaluation there, else those of its training.

    Args:
        run: the run folder.
        data: the images and annotations; by default those of the run.
        split: train, val, test, or a split's own name in the data.
        like: detections of another run, whose images are taken where they are the same.

    Raises:
        ConfigError: it is not a run folder, or has no detections on the split.
        DataError: the data cannot be read, or the detections are of other data.
    """
    if not run.is_dir():
        raise ConfigError(f"report: {run} is not a run folder")
    settings = read_run_settings(run)
    config, seed = run_data_config(data, settings), run_seed(settings)
    named = None if data is None else open_evaluation_split(config, split, seed=seed)
    folder = run / f"eval-{split}"
    if named is not None:
        folder = evaluation_folder(run, named, data, split=split, out=None) or folder
    candidates = [d for d in (named, None if like is None else like.dataset) if d is not None]
    if (path := folder / RESULTS).is_file():
        known = _read_fingerprint(folder / NUMBERS, FINGERPRINT)
        dataset = _find_dataset(candidates, known) or named or open_evaluation_split(config, split, seed=seed)
        kept = KeptDetections(run, path, read_numbers(folder / NUMBERS), settings, config, dataset)
    elif split == "val" and (path := run / RESULTS).is_file():
        known, training = validation_fingerprint(run), None
        chosen = _find_dataset(candidates, known)
        if chosen is None:
            chosen, training = open_validation_images(config, settings)
        kept = KeptDetections(run, path, None, settings, config, chosen, training)
    else:
        where = "" if data is None else f" --data {config.path or '…'}"
        raise ConfigError(
            f"report: {run} has no detections on {split}{' of these data' * (data is not None)}: say focaldet eval "
            f"{run}{where} --split {split} first (focaldet monitor shows a run that is being trained)"
        )
    require_images(kept.dataset, known, run=run, path=path)
    given = DataConfig(path=Path(data)) if isinstance(data, str | Path) else data
    return replace(kept, named=given, split=split)


def open_validation_images(config: DataConfig, settings: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """The images that a training with these settings validated on, and those that it was trained on.

    A run that overfits a few images takes the same for both, and has no others.

    Raises:
        ConfigError: no split to train on, or a setting is not a number.
        DataError: the data cannot be read.
    """
    splits, overfit = open_splits(config, seed=run_seed(settings)), settings.get("overfit")
    if overfit is None:
        return splits.val, splits.train
    if type(overfit) is not int or overfit < 1:
        raise ConfigError(f"config.yaml of the run: overfit: must be a whole number above 0, got {overfit!r}")
    return splits.train.subset(first_with_boxes(splits.train, overfit), "overfit"), None


def run_seed(settings: dict[str, Any]) -> int:
    """The seed of a run, which decides what is held out for validation.

    Raises:
        ConfigError: it is not a whole number.
    """
    seed = settings.get("seed", 0)
    if type(seed) is not int or abs(seed) >= 2**63:
        raise ConfigError(f"config.yaml of the run: seed: must be a whole number, got {seed!r}")
    return seed


def validation_fingerprint(run: Path) -> str | None:
    """The fingerprint of what a training validated on; None for runs of versions that did not write it."""
    return _read_fingerprint(run / ENVIRONMENT, "data", "validation")


def require_images(dataset: Dataset, known: str | None, *, run: Path, path: Path) -> None:
    """Make sure that detections are of the images of `dataset`.

    Args:
        dataset: the images.
        known: the fingerprint of the images that the detections are of; where there is none, nothing is known.
        run: the folder that the detections are of.
        path: the result file.

    Raises:
        DataError: they are of others; names the run and the data.
    """
    if known not in (None, dataset.fingerprint()):
        raise DataError(
            f'the detections of {run} are not of these data, "{dataset.name}" in {dataset.root}, or their annotations '
            f"have changed since: say focaldet eval {run} with the data that are meant",
            file=path,
        )


def require_same_images(first: KeptDetections, other: KeptDetections) -> None:
    """Make sure that two runs were evaluated alike: on the same images, with the same limit of detections.

    Raises:
        DataError: on other images; names both runs.
        ConfigError: with another limit.
    """
    a, b = first.dataset, other.dataset
    if b is not a and b.fingerprint() != a.fingerprint():
        raise DataError(
            f'the detections of {other.run} are of other images ("{b.name}" in {b.root}) than those of {first.run} '
            f'("{a.name}" in {a.root}): say focaldet eval with the same --data and --split for both, then focaldet '
            "report with them",
            file=other.path,
        )
    if first.max_detections != other.max_detections:
        raise ConfigError(
            f"report: {first.run} was evaluated with at most {first.max_detections} detections of each image and "
            f"class, {other.run} with {other.max_detections}: say focaldet eval with the same --max-detections for both"
        )


def read_numbers(path: Path) -> Metrics | None:
    """The numbers that `eval` wrote beside its detections: they have the time of an image; None where it did not.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.is_file():
        return None
    values = {name: value for name, value in read_mapping(path).items() if name not in ("split", FINGERPRINT)}
    return from_dict(Metrics, values, source=str(path), warn_renamed=False)


def _read_fingerprint(path: Path, *names: str) -> str | None:
    """The text under these names in a JSON file; None where there is none."""
    if not path.is_file():
        return None
    value: Any = read_mapping(path)
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _find_dataset(candidates: list[Dataset], known: str | None) -> Dataset | None:
    """The first dataset with this fingerprint."""
    return next((each for each in candidates if known is not None and each.fingerprint() == known), None)
