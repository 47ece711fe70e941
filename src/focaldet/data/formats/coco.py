"""COCO json under any name: finding such files below a folder, and reading them.

The split of a file is in its name (`instances_train2017.json`, `val.json`, `my-train.json`) or in that of a folder
above it (`train/_annotations.coco.json`, `train/labels.json`); a file whose path names none is the split `all`. Images
are looked for in the folder that is named after the split, in `images/` or `data/`, and beside the file.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from focaldet.data.dataset import CROWD, DIFFICULT, Classes
from focaldet.data.formats.coco_rows import AnnotationRows, read_plain
from focaldet.data.formats.image_folders import look_near, usual_folders
from focaldet.data.formats.json_files import json_kind, read_json
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import DatasetLayout, Lookup, Records
from focaldet.data.formats.split_names import role_in_path, role_of, split_word
from focaldet.data.formats.table import Table
from focaldet.data.formats.text import brief, list_names, plain_numbers
from focaldet.data.problems import Problems
from focaldet.errors import DataError
from focaldet.types import ImageSize

_NAMED = re.compile(r"(?:instances|annotations)_(?P<named>.+)")
# Files of one set, of which the first kind that there is holds the boxes.
_OTHER_TASKS = re.compile(r"(?:person_keypoints|captions|stuff|panoptic|image_info)_", re.IGNORECASE)
# What Label Studio, FiftyOne, Roboflow and others call the one file of an export.
_EXPORTS = ("result.json", "labels.json", "coco.json", "annotations.json", "_annotations.coco.json", "instances.json")
_ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "json")
_MOST_JSON_FILES = 200  # more json files in a folder than this are one for each image
_WHOLE_PIXELS = re.compile(r"\s*(\d{1,9})(?:\.0*)?\s*", re.ASCII)


def find_coco(listing: Listing, file: Path | None = None) -> DatasetLayout | None:
    """The COCO files below a folder, or the one file `file`; None where there is none.

    Raises:
        DataError: there are two files for one split.
    """
    if file is not None:
        if file.suffix.lower() != ".json" or json_kind(file) not in ("coco", None):
            return None
        inside = file.parent.name.lower() in _ANNOTATION_FOLDERS
        base = Listing(file.parent.parent if inside else file.parent, follow_links=listing.follow_links)
        return DatasetLayout("coco", base.root, {"all": (file,)}, listing=base)
    files = list(_candidates(listing))
    kept = [pair for pair in files if not _OTHER_TASKS.match(pair[1].name)] or files
    unnamed = [pair for pair in kept if pair[0] == "all" and pair[1].name.lower() in _EXPORTS]
    if len(unnamed) == 1:
        kept = [pair for pair in kept if pair[0] != "all" or pair is unnamed[0]]
    layout = DatasetLayout.of_files("coco", listing.root, kept, listing=listing)
    chosen = {file for _, file in kept}
    ignored = tuple(file for _, file in files if file not in chosen and not _OTHER_TASKS.match(file.name))
    return replace(layout, ignored=ignored) if layout and ignored else layout


def _candidates(listing: Listing) -> Iterator[tuple[str, Path]]:
    by_folder: dict[str, list[str]] = {}
    for path in listing.with_suffix(".json"):
        by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    for paths in by_folder.values():
        for path in paths if len(paths) <= _MOST_JSON_FILES else ():
            file = listing.root / path
            kind = json_kind(file)
            if kind == "coco" or (kind is None and _is_damaged(file)):
                yield split_of(path), file


def _is_damaged(file: Path) -> bool:
    """Whether a file that is named as one with annotations is not JSON, which has to be said and not passed over."""
    stem = file.stem.removesuffix(".coco")
    if not (_NAMED.fullmatch(stem) or role_of(stem) or stem.endswith("annotations")):
        return False
    try:
        read_json(file, _slim)
    except DataError:
        return True
    return False


def split_of(path: str) -> str:
    """The split that a file's name or, failing that, its folders name, as they spell it; `all` where none is named."""
    stem = PurePosixPath(path).stem.removesuffix(".coco").strip("_-. ")
    if match := _NAMED.fullmatch(stem):
        return match["named"]
    return split_word(stem) or role_in_path(path) or "all"


