"""CSV in the dialect of keras-retinanet: rows `path,x1,y1,x2,y2,class`, and classes as rows `name,id`.

Paths start from the folder of the file. A row `path,,,,,` is an image without objects. The classes stand in
`classes.csv` beside it; without such a file they are the names in all splits, in alphabetical order. A header row
is skipped.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from focaldet.data.dataset import Classes
from focaldet.data.formats.records import BoxRows, DatasetLayout, Records, path_inside
from focaldet.data.formats.text import as_number, brief, hint, read_text
from focaldet.data.problems import Location
from focaldet.errors import DataError

_CLASS_FILES = ("classes.csv", "class_mapping.csv", "class_list.csv", "mapping.csv", "labels.csv")
_SPLIT_FILE = re.compile(
    r"(?:annotations?_)?(?P<split>train|training|val|valid|validation|test)(?:_annotations?)?|_?annotations?",
    re.IGNORECASE,
)
_CSV_CORNERS = ("x1", "y1", "x2", "y2")
_HEADERS = ([*_CSV_CORNERS], ["xmin", "ymin", "xmax", "ymax"])


def find_csv(path: Path) -> DatasetLayout | None:
    """The annotation files in a folder, or the one file that `path` is; None where there is none.

    Raises:
        DataError: there are two files for one split.
    """
    if path.is_file():
        is_csv = path.suffix.lower() == ".csv"
        return DatasetLayout("csv", path.parent, {"all": (path,)}, _class_file(path.parent)) if is_csv else None
    matches = ((file, _SPLIT_FILE.fullmatch(file.stem)) for file in sorted(path.glob("*.csv")))
    files = (((match["split"] or "all").lower(), file) for file, match in matches if match)
    return DatasetLayout.of_files("csv", path, files, _class_file(path))


def _class_file(folder: Path) -> Path | None:
    return next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)


def read_csv(layout: DatasetLayout, splits: Sequence[str], *, images: Path | None) -> list[Records]:
    """The records of some splits of a layout from `find_csv`. Image ids count from 1 in order of appearance.

    Raises:
        DataError: a row that is not as described; names the line.
    """
    needed = splits if layout.description else layout.splits
    rows = {split: list(_rows(layout.splits[split][0], 6)) for split in needed}
    if layout.description:
        classes = _read_class_file(layout.description)
    else:
        classes = _classes_of_rows(layout, list(chain.from_iterable(rows.values())))
    return [_records(split, layout.splits[split][0], rows[split], classes, images) for split in splits]


def _rows(file: Path, num_fields: int) -> Iterator[tuple[Location, list[str]]]:
    """The rows that are not empty, their fields stripped, with their locations."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""))
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"is not valid CSV: {error}", file=file, record=f"line {reader.line_num}") from None
        if row is None:
            return
        fields, location = [field.strip() for field in row], Location(file, f"line {reader.line_num}")
        if not any(fields) or (reader.line_num == 1 and [field.lower() for field in fields[1:5]] in _HEADERS):
            continue
        if len(fields) != num_fields:
            form = "path,x1,y1,x2,y2,class" if num_fields == 6 else "name,id"
            raise location.error(f"got {len(fields)} fields; must be {form}")
        yield location, fields


def _read_class_file(file: Path) -> Classes:
    """The classes of a file with rows `name,id`, in ascending order of ids."""
    names: dict[int, str] = {}
    for location, (name, text) in _rows(file, 2):
        number = as_number(text, location._replace(field="id"), "a whole number")
        if not name or not number.is_integer() or not 0 <= number < 2**31:
            raise location.error(
                f"got {brief(name)}, {brief(text)}; must be the name of a class and a whole number from 0"
            )
        if int(number) in names or name in names.values():
            raise location.error(f"got {brief(name)}, {brief(text)}; every name and every id must be unique")
        names[int(number)] = name
    if not names:
        raise DataError("names no class", file=file)
    return Classes(tuple(names[number] for number in sorted(names)), tuple(sorted(names)))


def _classes_of_rows(layout: DatasetLayout, rows: Sequence[tuple[Location, list[str]]]) -> Classes:
    names = sorted({fields[5] for _, fields in rows if fields[5]})
    if not names:
        raise DataError("no row has a class and there is no classes.csv, so there are no classes", file=layout.root)
    return Classes(tuple(names), tuple(range(len(names))))


def _records(
    split: str, file: Path, rows: Sequence[tuple[Location, list[str]]], classes: Classes, images: Path | None
) -> Records:
    root = (images or file.parent).absolute()
    labels = {name: label for label, name in enumerate(classes.names)}
    positions: dict[str, int] = {}
    locations: list[Location] = []
    boxes = BoxRows()
    for location, fields in rows:
        path = path_inside(root, fields[0], location._replace(field="path"), absolute=True)
        if path not in positions:
            locations.append(location)
        owner = positions.setdefault(path, len(positions))
        if any(fields[1:]):
            corners = [
                as_number(text, location._replace(field=key))
                for text, key in zip(fields[1:5], _CSV_CORNERS, strict=True)
            ]
            boxes.add(owner, corners, _label(fields[5], labels, location), location)
    return Records(
        name=split,
        source=file,
        root=root,
        classes=classes,
        image_ids=range(1, len(positions) + 1),
        paths=list(positions),
        stated_sizes=[None] * len(positions),
        image_location=locations.__getitem__,
        **boxes.columns(),
    )


def _label(name: str, labels: dict[str, int], location: Location) -> int:
    if name not in labels:
        raise location._replace(field="class").error(f"got {brief(name)}; must be a class{hint(name, labels)}")
    return labels[name]
