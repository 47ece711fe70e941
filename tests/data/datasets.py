"""One tiny data set written in all four formats: three images, two classes, one image without boxes."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = {"a.png": (64, 48), "b.png": (48, 64), "c.png": (32, 32)}  # width, height
BOXES = {"a.png": [("cat", (8, 4, 40, 36)), ("dog", (0, 0, 16, 12))], "b.png": [("cat", (12, 16, 36, 48))], "c.png": []}
CLASSES = ("cat", "dog")


def write_images(folder: Path, images: dict[str, tuple[int, int]] = IMAGES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shade, (name, size) in enumerate(images.items()):
        Image.new("RGB", size, (40 * shade, 90, 200)).save(folder / name)


def coco_document(sizes: dict[str, tuple[int, int]] = IMAGES) -> dict[str, Any]:
    """Category ids 7 and 3, image ids 100, 101, 102: nothing is contiguous. Ids ascend in the order of `CLASSES`."""
    ids = {name: 100 + i for i, name in enumerate(sizes)}
    images = [{"id": ids[n], "file_name": n, "width": w, "height": h} for n, (w, h) in sizes.items()]
    annotations = [
        {"image_id": ids[name], "category_id": {"cat": 3, "dog": 7}[label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for name in sizes
        for label, (x1, y1, x2, y2) in BOXES[name]
    ]
    for i, annotation in enumerate(annotations):
        annotation |= {"id": 500 + i, "area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0}
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def write_coco(folder: Path, document: Any = None) -> Path:
    write_images(folder / "images")
    file = folder / "instances_train.json"
    file.write_text(json.dumps(coco_document() if document is None else document))
    return file


def xml(
    name: str, *, size: tuple[int, int] | None = None, boxes: Any = None, head: str = "", database: str = "Unknown"
) -> str:
    width, height = size or IMAGES[name]
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in (BOXES[name] if boxes is None else boxes)
    )
    return (
        f"{head}<annotation><source><database>{database}</database></source>"
        f"<size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"
    )


def write_voc(folder: Path, splits: dict[str, list[str]] | None = None) -> Path:
    write_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for name in IMAGES:
        (folder / "Annotations" / name.replace(".png", ".xml")).write_text(xml(name))
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, names in (splits or {"train": ["a", "b", "c"]}).items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def write_yolo(folder: Path) -> Path:
    write_images(folder / "images" / "train")
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    for name, (width, height) in IMAGES.items():
        rows = []
        for label, (x1, y1, x2, y2) in BOXES[name]:
            x, y, w, h = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            rows.append(f"{CLASSES.index(label)} {x} {y} {w} {h}")
        if rows:
            (labels / name.replace(".png", ".txt")).write_text("\n".join(rows) + "\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nnames: [cat, dog]\n")
    return folder


def write_csv(folder: Path) -> Path:
    write_images(folder)
    rows = [f"{name},{x1},{y1},{x2},{y2},{label}" for name in IMAGES for label, (x1, y1, x2, y2) in BOXES[name]]
    (folder / "train.csv").write_text("\n".join([*rows, "c.png,,,,,"]) + "\n")
    (folder / "classes.csv").write_text("cat,0\ndog,1\n")
    return folder