def read_coco(layout: DatasetLayout, splits: Sequence[str], reading: Reading) -> list[Records]:
    """The records of some splits of a layout from `find_coco`.

    Raises:
        DataError: the file is not well-formed COCO json; names the record and field.
    """
    listing = layout.listing or Listing(layout.root, follow_links=reading.follow_links)
    return [
        read_coco_file(layout.splits[split][0], replace(reading, problems=Problems()), name=split, listing=listing)
        for split in splits
    ]


def read_coco_file(
    file: Path, reading: Reading | None = None, *, name: str, listing: Listing | None = None, look_up: bool = True
) -> Records:
    """The records of one COCO json. `reading.images` is their folder; with None it is looked for near the file.

    Without `look_up` no image is looked for, and names may be anything.

    Crowd regions are flagged. Category ids may be sparse: labels are their positions in ascending order of ids.

    Raises:
        DataError: the file is not well-formed COCO json; names the record and field.
    """
    reading = reading or Reading()
    plain = read_plain(file)
    document = read_json(file, _slim) if plain is None else plain.document
    image_rows = Table(document, "images", file=file, reading=reading)
    table = Table(document, "annotations", file=file, reading=reading)
    classes = _coco_classes(Table(document, "categories", file=file, reading=reading), reading)
    image_ids = image_rows.identifiers()
    names = image_rows.column("file_name", (str,), "the name of an image file", stand_in="")
    sizes = _stated_sizes(image_rows)
    images = image_rows.good
    annotations = (
        _check_annotations(table, [image_ids[i] for i in images], classes.category_ids, reading)
        if plain is None
        else plain.annotations
    )
    flags = _flags(annotations, reading)
    origin, sides = annotations.xywh[:, :2], annotations.xywh[:, 2:]
    stated = [names[i] for i in images]
    root, lookup = _find_images(file, name, stated, reading, listing) if look_up else (file.parent, None)
    rows = annotations.good
    kept = slice(None) if len(rows) == len(flags) else torch.tensor(rows, dtype=torch.int64)
    return Records(
        name=name,
        source=file,
        root=root,
        classes=classes,
        image_ids=[image_ids[i] for i in images],
        paths=stated,
        stated_sizes=[sizes[i] for i in images],
        owners=annotations.owners[kept],
        boxes=torch.cat([origin, origin + sides], 1)[kept],
        sides=sides[kept],
        labels=annotations.labels[kept],
        flags=flags[kept],
        areas=annotations.areas[kept],
        image_location=lambda k: image_rows.location(images[k], "file_name"),
        box_location=lambda k: annotations.location(rows[k], "bbox"),
        problems=reading.problems,
        lookup=lookup,
        annotation_files=(file,),
    )


def _check_annotations(
    table: Table, image_ids: Sequence[int], category_ids: Sequence[int], reading: Reading
) -> AnnotationRows:
    """The annotations of a file that is not plain; every fault is refused, listed or taken with a warning."""
    owners, labels = ({known: k for k, known in enumerate(ids)} for ids in (image_ids, category_ids))
    table.identifiers(default=None)
    _take_polygons(table, reading)
    xywh = table.boxes("bbox")
    owner_column = table.references("image_id", owners, "images", gone="box without image")
    label_column = table.references("category_id", labels, "categories")
    crowds, ignored = (torch.tensor(table.flags(key), dtype=torch.uint8) for key in ("iscrowd", "ignore"))
    areas = table.numbers("area")
    return AnnotationRows(
        owners=torch.tensor(owner_column, dtype=torch.int64),
        labels=torch.tensor(label_column, dtype=torch.int64),
        xywh=xywh,
        areas=areas,
        crowds=crowds,
        ignored=ignored,
        good=table.good,
        location=table.location,
    )


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    """The record without masks and key points, which are nine tenths of COCO's file and of the memory for it.

    Of a polygon without a box the box around it stays, as `polygon`.
    """
    polygons = record.pop("segmentation", None)
    record.pop("keypoints", None)
    if polygons and not record.get("bbox") and (box := _polygon_box(polygons)) is not None:
        record["polygon"] = box
    return record


def _polygon_box(polygons: Any) -> list[float] | None:
    """The box x, y, width, height around COCO's polygons, lists of x, y, x, y …; None for anything else."""
    if not isinstance(polygons, list) or not all(isinstance(each, list) for each in polygons):
        return None
    xs, ys = ([value for each in polygons for value in each[start::2]] for start in (0, 1))
    if not ys or len(xs) != len(ys) or plain_numbers([*xs, *ys]) is None:
        return None
    return [float(value) for value in (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))]


