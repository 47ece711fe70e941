"""YOLO and darknet: images, one txt file of boxes for each, and a file that names the classes.

The file with the classes is a `data.yaml`, an `obj.data` with its `obj.names`, `classes.txt` or `_darknet.labels`.
Splits are those of the yaml or `obj.data`, else the lists `train.txt`, `valid.txt` …, else folders of such names.

The boxes of `images/train/a.jpg` stand in `labels/train/a.txt` (the last folder called `images` becomes `labels`), or
beside the image, or in any folder that differs from the image's by such words alone. An image without such a file is
background; a split without any such file is an error.

A row is `class x y width height`: the center and size of the box as fractions of the image. A row `class x1 y1 x2 y2 …`
with three or more points is a polygon and counts as the box around it. With `kpt_shape` in the yaml, rows are boxes
with key points behind them, which are ignored. A sixth column is a score: a file of predictions, which is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os.path import commonpath, normpath
from pathlib import Path
from typing import NamedTuple

from focaldet.data.dataset import Classes
from focaldet.data.formats.classes import read_class_file
from focaldet.data.formats.listing import Listing, stem_of
from focaldet.data.formats.locate import Names, group_paths, locate_names, other_images, without_prefix
from focaldet.data.formats.pairs import ImagePairs, pair_key
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import BoxRows, DatasetLayout, Lookup, Records
from focaldet.data.formats.text import as_number, brief, loose_number, read_lines, show_path, what_is_at
from focaldet.data.formats.yolo_layout import find_yolo
from focaldet.data.problems import Location, Problems
from focaldet.errors import DataError

__all__ = ["find_yolo", "read_yolo"]

# Fractions beyond this are not those of a box at the border but pixels.
_MAX_FRACTION = 2.0


def read_yolo(layout: DatasetLayout, splits: Sequence[str], reading: Reading) -> list[Records]:
    """The records of some splits of a layout from `find_yolo`.

    Category ids are the class numbers of the file, image ids the position in sorted order + 1.

    Raises:
        DataError: the yaml, a list or a label file is not as described; names the line.
    """
    if layout.description is None:
        raise DataError("no file names the classes (data.yaml or classes.txt)", file=layout.root)
    classes, key_points = read_class_file(layout.description)
    labels = {category: label for label, category in enumerate(classes.category_ids)}
    records = []
    for split in splits:
        members = _YOLOSplit(layout, split, reading)
        rows = _Rows(labels, members.problems, key_points=key_points)
        records.append(members.records(split, rows, classes=classes))
    return records


class _YOLOImage(NamedTuple):
    """An image by its path below the listing of its folder."""

    listing: Listing
    path: str


class _YOLOSplit:
    """The images and label files of one split."""

    def __init__(self, layout: DatasetLayout, split: str, reading: Reading) -> None:
        self.layout, self.sources, self.problems = layout, layout.splits[split], Problems()
        self.reading = replace(reading, problems=self.problems)
        self.base = _normal(reading.images or layout.root)
        self.listing = (layout.listing if reading.images is None else None) or self._list(self.base)
        self.is_elsewhere = layout.listing is None and reading.images is None
        self._labels: dict[int, _LabelFiles] = {}
        extra = layout.extra or {}
        lists = [source for source in self.sources if what_is_at(source) == "file"]
        folders = [source for source in self.sources if what_is_at(source) == "folder"]
        if len(lists) + len(folders) < len(self.sources):
            missing = next(source for source in self.sources if not what_is_at(source))
            problem = f"{show_path(missing)} is neither a folder nor a list file"
            raise DataError(problem, file=extra.get("lists") or layout.description or layout.root, field=split)
        groups = extra.get("groups", {})
        chosen = [_YOLOImage(self.listing, path) for path in groups.get(split, ())]
        if not chosen:
            chosen = [image for folder in folders for image in self._images_in(_normal(folder))]
        chosen += [image for file in lists for image in self._images_of_list(file)]
        starts = [_normal(folder) for folder in folders]
        self.root = Path(commonpath([*starts, self.base] if lists or not starts or groups else starts))
        by_path: dict[str, _YOLOImage] = {}
        for image in chosen:
            path = self._below_root(image)
            if path in by_path:
                location = Location(self.sources[0], path)
                self.problems.add(location.problem("warning", "image listed twice", "it counts once"))
            by_path[path] = image
        self.paths = sorted(by_path)
        self.images = [by_path[path] for path in self.paths]

    def _list(self, folder: Path) -> Listing:
        return Listing(folder, follow_links=self.reading.follow_links)

    def _below_root(self, image: _YOLOImage) -> str:
        return f"{_normal(image.listing.root)}/{image.path}"[len(f"{self.root}/") :]

    def _images_in(self, folder: Path) -> Iterator[_YOLOImage]:
        """The images below a folder; of one that lies elsewhere its own files are listed, and the labels near it."""
        listing = self.listing
        relative = None if self.is_elsewhere else listing.relative(folder)
        if relative is None:
            parts = folder.parts
            above = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else len(parts)
            listing = self._list(Path(*parts[:above]))
            relative = listing.relative(folder) or ""
        prefix = f"{relative}/" if relative else ""
        return (_YOLOImage(listing, path) for path in listing.images if path.startswith(prefix))

    def _images_of_list(self, file: Path) -> Iterator[_YOLOImage]:
        """The images of a list file: paths from the data folder, from the list (`./`), or absolute but inside."""
        numbered = list(read_lines(file))
        beside = self.listing.relative(_normal(file.parent))
        names = Names(
            [line for _, line in numbered], lambda i: Location(file, f"line {numbered[i][0]}"), self.listing.root
        )
        dotted = any(line.startswith(("./", ".\\")) for line in names.names)
        folders = [""] if beside is None else [beside, ""] if dotted else ["", beside]
        _, paths = locate_names(names, Lookup(self.listing, folders), self.reading, self.problems)
        return (_YOLOImage(self.listing, path) for path in paths)

    def _label_files(self, listing: Listing) -> "_LabelFiles":
        if id(listing) not in self._labels:
            self._labels[id(listing)] = _LabelFiles(listing, self._other_texts())
        return self._labels[id(listing)]

    def _other_texts(self) -> set[Path]:
        """Text files that are no labels: lists and the file with the classes."""
        layout = self.layout
        every = [source for sources in layout.splits.values() for source in sources]
        return {_normal(path) for path in (*every, layout.description) if path is not None}

    def records(self, split: str, rows: "_Rows", *, classes: Classes) -> Records:
        """The records of the split from its label files."""
        labels = [self._label_of(image) for image in self.images]
        if labels and not any(labels):
            candidate = _label_candidates((self.root / self.paths[0]).as_posix())[0]
            raise DataError(
                f"none of its {len(labels)} images has a label file; looked for {candidate}", file=self.sources[0]
            )
        for i, file in enumerate(labels):
            if file is not None:
                with self.reading.record("file unreadable"):
                    rows.read(i, file, self.reading)
        self._note_labels_without_image(labels)
        return Records(
            name=split,
            source=self.sources[0],
            root=self.root,
            classes=classes,
            image_ids=range(1, len(self.paths) + 1),
            paths=self.paths,
            stated_sizes=[None] * len(self.paths),
            image_location=lambda i: Location(self.sources[0], self.paths[i]),
            fractions=True,
            problems=self.problems,
            annotation_files=[file for file in labels if file is not None],
            bounds=self.base if self.root.is_relative_to(self.base) else None,
            **rows.boxes.columns(),
        )

    def _label_of(self, image: _YOLOImage) -> Path | None:
        path = self._label_files(image.listing).find(image.path)
        if path is not None:
            return image.listing.root / path
        near_classes = self.layout.listing  # where labels are while the images are elsewhere
        if self.reading.images is not None and near_classes is not None:
            path = self._label_files(near_classes).find(image.path)
            return None if path is None else near_classes.root / path
        return None

    def _note_labels_without_image(self, used: Sequence[Path | None]) -> None:
        """Warn of label files in the folders of the split that belong to no image at all."""
        known = {str(path) for path in used}
        for files in self._labels.values():
            mine = {
                _folder(path)
                for image in self.images
                if image.listing is files.listing
                for path in _label_candidates(image.path)
            }
            alone = [path for path in files.without_image(mine) if str(files.listing.root / path) not in known]
            others = files.unread_images if alone else {}
            for path in alone:
                reason = (
                    f"its image {other} is of a kind that is not read"
                    if (other := others.get(pair_key(path)))
                    else "no image of its name is there"
                )
                location = Location(files.listing.root / path)
                self.problems.add(location.problem("warning", "label without image", f"{reason}; not used"))


class _LabelFiles:
    """The label files below a listing."""

    def __init__(self, listing: Listing, no_labels: set[Path]) -> None:
        self.listing = listing
        root = _normal(listing.root)
        self.texts = [path for path in listing.with_suffix(".txt") if root / path not in no_labels]
        self._set = set(self.texts)
        self._folded = {path.casefold(): path for path in self.texts}

    def find(self, image: str) -> str | None:
        """The label file of an image."""
        for candidate in _label_candidates(image):
            if candidate in self._set:
                return candidate
        for candidate in _label_candidates(image):
            if (path := self._folded.get(candidate.casefold())) is not None:
                return path
        for table, key in ((self.by_key, pair_key(image)), (self._by_bare_key, _bare_key(image))):
            if len(same := table.get(key, ())) == 1:
                return same[0]
        return None

    @cached_property
    def by_key(self) -> Mapping[str, Sequence[str]]:
        """The label files of each key."""
        return group_paths(self.texts, pair_key)

    @cached_property
    def _by_bare_key(self) -> Mapping[str, Sequence[str]]:
        return group_paths(self.texts, _bare_key)

    def without_image(self, folders: set[str]) -> list[str]:
        """The label files in these folders that belong to no image."""
        pairs = ImagePairs(self.listing)
        alone = (path for path in self.texts if _folder(path) in folders and not pairs.images_of(path))
        return [path for path in alone if _is_label_file(self.listing.root / path)]

    @property
    def unread_images(self) -> Mapping[str, str]:
        """Images of kinds that are not read, by the key of their label file."""
        return {pair_key(path): path for path in other_images(self.listing)}


def _is_label_file(file: Path) -> bool:
    """Whether a text file begins with a row of boxes, or is empty; not a README."""
    try:
        first = next((line for _, line in read_lines(file)), "0 0 0 0 0")
    except DataError:
        return True
    fields = first.split()
    return len(fields) >= 5 and all(loose_number(field) is not None for field in fields)


def _bare_key(path: str) -> str:
    """The key of a path without the prefix of an upload."""
    folder, slash, name = pair_key(path).rpartition("/")
    return folder + slash + without_prefix(name)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _normal(path: Path) -> Path:
    """The absolute path without `..`; links are not followed, because labels are looked for beside the link."""
    return Path(normpath(path.absolute()))


def _label_candidates(image: str) -> list[str]:
    beside = f"{stem_of(image)}.txt"
    parts = beside.split("/")
    if "images" not in parts[:-1]:
        return [beside]
    last = len(parts) - 1 - parts[::-1].index("images")
    return ["/".join([*parts[:last], "labels", *parts[last + 1 :]]), beside]


class _Rows:
    """Reads the rows of label files."""

    def __init__(self, labels: Mapping[int, int], problems: Problems, *, key_points: bool) -> None:
        self.labels, self.problems, self.key_points = labels, problems, key_points
        self.boxes = BoxRows()

    def read(self, image: int, file: Path, reading: Reading) -> None:
        """Take the rows of the label file of an image."""
        for number, line in read_lines(file):
            location = Location(file, f"line {number}")
            with reading.record():
                label, box = self._parse(line, location)
                self.boxes.add(image, box, label, location)

    def _parse(self, line: str, location: Location) -> tuple[int, tuple[float, float, float, float]]:
        """The label and the xyxy box, in fractions of the image, of one row."""
        fields = line.split()
        is_polygon = len(fields) >= 7 and len(fields) % 2 == 1 and not self.key_points
        if len(fields) != 5 and not is_polygon and not (self.key_points and len(fields) > 5):
            hint = "; a sixth column is a score: are these predictions?" if len(fields) == 6 else ""
            raise location.error(
                f"got {len(fields)} columns; must be class x y width height, or class and a polygon{hint}"
            )
        category = as_number(fields[0], location._replace(field="class"), "a whole number")
        if category not in self.labels:
            known = f"{min(self.labels)}…{max(self.labels)}"
            allowed = f"must be the number of a class, {known}"
            raise location._replace(field="class").error(f"got {brief(fields[0])}; {allowed}")
        numbers = [_parse_fraction(text, location) for text in (fields[1:] if is_polygon else fields[1:5])]
        if is_polygon:
            self.problems.add(location.problem("note", "polygon", "a polygon counts as the box around it"))
            xs, ys = numbers[::2], numbers[1::2]
            return self.labels[int(category)], (min(xs), min(ys), max(xs), max(ys))
        if len(fields) > 5:
            self.problems.add(location.problem("note", "key points", "key points behind the box are not used"))
        x, y, width, height = numbers
        return self.labels[int(category)], (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _parse_fraction(text: str, location: Location) -> float:
    fraction = as_number(text, location)
    if abs(fraction) > _MAX_FRACTION:
        raise location.error(f"got {brief(text)}; must be a fraction of the image in 0…1, not pixels")
    return fraction
