"""`check_data`: the contents of a data set, its problems, and how anchors fit it, before any training."""

from collections import Counter
from collections.abc import Sequence

from focaldet.check.anchor_fit import anchor_report
from focaldet.check.box_checks import note_box_sizes, note_crowded_images, note_repeated_boxes, repeated_labels
from focaldet.check.findings import Findings
from focaldet.check.fit import advise
from focaldet.check.image_checks import (
    Pair,
    exact_copies,
    look_at_images,
    near_copies,
    note_damage,
    note_turned,
)
from focaldet.check.report import Report, SplitReport
from focaldet.check.split_checks import note_class_skew, note_classes, note_names
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset
from focaldet.data.problems import Location, Severity
from focaldet.data.splits import inspect_splits
from focaldet.models.base import DetectorConfig
from focaldet.runtime import Progress
from focaldet.types import Preprocessing

SMALL_AREA, MEDIUM_AREA = 32**2, 96**2  # square pixels, as COCO counts small, medium and large


def check_data(
    config: DataConfig,
    *,
    detector: DetectorConfig | None = None,
    preprocessing: Preprocessing | None = None,
    decode: bool = True,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """A report on the contents and problems of a data set.

    It covers the splits for training, validation and testing. The anchors of `detector`, if there is one, are compared
    with the boxes of images resized as `preprocessing` says (the paper's short side 800 where it is None). Images that
    cannot be read and boxes that training would refuse are listed as errors.

    Args:
        config: the images and annotations.
        detector: whose anchors and limit of detections are compared with the boxes.
        preprocessing: how large the images enter the network.
        decode: decode every image, as training does, and look for damage, copies and near duplicates; without, only the
            headers are read.
        only: the kinds of problems to report (`kinds.MEANINGS`), all where there are none.
        skip: kinds not to report.
        seed: of the sample that training would hold out.
        progress: called with the number of images decoded so far and of all images.

    Raises:
        DataError: the annotations cannot be read at all.
        ConfigError: no data is given, or a kind does not exist.
    """
    Findings().select(only=only, skip=skip)  # before the long work
    inspection = inspect_splits(config, seed=seed)
    datasets = inspection.datasets
    findings, prepared = Findings(inspection.problems), preprocessing or Preprocessing()
    for dataset in datasets.values():
        _note_boxes_and_names(dataset, detector, prepared, findings)
    note_class_skew(datasets, findings)
    copies = _note_images(list(datasets.values()), findings, progress=progress) if decode else set()
    for dataset in datasets.values():
        _note_repeated_labels(dataset, copies, findings)
    findings = findings.select(only=only, skip=skip)
    findings.show_problems()
    splits = tuple(_describe(dataset, detector, prepared) for dataset in datasets.values())
    source = config.path or config.train or config.val or config.test
    train = inspection.train if inspection.train is not None else next(iter(datasets.values()))
    advice = advise(train, detector, prepared) if detector is not None else None
    return Report(str(source), splits, inspection.chosen, findings.problems, findings.exhibits, advice)


def _note_boxes_and_names(
    dataset: Dataset, detector: DetectorConfig | None, preprocessing: Preprocessing, findings: Findings
) -> None:
    note_classes(dataset, findings)
    note_names(dataset, findings)
    note_repeated_boxes(dataset, findings)
    limit = getattr(getattr(detector, "detect", None), "max_detections", None)
    note_crowded_images(dataset, findings, limit=limit)
    if detector is not None:
        note_box_sizes(dataset, preprocessing.resize, findings)


def _note_images(
    datasets: list[Dataset], findings: Findings, *, progress: Progress | None
) -> set[tuple[str, int, str, int]]:
    """Add what the pixels say; the pairs of images that are copies or look the same."""
    facts = look_at_images(datasets, progress=progress)
    for dataset in datasets:
        note_damage(dataset, facts, findings)
        note_turned(dataset, facts, findings)
    exact = exact_copies(datasets)
    near = near_copies(datasets, facts, exact)
    by_name = {dataset.name: dataset for dataset in datasets}
    for pairs, kind, sure in ((exact, "image twice", True), (near, "near duplicate", False)):
        for pair in pairs:
            _note_pair(pair, by_name, findings, kind=kind, sure=sure)
    return {(pair.split, pair.image, pair.original_split, pair.original) for pair in (*exact, *near)}


def _note_pair(pair: Pair, datasets: dict[str, Dataset], findings: Findings, *, kind: str, sure: bool) -> None:
    image = datasets[pair.split].path(pair.image)
    original = datasets[pair.original_split].path(pair.original)
    if pair.crosses:
        kind = "image in two splits" if sure else f"{kind} in two splits"
    same = "the same image as" if sure else "looks the same as"
    message = f'{same} {original} of split "{pair.original_split}"'
    severity: Severity = "warning" if sure or pair.crosses else "note"
    findings.add_pair(Location(image, f'split "{pair.split}"').problem(severity, kind, message), original)


def _note_repeated_labels(dataset: Dataset, copies: set[tuple[str, int, str, int]], findings: Findings) -> None:
    """Add warnings of different images with the same boxes."""
    alike = {(image, original) for split, image, other, original in copies if split == other == dataset.name}
    alike_images = {image for pair in alike for image in pair}
    for image, original in repeated_labels(dataset):
        if not {image, original} <= alike_images:
            location = Location(dataset.path(image), f'split "{dataset.name}"')
            message = f"the same boxes as {dataset.path(original).name}, which is another image"
            findings.add_pair(location.problem("warning", "labels twice", message), dataset.path(original))


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
    times = Counter(names)
    return {name if times[name] == 1 else f"{name} ({label})": numbers[label] for label, name in enumerate(names)}
