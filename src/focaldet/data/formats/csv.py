"""CSV tables with a row for each box, in any of the dialects of `csv_dialects`, and files of classes.

Without a header the rows are those of keras-retinanet, `path,x1,y1,x2,y2,class`; a row `path,,,,,` is an image without
objects. The classes stand in `classes.csv` near the file, as rows `name,id`; without such a file they are the names in
all splits, in alphabetical order. The split is in the name of the file or of a folder above it. Images are looked for
beside the file, in a folder named after the split, and in `images/` or `data/`.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from focaldet.data.dataset import Classes
from focaldet.data.formats.coco import split_of
from focaldet.data.formats.csv_dialects import KERAS, CsvDialect, TableRow, find_dialect
from focaldet.data.formats.image_folders import look_near
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import BoxRows, DatasetLayout, Lookup, Records
from focaldet.data.formats.text import as_number, brief, hint, loose_number, read_head, read_text
from focaldet.data.problems import Location, Problems
from focaldet.errors import DataError

_CLASS_FILES = ("classes.csv", "_classes.csv", "class_mapping.csv", "class_list.csv", "mapping.csv", "labels.csv")
_DESCRIPTION_FILES = ("class-descriptions", "class_descriptions")
_MOST_TABLES = 100
_HEAD_CHARACTERS = 1 << 14


def find_csv(listing: Listing, file: Path | None = None) -> DatasetLayout | None:
    """The annotation files below a folder, or the one file `file`; None where there is none.

    Raises:
        DataError: there are two files for one split.
    """
    if file is not None:
        if file.suffix.lower() != ".csv":
            return None
        base = Listing(file.parent, follow_links=listing.follow_links)
        return DatasetLayout("csv", file.parent, {"all": (file,)}, _class_file(base, file), listing=base)
    tables = [path for path in listing.with_suffix(".csv") if not _is_class_file(listing, path)][:_MOST_TABLES]
    tables = [path for path in tables if _is_table(listing.root / path)]
    if not tables:
        return None
    files = [(_split_of(path), listing.root / path) for path in tables]
    return DatasetLayout.of_files("csv", listing.root, files, _class_file(listing, files[0][1]), listing=listing)


def _split_of(path: str) -> str:
    split = split_of(path)
    return split.lower() if split.lower() in PurePosixPath(path).stem.lower() else split


def _names_classes(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return name in _CLASS_FILES or name.startswith(_DESCRIPTION_FILES)


def _is_class_file(listing: Listing, path: str) -> bool:
    return _names_classes(path) and _has_two_columns(listing.root / path)


def _is_table(file: Path) -> bool:
    """Whether a file begins with a known header, or with a row of keras-retinanet; an empty one counts if its name says
    what it is.
    """
    try:
        first = next(csv.reader(io.StringIO(read_head(file, _HEAD_CHARACTERS), newline="")), None)
    except (OSError, ValueError, csv.Error):
        return _split_of(file.name) != "all"
    if not first:
        return _split_of(file.name) != "all"
    return find_dialect(first) is not None or (len(first) == len(KERAS.columns) and _are_corners(first[1:5]))


def _are_corners(fields: Sequence[str]) -> bool:
    """Whether four fields are numbers, or all empty."""
    texts = [field.strip() for field in fields]
    return not any(texts) or all(loose_number(text) is not None for text in texts)


def _class_file(listing: Listing, table: Path) -> Path | None:
    """The file that names the classes: beside the table, else at the top, else the nearest to it."""
    names = [path for path in listing.with_suffix(".csv") if _names_classes(path)]
    folder = listing.relative(table.parent) or ""
    order = sorted(names, key=lambda path: (path.rpartition("/")[0] != folder, path.count("/"), _priority(path), path))
    usable = (listing.root / path for path in order if listing.root / path != table)
    return next((path for path in usable if _has_two_columns(path)), None)


def _priority(path: str) -> int:
    name = PurePosixPath(path).name.lower()
    return _CLASS_FILES.index(name) if name in _CLASS_FILES else 0


def _has_two_columns(file: Path) -> bool:
    """Whether a file is one of classes and not, as Roboflow's `_classes.csv` of another task, a wide table."""
    try:
        return read_head(file, _HEAD_CHARACTERS).partition("\n")[0].count(",") < 3
    except (OSError, ValueError):
        return True


