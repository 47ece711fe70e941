"""LabelMe json, one file for each image: `shapes` with a `label`, `points` and a `shape_type`.

Rectangles are boxes; of polygons, masks and circles the box around them is taken; points and lines are counted and not
used. Files lie beside their images or in a folder of their own; folders named after splits are the splits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import hypot
from pathlib import Path
from typing import Any

from focaldet.data.dataset import Classes
from focaldet.data.formats.json_files import json_kind, read_json
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.pairs import ImagePairs, group_by_split
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import BoxRows, DatasetLayout, Records, stated_size
from focaldet.data.formats.text import brief, plain_numbers
from focaldet.data.formats.voc import common_folder
from focaldet.data.problems import Location, Problems
from focaldet.errors import DataError
from focaldet.types import ImageSize

_NOT_AREAS = ("point", "points", "line", "linestrip")
_TRIED_FILES = 3


def find_labelme(listing: Listing, file: Path | None = None) -> DatasetLayout | None:
    """The splits of a folder with LabelMe files; None where there are none."""
    if file is not None:
        return None
    files = listing.with_suffix(".json")
    if not any(json_kind(listing.root / path) == "labelme" for path in files[:_TRIED_FILES]):
        return None
    groups = group_by_split(files)
    splits = {split: (common_folder(listing, paths),) for split, paths in groups.items()}
    return DatasetLayout("labelme", listing.root, splits, listing=listing, extra=groups)


@dataclass(slots=True)
class _Shapes:
    """The shapes of one file: class, box and location of each."""

    file: Path
    image: str | None = None
    size: ImageSize | None = None
    shapes: list[tuple[str, tuple[float, float, float, float], Location]] = field(default_factory=list)


def read_labelme(layout: DatasetLayout, splits: Sequence[str], reading: Reading) -> list[Records]:
    """The records of some splits of a layout from `find_labelme`; the classes are those of all splits, sorted.

    Raises:
        DataError: a file is not as LabelMe writes it, or no file has a shape.
    """
    listing = layout.listing or Listing(layout.root, follow_links=reading.follow_links)
    images = Listing(reading.images, follow_links=reading.follow_links) if reading.images else listing
    groups: dict[str, list[str]] = layout.extra
    problems = {split: Problems() for split in groups}
    documents: dict[str, _Shapes] = {}
    for split, paths in groups.items():
        own = replace(reading, problems=problems[split])
        for path in paths:
            with own.record("file unreadable"):
                if (document := _read_shapes(listing.root / path, own)) is not None:
                    documents[path] = document
    names = sorted({name for document in documents.values() for name, _, _ in document.shapes})
    if not names:
        raise DataError("no file has a rectangle or polygon, so there are no classes", file=layout.root)
    classes = Classes(tuple(names), tuple(range(1, len(names) + 1)))
    partners = ImagePairs(images).pair(documents, lambda path: documents[path].image)
    records = []
    for split in splits:
        chosen = [path for path in groups[split] if path in partners.image_of]
        for path in groups[split]:
            if path in documents and path not in partners.image_of:
                message = f"no image of its name is below {images.root}; not used"
                location = Location(listing.root / path)
                problems[split].add(location.problem("warning", "label without image", message))
        files = [documents[path] for path in chosen]
        rows = BoxRows()
        for i, document in enumerate(files):
            for name, box, location in document.shapes:
                rows.add(i, box, names.index(name), location)
        records.append(
            Records(
                name=split,
                source=layout.splits[split][0],
                root=images.root,
                classes=classes,
                image_ids=range(1, len(files) + 1),
                paths=[partners.image_of[path] for path in chosen],
                stated_sizes=[document.size for document in files],
                image_location=lambda i, files=files: Location(files[i].file),  # type: ignore[misc]
                problems=problems[split],
                annotation_files=[document.file for document in files],
                **rows.columns(),
            )
        )
    return records


def _read_shapes(file: Path, reading: Reading) -> _Shapes | None:
    """The shapes of a file; None of a json file that is not LabelMe's."""
    document = read_json(file)
    if not isinstance(document, dict) or "shapes" not in document:
        message = f"not a file of LabelMe, which has shapes: {brief(document)}; not used"
        reading.accept_loosely(Location(file), "file unused", message)
        return None
    if not isinstance(document["shapes"], list):
        raise DataError(f"must be a list, got {brief(document['shapes'])}", file=file, field="shapes")
    size = stated_size(document.get("imageHeight"), document.get("imageWidth"))
    image = document.get("imagePath")
    shapes = _Shapes(file, image if isinstance(image, str) else None, size)
    for number, shape in enumerate(document["shapes"]):
        with reading.record():
            _take_shape(shape, Location(file, f"shapes[{number}]"), shapes, reading)
    return shapes


def _take_shape(shape: Any, location: Location, shapes: _Shapes, reading: Reading) -> None:
    if not isinstance(shape, dict):
        raise location.error(f"got {brief(shape)}; must be an object")
    name, kind = shape.get("label"), shape.get("shape_type") or "polygon"
    if not isinstance(name, str) or not name.strip():
        raise location._replace(field="label").error(f"got {brief(name)}; must be the name of a class")
    points = _points(shape.get("points"), location._replace(field="points"))
    if kind in _NOT_AREAS:
        message = f"a {kind} has no box; not used"
        reading.problems.add(location.problem("warning", "shape unused", message))
        return
    if kind != "rectangle":
        reading.problems.add(location.problem("note", "polygon", f"of a {kind} the box around it is taken"))
    if kind == "circle":
        (x, y), edge = points[0], points[-1]
        radius = hypot(edge[0] - x, edge[1] - y)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    shapes.shapes.append((name.strip(), (min(xs), min(ys), max(xs), max(ys)), location))


def _points(values: Any, location: Location) -> list[tuple[float, float]]:
    usable = isinstance(values, list) and values and all(isinstance(p, list) and len(p) == 2 for p in values)
    numbers = plain_numbers([value for point in values for value in point]) if usable else None
    if numbers is None:
        raise location.error(f"got {brief(values)}; must be a list of points [x, y]")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
