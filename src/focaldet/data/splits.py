"""The splits of a data set: finding them, choosing those to train and validate on, and opening them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from focaldet.config import nearest
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Classes, Dataset
from focaldet.data.formats.assemble import build_dataset
from focaldet.data.formats.records import DatasetLayout, Records
from focaldet.data.formats.registry import FORMATS
from focaldet.data.formats.text import brief, hint, list_names, quantity, what_is_at
from focaldet.data.problems import Problem, Problems
from focaldet.errors import ConfigError, DataError

TRAIN_NAMES = ("train", "train2017", "train2014", "training", "trainval", "all")
VAL_NAMES = ("val", "valid", "validation", "val2017")
TEST_NAMES = ("test", "test2017", "testing")
HELD_OUT_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits to train and validate on; `chosen` says in one sentence which they are and why."""

    train: Dataset
    val: Dataset
    chosen: str


@dataclass(frozen=True, slots=True)
class Part:
    """One split of a layout, by the name that its folder uses."""

    layout: DatasetLayout
    name: str


def open_splits(config: DataConfig, *, seed: int) -> Splits:
    """The training and validation splits of a data set.

    Validation is `config.val`, else the split named val, valid, validation or val2017, else a tenth of the training
    images drawn by the seed. A test split is never taken. Both have the classes of the training split; each keeps the
    ids of its own file (`Classes.own_ids`).

    Raises:
        DataError: the data cannot be read; see the readers.
        ConfigError: there is no split to train on.
    """
    parts = find_parts(config)
    train_name = first_known(parts, TRAIN_NAMES)
    if train_name is None:
        raise ConfigError(
            f"data: there is no split to train on (splits: {list_names(parts) or 'none'}; name one with data.train)"
        )
    val_name = first_known(parts, VAL_NAMES)
    if val_name is None:
        whole = open_parts(config, {train_name: parts[train_name]})[train_name]
        train, val = hold_out(whole, seed=seed)
        return Splits(train, val, _sentence(train, val) + _why_held_out(parts, seed))
    opened = open_parts(config, {name: parts[name] for name in (train_name, val_name)})
    train, val = opened[train_name], with_classes(opened[val_name], opened[train_name].classes)
    return Splits(train, val, _sentence(train, val) + ".")


def _sentence(train: Dataset, val: Dataset) -> str:
    return (
        f'Training on "{train.name}" ({quantity(len(train), "image")}), '
        f'validating on "{val.name}" ({quantity(len(val), "image")})'
    )


def _why_held_out(parts: Mapping[str, Part], seed: int) -> str:
    test = first_known(parts, TEST_NAMES)
    kept = f'; "{test}" stays untouched for testing' if test else ""
    return f", drawn with seed {seed}, because no split is called {', '.join(VAL_NAMES[:-1])} or {VAL_NAMES[-1]}{kept}."


def open_split(config: DataConfig, name: str, *, seed: int) -> Dataset:
    """One split: `train`, `val` or `test` in the sense of `open_splits`, or a name that the folder itself uses.

    Raises:
        DataError: the data cannot be read; see the readers.
        ConfigError: there is no such split.
    """
    parts = find_parts(config)
    if name in ("train", "val") and (name not in parts or first_known(parts, VAL_NAMES) is None):
        splits = open_splits(config, seed=seed)
        return splits.train if name == "train" else splits.val
    own = name if name in parts else first_known(parts, TEST_NAMES) if name == "test" else None
    if own is None:
        raise ConfigError(f'data: there is no split "{name}"{nearest(name, parts)}')
    return open_parts(config, {own: parts[own]})[own]


def find_parts(config: DataConfig) -> dict[str, Part]:
    """All splits that a configuration names or that are in its folder, by their own names.

    Raises:
        ConfigError: nothing is named.
        DataError: a path that does not exist, or data in no known format.
    """
    if config.path is config.train is config.val is config.test is None:
        raise ConfigError("data: name a folder or file (--data PATH)")
    parts: dict[str, Part] = {}
    if config.path is not None:
        layout = _recognize(config.path, config.format)
        parts = {name: Part(layout, name) for name in layout.splits}
    for role, names, path in (
        ("train", TRAIN_NAMES, config.train),
        ("val", VAL_NAMES, config.val),
        ("test", TEST_NAMES, config.test),
    ):
        if path is not None:
            parts = {name: part for name, part in parts.items() if name not in names}
            layout = _recognize(path, config.format)
            own = first_known(layout.splits, (role, *names, "all"))
            if own is None:
                raise DataError(f'has no split for "{role}" (splits: {list_names(layout.splits)})', file=path)
            parts[role] = Part(layout, own)
    return parts


