"""Files of detections in the formats that other programs read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from focaldet.config import make_folder
from focaldet.files import write_csv, write_json, write_text
from focaldet.types import Detections, ImageSize

PredictionFormat = Literal["json", "coco", "yolo", "csv"]


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """The detections of an image of this size, in its pixels."""

    size: ImageSize
    detections: Detections


class PredictionWriter(ABC):
    """Takes the detections of image after image and writes its file or files into the folder `out`."""

    def __init__(self, out: Path, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
        self.out, self.class_names, self.category_ids = out, class_names, category_ids
        self.results: list[tuple[Path, str, ImageDetections]] = []

    def add(self, path: Path, name: str, result: ImageDetections) -> None:
        """Take the detections of the image `path`; its `name` is unique among the images."""
        self.results.append((path, name, result))

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet."""


class JsonWriter(PredictionWriter):
    """`predictions.json`: for each image its file, its name in the other files, height, width, and lists of boxes,
    scores, labels and names.
    """

    def close(self) -> None:
        entries = [
            {"file": str(path), "name": name} | result.size._asdict() | result.detections.to_dict()
            for path, name, result in self.results
        ]
        write_json(self.out / "predictions.json", entries)


class CocoWriter(PredictionWriter):
    """`coco.json`: a COCO dataset whose annotations have scores; its `annotations` are a COCO result list too."""

    def close(self) -> None:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, (path, _, result) in enumerate(self.results, start=1):
            images.append({"id": image_id, "file_name": str(path)} | result.size._asdict())
            for record in result.detections.to_coco(image_id=image_id, category_ids=self.category_ids):
                area = record["bbox"][2] * record["bbox"][3]
                annotations.append({"id": len(annotations) + 1, "area": area, "iscrowd": 0} | record)
        ids = self.category_ids or tuple(range(1, len(self.class_names) + 1))
        names = self.class_names or tuple(map(str, range(len(ids))))
        categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        write_json(self.out / "coco.json", {"images": images, "categories": categories, "annotations": annotations})


class YoloWriter(PredictionWriter):
    """`labels/<name>.txt`: label, center, width and height as fractions of the image, score; and `classes.txt`."""

    def add(self, path: Path, name: str, result: ImageDetections) -> None:
        """Write the file of the image at once."""
        del path
        height, width = result.size
        lines = []
        columns = result.detections.to_dict()
        for (x1, y1, x2, y2), score, label in zip(columns["boxes"], columns["scores"], columns["labels"], strict=True):
            fractions = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label} {' '.join(f'{value:.6f}' for value in fractions)} {score:.6f}\n")
        folder = make_folder(self.out / "labels")
        write_text(folder / f"{name}.txt", "".join(lines))

    def close(self) -> None:
        write_text(self.out / "classes.txt", "".join(f"{name}\n" for name in self.class_names))


class CsvWriter(PredictionWriter):
    """`predictions.csv`: a line per box with its file, corners in pixels, class name, label and score."""

    columns: ClassVar = ("file", "x1", "y1", "x2", "y2", "name", "label", "score")

    def close(self) -> None:
        rows = (
            [path, *(f"{side:.2f}" for side in box), name, label, f"{score:.6f}"]
            for path, _, result in self.results
            for box, score, label, name in zip(*result.detections.to_dict().values(), strict=True)
        )
        write_csv(self.out / "predictions.csv", self.columns, rows, newline="\n")


class NamesWriter(PredictionWriter):
    """`images.csv`: which name stands for which image in drawings and label files; written in any case."""

    def close(self) -> None:
        rows = ((name, path) for path, name, _ in self.results)
        write_csv(self.out / "images.csv", ("name", "file"), rows, newline="\n")


WRITERS: dict[str, type[PredictionWriter]] = {
    "json": JsonWriter,
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "csv": CsvWriter,
    "names": NamesWriter,
}
