"""Detections on disk in the formats that other programs read."""

import csv
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from focaldet.config import make_folder
from focaldet.types import Detections, ImageSize

PredictionFormat = Literal["json", "coco", "yolo", "csv"]


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """What was found in a picture of this size; boxes are its pixels."""

    size: ImageSize
    detections: Detections


class Writer(ABC):
    """Takes picture after picture and leaves its file or files in the folder `out`."""

    def __init__(self, out: Path, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
        self.out, self.class_names, self.category_ids = out, class_names, category_ids

    @abstractmethod
    def add(self, path: Path, name: str, found: ImageDetections) -> None:
        """Take what was found in the picture `path`; `name` is unlike that of every other picture."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


class JsonWriter(Writer):
    """`predictions.json`: per picture its file, height, width, and lists of boxes, scores, labels and names."""

    def __init__(self, out: Path, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
        super().__init__(out, class_names, category_ids)
        self.entries: list[dict[str, Any]] = []

    def add(self, path: Path, name: str, found: ImageDetections) -> None:
        del name
        self.entries.append({"file": str(path)} | found.size._asdict() | found.detections.to_dict())

    def close(self) -> None:
        _write_json(self.out / "predictions.json", self.entries)


class CocoWriter(Writer):
    """`coco.json`: a COCO data set whose annotations have scores; its `annotations` are a COCO result list too."""

    def __init__(self, out: Path, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
        super().__init__(out, class_names, category_ids)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, path: Path, name: str, found: ImageDetections) -> None:
        del name
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": str(path)} | found.size._asdict())
        for record in found.detections.to_coco(image_id=image_id, category_ids=self.category_ids):
            area = record["bbox"][2] * record["bbox"][3]
            self.annotations.append({"id": len(self.annotations) + 1, "area": area, "iscrowd": 0} | record)

    def close(self) -> None:
        ids = self.category_ids or tuple(range(1, len(self.class_names) + 1))
        names = self.class_names or tuple(map(str, range(len(ids))))
        categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        document = {"images": self.images, "categories": categories, "annotations": self.annotations}
        _write_json(self.out / "coco.json", document)


class YoloWriter(Writer):
    """`labels/<name>.txt`: label, centre, width and height as shares of the picture, score; and `classes.txt`."""

    def add(self, path: Path, name: str, found: ImageDetections) -> None:
        del path
        height, width = found.size
        lines = []
        parts = found.detections.to_dict()
        for (x1, y1, x2, y2), score, label in zip(parts["boxes"], parts["scores"], parts["labels"], strict=True):
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label} {' '.join(f'{share:.6f}' for share in shares)} {score:.6f}\n")
        folder = make_folder(self.out / "labels")
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")

    def close(self) -> None:
        (self.out / "classes.txt").write_text("".join(f"{name}\n" for name in self.class_names), encoding="utf-8")


class CsvWriter(Writer):
    """`predictions.csv`: a line per box with its file, corners in pixels, class name, label and score."""

    columns: ClassVar = ("file", "x1", "y1", "x2", "y2", "name", "label", "score")

    def __init__(self, out: Path, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
        super().__init__(out, class_names, category_ids)
        self.rows: list[list[Any]] = []

    def add(self, path: Path, name: str, found: ImageDetections) -> None:
        del name
        parts = found.detections.to_dict()
        for box, score, label, title in zip(
            parts["boxes"], parts["scores"], parts["labels"], parts["names"], strict=True
        ):
            self.rows.append([str(path), *(f"{side:.2f}" for side in box), title, label, f"{score:.6f}"])

    def close(self) -> None:
        with (self.out / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])


WRITERS: dict[PredictionFormat, type[Writer]] = {
    "json": JsonWriter,
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "csv": CsvWriter,
}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
