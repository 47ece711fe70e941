"""YOLO: a `data.yaml` with the classes and splits, pictures, and one txt file of boxes per picture.

The boxes of `images/train/a.jpg` stand in `labels/train/a.txt` (the last folder called `images` becomes `labels`), or
beside the picture. A picture without such a file is background; a split without any such file is an error.

A row is `class x y width height`: the centre and size of the box as shares of the picture. A row `class x1 y1 x2 y2 …`
with three or more points is a polygon and counts as the box around it. With `kpt_shape` in the yaml, rows are boxes
with key points behind them, which are left out. A sixth column is a score: a file of predictions, which is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from os.path import commonpath, normpath
from pathlib import Path
from typing import Any

from focaldet.config import read_mapping
from focaldet.data.dataset import Classes
from focaldet.data.formats.records import BoxRows, DatasetLayout, Records, path_inside, pictures_below
from focaldet.data.formats.text import as_number, brief, read_lines, shown, what_is_at
from focaldet.data.problems import Place, Problems
from focaldet.errors import ConfigError, DataError

_YAML = (".yaml", ".yml")
_DESCRIPTIONS = (
    "data.yaml",
    "data.yml",
    "dataset.yaml",
    "dataset.yml",
    "classes.txt",
    "labels/classes.txt",
    "obj.names",
)
_SPLITS = ("train", "val", "valid", "validation", "test")
_PARENTS_SEARCHED = 3
# A share beyond this is no box at the border but one in pixels.
_MAX_SHARE = 2.0


def find(path: Path) -> DatasetLayout | None:
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
        raise DataError(f"found {brief(stated)}; must be a folder", file=file, field="path")
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
                f"found {brief(entry)}; must be a folder, a list file or a list of these", file=file, field=key
            )
    return tuple(_located(base, file.parent, entry) for entry in entries)


def _located(base: Path, folder: Path, entry: str) -> Path:
    """Roboflow writes `../train/images` for the folder `train/images` beside the yaml file: both are tried."""
    tries = [base / entry, folder / entry, base / entry.removeprefix("../")]
    return next((path for path in tries if what_is_at(path)), tries[0])


def _from_folder(folder: Path, description: Path) -> DatasetLayout:
    images = folder / "images"
    parts = [part for part in sorted(images.glob("*/")) if part.is_dir()] if images.is_dir() else []
    if parts:
        return DatasetLayout("yolo", folder, {part.name: (part,) for part in parts}, description)
    return DatasetLayout("yolo", folder, {"all": (images if images.is_dir() else folder,)}, description)


def read(layout: DatasetLayout, splits: Sequence[str], *, images: Path | None) -> list[Records]:
    """The records of some splits of a layout that `find` gave.

    Category ids are the class numbers of the file, image ids the position in sorted order + 1.

    Raises:
        DataError: the yaml, a list or a label file is not as described; names the line.
    """
    if layout.description is None:
        raise DataError("no file names the classes (data.yaml or classes.txt)", file=layout.root)
    classes, key_points = _classes(layout.description)
    return [_Split(layout, split, images).records(classes, key_points=key_points) for split in splits]


def _classes(description: Path) -> tuple[Classes, bool]:
    """The classes, and whether rows have key points behind the box."""
    if description.suffix not in _YAML:
        listed = [line for _, line in read_lines(description)]
        return Classes(tuple(listed), tuple(range(len(listed)))), False
    values = _mapping(description)
    place = Place(description, field="names")
    names: Any = values.get("names")
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, Mapping) or not pairs:
        raise place.error(f"found {brief(names)}; must be a list of class names, or a mapping from number to name")
    known = sorted((_class_number(key, place), _class_name(name, place)) for key, name in pairs.items())
    if "nc" in values and values["nc"] != len(known):
        raise place._replace(field="nc").error(f"found {brief(values['nc'])}, but there are {len(known)} names")
    return Classes(tuple(name for _, name in known), tuple(key for key, _ in known)), "kpt_shape" in values


def _class_number(key: Any, place: Place) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10:
        return int(key)
    if type(key) is not int or not 0 <= key < 2**31:
        raise place.error(f"found the class number {brief(key)}; must be a whole number from 0")
    return key


def _class_name(name: Any, place: Place) -> str:
    if type(name) not in (str, int, float) or not str(name).strip():
        raise place.error(f"found the class name {brief(name)}; must be a text (put yes, no, on, off in quotes)")
    return str(name)


class _Split:
    """The pictures and label files of one split."""

    def __init__(self, layout: DatasetLayout, split: str, images: Path | None) -> None:
        self.name, self.sources = split, layout.splits[split]
        self.base = _normal(images or layout.root)
        lists = [source for source in self.sources if what_is_at(source) == "file"]
        folders = [source for source in self.sources if what_is_at(source) == "folder"]
        if len(lists) + len(folders) < len(self.sources):
            missing = next(source for source in self.sources if not what_is_at(source))
            problem = f"{shown(missing)} is neither a folder nor a list file"
            raise DataError(problem, file=layout.description or layout.root, field=split)
        starts = [_normal(folder) for folder in folders]
        self.root = Path(commonpath([*starts, self.base] if lists else starts))
        below = [start.relative_to(self.root) / name for start in starts for name in pictures_below(start)]
        listed = [path.relative_to(self.root) for file in lists for path in self._listed(file)]
        self.paths = sorted({path.as_posix() for path in [*below, *listed]})

    def _listed(self, file: Path) -> Iterator[Path]:
        """The pictures of a list file: paths from the data folder, from the list (`./`), or absolute but inside."""
        beside = _normal(file.parent)
        for number, line in read_lines(file):
            folder = beside if line.startswith("./") and beside.is_relative_to(self.base) else self.base
            yield folder / path_inside(folder, line, Place(file, f"line {number}"), absolute=True)

    def records(self, classes: Classes, *, key_points: bool) -> Records:
        """What the label files say, in one piece."""
        rows, problems = BoxRows(), Problems()
        labels = {category: label for label, category in enumerate(classes.category_ids)}
        files = [_label_file(self.root / path) for path in self.paths]
        if files and not any(files):
            looked = _label_candidates(self.root / self.paths[0])[0]
            raise DataError(
                f"none of its {len(files)} pictures has a label file; looked for {looked}", file=self.sources[0]
            )
        for i, file in enumerate(files):
            for number, line in read_lines(file) if file else ():
                place = Place(file, f"line {number}") if file else Place(self.root)
                label, box = _row(line, labels, place, problems, key_points=key_points)
                rows.add(i, box, label, place)
        return Records(
            name=self.name,
            source=self.sources[0],
            root=self.root,
            classes=classes,
            image_ids=range(1, len(self.paths) + 1),
            paths=self.paths,
            declared=[None] * len(self.paths),
            image_place=lambda i: Place(self.sources[0], self.paths[i]),
            fractions=True,
            problems=problems,
            **rows.columns(),
        )


def _normal(path: Path) -> Path:
    """The absolute path without `..`; links are not followed, because labels are looked for beside the link."""
    return Path(normpath(path.absolute()))


def _label_candidates(picture: Path) -> list[Path]:
    beside = picture.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" not in parts[:-1]:
        return [beside]
    last = len(parts) - 1 - parts[::-1].index("images")
    return [Path(*parts[:last], "labels", *parts[last + 1 :]), beside]


def _label_file(picture: Path) -> Path | None:
    return next((file for file in _label_candidates(picture) if what_is_at(file) == "file"), None)


def _row(
    line: str, labels: Mapping[int, int], place: Place, problems: Problems, *, key_points: bool
) -> tuple[int, tuple[float, float, float, float]]:
    """The label and the xyxy box, in shares of the picture, of one row."""
    fields = line.split()
    is_polygon = len(fields) >= 7 and len(fields) % 2 == 1 and not key_points
    if len(fields) != 5 and not is_polygon and not (key_points and len(fields) > 5):
        hint = "; a sixth column is a score: are these predictions?" if len(fields) == 6 else ""
        raise place.error(f"found {len(fields)} columns; must be class x y width height, or class and a polygon{hint}")
    category = as_number(fields[0], place._replace(field="class"), "a whole number")
    if category not in labels:
        known = f"{min(labels)}…{max(labels)}"
        raise place._replace(field="class").error(f"found {brief(fields[0])}; must be the number of a class, {known}")
    shares = [_share(text, place) for text in (fields[1:] if is_polygon else fields[1:5])]
    if is_polygon:
        problems.add(place.problem("note", "polygon", "a polygon counts as the box around it"))
        xs, ys = shares[::2], shares[1::2]
        return labels[int(category)], (min(xs), min(ys), max(xs), max(ys))
    x, y, width, height = shares
    return labels[int(category)], (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _share(text: str, place: Place) -> float:
    share = as_number(text, place)
    if abs(share) > _MAX_SHARE:
        raise place.error(f"found {brief(text)}; must be a share of the picture in 0…1, not pixels")
    return share
