"""A COCO file that lists the images of an evaluation server, so that results carry its ids."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focaldet.data.formats.json_files import read_json
from focaldet.data.formats.locate import plain_name
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.table import Table
from focaldet.data.formats.text import list_names, quantity
from focaldet.errors import DataError
from focaldet.evaluation.writers import ImageDetections, PredictionWriter
from focaldet.files import write_json


@dataclass(frozen=True, slots=True)
class ImageList:
    """The images and categories of a file such as COCO's `image_info_test-dev2017.json`; annotations are not needed.

    `category_ids` are by name, and empty where the file lists no categories.
    """

    file: Path
    names: tuple[str, ...]
    image_ids: tuple[int, ...]
    category_ids: dict[str, int]

    def select(self, paths: Sequence[Path]) -> tuple[list[Path], dict[Path, int], list[str]]:
        """Those of the image files that are in the list, in its order; their ids; and notes on what only one side has.

        A file is that of a name where its path ends with the name, or where it alone has the base name.

        Raises:
            DataError: none of the files is in the list.
        """
        by_base: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            by_base[path.name].append(path)
        ids: dict[Path, int] = {}
        missing = []
        for name, image_id in zip(self.names, self.image_ids, strict=True):
            plain = plain_name(name)
            same = by_base.get(plain.rpartition("/")[2], [])
            ending = [path for path in same if f"/{path.as_posix()}".endswith(f"/{plain.lstrip('/')}")]
            chosen = ending[:1] or (same if len(same) == 1 else [])
            if chosen:
                ids[chosen[0]] = image_id
            else:
                missing.append(name)
        if not ids:
            raise DataError(f"none of its {len(self.names)} images is among those given", file=self.file)
        notes = []
        if missing:
            shown = list_names(missing)
            notes.append(f"{quantity(len(missing), 'image')} of {self.file} not given, without results: {shown}")
        if extra := [str(path) for path in paths if path not in ids]:
            notes.append(f"{quantity(len(extra), 'image')} not in {self.file}, skipped: {list_names(extra)}")
        return list(ids), ids, notes


def read_image_list(file: Path) -> ImageList:
    """The images of a COCO file and, where it has them, its categories.

    Raises:
        DataError: the file is not COCO json with a list of images.
    """
    document = read_json(file)
    reading = Reading()
    images = Table(document, "images", file=file, reading=reading)
    ids, names = images.identifiers(), images.column("file_name", (str,), "the name of an image file")
    categories: dict[str, int] = {}
    if isinstance(document, dict) and document.get("categories"):
        rows = Table(document, "categories", file=file, reading=reading)
        categories = dict(zip(rows.column("name", (str,), "a text"), rows.identifiers(), strict=True))
    return ImageList(file, tuple(names), tuple(ids), categories)


class ListedCocoWriter(PredictionWriter):
    """`coco.json` and `results.json` with the image ids of a list, and its category ids where it has categories.

    `results.json` is the plain list of results that evaluation servers take; detections of classes that the list does
    not have are left out of both.
    """

    def __init__(
        self,
        out: Path,
        class_names: tuple[str, ...],
        category_ids: tuple[int, ...],
        *,
        images: ImageList,
        ids: dict[Path, int],
    ) -> None:
        super().__init__(out, class_names, category_ids)
        self.images, self.ids = images, ids

    def close(self) -> None:
        labels = tuple(range(len(self.class_names)))
        known = self.images.category_ids
        own = self.category_ids or tuple(label + 1 for label in labels)
        category_of = {label: known.get(name) if known else own[label] for label, name in enumerate(self.class_names)}
        images, results = [], []
        for path, _, result in self.results:
            images.append({"id": self.ids[path], "file_name": str(path), **result.size._asdict()})
            results += list(self._results(self.ids[path], result, category_of))
        named = ((category_of[label], name) for label, name in enumerate(self.class_names))
        categories = [{"id": category, "name": name} for category, name in named if category is not None]
        annotations = [
            {"id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} | row
            for number, row in enumerate(results, start=1)
        ]
        document = {"images": images, "categories": categories, "annotations": annotations}
        write_json(self.out / "coco.json", document)
        write_json(self.out / "results.json", results)

    def _results(
        self, image_id: int, result: ImageDetections, category_of: dict[int, int | None]
    ) -> list[dict[str, Any]]:
        rows = result.detections.to_coco(image_id=image_id, category_ids=tuple(range(len(self.class_names))))
        kept = [(row, category_of.get(row["category_id"])) for row in rows]
        return [row | {"category_id": category} for row, category in kept if category is not None]
