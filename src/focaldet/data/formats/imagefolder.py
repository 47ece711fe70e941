"""Hugging Face's `imagefolder`: images, and in `metadata.jsonl` a line for each with `file_name` and `objects`.

`objects` holds the lists `bbox` (x, y, width, height in pixels) and `categories` (numbers or names; also `category`,
`labels` or `label`), or is a list of objects with one of each. A line without objects is an image without boxes.
The files lie in the folders of the splits, or one at the top names images in them. Numbers are named by `classes.txt`
at the top, one name in each line; without it class 3 is called "3".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from focaldet.data.dataset import Classes
from focaldet.data.formats.coco import split_of
from focaldet.data.formats.json_files import parse_json
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import BoxRows, DatasetLayout, Lookup, Records
from focaldet.data.formats.split_names import role_in_path
from focaldet.data.formats.text import brief, plain_numbers, read_lines
from focaldet.data.problems import Location, Problems
from focaldet.errors import DataError

_METADATA = "metadata.jsonl"
_CATEGORIES = ("categories", "category", "labels", "label", "category_id")


def find_imagefolder(listing: Listing, file: Path | None = None) -> DatasetLayout | None:
    """The metadata files below a folder, or the one file `file`; None where there is none."""
    if file is not None:
        if file.suffix.lower() != ".jsonl":
            return None
        base = Listing(file.parent, follow_links=listing.follow_links)
        return DatasetLayout("imagefolder", base.root, {"all": (file,)}, _names_file(base), listing=base)
    paths = [path for path in listing.with_suffix(".jsonl") if path.rpartition("/")[2].lower() == _METADATA]
    files = [(split_of(path), listing.root / path) for path in paths]
    description = _names_file(listing)
    if [split for split, _ in files] == ["all"]:  # one file for all, with the split in the names of the images
        splits = {role_in_path(name) or "all" for name in _stated_names(files[0][1])}
        if splits - {"all"}:
            every = dict.fromkeys(sorted(splits), (files[0][1],))
            return DatasetLayout("imagefolder", listing.root, every, description, listing=listing, extra="shared")
    return DatasetLayout.of_files("imagefolder", listing.root, files, description, listing=listing)


def _names_file(listing: Listing) -> Path | None:
    names = [path for path in listing.with_suffix(".txt") if path.rpartition("/")[2] in ("classes.txt", "labels.txt")]
    return listing.root / min(names, key=lambda path: (path.count("/"), path)) if names else None


def _stated_names(file: Path) -> Iterator[str]:
    try:
        for _, line in read_lines(file):
            value = parse_json(line)
            if isinstance(value, dict) and isinstance(value.get("file_name"), str):
                yield value["file_name"].replace("\\", "/")
    except (ValueError, RecursionError, DataError):
        return


@dataclass(slots=True)
class _Lines:
    """The images and boxes of one file; categories are numbers or names as the file has them."""

    file: Path
    names: list[str] = field(default_factory=list)
    locations: list[Location] = field(default_factory=list)
    boxes: list[tuple[int, tuple[float, float, float, float], int | str, Location]] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)


def read_imagefolder(layout: DatasetLayout, splits: Sequence[str], reading: Reading) -> list[Records]:
    """The records of some splits of a layout from `find_imagefolder`; the classes are those of all splits.

    Raises:
        DataError: a line is not as described.
    """
    listing = layout.listing or Listing(layout.root, follow_links=reading.follow_links)
    files = dict.fromkeys(paths[0] for paths in layout.splits.values())
    lines = {file: _read_lines(file, replace(reading, problems=Problems())) for file in files}
    classes = _object_classes(layout.description, list(lines.values()), layout.root)
    records = []
    for split in splits:
        own = lines[layout.splits[split][0]]
        records.append(_line_records(split, own, classes, listing, reading, shared=layout.extra == "shared"))
        own.problems = Problems()  # those of a file are reported once
    return records


def _object_classes(description: Path | None, files: Sequence[_Lines], root: Path) -> Classes:
    used = {category for lines in files for _, _, category, _ in lines.boxes}
    if description is not None:
        listed = [line for _, line in read_lines(description)]
        known = {*listed, *range(len(listed))}
        if listed and used <= known:
            return Classes(tuple(listed), tuple(range(len(listed))))
    if not used:
        raise DataError("no line has an object, so there are no classes", file=root)
    if all(isinstance(category, int) for category in used):
        numbers = sorted(category for category in used if isinstance(category, int))
        return Classes(tuple(map(str, numbers)), tuple(numbers))
    names = sorted(map(str, used))
    return Classes(tuple(names), tuple(range(len(names))))


def _read_lines(file: Path, reading: Reading) -> _Lines:
    lines = _Lines(file, problems=reading.problems)
    for number, text in read_lines(file):
        location = Location(file, f"line {number}")
        with reading.record():
            try:
                value = parse_json(text)
            except (ValueError, RecursionError) as error:
                raise location.error(f"is not valid JSON: {brief(str(error))}") from None
            name = value.get("file_name") if isinstance(value, dict) else None
            if not isinstance(name, str) or not name.strip():
                raise location._replace(field="file_name").error(
                    f"got {brief(name)}; must be the name of an image file"
                )
            boxes = list(_objects(value.get("objects"), location._replace(field="objects")))
            lines.boxes += [(len(lines.names), box, category, location) for box, category in boxes]
            lines.names.append(name)
            lines.locations.append(location)
    return lines


def _objects(value: Any, location: Location) -> Iterator[tuple[tuple[float, float, float, float], int | str]]:
    """The xyxy boxes and categories of one line."""
    if value is None:
        return
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        boxes = [item.get("bbox") for item in value]
        categories = [next((item[key] for key in _CATEGORIES if key in item), None) for item in value]
    elif isinstance(value, dict):
        boxes = value.get("bbox", [])
        given = [value[key] for key in _CATEGORIES if key in value]
        categories = given[0] if given else []
    else:
        raise location.error(f"got {brief(value)}; must be an object with bbox and categories")
    if not isinstance(boxes, list) or not isinstance(categories, list) or len(boxes) != len(categories):
        raise location.error(f"got {brief(value)}; must have as many categories as boxes")
    for box, category in zip(boxes, categories, strict=True):
        usable = isinstance(box, list) and len(box) == 4
        numbers = plain_numbers(box) if usable else None
        if numbers is None:
            raise location.error(f"got {brief(box)}; must be a list of four numbers [x, y, width, height]")
        if type(category) not in (int, str) or category == "":
            raise location.error(f"got {brief(category)}; must be the number or name of a class")
        if isinstance(category, int) and not 0 <= category < 2**31:
            raise location.error(f"got {brief(category)}; must be a class number from 0")
        x, y, width, height = numbers
        yield (x, y, x + width, y + height), category


def _line_records(
    split: str, lines: _Lines, classes: Classes, listing: Listing, reading: Reading, *, shared: bool
) -> Records:
    names = [name.replace("\\", "/") for name in lines.names]
    mine = [i for i, name in enumerate(names) if not shared or (role_in_path(name) or "all") == split]
    index = {i: k for k, i in enumerate(mine)}
    labels: dict[int | str, int] = {name: label for label, name in enumerate(classes.names)}
    labels |= {number: label for label, number in enumerate(classes.category_ids)}
    rows = BoxRows()
    for i, box, category, location in lines.boxes:
        if i in index:
            rows.add(index[i], box, labels[category], location._replace(field="objects"))
    if reading.images is not None:
        listing = Listing(reading.images, follow_links=reading.follow_links)
    beside = listing.relative(lines.file.parent) or ""
    return Records(
        name=split,
        source=lines.file,
        root=listing.root / beside,
        classes=classes,
        image_ids=range(1, len(mine) + 1),
        paths=[names[i] for i in mine],
        stated_sizes=[None] * len(mine),
        image_location=lambda k: lines.locations[mine[k]]._replace(field="file_name"),
        problems=lines.problems,
        lookup=Lookup(listing, [beside], split=split),
        annotation_files=(lines.file,),
        **rows.columns(),
    )
