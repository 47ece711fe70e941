"""Pascal VOC: `Annotations/*.xml`, `JPEGImages/` and the splits in `ImageSets/Main/*.txt`.

Folders `train/`, `valid/`, … that hold images and xml files side by side are read as well.

Corners. VOC itself counts pixels from 1 and includes the last one, so its box covers (xmin - 1, ymin - 1, xmax, ymax).
labelImg, CVAT and the exporters of labeling services borrowed the file format but write plain corners counted from 0.
Each file says who made it: where `<source><database>` names VOC ("The VOC2007 Database"), VOC's rule holds; otherwise
the corners are taken as they stand.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from focaldet.data.dataset import DIFFICULT, Classes
from focaldet.data.formats.records import BoxRows, DatasetLayout, Records, list_images
from focaldet.data.formats.text import as_number, brief, list_names, read_lines, unreadable
from focaldet.data.problems import Location, Problems
from focaldet.errors import DataError
from focaldet.types import ImageSize

_OF_ONE_CLASS = re.compile(r".+_(train|val|trainval|test)")
_VOC_DATABASE = re.compile(r"\bVOC\s?\d{4}\b", re.IGNORECASE)
_VOC_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    """One object of an xml file: its class, its box in xyxy pixels and whether it is marked as difficult."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    location: Location


class _Annotation(NamedTuple):
    """The annotation of one image in an xml file; `one_based` where pixels are counted from 1, as in VOC itself."""

    file: Path
    stated_size: ImageSize | None
    objects: tuple[_Object, ...]
    one_based: bool


def find_voc(path: Path) -> DatasetLayout | None:
    """The splits of a VOC folder, or the one list file or folder of xml files that `path` is; None if it is neither."""
    if path.is_file():
        root = next((folder for folder in path.parents if (folder / "Annotations").is_dir()), None)
        is_list = root is not None and path.suffix.lower() == ".txt"
        return DatasetLayout("voc", root, {"all": (path,)}) if root is not None and is_list else None
    if (path / "Annotations").is_dir():
        lists = sorted((path / "ImageSets" / "Main").glob("*.txt"))
        splits = {file.stem: (file,) for file in lists if not _OF_ONE_CLASS.fullmatch(file.stem)}
        return DatasetLayout("voc", path, splits or {"all": (path / "Annotations",)})
    if _holds_xml(path):
        return DatasetLayout("voc", path, {"all": (path,)})
    folders = [folder for folder in sorted(path.glob("*/")) if _holds_xml(folder)]
    return DatasetLayout("voc", path, {folder.name: (folder,) for folder in folders}) if folders else None


def _holds_xml(folder: Path) -> bool:
    return next(folder.glob("*.xml"), None) is not None


def read_voc(layout: DatasetLayout, splits: Sequence[str], *, images: Path | None) -> list[Records]:
    """The records of some splits of a layout from `find_voc`.

    VOC has no list of classes: they are the names in all splits, in alphabetical order, so that every split has the
    same labels. Category ids are label + 1, image ids the position in the list + 1.

    Raises:
        DataError: a listed name has no xml file or no image, or an xml file is not as in VOC.
    """
    reader = _VOCReader(layout, images)
    listed = {split: reader.list_names(split) for split in layout.splits}
    for split in splits:
        reader.refuse_missing(split, listed[split])
    files = {name: reader.files[name] for names in listed.values() for name in names if name in reader.files}
    annotations = {name: _read_xml(file) for name, file in files.items()}
    names = sorted({item.name for annotation in annotations.values() for item in annotation.objects})
    if not names:
        raise DataError("no xml file has an object, so there are no classes", file=layout.root)
    classes = Classes(tuple(names), tuple(range(1, len(names) + 1)))
    return [
        reader.records(split, [annotations[name] for name in listed[split]], listed[split], classes) for split in splits
    ]


