"""Recognizing YOLO and darknet data: which file names the classes, and which images are in which split."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from focaldet.data.formats.classes import YAML_SUFFIXES, read_yaml
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.locate import ImageFinder
from focaldet.data.formats.pairs import group_by_split, pair_key
from focaldet.data.formats.records import DatasetLayout, Lookup
from focaldet.data.formats.split_names import role_of
from focaldet.data.formats.text import brief, read_lines, show_path, what_is_at
from focaldet.data.formats.voc import common_folder
from focaldet.errors import DataError

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_LISTS = ("classes.txt", "labels/classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_DESCRIPTIONS = (*_YAML_NAMES, *_CLASS_LISTS)
_NO_SPLITS = ("classes", "names", "backup", "eval", "results", "top", "labels")
_PARENTS_SEARCHED = 3
_DEEPEST = 3
# What YAML reads for the back-slash and letter of a Windows path in double quotes.
_ESCAPES = {"\t": "/t", "\v": "/v", "\b": "/b", "\r": "/r", "\n": "/n", "\f": "/f", "\a": "/a", "\x1b": "/e"}


def find_yolo(listing: Listing, file: Path | None = None) -> DatasetLayout | None:
    """The splits of a YOLO folder, of the yaml or data file `file`, or that list file; else None."""
    if file is not None:
        suffix = file.suffix.lower()
        if suffix in YAML_SUFFIXES:
            return _from_yaml(file, _near(listing, file))
        if suffix == ".data":
            return _from_darknet(_near(listing, file), file)
        return _from_above(listing, file) if suffix == ".txt" else None
    description = _description(listing)
    if description is None:
        return _from_above(listing, listing.root)
    if description.suffix.lower() in YAML_SUFFIXES:
        return _from_yaml(description, _near(listing, description))
    if description.suffix == ".data":
        return _from_darknet(_near(listing, description), description)
    return _from_folder(listing, description)


def _near(listing: Listing, file: Path) -> Listing:
    """The files below the folder of a file."""
    same = listing.relative(file.parent) == ""
    return listing if same else Listing(file.parent, follow_links=listing.follow_links)


def _from_above(listing: Listing, path: Path) -> DatasetLayout | None:
    """An image folder or list file whose classes are named in a folder above it."""
    above = next(filter(None, map(_description_in, list(path.absolute().parents)[:_PARENTS_SEARCHED])), None)
    if above is None:
        if path.is_dir() and listing.folder("images") and listing.folder("labels") and _has_labels(listing):
            names = ", ".join(_DESCRIPTIONS)
            raise DataError(f"has images/ and labels/ like YOLO, but no file names the classes ({names})", file=path)
        return None
    if path.is_dir() and not listing.images:
        return None
    base = Listing(above.parent, follow_links=listing.follow_links)
    return DatasetLayout("yolo", above.parent, {"all": (path,)}, above, listing=base)


def _has_labels(listing: Listing) -> bool:
    return any(path.startswith("labels/") for path in listing.with_suffix(".txt"))


def _description_in(folder: Path) -> Path | None:
    """The file in a folder that names the classes."""
    return next((folder / name for name in _DESCRIPTIONS if what_is_at(folder / name) == "file"), None)


def _description(listing: Listing) -> Path | None:
    """The file that names the classes, the one nearest to the top of the data; a yaml goes before lists."""
    shallow = [path for path in listing.sorted_files if path.count("/") < _DEEPEST]
    shallow.sort(key=lambda path: (path.count("/"), path))
    for wanted in (_is_named_yaml, _is_other_yaml, _is_darknet, _is_class_list):
        if (match := next((path for path in shallow if wanted(listing, path)), None)) is not None:
            return listing.root / match
    return None


def _is_named_yaml(listing: Listing, path: str) -> bool:
    del listing
    return PurePosixPath(path).name.lower() in _YAML_NAMES


def _is_other_yaml(listing: Listing, path: str) -> bool:
    if PurePosixPath(path).suffix.lower() not in YAML_SUFFIXES or not listing.images:
        return False
    try:
        values = read_yaml(listing.root / path)
    except DataError:
        return False
    return isinstance(values.get("names"), list | dict) and any(role_of(key) for key in values)


def _is_darknet(listing: Listing, path: str) -> bool:
    if not path.endswith(".data"):
        return False
    try:
        return "names" in _read_data_file(listing.root / path)
    except DataError:
        return False


def _is_class_list(listing: Listing, path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return bool(listing.images) and (name in map(_last, _CLASS_LISTS) or name.endswith(".names"))


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _from_yaml(file: Path, near: Listing) -> DatasetLayout:
    values = read_yaml(file)
    stated = values.get("path") or "."
    if not isinstance(stated, str) or "\0" in stated:
        raise DataError(f"got {brief(stated)}; must be a folder", file=file, field="path")
    # Data sets move between machines: where the stated folder does not exist, the yaml's own counts.
    there = file.parent / _slashes(stated)
    base = there if what_is_at(there) == "folder" else file.parent
    below = near.relative(base)
    listing = near if below == "" else Listing(base, follow_links=near.follow_links)
    splits = {key: _parts(file, near, base, key, value) for key, value in values.items() if value and role_of(key)}
    if not splits:
        raise DataError("names no split; must have train, and val where there is one", file=file)
    # What lies below a folder that the file alone names, and which may be anything, is not listed as a whole.
    return DatasetLayout("yolo", base, splits, file, listing=None if below is None else listing)


def _parts(file: Path, near: Listing, base: Path, key: str, value: Any) -> tuple[Path, ...]:
    """The folders or list files of one split."""
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, str) or not entry or "\0" in entry:
            raise DataError(
                f"got {brief(entry)}; must be a folder, a list file or a list of these", file=file, field=key
            )
    return tuple(_locate(near, base, entry) for entry in entries)


def _slashes(entry: str) -> str:
    for escape, plain in _ESCAPES.items():
        entry = entry.replace(escape, plain)
    return entry.replace("\\", "/")


def _locate(near: Listing, base: Path, entry: str) -> Path:
    """The path of an entry, from `base` or the folder of the file.

    Roboflow writes `../train/images` for `train/images` here, other tools the path of the machine that they ran on:
    leading folders are left out until there is something.
    """
    plain = _slashes(entry)
    tries = [base / plain, near.root / plain, base / plain.removeprefix("../")]
    if (path := next((path for path in tries if what_is_at(path)), None)) is not None:
        return path
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    says_which = [i for i, part in enumerate(parts) if role_of(PurePosixPath(part).stem)]
    longest = max(says_which, default=len(parts) - 1)  # the folder of another split is not taken for this one
    for tail in ("/".join(parts[start:]) for start in range(longest + 1)):
        if (name := near.folder(tail) or (tail if tail in near.files else None)) is not None:
            return near.root / name
    return tries[0]


def _read_data_file(file: Path) -> dict[str, str]:
    """The settings of an `obj.data`: lines `name = value`."""
    pairs = (line.split("=", 1) for _, line in read_lines(file) if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs if value.strip()}


def _from_darknet(listing: Listing, file: Path) -> DatasetLayout:
    values = _read_data_file(file)
    if "names" not in values:
        raise DataError("is missing; must be the file with the names of the classes", file=file, field="names")
    splits = {
        key: (_locate(listing, listing.root, value),)
        for key, value in values.items()
        if key not in _NO_SPLITS and (role_of(key) or value.endswith(".txt"))
    }
    if not splits:
        raise DataError("names no list of images; must have train, and valid where there is one", file=file)
    names = _locate(listing, listing.root, values["names"])
    if what_is_at(names) != "file":
        raise DataError(f"{show_path(names)} is not a file", file=file, field="names")
    return DatasetLayout("yolo", listing.root, splits, names, listing=listing, extra={"lists": file})


def _from_folder(listing: Listing, description: Path) -> DatasetLayout:
    lists = dict(_lists(listing, description))
    if lists:
        return DatasetLayout("yolo", listing.root, lists, description, listing=listing)
    groups = group_by_split(_labeled_folders(listing))
    folders = {split: (common_folder(listing, paths),) for split, paths in groups.items()}
    return DatasetLayout(
        "yolo",
        listing.root,
        folders or {"all": (listing.root,)},
        description,
        listing=listing,
        extra={"groups": groups},
    )


def _labeled_folders(listing: Listing) -> list[str]:
    """The images in folders that have a label file for any of their images; all images where none has."""
    keys = {pair_key(path) for path in listing.with_suffix(".txt")}
    folders = {path.rpartition("/")[0] for path in listing.images if pair_key(path) in keys}
    return [path for path in listing.images if path.rpartition("/")[0] in folders] or listing.images


def _lists(listing: Listing, description: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """The lists of images near the classes: `train.txt` and so on, and FiftyOne's `images.txt`."""
    top = [path for path in listing.with_suffix(".txt") if "/" not in path or listing.root / path == description.parent]
    finder = ImageFinder(Lookup(listing))
    for path in top:
        stem = PurePosixPath(path).stem
        if (role_of(stem) or stem in ("images", "all")) and listing.root / path != description:
            first = _first_line(listing.root / path)
            if first and finder.find(first)[0] is not None:
                yield "all" if stem == "images" else stem, (listing.root / path,)


def _first_line(file: Path) -> str | None:
    try:
        return next((line for _, line in read_lines(file) if len(line) < 4096 and "\0" not in line), None)
    except DataError:
        return None
