"""YOLO: a `data.yaml` with the classes and splits, images, and one txt file of boxes per image.

The boxes of `images/train/a.jpg` stand in `labels/train/a.txt` (the last folder called `images` becomes `labels`), or
beside the image. An image without such a file is background; a split without any such file is an error.

A row is `class x y width height`: the center and size of the box as fractions of the image. A row `class x1 y1 x2 y2 …`
with three or more points is a polygon and counts as the box around it. With `kpt_shape` in the yaml, rows are boxes
with key points behind them, which are ignored. A sixth column is a score: a file of predictions, which is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from os.path import commonpath, normpath
from pathlib import Path
from typing import Any

from focaldet.config import read_mapping
from focaldet.data.dataset import Classes
from focaldet.data.formats.records import BoxRows, DatasetLayout, Records, list_images, path_inside
from focaldet.data.formats.text import as_number, brief, read_lines, show_path, what_is_at
from focaldet.data.problems import Location, Problems
from focaldet.errors import ConfigError, DataError

_YAML = (".yaml", ".yml")
_CLASS_LISTS = ("classes.txt", "labels/classes.txt", "obj.names")
_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", *_CLASS_LISTS)
_SPLITS = ("train", "val", "valid", "validation", "test")
_PARENTS_SEARCHED = 3
# Fractions beyond this are not those of a box at the border but pixels.
_MAX_FRACTION = 2.0


def find_yolo(path: Path) -> DatasetLayout | None:
    """The splits of a YOLO folder or yaml file, or the one list file or image folder that `path` is; else None."""
    if path.is_file() and path.suffix.lower() in _YAML:
        return _from_yaml(path)
    if path.is_dir() and (description := _description(path)):
        return _from_yaml(description) if description.suffix in _YAML else _from_folder(path, description)
    if path.is_dir() and (path / "images").is_dir() and (path / "labels").is_dir():
        names = ", ".join(_DESCRIPTIONS)
        raise DataError(f"has images/ and labels/ like YOLO, but no file names the classes ({names})", file=path)
    if path.is_dir() or path.suffix.lower() == ".txt":
        above = next(filter(None, map(_description, list(path.parents)[:_PARENTS_SEARCHED])), None)
        return DatasetLayout("yolo", above.parent, {"all": (path,)}, above) if above else None
    return None


def _description(folder: Path) -> Path | None:
    """The file in a folder that names the classes."""
    named = next((folder / name for name in _DESCRIPTIONS if (folder / name).is_file()), None)
    others = [] if named else [file for suffix in _YAML for file in folder.glob(f"*{suffix}")]
    return named or (others[0] if len(others) == 1 and "names" in _mapping(others[0]) else None)


def _mapping(file: Path) -> dict[str, Any]:
    try:
        return read_mapping(file)
    except ConfigError as error:
        raise DataError(str(error).removeprefix(f"{file}: "), file=file) from None


def _from_yaml(file: Path) -> DatasetLayout:
    values = _mapping(file)
    stated = values.get("path") or "."
    if not isinstance(stated, str) or "\0" in stated:
        raise DataError(f"got {brief(stated)}; must be a folder", file=file, field="path")
    # Data sets move between machines: where the stated folder does not exist, the yaml's own counts.
    base = file.parent / stated if what_is_at(file.parent / stated) == "folder" else file.parent
    splits = {key: _parts(file, base, key, values[key]) for key in _SPLITS if values.get(key)}
    if not splits:
        raise DataError("names no split; must have train, and val where there is one", file=file)
    return DatasetLayout("yolo", base, splits, file)


def _parts(file: Path, base: Path, key: str, value: Any) -> tuple[Path, ...]:
    """The folders or list files of one split."""
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, str) or not entry or "\0" in entry:
            raise DataError(
                f"got {brief(entry)}; must be a folder, a list file or a list of these", file=file, field=key
            )
    return tuple(_locate(base, file.parent, entry) for entry in entries)


def _locate(base: Path, folder: Path, entry: str) -> Path:
    """The path of an entry. Roboflow writes `../train/images` for `train/images` here: both are tried."""
    tries = [base / entry, folder / entry, base / entry.removeprefix("../")]
    return next((path for path in tries if what_is_at(path)), tries[0])


def _from_folder(folder: Path, description: Path) -> DatasetLayout:
    images = folder / "images"
    parts = [part for part in sorted(images.glob("*/")) if part.is_dir()] if images.is_dir() else []
    if parts:
        return DatasetLayout("yolo", folder, {part.name: (part,) for part in parts}, description)
    return DatasetLayout("yolo", folder, {"all": (images if images.is_dir() else folder,)}, description)


def read_yolo(layout: DatasetLayout, splits: Sequence[str], *, images: Path | None) -> list[Records]:
    """The records of some splits of a layout from `find_yolo`.

    Category ids are the class numbers of the file, image ids the position in sorted order + 1.

    Raises:
        DataError: the yaml, a list or a label file is not as described; names the line.
    """
    if layout.description is None:
        raise DataError("no file names the classes (data.yaml or classes.txt)", file=layout.root)
    classes, key_points = _yolo_classes(layout.description)
    return [_YOLOSplit(layout, split, images).records(classes, key_points=key_points) for split in splits]


def _yolo_classes(description: Path) -> tuple[Classes, bool]:
    """The classes, and whether rows have key points behind the box."""
    if description.suffix not in _YAML:
        listed = [line for _, line in read_lines(description)]
        return Classes(tuple(listed), tuple(range(len(listed)))), False
    values = _mapping(description)
    location = Location(description, field="names")
    names: Any = values.get("names")
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, Mapping) or not pairs:
        raise location.error(f"got {brief(names)}; must be a list of class names, or a mapping from number to name")
    known = sorted((_class_number(key, location), _class_name(name, location)) for key, name in pairs.items())
    if "nc" in values and values["nc"] != len(known):
        raise location._replace(field="nc").error(f"got {brief(values['nc'])}, but there are {len(known)} names")
    return Classes(tuple(name for _, name in known), tuple(key for key, _ in known)), "kpt_shape" in values


def _class_number(key: Any, location: Location) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10:
        return int(key)
    if type(key) is not int or not 0 <= key < 2**31:
        raise location.error(f"got the class number {brief(key)}; must be a whole number from 0")
    return key


def _class_name(name: Any, location: Location) -> str:
    if type(name) not in (str, int, float) or not str(name).strip():
        raise location.error(f"got the class name {brief(name)}; must be a text (put yes, no, on, off in quotes)")
    return str(name)


class _YOLOSplit:
    """The images and label files of one split."""

    def __init__(self, layout: DatasetLayout, split: str, images: Path | None) -> None:
        self.name, self.sources = split, layout.splits[split]
        self.base = _normal(images or layout.root)
        lists = [source for source in self.sources if what_is_at(source) == "file"]
        folders = [source for source in self.sources if what_is_at(source) == "folder"]
        if len(lists) + len(folders) < len(self.sources):
            missing = next(source for source in self.sources if not what_is_at(source))
            problem = f"{show_path(missing)} is neither a folder nor a list file"
            raise DataError(problem, file=layout.description or layout.root, field=split)
        starts = [_normal(folder) for folder in folders]
        self.root = Path(commonpath([*starts, self.base] if lists else starts))
        below = [start.relative_to(self.root) / name for start in starts for name in list_images(start)]
        listed = [path.relative_to(self.root) for file in lists for path in self._images_of_list(file)]
        self.paths = sorted({path.as_posix() for path in [*below, *listed]})

    def _images_of_list(self, file: Path) -> Iterator[Path]:
        """The images of a list file: paths from the data folder, from the list (`./`), or absolute but inside."""
        beside = _normal(file.parent)
        for number, line in read_lines(file):
            folder = beside if line.startswith("./") and beside.is_relative_to(self.base) else self.base
            yield folder / path_inside(folder, line, Location(file, f"line {number}"), absolute=True)

    def records(self, classes: Classes, *, key_points: bool) -> Records:
        """The records of the split from its label files."""
        rows, problems = BoxRows(), Problems()
        labels = {category: label for label, category in enumerate(classes.category_ids)}
        files = [_label_file(self.root / path) for path in self.paths]
        if files and not any(files):
            candidate = _label_candidates(self.root / self.paths[0])[0]
            raise DataError(
                f"none of its {len(files)} images has a label file; looked for {candidate}", file=self.sources[0]
            )
        for i, file in enumerate(files):
            for number, line in read_lines(file) if file else ():
                location = Location(file, f"line {number}") if file else Location(self.root)
                label, box = _parse_row(line, labels, location, problems, key_points=key_points)
                rows.add(i, box, label, location)
        return Records(
            name=self.name,
            source=self.sources[0],
            root=self.root,
            classes=classes,
            image_ids=range(1, len(self.paths) + 1),
            paths=self.paths,
            stated_sizes=[None] * len(self.paths),
            image_location=lambda i: Location(self.sources[0], self.paths[i]),
            fractions=True,
            problems=problems,
            **rows.columns(),
        )


def _normal(path: Path) -> Path:
    """The absolute path without `..`; links are not followed, because labels are looked for beside the link."""
    return Path(normpath(path.absolute()))


def _label_candidates(image: Path) -> list[Path]:
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" not in parts[:-1]:
        return [beside]
    last = len(parts) - 1 - parts[::-1].index("images")
    return [Path(*parts[:last], "labels", *parts[last + 1 :]), beside]


def _label_file(image: Path) -> Path | None:
    return next((file for file in _label_candidates(image) if what_is_at(file) == "file"), None)


def _parse_row(
    line: str, labels: Mapping[int, int], location: Location, problems: Problems, *, key_points: bool
) -> tuple[int, tuple[float, float, float, float]]:
    """The label and the xyxy box, in fractions of the image, of one row."""
    fields = line.split()
    is_polygon = len(fields) >= 7 and len(fields) % 2 == 1 and not key_points
    if len(fields) != 5 and not is_polygon and not (key_points and len(fields) > 5):
        hint = "; a sixth column is a score: are these predictions?" if len(fields) == 6 else ""
        raise location.error(f"got {len(fields)} columns; must be class x y width height, or class and a polygon{hint}")
    category = as_number(fields[0], location._replace(field="class"), "a whole number")
    if category not in labels:
        known = f"{min(labels)}…{max(labels)}"
        raise location._replace(field="class").error(f"got {brief(fields[0])}; must be the number of a class, {known}")
    fractions = [_parse_fraction(text, location) for text in (fields[1:] if is_polygon else fields[1:5])]
    if is_polygon:
        problems.add(location.problem("note", "polygon", "a polygon counts as the box around it"))
        xs, ys = fractions[::2], fractions[1::2]
        return labels[int(category)], (min(xs), min(ys), max(xs), max(ys))
    x, y, width, height = fractions
    return labels[int(category)], (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _parse_fraction(text: str, location: Location) -> float:
    fraction = as_number(text, location)
    if abs(fraction) > _MAX_FRACTION:
        raise location.error(f"got {brief(text)}; must be a fraction of the image in 0…1, not pixels")
    return fraction