class _VOCReader:
    """The files of one VOC layout by the name that lists use: the path below its folder without suffix."""

    def __init__(self, layout: DatasetLayout, images: Path | None) -> None:
        self.layout = layout
        annotations = layout.root / "Annotations"
        usual = (layout.root / "JPEGImages", layout.root / "images")
        self.xml_folder = annotations if annotations.is_dir() else layout.root
        self.root = images or next((folder for folder in usual if folder.is_dir()), layout.root)
        self.files = {
            _stem(file.relative_to(self.xml_folder).as_posix()): file for file in sorted(self.xml_folder.rglob("*.xml"))
        }
        self.images: dict[str, str] = {}
        for name in list_images(self.root):
            other = self.images.setdefault(_stem(name), name)
            if other != name:
                raise DataError(f"two images have one name: {other} and {name}", file=self.root)

    def list_names(self, split: str) -> list[str]:
        """The names that a split lists, each once and in order; of a folder, the names of all its xml files."""
        (source,) = self.layout.splits[split]
        if source.is_dir():
            return [name for name, file in self.files.items() if file.is_relative_to(source)]
        return list(dict.fromkeys(self._resolve_name(line) for _, line in read_lines(source)))

    def _resolve_name(self, line: str) -> str:
        """The name in a line such as `000005`, `000005.jpg` or, in lists of one class, `000005 -1`."""
        for name in (line, _stem(line), line.split(maxsplit=1)[0]):
            if name in self.files or name in self.images:
                return name
        return line

    def refuse_missing(self, split: str, names: Iterable[str]) -> None:
        """Raise where a listed name has no xml file or no image."""
        (source,) = self.layout.splits[split]
        names = list(names)
        for known, what, folder in ((self.files, "xml file", self.xml_folder), (self.images, "image", self.root)):
            missing = [brief(name) for name in names if name not in known]
            if missing:
                raise DataError(
                    f"{len(missing)} of {len(names)} names have no {what} in {folder}: {list_names(missing)}",
                    file=source,
                )

    def records(
        self, split: str, annotations: Sequence[_Annotation], names: Sequence[str], classes: Classes
    ) -> Records:
        """The records of a split from its annotations."""
        labels = {name: label for label, name in enumerate(classes.names)}
        rows, problems = BoxRows(), Problems()
        for i, annotation in enumerate(annotations):
            for item in annotation.objects:
                rows.add(i, item.box, labels[item.name], item.location, flag=DIFFICULT * item.difficult)
        (source,) = self.layout.splits[split]
        one_based = sum(annotation.one_based for annotation in annotations)
        if one_based:
            message = (
                f"{one_based} xml files are of VOC itself, which counts pixels from 1: xmin and ymin are reduced by 1"
            )
            problems.add(Location(source).problem("note", "VOC pixels", message))
        return Records(
            name=split,
            source=source,
            root=self.root,
            classes=classes,
            image_ids=range(1, len(annotations) + 1),
            paths=[self.images[name] for name in names],
            stated_sizes=[annotation.stated_size for annotation in annotations],
            image_location=lambda i: Location(annotations[i].file, field="size"),
            problems=problems,
            **rows.columns(),
        )


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _read_xml(file: Path) -> _Annotation:
    root = _parse_xml(file)
    one_based = bool(_VOC_DATABASE.search(root.findtext("source/database") or ""))
    objects = [
        _read_object(item, Location(file, f"object {i}"), one_based) for i, item in enumerate(root.findall("object"), 1)
    ]
    return _Annotation(file, _size_in_xml(root, Location(file)), tuple(objects), one_based)


def _parse_xml(file: Path) -> Element:
    try:
        root: Element = fromstring(file.read_bytes(), forbid_dtd=True)
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


def _size_in_xml(root: Element, location: Location) -> ImageSize | None:
    """The size that the file states, or None. It is only used to report where it differs from the image."""
    sides = {field: root.findtext(field) for field in ("size/height", "size/width")}
    if None in sides.values():
        return None
    return ImageSize(*(int(as_number(text or "", location._replace(field=field))) for field, text in sides.items()))


def _read_object(item: Element, location: Location, one_based: bool) -> _Object:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise location._replace(field="name").error("is missing or empty; must be the name of a class")
    difficult = (item.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise location._replace(field="difficult").error(f"got {brief(difficult)}; must be 0 or 1")
    x1, y1, x2, y2 = (_corner(item, key, location._replace(field=f"bndbox/{key}")) for key in _VOC_CORNERS)
    box = (x1 - 1, y1 - 1, x2, y2) if one_based else (x1, y1, x2, y2)
    return _Object(name, box, difficult == "1", location._replace(field="bndbox"))


def _corner(item: Element, key: str, location: Location) -> float:
    text = item.findtext(f"bndbox/{key}")
    if text is None:
        raise location.error("is missing; must be a number of pixels")
    return as_number(text, location, "a number of pixels")