def open_parts(config: DataConfig, parts: Mapping[str, Part], *, lenient: bool = False) -> dict[str, Dataset]:
    """The datasets of some parts; parts of one layout are read in one pass. For `lenient` see `build_dataset`."""
    records: dict[str, Records] = {}
    for layout in {id(part.layout): part.layout for part in parts.values()}.values():
        names = [name for name, part in parts.items() if part.layout is layout]
        own = [parts[name].name for name in names]
        records |= zip(names, FORMATS[layout.format].read(layout, own, images=config.images), strict=True)
    datasets = {}
    for name, record in records.items():
        datasets[name] = build_dataset(replace(record, name=name), bad_boxes=config.bad_boxes, lenient=lenient)
    return datasets


def hold_out(whole: Dataset, *, seed: int) -> tuple[Dataset, Dataset]:
    """A split without a tenth of its images, and that tenth (at least one image), a random sample by the seed.

    Raises:
        DataError: there is only one image.
    """
    if len(whole) < 2:
        raise DataError("has one image only, which cannot be divided; name other data with data.val", file=whole.root)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).tolist()
    number = max(1, round(HELD_OUT_FRACTION * len(whole)))
    held_out, kept = sorted(order[:number]), sorted(order[number:])
    # The problems of all images are reported once.
    tenth = replace(whole.subset(held_out, f"10 % of {whole.name}"), problems=Problems())
    return whole.subset(kept, whole.name), tenth


def with_classes(dataset: Dataset, classes: Classes) -> Dataset:
    """The dataset with its labels renumbered by `classes`; classes of equal names are the same.

    `Classes.own_ids` stay those of the dataset's own file. A note names the classes that have none there.

    Raises:
        DataError: the dataset has boxes of a class that is not in `classes`.
    """
    if dataset.classes == classes:
        return dataset
    known = {name: label for label, name in enumerate(classes.names)}
    present = set(dataset.labels.tolist())
    strange = [name for label, name in enumerate(dataset.classes.names) if label in present and name not in known]
    if strange:
        names = list_names(map(brief, strange))
        problem = f'split "{dataset.name}" has boxes of classes that are not in the training split: {names}'
        raise DataError(problem + hint(strange[0], known), file=dataset.root)
    labels = torch.tensor([known.get(name, -1) for name in dataset.classes.names], dtype=torch.int32)
    numbers = {
        known.get(name): number for name, number in zip(dataset.classes.names, dataset.classes.own_ids, strict=True)
    }
    own_ids = tuple(numbers.get(label) for label in range(len(classes)))
    problems = Problems()
    problems.extend(dataset.problems)
    if absent := [name for name, own in zip(classes.names, own_ids, strict=True) if own is None]:
        message = f"result files omit detections of classes that only the training split has: {list_names(absent)}"
        problems.add(Problem("note", "class absent", message, str(dataset.root), f'split "{dataset.name}"'))
    return replace(
        dataset,
        classes=replace(classes, file_ids=None if own_ids == classes.category_ids else own_ids),
        labels=labels[dataset.labels.long()],
        problems=problems,
    )


def _recognize(path: Path, wanted: str | None) -> DatasetLayout:
    if not what_is_at(path):
        raise DataError("there is no such file or folder", file=path)
    formats = [FORMATS[wanted]] if wanted else list(FORMATS.values())
    layout = next((layout for each in formats if (layout := each.find(path)) is not None), None)
    if layout is None:
        raise DataError(
            f"has no {(wanted or ', '.join(FORMATS)).upper()} data that is recognized; name its json, yaml or csv file "
            "instead, or its parts one by one",
            file=path,
        )
    return layout


def first_known(available: Mapping[str, object], names: Sequence[str]) -> str | None:
    """The first of these names that is available."""
    return next((name for name in names if name in available), None)
