"""The splits of a data set: finding them, choosing those to train and validate on, and opening them."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch

from focaldet.config import nearest
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset
from focaldet.data.formats.assemble import build_dataset
from focaldet.data.formats.json_files import json_kind
from focaldet.data.formats.listing import Listing, suffix_of
from focaldet.data.formats.locate import locate_images
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import DatasetLayout, Records
from focaldet.data.formats.registry import FORMATS
from focaldet.data.formats.split_names import ALIASES, Role, pick, role_of
from focaldet.data.formats.text import list_names, quantity, what_is_at
from focaldet.data.formats.unused import note_unused
from focaldet.data.problems import Problem, Problems
from focaldet.data.select_classes import select_classes, with_classes
from focaldet.errors import ConfigError, DataError

HELD_OUT_FRACTION = 0.1
GUIDE = "docs/guide/data.md"
_CVAT_IMAGES = " (of CVAT for images, probably: export it as COCO 1.0)"
_ADVICE = {
    "label studio": ": export it as COCO",
    "fiftyone": ": export it as COCODetectionDataset",
    "coco results": ": detections, not annotations",
    "coco images": ": images without annotations",
}


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


@dataclass(frozen=True, slots=True)
class Inspection:
    """The splits for training, validation and testing as a check sees them: what is wrong is among `problems`, and what
    could be read is in `datasets`, by its own name. `chosen` is the sentence that training would say. `train` are the
    images that it would train on, without those that it would hold out; None without such a split.
    """

    datasets: dict[str, Dataset]
    chosen: str
    problems: Problems
    train: Dataset | None = None


def open_splits(config: DataConfig, *, seed: int) -> Splits:
    """The training and validation splits of a data set.

    Validation is `config.val`, else the split of such a name (`formats.split_names`), else a tenth of the training
    images, drawn at random with the seed. A test split is never taken. Both have the classes of the training split;
    each keeps the ids of its own file (`Classes.own_ids`).

    Raises:
        DataError: the data cannot be read; see the readers.
        ConfigError: no split to train on.
    """
    parts = find_parts(config)
    train_name, val_name = pick(parts, "train"), pick(parts, "val")
    if train_name is None:
        raise ConfigError(_no_training_split(config, parts))
    if val_name is None:
        whole = open_parts(config, {train_name: parts[train_name]})[train_name]
        seed = seed if config.split_seed is None else config.split_seed
        train, val = hold_out(whole, seed=seed)
        return Splits(train, val, _sentence(train, val) + _why_held_out(parts, seed) + _unused_splits(parts))
    opened = open_parts(config, {name: parts[name] for name in (train_name, val_name)})
    train, val = opened[train_name], with_classes(opened[val_name], opened[train_name].classes, strict=config.strict)
    return Splits(train, val, f"{_sentence(train, val)}.{_unused_splits(parts)}")


def inspect_splits(config: DataConfig, *, seed: int) -> Inspection:
    """The splits that training would take, and the test split, opened as a check does; see `Inspection`.

    Raises:
        DataError: nothing can be read at all.
        ConfigError: nothing is named.
    """
    parts = find_parts(config)
    names = {role: name for role in ALIASES if (name := pick(parts, role)) is not None}
    chosen = {name: parts[name] for name in names.values()} or dict(parts)
    datasets, problems = _open_parts(config, chosen, lenient=True)
    source = str(config.path or config.train or config.val or config.test)
    train = datasets.get(names.get("train", ""))
    if "train" not in names:
        problems.add(Problem("error", "no training split", _no_training_split(config, parts), source))
    for role in ("val", "test"):
        name = names.get(role, "")
        if train is not None and name in datasets:
            problem = f'split "{name}"'
            try:
                datasets[name] = with_classes(datasets[name], train.classes, strict=config.strict and role == "val")
            except DataError as error:
                problems.add(Problem("error", "classes differ", error.problem, error.file, problem))
    is_divided = train is not None and "val" not in names
    if train is not None and is_divided and len(train) < 2:
        message = "has one image only, which cannot be divided; name other data with data.val"
        problems.add(Problem("error", "no validation split", message, str(train.root)))
    every = Problems()
    for each in (problems, *(dataset.problems for dataset in datasets.values())):
        every.extend(each)
    seed = seed if config.split_seed is None else config.split_seed
    if train is not None and is_divided and len(train) > 1:
        train, _ = hold_out(train, seed=seed)
    return Inspection(datasets, _inspection_sentence(names, parts, chosen, seed), every, train)


def _inspection_sentence(
    names: Mapping[Role, str], parts: Mapping[str, Part], chosen: Mapping[str, Part], seed: int
) -> str:
    quoted = ", ".join(f'"{name}"' for name in chosen)
    if "train" in names and "val" not in names:
        end = f"; none for validation, so training would hold out a tenth, drawn with seed {seed}"
        return f"splits {quoted}{end}{_unused_splits(parts)}"
    return f"splits {quoted}{_unused_splits(parts)}"


def _no_training_split(config: DataConfig, parts: Mapping[str, Part]) -> str:
    name = next(iter(parts), None)
    where = f"--data {config.path} --data.train {name}" if config.path and name else "name one with data.train"
    return (
        f"data: no split to train on (splits: {list_names(parts) or 'none'}; name one with data.train: "
        f"{where}; {GUIDE}#splits)"
    )


def _sentence(train: Dataset, val: Dataset) -> str:
    return (
        f'Training on "{train.name}" ({quantity(len(train), "image")}), '
        f'validating on "{val.name}" ({quantity(len(val), "image")})'
    )


def _why_held_out(parts: Mapping[str, Part], seed: int) -> str:
    test = pick(parts, "test")
    kept = f'; "{test}" stays untouched for testing' if test else ""
    first, *others = ALIASES["val"]
    return f", drawn with seed {seed}, because no split is called {', '.join([first, *others[:1]])} or the like{kept}."


def _unused_splits(parts: Mapping[str, Part]) -> str:
    """A sentence on the splits that have no part; empty where there are none."""
    chosen = {pick(parts, role) for role in ALIASES}
    others = [name for name in parts if name not in chosen]
    return f" Not used: {list_names(others)}." if others else ""


def open_split(config: DataConfig, name: str, *, seed: int) -> Dataset:
    """One split: `train`, `val` or `test` in the sense of `open_splits`, or a name that the folder itself uses.

    Raises:
        DataError: the data cannot be read; see the readers.
        ConfigError: no such split.
    """
    parts = find_parts(config)
    if name in ("train", "val") and (name not in parts or pick(parts, "val") is None):
        splits = open_splits(config, seed=seed)
        return splits.train if name == "train" else splits.val
    own = name if name in parts else pick(parts, "test") if name == "test" else None
    if own is None:
        raise ConfigError(f'data: no split "{name}"{nearest(name, parts)}')
    return open_parts(config, {own: parts[own]})[own]


def find_parts(config: DataConfig) -> dict[str, Part]:
    """All splits that a configuration names or that are in its folder, by their own names.

    Raises:
        ConfigError: nothing is named.
        DataError: a path that does not exist, or data in no known format.
    """
    if config.path is config.train is config.val is config.test is None:
        raise ConfigError("data: name a folder or file (--data PATH)")
    every: dict[str, Part] = {}
    if config.path is not None:
        layout = _recognize(config.path, config)
        every = {name: Part(layout, name) for name in layout.splits}
    parts = dict(every)
    named: tuple[tuple[Role, Path | None], ...] = (("train", config.train), ("val", config.val), ("test", config.test))
    for role, path in named:
        if path is not None:
            parts = {name: part for name, part in parts.items() if not _has_role(name, role)}
            parts[role] = _named_part(config, every, role, path)
    return parts


def _has_role(name: str, role: Role) -> bool:
    return role_of(name) == role or (role == "train" and pick([name], role) is not None)


def _named_part(config: DataConfig, every: Mapping[str, Part], role: Role, path: Path) -> Part:
    """What `--data.train` and so on name: a path, a split of `--data`, or a path below it."""
    if not what_is_at(path) and config.path is not None:
        by_case = {name.casefold(): part for name, part in every.items()}
        if (part := every.get(str(path)) or by_case.get(str(path).casefold())) is not None:
            return part
        path = config.path / path if what_is_at(config.path / path) else path
    layout = _recognize(path, config)
    own = pick(layout.splits, role) or next((name for name in layout.splits if len(layout.splits) == 1), None)
    own = own or ("all" if "all" in layout.splits else None)
    if own is None:
        raise DataError(f'has no split for "{role}" (splits: {list_names(layout.splits)})', file=path)
    return Part(layout, own)


def open_parts(config: DataConfig, parts: Mapping[str, Part]) -> dict[str, Dataset]:
    """The datasets of some parts; parts of one layout are read in one pass. What is not used is among the problems of
    the first.
    """
    datasets, problems = _open_parts(config, parts, lenient=False)
    first = next(iter(datasets.values()))
    first.problems.extend(problems)
    return datasets


def _open_parts(config: DataConfig, parts: Mapping[str, Part], *, lenient: bool) -> tuple[dict[str, Dataset], Problems]:
    """The datasets, and problems of none of them. With `lenient` a split that cannot be read is such a problem, as long
    as any can be.
    """
    reading, problems = config.reading(lenient=lenient), Problems()
    datasets: dict[str, Dataset] = {}
    errors: list[DataError] = []
    read: list[tuple[DatasetLayout, list[Records]]] = []
    for layout in {id(part.layout): part.layout for part in parts.values()}.values():
        names: dict[str, list[str]] = {}  # one split may be taken twice
        for name, part in parts.items():
            if part.layout is layout:
                names.setdefault(part.name, []).append(name)
        records = []
        for record in _read_layout(layout, list(names), reading, errors):
            try:
                located = locate_images(replace(record, name=names[record.name][0]), reading)
                records.append(located)
                dataset = build_dataset(located, reading)
                chosen = select_classes(dataset, config.classes, config.other_classes)
                datasets |= {name: replace(chosen, name=name, problems=Problems()) for name in names[record.name]}
                datasets[located.name] = chosen
            except DataError as error:
                _keep_or_raise(_with_page(error, layout.format), errors, lenient=lenient)
        read.append((layout, records))
    if not datasets:
        raise errors[0]
    note_unused(read, problems, images=config.images, follow_links=config.follow_links)
    for each in errors:
        problems.add(Problem("error", "split unreadable", each.problem, each.file, each.record, each.field))
    return {name: datasets[name] for name in parts if name in datasets}, problems


def _read_layout(layout: DatasetLayout, names: list[str], reading: Reading, errors: list[DataError]) -> list[Records]:
    """The records of some splits; with a lenient reading those that can be read, and the errors of the others."""
    read = FORMATS[layout.format].read
    try:
        return read(layout, names, _fresh(reading))
    except DataError as error:
        explained = _with_page(error, layout.format)
        if not reading.lenient:
            raise explained from None
        if len(names) == 1:
            errors.append(explained)
            return []
    records = []
    for name in names:
        records += _read_layout(layout, [name], reading, errors)
    return records


def _fresh(reading: Reading) -> Reading:
    return replace(reading, problems=Problems())


def _keep_or_raise(error: DataError, errors: list[DataError], *, lenient: bool) -> None:
    if not lenient:
        raise error from None
    errors.append(error)


def _with_page(error: DataError, section: str) -> DataError:
    """The error with the section of the guide that shows the format."""
    problem = f"{error.problem} ({GUIDE}#{section})"
    return DataError(problem, file=error.file, record=error.record, field=error.field)


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


def first_with_boxes(dataset: Dataset, most: int) -> list[int]:
    """The indices of the first images with boxes, at most so many; of the first images where none has any."""
    with_boxes: list[int] = (dataset.offsets.diff() > 0).nonzero().flatten().tolist()
    return with_boxes[:most] or list(range(min(most, len(dataset))))


def _recognize(path: Path, config: DataConfig) -> DatasetLayout:
    kind = what_is_at(path)
    if not kind:
        with suppress(OSError):  # a name too long for any disk
            if path.exists():  # a pipe or device, which may never begin or end
                raise DataError("is neither a file nor a folder", file=path)
        raise DataError("no such file or folder", file=path)
    formats = [FORMATS[config.format]] if config.format else list(FORMATS.values())
    listing = Listing(path if kind == "folder" else path.parent, follow_links=config.follow_links)
    file = path if kind == "file" else None
    layouts, errors = [], []
    for each in formats:
        try:
            layout = each.find(listing, file)
        except DataError as error:
            errors.append(_with_page(error, "layouts"))
            continue
        if layout is not None and pick(layout.splits, "train") is not None:
            return layout
        layouts += [layout] if layout is not None else []
    if layouts:
        return layouts[0]
    if errors:
        raise errors[0]
    names = (config.format or ", ".join(FORMATS)).upper()
    raise DataError(
        f"has no {names} data that is recognized; {_describe_contents(path, listing, kind)}; name its json, yaml or "
        f"csv file instead, or its parts one by one (--data.train, --data.val, --data.images); {GUIDE}#layouts",
        file=path,
    )


def _describe_contents(path: Path, listing: Listing, kind: str) -> str:
    """What lies at a path that is not recognized."""
    if kind == "file":
        what = json_kind(path)
        return f"it looks like {what}{_ADVICE.get(what, '')}" if what else "it is a file of another kind"
    links = quantity(len(listing.outside), "link")
    hint = f"{links} that lead out are not followed: --data.follow-links takes them" if listing.outside else ""
    if not listing.files:
        return hint or "no file in it"
    counts = Counter(suffix_of(name) or PurePosixPath(name).name for name in listing.sorted_files)
    seen = [f"{quantity(number, 'file')} {suffix}" for suffix, number in counts.most_common(4)]
    kinds = {name: json_kind(listing.root / name) for name in listing.with_suffix(".json")[:4]}
    texts = [f"{name} ({kind}{_ADVICE.get(kind, '')})" if kind else f"{name} (unknown)" for name, kind in kinds.items()]
    texts += [f"{name}{_CVAT_IMAGES}" for name in listing.with_suffix(".xml")[:4] if name.endswith("annotations.xml")]
    return f"in it: {', '.join(seen)}" + "".join(f"; {text}" for text in (*texts, hint) if text)