def read_csv(layout: DatasetLayout, splits: Sequence[str], reading: Reading) -> list[Records]:
    """The records of some splits of a layout from `find_csv`. Image ids count from 1 in order of appearance.

    Raises:
        DataError: a row that is not as described; names the line.
    """
    named = _read_class_file(layout.description) if layout.description else None
    needed = splits if named else layout.splits
    tables = {split: _CsvTable(layout.splits[split][0], replace(reading, problems=Problems())) for split in needed}
    for table in tables.values():
        table.rename(named)
    if named is None or not named.numbered:
        names = sorted({row.name for table in tables.values() for row in table.rows if row.name})
        if not names:
            raise DataError("no row has a class and classes.csv is missing, so there are no classes", file=layout.root)
        classes = Classes(tuple(names), tuple(range(len(names))))
    else:
        classes = named.classes
    listing = layout.listing or Listing(layout.root, follow_links=reading.follow_links)
    return [_table_records(split, tables[split], classes, listing) for split in splits]


class _ClassFile:
    """The classes of a file: `classes` of rows `name,id`, or `displayed` names of rows `id,name` as OpenImages has."""

    def __init__(self, classes: Classes, displayed: dict[str, str]) -> None:
        self.classes, self.displayed = classes, displayed
        self.numbered = not displayed


class _CsvTable:
    """The rows of one file."""

    def __init__(self, file: Path, reading: Reading) -> None:
        self.file, self.reading = file, reading
        self.rows: list[TableRow] = []
        self.dialect: CsvDialect = KERAS
        rows = _read_rows(file)
        for number, (location, fields) in enumerate(rows):
            if number == 0 and (dialect := find_dialect(fields)) is not None:
                self.dialect = dialect
                if dialect.unused:
                    message = f"columns that are not used: {', '.join(map(brief, dialect.unused))}"
                    reading.problems.add(location.problem("note", "columns unused", message))
                continue
            with reading.record():
                self.rows += self.dialect.read(fields, location, reading)

    def rename(self, named: _ClassFile | None) -> None:
        """Give the classes the names that people read, where the file has codes."""
        if named is not None and named.displayed:
            self.rows = [row._replace(name=named.displayed.get(row.name, row.name)) for row in self.rows]


def _read_rows(file: Path) -> Iterator[tuple[Location, list[str]]]:
    """The rows that are not empty, their fields stripped, with their locations."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""))
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"is not valid CSV: {error}", file=file, record=f"line {reader.line_num}") from None
        if row is None:
            return
        fields = [field.strip() for field in row]
        if any(fields):
            yield Location(file, f"line {reader.line_num}"), fields


def _read_class_file(file: Path) -> _ClassFile:
    """The classes of a file with rows `name,id`, in ascending order of ids, or `code,name`."""
    names: dict[int, str] = {}
    rows = list(_read_rows(file))
    if rows and all(len(fields) == 2 and fields[0].startswith("/") for _, fields in rows[-1:]):
        return _ClassFile(Classes((), ()), {fields[0]: fields[1] for _, fields in rows if len(fields) == 2})
    for i, (location, fields) in enumerate(rows):
        if len(fields) != 2:
            raise location.error(f"got {len(fields)} fields; must be name,id")
        name, text = fields
        if i == 0 and [field.lower() for field in fields] in (["name", "id"], ["class", "id"], ["class_name", "id"]):
            continue
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
    return _ClassFile(Classes(tuple(names[number] for number in sorted(names)), tuple(sorted(names))), {})


def _table_records(split: str, table: _CsvTable, classes: Classes, listing: Listing) -> Records:
    file, reading = table.file, table.reading
    labels = {name: label for label, name in enumerate(classes.names)}
    positions: dict[str, int] = {}
    locations: list[Location] = []
    boxes = BoxRows()
    for row in table.rows:
        if row.image not in positions:
            locations.append(row.location)
        owner = positions.setdefault(row.image, len(positions))
        if row.box is not None:
            with reading.record():
                boxes.add(owner, row.box, _label(row.name, labels, row.location), row.location, flag=row.flag)
    bases = [listing.relative(file.parent) or "", ""]
    if reading.images is not None:
        listing, bases = Listing(reading.images, follow_links=reading.follow_links), [""]
    by_stem = table.dialect.by_stem
    root, lookup = look_near(listing, bases, [split], list(positions), by_stem=by_stem) or (
        listing.root,
        Lookup(listing, by_stem=by_stem, split=split),
    )
    return Records(
        name=split,
        source=file,
        root=root.absolute(),
        classes=classes,
        image_ids=range(1, len(positions) + 1),
        paths=list(positions),
        stated_sizes=[None] * len(positions),
        image_location=lambda i: locations[i]._replace(field=table.dialect.columns[0]),
        fractions=table.dialect.scale is not None,
        problems=reading.problems,
        lookup=lookup,
        annotation_files=(file,),
        **boxes.columns(),
    )


def _label(name: str, labels: dict[str, int], location: Location) -> int:
    if name not in labels:
        raise location._replace(field="class").error(f"got {brief(name)}; must be a class{hint(name, labels)}")
    return labels[name]
