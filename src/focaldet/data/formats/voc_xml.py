"""One xml file of Pascal VOC: its objects, in plain corners counted from 0, and the size that it states."""

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from focaldet.data.formats.reading import Reading
from focaldet.data.formats.text import as_number, brief, loose_number, unreadable
from focaldet.data.problems import Location
from focaldet.errors import DataError
from focaldet.files import read_bytes
from focaldet.types import ImageSize

_VOC_DATABASE = re.compile(r"\bVOC\s?\d{4}\b", re.IGNORECASE)
_VOC_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"": 0, "unspecified": 0, "none": 0, "null": 0, "false": 0, "no": 0, "true": 1, "yes": 1}


class VocObject(NamedTuple):
    """One object of an xml file: its class, its box in xyxy pixels and whether it is marked as difficult."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    location: Location


class Annotation(NamedTuple):
    """The annotation of one image in an xml file; `one_based` where pixels are counted from 1, as in VOC itself."""

    file: Path
    stated_size: ImageSize | None
    objects: tuple[VocObject, ...]
    one_based: bool


MOST_XML_BYTES = 50_000_000
"""Of the annotations of one image."""


def read_xml(file: Path, reading: Reading) -> Annotation:
    """The objects of one xml file.

    Raises:
        DataError: the file is not VOC xml; names the object and field.
    """
    root = _parse_xml(file)
    one_based = bool(_VOC_DATABASE.search(root.findtext("source/database") or ""))
    objects = []
    for i, item in enumerate(root.findall("object"), 1):
        with reading.record():
            objects.append(_read_object(item, Location(file, f"object {i}"), reading, one_based=one_based))
    return Annotation(file, _size_in_xml(root, Location(file), reading), tuple(objects), one_based)


def stated_image(file: Path) -> str | None:
    """The `<filename>` that an xml file states; None where it states none or cannot be read."""
    try:
        return (_parse_xml(file).findtext("filename") or "").strip() or None
    except DataError:
        return None


def _parse_xml(file: Path) -> Element:
    try:
        root: Element = fromstring(read_bytes(file, most=MOST_XML_BYTES), forbid_dtd=True)
    except ParseError as error:
        raise DataError(f"is not valid XML: {error}", file=file) from None
    except DefusedXmlException as error:
        raise DataError(f"declares a DTD or entities, which are refused: {type(error).__name__}", file=file) from None
    except OSError as error:
        raise unreadable(file, error) from None
    except (ValueError, LookupError) as error:  # an encoding that is unknown or does not fit
        raise DataError(f"is not valid XML: {error}", file=file) from None
    if root.tag != "annotation":
        raise DataError(f"must begin with <annotation>, got {brief(root.tag)}", file=file)
    return root


def _size_in_xml(root: Element, location: Location, reading: Reading) -> ImageSize | None:
    """The size that the file states, or None. It is only used to report where it differs from the image."""
    texts = {field: root.findtext(field) for field in ("size/height", "size/width")}
    sides = []
    for field, text in texts.items():
        if text is None:
            return None
        number = loose_number(text.strip())
        if number is None or not 0 <= number < 2**31:
            message = f"got {brief(text)}, not a number of pixels; the size of the image file counts"
            reading.accept_loosely(location._replace(field=field), "loose value", message)
            return None
        sides.append(int(number))
    return ImageSize(*sides)


def _read_object(item: Element, location: Location, reading: Reading, *, one_based: bool) -> VocObject:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise location._replace(field="name").error("is missing or empty; must be the name of a class")
    difficult = _read_flag(item.findtext("difficult"), location._replace(field="difficult"), reading)
    if item.find("bndbox") is None and item.find("polygon") is not None:
        x1, y1, x2, y2 = _box_around(item, location._replace(field="polygon"), reading)
    else:
        x1, y1, x2, y2 = (_corner(item, key, location._replace(field=f"bndbox/{key}")) for key in _VOC_CORNERS)
    box = (x1 - 1, y1 - 1, x2, y2) if one_based else (x1, y1, x2, y2)
    return VocObject(name, box, difficult, location._replace(field="bndbox"))


def _read_flag(text: str | None, location: Location, reading: Reading) -> bool:
    if text is None or text.strip() in ("0", "1"):
        return text is not None and text.strip() == "1"
    number = loose_number(text.strip())
    value = _FLAGS.get(text.strip().lower(), number)
    if value not in (0, 1):
        raise location.error(f"got {brief(text.strip())}; must be 0 or 1")
    reading.accept_loosely(location, "loose value", f"got {brief(text.strip())}; taken as {value:.0f}")
    return value == 1


def _corner(item: Element, key: str, location: Location) -> float:
    text = item.findtext(f"bndbox/{key}")
    if text is None:
        raise location.error("is missing; must be a number of pixels")
    return as_number(text, location, "a number of pixels")


def _box_around(item: Element, location: Location, reading: Reading) -> tuple[float, float, float, float]:
    """The box around a polygon, whose points are `x1`, `y1`, `x2` … (Roboflow) or `pt/x`, `pt/y` (LabelMe)."""
    parts = [(part.tag[:1], part) for part in item.find("polygon") or () if re.fullmatch(r"[xy]\d*", part.tag)]
    parts += [(part.tag, part) for point in item.findall("polygon/pt") for part in point if part.tag in ("x", "y")]
    values = {axis: [as_number(p.text or "", location) for tag, p in parts if tag == axis] for axis in "xy"}
    if not values["x"] or len(values["x"]) != len(values["y"]):
        raise location.error("has no points; must be a polygon, or there must be a bndbox")
    reading.accept_loosely(location, "box from polygon", "has no box; the box around the polygon is taken")
    return min(values["x"]), min(values["y"]), max(values["x"]), max(values["y"])
