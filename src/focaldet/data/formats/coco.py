"""COCO json: finding such files in a folder, and reading them.

Recognized are `annotations/instances_train2017.json` with the images in `train2017/`, `instances_train.json` with
`images/`, Roboflow's `train/_annotations.coco.json` with the images beside it, and any single file.
"""

import gc
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from focaldet.data.dataset import CROWD, Classes
from focaldet.data.formats.records import DatasetLayout, Records, path_inside
from focaldet.data.formats.table import Table
from focaldet.data.formats.text import brief, list_names, unreadable
from focaldet.data.problems import Location, Problems
from focaldet.errors import DataError
from focaldet.types import ImageSize

_ROBOFLOW = "_annotations.coco.json"
_FILE_NAME = re.compile(
    r"(?:instances|annotations)(?:_(?P<named>.+))?|(?P<bare>(?:train|val|valid|validation|test)\d{0,4})"
)
_TRIED_IMAGES = 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # nothing that could lead out of a folder


def find_coco(path: Path) -> DatasetLayout | None:
    """The COCO files in a folder, or the one file that `path` is; None where there is none.

    Raises:
        DataError: there are two files for one split.
    """
    if path.is_file():
        return DatasetLayout("coco", path.parent, {"all": (path,)}) if path.suffix.lower() == ".json" else None
    return DatasetLayout.of_files("coco", path, _candidates(path))


def _candidates(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted((*folder.glob("*.json"), *folder.glob("annotations/*.json"))):
        if match := _FILE_NAME.fullmatch(file.stem):
            yield match["named"] or match["bare"] or "all", file
    for file in sorted(folder.glob(f"*/{_ROBOFLOW}")):
        yield file.parent.name, file
    if (folder / _ROBOFLOW).is_file():
        yield "all", folder / _ROBOFLOW


def read_coco(layout: DatasetLayout, splits: Sequence[str], *, images: Path | None) -> list[Records]:
    """The records of some splits of a layout from `find_coco`.

    Raises:
        DataError: the file is not well-formed COCO json; names the record and field.
    """
    return [read_coco_file(layout.splits[split][0], images=images, name=split) for split in splits]


def read_coco_file(file: Path, *, images: Path | None, name: str) -> Records:
    """The records of one COCO json. `images` is their folder; with None it is looked for beside the file.

    Crowd regions are flagged. Category ids may be sparse: labels are their positions in ascending order of ids.

    Raises:
        DataError: the file is not well-formed COCO json; names the record and field.
    """
    document = _read_json(file)
    image_rows = Table(document, "images", file=file)
    annotations = Table(document, "annotations", file=file)
    problems = Problems()
    classes = _coco_classes(Table(document, "categories", file=file), problems)
    image_ids = image_rows.identifiers()
    names = image_rows.column("file_name", (str,), "the name of an image file")
    root = _image_folder(file, names[:_TRIED_IMAGES], images)
    annotations.identifiers(default=None)
    xywh = annotations.boxes("bbox")
    origin, sides = xywh[:, :2], xywh[:, 2:]
    labels = {category: label for label, category in enumerate(classes.category_ids)}
    owners = {image: i for i, image in enumerate(image_ids)}
    return Records(
        name=name,
        source=file,
        root=root,
        classes=classes,
        image_ids=image_ids,
        paths=[
            value if _PLAIN_NAME.fullmatch(value) else path_inside(root, value, image_rows.location(i, "file_name"))
            for i, value in enumerate(names)
        ],
        stated_sizes=_stated_sizes(image_rows),
        owners=torch.tensor(annotations.references("image_id", owners, "images"), dtype=torch.int64),
        boxes=torch.cat([origin, origin + sides], 1),
        sides=sides,
        labels=torch.tensor(annotations.references("category_id", labels, "categories"), dtype=torch.int64),
        flags=_crowds(annotations),
        areas=annotations.numbers("area"),
        image_location=lambda i: image_rows.location(i, "file_name"),
        box_location=lambda row: annotations.location(row, "bbox"),
        problems=problems,
    )


def _read_json(file: Path) -> Any:
    collecting = gc.isenabled()
    gc.disable()  # millions of new containers, none of them garbage: collecting would take a fifth of the time
    try:
        return json.loads(file.read_bytes(), object_hook=_slim)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"is not valid JSON: {error.msg}", file=file, record=where) from None
    except RecursionError:
        raise DataError("is not a valid data set: nested too deeply", file=file) from None
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise DataError(f"is not valid JSON: {error}", file=file) from None
    finally:
        if collecting:
            gc.enable()


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    """The record without masks and key points, which are nine tenths of COCO's file and of the memory for it."""
    record.pop("segmentation", None)
    record.pop("keypoints", None)
    return record


def _coco_classes(categories: Table, problems: Problems) -> Classes:
    ids = categories.identifiers()
    names = categories.column("name", (str,), "a text")
    if not ids:
        raise DataError("is empty; a data set needs at least one class", file=categories.file, field="categories")
    categories.require(names, str.strip, "name", "a text that is not empty")
    for i, name in enumerate(names):
        if name in names[:i]:
            message = f"{brief(name)} is the name of two classes; they stay two classes"
            problems.add(categories.location(i, "name").problem("warning", "class name twice", message))
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return Classes(tuple(names[i] for i in order), tuple(ids[i] for i in order))


def _stated_sizes(images: Table) -> list[ImageSize | None]:
    heights, widths = (images.integers(key, default=None) for key in ("height", "width"))
    for key, values in (("height", heights), ("width", widths)):
        images.require(values, lambda value: value is None or 1 <= value < 2**31, key, "at least 1 pixel")
    pairs = zip(heights, widths, strict=True)
    return [None if height is None or width is None else ImageSize(height, width) for height, width in pairs]


def _crowds(annotations: Table) -> UInt8[Tensor, " M"]:
    values = annotations.column("iscrowd", (int, bool), "0 or 1", default=0)
    annotations.require(values, (0, 1).__contains__, "iscrowd", "0 or 1")
    return torch.tensor(values, dtype=torch.uint8) * CROWD


def _image_folder(file: Path, names: Sequence[str], images: Path | None) -> Path:
    """The first of the usual folders that holds any of the first few images.

    Where none does, it is the most likely one, and opening the images reports what is missing.
    """
    candidates = [folder for folder in _image_folders(file, images) if folder.is_dir()]
    if not candidates:
        raise DataError(
            f"has no folder of images; there is no {list_names(map(str, _image_folders(file, images)))}", file=file
        )
    return next((folder for folder in candidates if any(_exists(folder, name) for name in names)), candidates[0])


def _image_folders(file: Path, images: Path | None) -> list[Path]:
    match = _FILE_NAME.fullmatch(file.stem)
    split = (match["named"] or match["bare"] if match else None) or file.stem
    if images is not None:
        return [images, images / split]
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    if file.name == _ROBOFLOW:
        return [file.parent]
    return [base / split, base / "images" / split, base / "images", base]


def _exists(folder: Path, name: str) -> bool:
    try:
        return (folder / path_inside(folder, name, Location(folder))).is_file()
    except (DataError, OSError):
        return False
