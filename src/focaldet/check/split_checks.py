"""What is odd about names, classes and splits: names in two cases, and classes that one split has far more of."""

import math
from collections.abc import Mapping, Sequence

import torch

from focaldet.check.box_checks import box_owners
from focaldet.check.findings import Findings
from focaldet.data.dataset import Dataset
from focaldet.data.problems import Problem

SKEW_RATIO, SKEW_DEVIATIONS = 2.0, 4.0  # how much more frequent, and how many standard deviations from equal


def note_classes(dataset: Dataset, findings: Findings) -> None:
    """Classes without boxes, classes whose names differ in case only, and a split without any box."""
    where, root = f'split "{dataset.name}"', str(dataset.root)
    present = {*dataset.labels.tolist()}
    absent = [name for label, name in enumerate(dataset.classes.names) if label not in present]

    def describe(k: int) -> Problem:
        return Problem("note", "class without boxes", f'"{absent[k]}" has no box', root, where)

    findings.problems.add_all("note", "class without boxes", len(absent), describe)
    for first, second in same_but_for_case(dataset.classes.names):
        message = f'"{first}" and "{second}" differ in case or spaces only'
        findings.problems.add(Problem("warning", "class in two cases", message, root, where))
    if not len(dataset.boxes):
        findings.problems.add(Problem("warning", "no boxes", "no image has a box", root, where))


def note_names(dataset: Dataset, findings: Findings) -> None:
    """Image files whose paths differ in case only."""
    paths = [dataset.path(i) for i in range(len(dataset))]
    for first, second in same_but_for_case([str(path) for path in paths]):
        message = f"{first} and {second} are one file on a disk that does not distinguish case"
        findings.problems.add(Problem("warning", "name in two cases", message, second, f'split "{dataset.name}"'))


def same_but_for_case(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of different names that are the same without case and with single spaces; each with the first of them."""
    first: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(names):
        original = first.setdefault(" ".join(name.casefold().split()), name)
        if original != name:
            pairs.append((original, name))
    return pairs


def note_class_skew(datasets: Mapping[str, Dataset], findings: Findings) -> None:
    """Classes that are in far more of the images of one split than of another.

    Images are counted, not boxes: those of one image are not independent.
    """
    splits = list(datasets.values())
    for other in splits[1:]:
        first = splits[0]
        for name, (one, two) in _class_fractions(first, other).items():
            if _differ(one, two, len(first), len(other)):
                message = f'"{name}" is in {one:.1%} of the images of "{first.name}", in {two:.1%} of "{other.name}"'
                where = f'split "{other.name}"'
                findings.problems.add(Problem("warning", "class skew", message, str(other.root), where))


def _class_fractions(first: Dataset, second: Dataset) -> dict[str, tuple[float, float]]:
    """By the name of each class the fractions of the images of two splits that have it."""
    fractions = []
    for dataset in (first, second):
        pairs = torch.unique(torch.stack([box_owners(dataset), dataset.labels.long()]), dim=1)
        counts = pairs[1].bincount(minlength=len(dataset.classes)).tolist()
        names = zip(dataset.classes.names, counts, strict=True)
        fractions.append({name: number / len(dataset) for name, number in names})
    return {name: (fractions[0][name], fractions[1].get(name, 0.0)) for name in fractions[0]}


def _differ(one: float, two: float, num_one: int, num_two: int) -> bool:
    """Whether two fractions differ by a factor and by more than chance (a test of two proportions)."""
    pooled = (one * num_one + two * num_two) / (num_one + num_two)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / num_one + 1 / num_two))
    low, high = sorted((one, two))
    return high > SKEW_RATIO * low and high - low > SKEW_DEVIATIONS * deviation
