"""`check_data`: the contents of a data set, its problems, and how anchors fit it, before any training."""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from focaldet.check.anchor_fit import anchor_report
from focaldet.check.report import Report, SplitReport
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset
from focaldet.data.images import read_image
from focaldet.data.problems import Location, Problem, Problems
from focaldet.data.splits import inspect_splits
from focaldet.errors import DataError
from focaldet.models.base import DetectorConfig
from focaldet.runtime import Progress
from focaldet.types import Preprocessing

SMALL_AREA, MEDIUM_AREA = 32**2, 96**2  # square pixels, as COCO counts small, medium and large


def check_data(
    config: DataConfig,
    *,
    detector: DetectorConfig | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """A report on the contents and problems of a data set. Every image is decoded, as in training.

    It covers the splits for training, validation and testing. The anchors of `detector`, if there is one, are compared
    with the boxes of images resized as `preprocessing` says (the paper's short side 800 where it is None). Images that
    cannot be read and boxes that training would refuse are listed as errors. `progress` is called with the number of
    images decoded so far and of all images.

    Raises:
        DataError: the annotations cannot be read at all.
        ConfigError: no data is given.
    """
    inspection = inspect_splits(config, seed=seed)
    datasets, problems = inspection.datasets, inspection.problems
    for dataset in datasets.values():
        _note_oddities(dataset, problems)
    _note_damaged_images(list(datasets.values()), problems, progress=progress)
    _note_repeated_images(list(datasets.values()), problems)
    prepared = preprocessing or Preprocessing()
    splits = tuple(_describe(dataset, detector, prepared) for dataset in datasets.values())
    source = config.path or config.train or config.val or config.test
    return Report(str(source), splits, inspection.chosen, problems)


def _describe(dataset: Dataset, detector: DetectorConfig | None, preprocessing: Preprocessing) -> SplitReport:
    counted = dataset.flags == 0
    numbers = dataset.labels[counted].long().bincount(minlength=len(dataset.classes)).tolist()
    stated = dataset.areas[counted]
    small, large = int((stated < SMALL_AREA).sum()), int((stated >= MEDIUM_AREA).sum())
    present = [number for number in numbers if number]
    return SplitReport(
        name=dataset.name,
        images=len(dataset),
        background_images=int((dataset.offsets.diff() == 0).sum()),
        boxes=len(dataset.boxes),
        ignored=int((~counted).sum()),
        boxes_per_class=_by_class(dataset.classes.names, numbers),
        sizes={"small": small, "medium": len(stated) - small - large, "large": large},
        imbalance=max(present) / min(present) if present else 1.0,
        anchors=anchor_report(dataset, detector, preprocessing) if detector and present else None,
    )


def _by_class(names: tuple[str, ...], numbers: list[int]) -> dict[str, int]:
    """Counts by class name; two classes of one name are distinguished by their label."""
    return {name if names.count(name) == 1 else f"{name} ({label})": numbers[label] for label, name in enumerate(names)}


def _note_oddities(dataset: Dataset, problems: Problems) -> None:
    """Add notes on classes and splits without boxes, and warnings of boxes that are in the files twice."""
    where = f'split "{dataset.name}"'
    present = set(dataset.labels.tolist())
    for label, name in enumerate(dataset.classes.names):
        if label not in present:
            problems.add(Problem("note", "class without boxes", f'"{name}" has no box', str(dataset.root), where))
    if not len(dataset.boxes):
        problems.add(Problem("warning", "no boxes", "no image has a box", str(dataset.root), where))
    owners = torch.arange(len(dataset)).repeat_interleave(dataset.offsets.diff())
    rows = torch.cat([owners[:, None].double(), dataset.labels[:, None].double(), dataset.boxes], 1)
    _, inverse = torch.unique(rows, dim=0, return_inverse=True)
    seen: set[int] = set()
    for row, group in enumerate(inverse.tolist()):
        if group in seen:
            record = f"box {[round(value, 2) for value in dataset.boxes[row].tolist()]}"
            location = Location(dataset.path(int(owners[row])), record)
            problems.add(location.problem("warning", "box twice", "the same box and class again"))
        seen.add(group)


def _note_damaged_images(datasets: list[Dataset], problems: Problems, *, progress: Progress | None) -> None:
    """Add errors for images with an intact header and damaged pixels, such as truncated files."""
    splits = {dataset.path(i): dataset.name for dataset in reversed(datasets) for i in range(len(dataset))}

    def damage(path: Path) -> str | None:
        try:
            read_image(path)
        except DataError as error:
            return error.problem
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = zip(splits.items(), pool.map(damage, splits), strict=True)
        for done, ((path, split), problem) in enumerate(results, start=1):
            if progress is not None:
                progress(done, len(splits))
            if problem is not None:
                problems.add(Problem("error", "image unusable", problem, str(path), f'split "{split}"'))


def _note_repeated_images(datasets: list[Dataset], problems: Problems) -> None:
    """Add warnings of image files of equal content, in one split or two. Only files of equal length are read."""
    lengths: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for dataset in datasets:
        for path in dict.fromkeys(dataset.path(i) for i in range(len(dataset))):
            lengths[path.stat().st_size].append((dataset.name, path))
    contents: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for group in lengths.values():
        for split, path in group if len(group) > 1 else ():
            contents[_digest(path)].append((split, path))
    for (first, original), *copies in contents.values():
        for split, path in copies:
            kind = "image twice" if split == first else "image in two splits"
            message = f'the same image as {original} of split "{first}"'
            problems.add(Problem("warning", kind, message, str(path), f'split "{split}"'))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