def _take_polygons(annotations: Table, reading: Reading) -> None:
    """Give the annotations that have a polygon and no box the box around it."""
    for i, row in enumerate(annotations.rows):
        if "polygon" in row and not row.get("bbox") and isinstance(row["polygon"], list):
            message = "there is a polygon and no box; the box around the polygon is taken"
            reading.accept_loosely(annotations.location(i, "bbox"), "box from polygon", message)
            row["bbox"] = row["polygon"]


def _coco_classes(categories: Table, reading: Reading) -> Classes:
    ids = categories.identifiers()
    names = categories.column("name", (str,), "a text", stand_in="")
    if not ids:
        raise DataError("is empty; a data set needs at least one class", file=categories.file, field="categories")
    categories.require(names, str.strip, "name", "a text that is not empty", stand_in="")
    known = categories.good
    seen: set[str] = set()
    for i in known:
        if names[i] in seen:
            message = f"{brief(names[i])} is the name of two classes; they stay two classes"
            reading.problems.add(categories.location(i, "name").problem("warning", "class name twice", message))
        seen.add(names[i])
    order = sorted(known, key=ids.__getitem__)
    return Classes(tuple(names[i] for i in order), tuple(ids[i] for i in order))


def _stated_sizes(images: Table) -> list[ImageSize | None]:
    """The sizes that the file states, which only serve to tell what differs; None where it states none or nonsense."""
    columns = [_pixel_column(images, key) for key in ("height", "width")]
    pairs = zip(*columns, strict=True)
    return [None if height is None or width is None else ImageSize(height, width) for height, width in pairs]


def _pixel_column(images: Table, key: str) -> list[int | None]:
    values = [row.get(key) for row in images.rows]
    if set(map(type, values)) <= {int} and all(1 <= value < 2**31 for value in values):
        return values
    for i, value in enumerate(values):
        if value is None or (type(value) is int and 1 <= value < 2**31):
            continue
        match = _WHOLE_PIXELS.fullmatch(value if isinstance(value, str) else repr(value))
        pixels = int(match[1]) or None if match else None
        outcome = f"taken as {pixels}" if pixels else "no number of pixels; the size of the image file counts"
        images.reading.accept_loosely(images.location(i, key), "loose value", f"got {brief(value)}: {outcome}")
        values[i] = pixels
    return values


def _flags(annotations: AnnotationRows, reading: Reading) -> UInt8[Tensor, " M"]:
    """Crowds, and objects with the flag `ignore`, which are neither object nor background."""
    crowds, ignored = annotations.crowds, annotations.ignored
    rows = (ignored * (1 - crowds)).nonzero()[:, 0].tolist()
    message = "has the flag ignore: neither object nor background"
    reading.problems.add_all(
        "note",
        "box ignored by flag",
        len(rows),
        lambda k: annotations.location(rows[k], "ignore").problem("note", "box ignored by flag", message),
    )
    return crowds * CROWD + ignored * DIFFICULT * (1 - crowds)


def _find_images(
    file: Path, name: str, names: Sequence[str], reading: Reading, listing: Listing | None
) -> tuple[Path, Lookup]:
    """The folder of the images, and where else to look for them."""
    if reading.images is not None:
        listing, bases = Listing(reading.images, follow_links=reading.follow_links), [""]
    else:
        listing = listing or Listing(_base_of(file), follow_links=reading.follow_links)
        near = (listing.relative(path) for path in (_base_of(file), file.parent))
        bases = [*(base for base in near if base is not None), ""]
    split = split_of(file.name)
    others = split_of(listing.relative(file) or file.name)
    splits = [file.stem if split == "all" else split, others]
    placed = look_near(listing, bases, splits, names)
    if placed is None:
        usual = list_names(str(listing.root / path) for path in usual_folders(bases[0], splits))
        raise DataError(f"has no folder of images; looked for {usual}", file=file)
    root, lookup = placed
    return root, replace(lookup, split=name)


def _base_of(file: Path) -> Path:
    return file.parent.parent if file.parent.name.lower() in _ANNOTATION_FOLDERS else file.parent
