"""Writers of COCO, Pascal VOC and YOLO data sets: one class each, which says what its format cannot hold."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import escape

import yaml

from focaldet.data.dataset import CROWD, DIFFICULT, OTHER_CLASS, Dataset
from focaldet.data.formats.split_names import role_of
from focaldet.data.formats.text import brief
from focaldet.errors import ConfigError, DataError
from focaldet.files import to_json_text, write_text

TargetFormat = Literal["coco", "voc", "yolo"]


class Exported(NamedTuple):
    """Image i of a dataset: its file, and its new name below the folder of images."""

    i: int
    source: Path
    name: str


class BoxRow(NamedTuple):
    """One box as a writer takes it; `sides` are width and height to the last digit of the file it was read from."""

    corners: list[float]
    sides: list[float]
    label: int
    flag: int
    area: float


class DataWriter(ABC):
    """Writes the splits of one data set into `out`. `lost` counts what the format cannot hold."""

    def __init__(self, out: Path, datasets: Sequence[Dataset]) -> None:
        self.out, self.datasets = out, datasets
        self.lost: Counter[str] = Counter()
        self.classes = list(dict.fromkeys(name for dataset in datasets for name in dataset.classes.names))

    def names(self, dataset: Dataset) -> list[str]:
        """The new names of the images of a split: their paths, each stem once."""
        taken: set[str] = set()
        names = []
        for i in range(len(dataset)):
            path = PurePosixPath(dataset.path(i).relative_to(dataset.root).as_posix())
            name, number = path, 1
            while str(name.with_suffix("")) in taken:
                number += 1
                name = path.with_stem(f"{path.stem}_{number}")
            if number > 1:
                self.lost["images renamed, because two differ in their suffix alone or are listed twice"] += 1
            taken.add(str(name.with_suffix("")))
            names.append(str(name))
        return names

    @abstractmethod
    def image_path(self, dataset: Dataset, image: Exported) -> Path:
        """Where an image goes."""

    @abstractmethod
    def write_split(self, dataset: Dataset, images: Sequence[Exported]) -> None:
        """Write the annotations of one split."""

    def close(self) -> None:  # noqa: B027  most formats have nothing to write then
        """Write what describes all splits."""

    def notes(self) -> Iterator[str]:
        """What the format could not hold, with counts."""
        yield from (f"{number:,} {what}" for what, number in self.lost.items() if number)

    def label(self, dataset: Dataset, row: BoxRow) -> int:
        """The index of the class of a box among those of all splits."""
        return self.classes.index(dataset.classes.names[row.label])


def box_rows(dataset: Dataset, i: int) -> Iterator[BoxRow]:
    """The boxes of image i."""
    start, end = dataset.offsets[i : i + 2].tolist()
    boxes = dataset.boxes[start:end]
    sides = boxes[:, 2:] - boxes[:, :2]
    if dataset.side_remainders is not None:
        sides = sides + dataset.side_remainders[start:end]
    columns = (dataset.labels, dataset.flags, dataset.areas)
    values = (column[start:end].tolist() for column in columns)
    yield from map(BoxRow, boxes.tolist(), sides.tolist(), *values)


class CocoDataWriter(DataWriter):
    """`annotations/instances_<split>.json` and `images/<split>/`: ids, crowds and areas are kept."""

    def image_path(self, dataset: Dataset, image: Exported) -> Path:
        return self.out / "images" / dataset.name / image.name

    def write_split(self, dataset: Dataset, images: Sequence[Exported]) -> None:
        ids = dataset.image_ids.tolist()
        rows: list[dict[str, Any]] = []
        files = []
        own_ids = [own if own is not None else trained for own, trained in _id_pairs(dataset)]
        for image in images:
            size = dataset.size(image.i)
            files.append({"id": ids[image.i], "file_name": image.name, **size._asdict()})
            for row in box_rows(dataset, image.i):
                if row.flag & OTHER_CLASS:
                    self.lost["boxes of other classes left out"] += 1
                    continue
                record = {"id": len(rows) + 1, "image_id": ids[image.i], "category_id": own_ids[row.label]}
                record |= {"bbox": [*row.corners[:2], *row.sides], "area": row.area}
                record |= {"iscrowd": int(bool(row.flag & CROWD))}
                rows.append(record | ({"ignore": 1} if row.flag & DIFFICULT else {}))
        categories = [{"id": i, "name": name} for i, name in zip(own_ids, dataset.classes.names, strict=True)]
        document = {"images": files, "annotations": rows, "categories": categories}
        file = self.out / "annotations" / f"instances_{dataset.name}.json"
        file.parent.mkdir(exist_ok=True)
        write_text(file, to_json_text(document))


def _id_pairs(dataset: Dataset) -> Iterator[tuple[int | None, int]]:
    return zip(dataset.classes.own_ids, dataset.classes.category_ids, strict=True)


class VocDataWriter(DataWriter):
    """`Annotations/<split>/*.xml`, `JPEGImages/<split>/` and `ImageSets/Main/<split>.txt`."""

    def image_path(self, dataset: Dataset, image: Exported) -> Path:
        return self.out / "JPEGImages" / dataset.name / image.name

    def write_split(self, dataset: Dataset, images: Sequence[Exported]) -> None:
        names = []
        ids = dataset.image_ids.tolist()
        if ids != list(range(1, len(ids) + 1)):
            self.lost["image ids, which VOC does not have"] += len(ids)
        for image in images:
            name = f"{dataset.name}/{PurePosixPath(image.name).with_suffix('')}"
            file = self.out / "Annotations" / f"{name}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, self._xml(dataset, image))
            names.append(name)
        lists = self.out / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        write_text(lists / f"{dataset.name}.txt", "".join(f"{name}\n" for name in names))
        present = set(dataset.labels.tolist())
        self.lost["classes without a box, of which VOC keeps no record"] += len(dataset.classes) - len(present)

    def _xml(self, dataset: Dataset, image: Exported) -> str:
        height, width = dataset.size(image.i)
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        objects = "".join(self._object(dataset, row) for row in box_rows(dataset, image.i))
        name = _xml_text(PurePosixPath(image.name).name, image.source)
        return f"<annotation><filename>{name}</filename>{size}{objects}\n</annotation>\n"

    def _object(self, dataset: Dataset, row: BoxRow) -> str:
        if row.flag & OTHER_CLASS:
            self.lost["boxes of other classes left out"] += 1
            return ""
        self.lost['crowds, written as "difficult"'] += bool(row.flag & CROWD)
        self.lost["areas of masks, which VOC does not have"] += _has_own_area(row)
        self.lost["boxes with fractions of a pixel, written as decimals"] += any(v % 1 for v in row.corners)
        corners = zip(("xmin", "ymin", "xmax", "ymax"), row.corners, strict=True)
        box = "".join(f"<{key}>{_decimal(value)}</{key}>" for key, value in corners)
        difficult = int(row.flag != 0)
        name = _xml_text(dataset.classes.names[row.label], dataset.root)
        return f"\n<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def _xml_text(text: str, file: Path) -> str:
    if not all(character.isprintable() or character == " " for character in text):
        raise DataError(f"{brief(text)} cannot stand in an xml file", file=file)
    return escape(text)


def _decimal(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _has_own_area(row: BoxRow) -> bool:
    own = row.sides[0] * row.sides[1]
    return abs(own - row.area) > 1e-3 * max(1.0, own)


class YoloDataWriter(DataWriter):
    """`data.yaml`, `images/<split>/` and `labels/<split>/*.txt`; an image without boxes has an empty file."""

    def __init__(self, out: Path, datasets: Sequence[Dataset]) -> None:
        super().__init__(out, datasets)
        self.keys_of: dict[str, str] = {}
        for dataset in datasets:
            role = role_of(dataset.name) or "train"
            if role in self.keys_of.values():
                others = [name for name, key in self.keys_of.items() if key == role]
                message = f'"{others[0]}" and "{dataset.name}" would both be {role}: name one with --data.{role}'
                raise ConfigError(f"to: YOLO has one split each for train, val and test; {message}")
            self.keys_of[dataset.name] = role

    def image_path(self, dataset: Dataset, image: Exported) -> Path:
        return self.out / "images" / self.keys_of[dataset.name] / image.name

    def write_split(self, dataset: Dataset, images: Sequence[Exported]) -> None:
        self.lost["image ids, which YOLO does not have"] += len(images)
        for image in images:
            name = PurePosixPath(image.name).with_suffix(".txt")
            file = self.out / "labels" / self.keys_of[dataset.name] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, "".join(self._rows(dataset, image)))

    def _rows(self, dataset: Dataset, image: Exported) -> Iterator[str]:
        height, width = dataset.size(image.i)
        for row in box_rows(dataset, image.i):
            if row.flag:
                self.lost["crowds, difficult and ignored boxes left out: in YOLO they would be objects"] += 1
                continue
            self.lost["areas of masks, which YOLO does not have"] += _has_own_area(row)
            x1, y1, x2, y2 = row.corners
            numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            yield f"{self.label(dataset, row)} {' '.join(map(repr, numbers))}\n"

    def close(self) -> None:
        """Write the yaml."""
        splits = {key: f"images/{key}" for key in self.keys_of.values()}
        document = {"path": ".", **splits, "names": dict(enumerate(self.classes))}
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        write_text(self.out / "data.yaml", text)


SPLIT_WRITERS: dict[TargetFormat, type[DataWriter]] = {
    "coco": CocoDataWriter,
    "voc": VocDataWriter,
    "yolo": YoloDataWriter,
}
