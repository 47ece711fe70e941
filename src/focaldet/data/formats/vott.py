"""VoTT's json export, one file with all `assets`: their `regions` have `tags` and a `boundingBox` in pixels.

A region with several tags is a box of each. Images are looked up by their names; the split is in the
name of the file or of a folder above it, as for COCO.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from focaldet.data.dataset import Classes
from focaldet.data.formats.coco import split_of
from focaldet.data.formats.image_folders import look_near
from focaldet.data.formats.json_files import json_kind, read_json
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import BoxRows, DatasetLayout, Lookup, Records, stated_size
from focaldet.data.formats.text import brief, plain_numbers
from focaldet.data.problems import Location, Problems
from focaldet.errors import DataError
from focaldet.types import ImageSize

_MOST_EXPORTS = 100
_BOX_SIDES = ("left", "top", "width", "height")


def find_vott(listing: Listing, file: Path | None = None) -> DatasetLayout | None:
    """The exports of VoTT below a folder, or the one file `file`; None where there is none."""
    if file is not None:
        if json_kind(file) != "vott":
            return None
        base = Listing(file.parent, follow_links=listing.follow_links)
        return DatasetLayout("vott", base.root, {"all": (file,)}, listing=base)
    paths = listing.with_suffix(".json")[:_MOST_EXPORTS]
    files = [(split_of(path), listing.root / path) for path in paths if json_kind(listing.root / path) == "vott"]
    return DatasetLayout.of_files("vott", listing.root, files, listing=listing)


def read_vott(layout: DatasetLayout, splits: Sequence[str], reading: Reading) -> list[Records]:
    """The records of some splits of a layout from `find_vott`. The classes are the `tags` of each file, in its order.

    Raises:
        DataError: the file is not as VoTT writes it; names the asset and region.
    """
    listing = layout.listing or Listing(layout.root, follow_links=reading.follow_links)
    if reading.images is not None:
        listing = Listing(reading.images, follow_links=reading.follow_links)
    return [
        _read_export(layout.splits[split][0], split, listing, replace(reading, problems=Problems())) for split in splits
    ]


def _read_export(file: Path, split: str, listing: Listing, reading: Reading) -> Records:
    document = read_json(file)
    if not isinstance(document, dict) or not isinstance(document.get("assets"), dict):
        raise DataError("must be an object of VoTT's with tags and assets", file=file, field="assets")
    classes = _tag_classes(document.get("tags"), Location(file, field="tags"))
    labels = {name: label for label, name in enumerate(classes.names)}
    names: list[str] = []
    locations: list[Location] = []
    sizes: list[ImageSize | None] = []
    rows = BoxRows()
    for key, entry in document["assets"].items():
        location = Location(file, f"assets[{brief(key)}]")
        with reading.record():
            name, size = _asset(entry, location)
            names.append(name)
            locations.append(location)
            sizes.append(size)
            for number, region in enumerate(entry.get("regions") or []):
                where = location._replace(record=f"{location.record} · regions[{number}]")
                with reading.record():
                    for label, box in _boxes(region, labels, where):
                        rows.add(len(names) - 1, box, label, where)
    bases = [listing.relative(file.parent) or "", ""]
    root, lookup = look_near(listing, bases, [split], names) or (listing.root, Lookup(listing, split=split))
    return Records(
        name=split,
        source=file,
        root=root,
        classes=classes,
        image_ids=range(1, len(names) + 1),
        paths=names,
        stated_sizes=sizes,
        image_location=locations.__getitem__,
        problems=reading.problems,
        lookup=lookup,
        annotation_files=(file,),
        **rows.columns(),
    )


def _tag_classes(tags: Any, location: Location) -> Classes:
    listed = [tag.get("name") if isinstance(tag, dict) else None for tag in tags] if isinstance(tags, list) else []
    names = [name for name in listed if isinstance(name, str) and name.strip()]
    if not names or len(names) < len(listed) or len(set(names)) < len(names):
        raise location.error(f"got {brief(tags)}; must be a list of objects with a name each, all different")
    return Classes(tuple(names), tuple(range(1, len(names) + 1)))


def _asset(entry: Any, location: Location) -> tuple[str, ImageSize | None]:
    """The name of the image and the size that the file states."""
    asset = entry.get("asset") if isinstance(entry, dict) else None
    if not isinstance(asset, dict):
        raise location._replace(field="asset").error(
            f"got {brief(asset)}; must be an object with the name of the image"
        )
    if not isinstance(entry.get("regions") or [], list):
        raise location._replace(field="regions").error(f"got {brief(entry['regions'])}; must be a list")
    name = asset.get("name") or asset.get("path")
    if not isinstance(name, str) or not name.strip():
        raise location._replace(field="asset.name").error(f"got {brief(name)}; must be the name of an image file")
    size = asset.get("size")
    return unquote(name), stated_size(size.get("height"), size.get("width")) if isinstance(size, dict) else None


def _boxes(
    region: Any, labels: dict[str, int], location: Location
) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """The label and xyxy box of each tag of a region."""
    box = region.get("boundingBox") if isinstance(region, dict) else None
    numbers = plain_numbers([box.get(key) for key in _BOX_SIDES]) if isinstance(box, dict) else None
    if numbers is None:
        allowed = f"must be an object with the numbers {', '.join(_BOX_SIDES)}"
        raise location._replace(field="boundingBox").error(f"got {brief(box)}; {allowed}")
    tags = region.get("tags")
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag in labels for tag in tags) or not tags:
        raise location._replace(field="tags").error(f"got {brief(tags)}; must be a list of tags of the file")
    left, top, width, height = numbers
    for tag in tags:
        yield labels[tag], (left, top, left + width, top + height)
