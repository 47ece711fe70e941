"""One data set written as each tool writes it, from the tools' published descriptions and not from the readers.

`LAYOUTS` maps a name to a function that writes the layout into a folder and returns what a reader must give: for each
split the boxes of each image by its name.
"""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

Box = tuple[str, tuple[float, float, float, float]]
Contents = dict[str, list[Box]]
CLASSES = ("cat", "traffic light")
SIZE = (64, 48)  # width, height
TRAIN: Contents = {
    "f0.jpg": [("cat", (8, 4, 40, 36)), ("traffic light", (0, 0, 16, 12))],
    "street 1.jpg": [("traffic light", (12, 16, 36, 44))],
    "f2.jpg": [],
}
VAL: Contents = {"f0.jpg": [("cat", (16, 8, 48, 40))], "g1.jpg": [("cat", (4, 4, 20, 28))]}
TEST: Contents = {"f0.jpg": [("traffic light", (32, 24, 64, 48))]}


@dataclass(frozen=True)
class Layout:
    """How a layout is written, and whether it has a word for images without boxes."""

    write: Callable[[Path], dict[str, Contents]]
    format: str
    background: bool = True


LAYOUTS: dict[str, Layout] = {}


def layout(format_name: str, *, background: bool = True):
    def enter(function):
        LAYOUTS[function.__name__] = Layout(function, format_name, background)
        return function

    return enter


def put_images(folder: Path, contents: Contents, *, suffix: str = ".jpg", shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(contents):
        color = (30 + 40 * number + shade, 90, 200 - shade)
        Image.new("RGB", SIZE, color).save(folder / name.replace(".jpg", suffix))


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def renamed(contents: Contents, change: Callable[[str], str]) -> Contents:
    return {change(name): boxes for name, boxes in contents.items()}


def coco_json(contents: Contents, *, first_id: int = 1, name: Callable[[str], str] = str) -> str:
    images = [
        {"id": i, "file_name": name(file), "width": SIZE[0], "height": SIZE[1]}
        for i, file in enumerate(contents, first_id)
    ]
    annotations = [
        {"image_id": i, "category_id": CLASSES.index(label) + first_id, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, boxes in enumerate(contents.values(), first_id)
        for label, (x1, y1, x2, y2) in boxes
    ]
    for i, annotation in enumerate(annotations, first_id):
        annotation |= {"id": i, "area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0, "segmentation": []}
    categories = [{"id": i, "name": label, "supercategory": ""} for i, label in enumerate(CLASSES, first_id)]
    return json.dumps(
        {"info": {}, "licenses": [], "images": images, "categories": categories, "annotations": annotations}
    )


def voc_xml(name: str, boxes: list[Box], *, folder: str = "", one_based: bool = False) -> str:
    shift = int(one_based)
    objects = "".join(
        f"<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x1 + shift}</xmin><ymin>{y1 + shift}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in boxes
    )
    source = "<source><database>The VOC2007 Database</database></source>" if one_based else ""
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    return f"<annotation><folder>{folder}</folder><filename>{name}</filename>{source}{size}{objects}</annotation>"


def yolo_rows(boxes: list[Box]) -> str:
    width, height = SIZE
    rows = (
        (CLASSES.index(label), (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        for label, (x1, y1, x2, y2) in boxes
    )
    return "".join(f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for label, x, y, w, h in rows)


def put_xmls(to: Path, contents: Contents, **options) -> None:
    for name, boxes in contents.items():
        put(to / f"{Path(name).stem}.xml", voc_xml(name, boxes, **options))


def put_labels(folder: Path, contents: Contents) -> None:
    for name, boxes in contents.items():
        put(folder / f"{Path(name).stem}.txt", yolo_rows(boxes))


def csv_text(rows: list[list]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue()


# COCO


@layout("coco")
def coco_2017(folder):
    for split, contents in (("train2017", TRAIN), ("val2017", VAL)):
        put_images(folder / split, contents)
        put(folder / "annotations" / f"instances_{split}.json", coco_json(contents))
        put(folder / "annotations" / f"captions_{split}.json", json.dumps({"images": [], "annotations": []}))
    return {"train2017": TRAIN, "val2017": VAL}


@layout("coco")
def coco_under_any_name(folder):
    put_images(folder / "photos" / "2024", TRAIN)
    put(folder / "our labels.json", coco_json(TRAIN, name=lambda name: f"photos/2024/{name}"))
    return {"all": TRAIN}


@layout("coco")
def cvat_coco_task(folder):
    put_images(folder / "images" / "default", TRAIN)
    put(folder / "annotations" / "instances_default.json", coco_json(TRAIN))
    return {"default": TRAIN}


@layout("coco")
def cvat_coco_project(folder):
    splits = {"Train": TRAIN, "Validation": VAL, "Test": TEST}
    for shade, (split, contents) in enumerate(splits.items()):
        put_images(folder / "images" / split, contents, shade=shade)
        put(folder / "annotations" / f"instances_{split}.json", coco_json(contents))
    return splits


@layout("coco")
def label_studio_coco(folder):
    put_images(folder / "images", renamed(TRAIN, "1f3a9c2e-{}".format))
    put(folder / "result.json", coco_json(TRAIN, first_id=0, name=lambda name: f"images\\1f3a9c2e-{name}"))
    return {"all": renamed(TRAIN, "1f3a9c2e-{}".format)}


@layout("coco")
def label_studio_coco_of_local_files(folder):
    put_images(folder / "images", TRAIN)
    put(folder / "result.json", coco_json(TRAIN, first_id=0, name=lambda n: f"/data/local-files/?d=my%20set/{n}"))
    return {"all": TRAIN}


@layout("coco")
def roboflow_coco(folder):
    splits = {"train": TRAIN, "valid": VAL, "test": TEST}
    for split, contents in splits.items():
        put_images(folder / split, contents)
        put(folder / split / "_annotations.coco.json", coco_json(contents, first_id=0))
    put(folder / "README.roboflow.txt", "exported\n")
    return splits


@layout("coco")
def fiftyone_coco(folder):
    put_images(folder / "data", TRAIN)
    put(folder / "labels.json", coco_json(TRAIN))
    return {"all": TRAIN}


@layout("coco")
def fiftyone_coco_of_splits(folder):
    for split, contents in (("train", TRAIN), ("validation", VAL)):
        put_images(folder / split / "data", contents)
        put(folder / split / "labels.json", coco_json(contents))
    return {"train": TRAIN, "validation": VAL}


# Pascal VOC


@layout("voc")
def voc_devkit(folder):
    for year, contents in (("VOC2007", TRAIN), ("VOC2012", renamed(VAL, "2012_{}".format))):
        root = folder / "VOCdevkit" / year
        put_images(root / "JPEGImages", contents)
        put_xmls(root / "Annotations", contents, folder=year, one_based=True)
        names = [Path(name).stem for name in contents]
        put(root / "ImageSets" / "Main" / "trainval.txt", "\n".join(names) + "\n")
        put(root / "ImageSets" / "Main" / "cat_trainval.txt", "".join(f"{name} -1\n" for name in names))
    return {"trainval": TRAIN | renamed(VAL, "2012_{}".format)}


@layout("voc")
def cvat_voc_task(folder):
    put_images(folder / "JPEGImages", TRAIN)
    put_xmls(folder / "Annotations", TRAIN)
    put(folder / "ImageSets" / "Main" / "default.txt", "".join(f"{Path(name).stem}\n" for name in TRAIN))
    put(folder / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\n")
    return {"default": TRAIN}


@layout("voc")
def cvat_voc_project(folder):
    splits = {"Train": TRAIN, "Validation": renamed(VAL, "v_{}".format)}
    for split, contents in splits.items():
        put_images(folder / "JPEGImages" / split, contents)
        put_xmls(folder / "Annotations" / split, contents)
        put(folder / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{split}/{Path(n).stem}\n" for n in contents))
    return splits


@layout("voc")
def label_studio_voc(folder):
    put_images(folder / "images", TRAIN)
    put_xmls(folder / "Annotations", TRAIN)
    return {"all": TRAIN}


@layout("voc")
def roboflow_voc(folder):
    splits = {"train": TRAIN, "valid": VAL, "test": TEST}
    for split, contents in splits.items():
        put_images(folder / split, contents)
        put_xmls(folder / split, contents)
    return splits


@layout("voc")
def fiftyone_voc(folder):
    put_images(folder / "data", TRAIN)
    put_xmls(folder / "labels", TRAIN)
    return {"all": TRAIN}


@layout("voc")
def kaggle_voc(folder):
    put_images(folder / "images", TRAIN, suffix=".png")
    put_xmls(folder / "annotations", renamed(TRAIN, lambda name: name.replace(".jpg", ".png")))
    return {"all": renamed(TRAIN, lambda name: name.replace(".jpg", ".png"))}


@layout("voc")
def kaggle_voc_split_first(folder):
    for split, contents in (("Train", TRAIN), ("Val", VAL)):
        put_images(folder / split / "images", contents)
        put_xmls(folder / split / "annotations", contents)
    return {"Train": TRAIN, "Val": VAL}


@layout("voc")
def kaggle_voc_split_last(folder):
    for split, contents in (("train", TRAIN), ("val", VAL)):
        put_images(folder / "images" / split, contents)
        put_xmls(folder / "annotations" / split, contents)
    return {"train": TRAIN, "val": VAL}


# YOLO and darknet


@layout("yolo")
def ultralytics_yolo(folder):
    for split, contents in (("train", TRAIN), ("val", VAL)):
        put_images(folder / "images" / split, contents)
        put_labels(folder / "labels" / split, {name: boxes for name, boxes in contents.items() if boxes})
    put(
        folder / "data.yaml",
        "path: ../datasets/mine\ntrain: images\\train\nval: images\\val\nnames:\n  0: cat\n  1: traffic light\n",
    )
    return {"train": TRAIN, "val": VAL}


@layout("yolo")
def cvat_ultralytics_task(folder):
    put_images(folder / "images" / "train", TRAIN)
    put_labels(folder / "labels" / "train", TRAIN)
    put(folder / "train.txt", "".join(f"images/train/{name}\n" for name in TRAIN))
    put(folder / "data.yaml", "path: ./\ntrain: train.txt\nnames:\n  0: cat\n  1: traffic light\n")
    return {"train": TRAIN}


@layout("yolo")
def cvat_ultralytics_project(folder):
    splits = {"Train": TRAIN, "Validation": VAL}
    for split, contents in splits.items():
        put_images(folder / "images" / split, contents)
        put_labels(folder / "labels" / split, contents)
        put(folder / f"{split}.txt", "".join(f"data/images/{split}/{name}\n" for name in contents))
    lines = "".join(f"{split}: {split}.txt\n" for split in splits)
    put(folder / "data.yaml", f"path: .\n{lines}names: {{0: cat, 1: traffic light}}\n")
    return splits


def put_darknet(folder: Path, splits: dict[str, Contents], prefix: str) -> None:
    data = f"classes = {len(CLASSES)}\n"
    for key, contents in splits.items():
        put_images(folder / f"obj_{key}_data", contents)
        put_labels(folder / f"obj_{key}_data", contents)
        put(folder / f"{key}.txt", "".join(f"{prefix}obj_{key}_data/{name}\n" for name in contents))
        data += f"{key} = {prefix}{key}.txt\n"
    put(folder / "obj.data", f"{data}names = {prefix}obj.names\nbackup = backup/\n")
    put(folder / "obj.names", "".join(f"{label}\n" for label in CLASSES))


@layout("yolo")
def cvat_yolo_task(folder):
    put_darknet(folder, {"train": TRAIN}, "data/")
    return {"train": TRAIN}


@layout("yolo")
def cvat_yolo_project(folder):
    put_darknet(folder, {"Train": TRAIN, "Validation": VAL}, "data/")
    return {"Train": TRAIN, "Validation": VAL}


@layout("yolo")
def darknet(folder):
    put_darknet(folder, {"train": TRAIN, "valid": VAL}, "")
    return {"train": TRAIN, "valid": VAL}


@layout("yolo")
def label_studio_yolo(folder):
    put_images(folder / "images", TRAIN)
    put_labels(folder / "labels", renamed(TRAIN, "0b1c2d3e-{}".format))
    put(folder / "classes.txt", "".join(f"{label}\n" for label in CLASSES))
    put(folder / "notes.json", json.dumps({"categories": [], "info": {"year": 2024}}))
    return {"all": TRAIN}


@layout("yolo")
def roboflow_yolo(folder):
    splits = {"train": TRAIN, "val": VAL, "test": TEST}
    for split, contents in splits.items():
        name = "valid" if split == "val" else split
        put_images(folder / name / "images", contents)
        put_labels(folder / name / "labels", contents)
    lines = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    put(folder / "data.yaml", f"{lines}\nnc: 2\nnames: ['cat', 'traffic light']\n")
    return splits


@layout("yolo")
def roboflow_darknet(folder):
    splits = {"train": TRAIN, "valid": VAL}
    for split, contents in splits.items():
        put_images(folder / split, contents)
        put_labels(folder / split, contents)
        put(folder / split / "_darknet.labels", "".join(f"{label}\n" for label in CLASSES))
    return splits


@layout("yolo")
def fiftyone_yolo_v4(folder):
    put_images(folder / "data", TRAIN)
    put_labels(folder / "data", TRAIN)
    put(folder / "obj.names", "".join(f"{label}\n" for label in CLASSES))
    put(folder / "images.txt", "".join(f"data/{name}\n" for name in TRAIN))
    return {"all": TRAIN}


@layout("yolo")
def fiftyone_yolo_v5(folder):
    for split, contents in (("train", TRAIN), ("val", VAL)):
        put_images(folder / "images" / split, contents)
        put_labels(folder / "labels" / split, contents)
    lines = "train: ./images/train/\nval: ./images/val/\n"
    put(folder / "dataset.yaml", f"names:\n  0: cat\n  1: traffic light\npath: {folder}\n{lines}")
    return {"train": TRAIN, "val": VAL}


# Tables


@layout("csv")
def keras_retinanet(folder):
    put_images(folder / "images", TRAIN)
    rows = [[f"images/{name}", *box, label] for name, boxes in TRAIN.items() for label, box in boxes]
    put(folder / "annotations.csv", csv_text([*rows, ["images/f2.jpg", "", "", "", "", ""]]))
    put(folder / "classes.csv", csv_text([[label, i] for i, label in enumerate(CLASSES)]))
    return {"all": TRAIN}


@layout("csv", background=False)
def roboflow_keras_retinanet(folder):
    for split, contents in (("train", TRAIN), ("valid", VAL)):
        put_images(folder / split, contents)
        rows = [[name, *box, label] for name, boxes in contents.items() for label, box in boxes]
        put(folder / split / "_annotations.csv", csv_text(rows))
        put(folder / split / "_classes.csv", csv_text([[label, i] for i, label in enumerate(CLASSES)]))
    return {"train": TRAIN, "valid": VAL}


@layout("csv", background=False)
def roboflow_tensorflow(folder):
    for split, contents in (("train", TRAIN), ("valid", VAL)):
        put_images(folder / split, contents)
        rows = [[name, *SIZE, label, *box] for name, boxes in contents.items() for label, box in boxes]
        header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
        put(folder / split / "_annotations.csv", csv_text([header, *rows]))
    return {"train": TRAIN, "valid": VAL}


@layout("csv", background=False)
def vott_csv(folder):
    put_images(folder, TRAIN)
    rows = [[name, *box, label] for name, boxes in TRAIN.items() for label, box in boxes]
    put(folder / "Street-export.csv", csv_text([["image", "xmin", "ymin", "xmax", "ymax", "label"], *rows]))
    return {"all": TRAIN}


@layout("csv", background=False)
def open_images(folder):
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    codes = {"cat": "/m/01yrx", "traffic light": "/m/015qff"}
    for split, contents in (("train", TRAIN), ("validation", VAL)):
        put_images(folder / split, contents)
        rows = [
            [Path(n).stem, "xclick", codes[label], 1, x1 / 64, x2 / 64, y1 / 48, y2 / 48, 0, 0, 0, 0, 0]
            for n, boxes in contents.items()
            for label, (x1, y1, x2, y2) in boxes
        ]
        put(folder / f"{split}-annotations-bbox.csv", csv_text([header.split(","), *rows]))
    put(folder / "class-descriptions-boxable.csv", csv_text([[code, label] for label, code in codes.items()]))
    return {"train": TRAIN, "validation": VAL}


@layout("csv")
def label_studio_csv(folder):
    put_images(folder / "images", TRAIN)
    rows = []
    for number, (name, boxes) in enumerate(TRAIN.items()):
        shapes = [
            {"x": x1 / 0.64, "y": y1 / 0.48, "width": (x2 - x1) / 0.64, "height": (y2 - y1) / 0.48, "rotation": 0}
            | {"rectanglelabels": [label], "original_width": SIZE[0], "original_height": SIZE[1]}
            for label, (x1, y1, x2, y2) in boxes
        ]
        image = f"/data/upload/4/aa11bb22-{name}"
        rows.append([image, number, json.dumps(shapes) if shapes else "", 1, number, "2024", "2024", 3.5])
    header = ["image", "id", "label", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"]
    put(folder / "project-4-at-2024-05-01.csv", csv_text([header, *rows]))
    return {"all": TRAIN}


# Other json


def labelme_json(name: str, boxes: list[Box], *, polygons: bool = False) -> str:
    shapes = []
    for label, (x1, y1, x2, y2) in boxes:
        points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]] if polygons else [[x2, y2], [x1, y1]]
        kind = "polygon" if polygons else "rectangle"
        shapes.append({"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}})
    sides = {"imageHeight": SIZE[1], "imageWidth": SIZE[0]}
    document = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
    return json.dumps(document | sides)


@layout("labelme")
def labelme(folder):
    put_images(folder, TRAIN)
    for number, (name, boxes) in enumerate(TRAIN.items()):
        put(folder / f"{Path(name).stem}.json", labelme_json(name, boxes, polygons=number == 0))
    return {"all": TRAIN}


@layout("labelme")
def labelme_of_splits(folder):
    for split, contents in (("train", TRAIN), ("val", VAL)):
        put_images(folder / "images" / split, contents)
        for name, boxes in contents.items():
            put(
                folder / "json" / split / f"{Path(name).stem}.json",
                labelme_json(f"..\\..\\images\\{split}\\{name}", boxes),
            )
    return {"train": TRAIN, "val": VAL}


@layout("vott")
def vott(folder):
    put_images(folder, TRAIN)
    assets = {}
    for number, (name, boxes) in enumerate(TRAIN.items()):
        regions = [
            {"id": f"r{k}", "type": "RECTANGLE", "tags": [label]}
            | {"boundingBox": {"left": x1, "top": y1, "width": x2 - x1, "height": y2 - y1}}
            | {"points": [{"x": x1, "y": y1}, {"x": x2, "y": y1}, {"x": x2, "y": y2}, {"x": x1, "y": y2}]}
            for k, (label, (x1, y1, x2, y2)) in enumerate(boxes)
        ]
        size = {"width": SIZE[0], "height": SIZE[1]}
        path = f"file:D:/photos/{name.replace(' ', '%20')}"
        asset = {"format": "jpg", "id": f"{number:032x}", "name": name.replace(" ", "%20"), "path": path, "size": size}
        assets[asset["id"]] = {"asset": asset | {"state": 2, "type": 1}, "regions": regions, "version": "2.2.0"}
    tags = [{"name": label, "color": "#5db300"} for label in CLASSES]
    put(
        folder / "Street-export.json",
        json.dumps({"name": "Street", "tags": tags, "version": "2.2.0", "assets": assets}),
    )
    return {"all": TRAIN}


def metadata_lines(contents: Contents, prefix: str = "") -> str:
    lines = []
    for name, boxes in contents.items():
        bbox = [[x1, y1, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in boxes]
        objects = {"bbox": bbox, "categories": [CLASSES.index(label) for label, _ in boxes]}
        lines.append(json.dumps({"file_name": prefix + name, "objects": objects}))
    return "\n".join(lines) + "\n"


@layout("imagefolder")
def imagefolder(folder):
    for split, contents in (("train", TRAIN), ("validation", VAL)):
        put_images(folder / split, contents)
        put(folder / split / "metadata.jsonl", metadata_lines(contents))
    put(folder / "classes.txt", "".join(f"{label}\n" for label in CLASSES))
    return {"train": TRAIN, "validation": VAL}


@layout("imagefolder")
def imagefolder_with_one_file(folder):
    for split, contents in (("train", TRAIN), ("test", TEST)):
        put_images(folder / split, contents)
    put(folder / "metadata.jsonl", metadata_lines(TRAIN, "train/") + metadata_lines(TEST, "test/"))
    put(folder / "classes.txt", "".join(f"{label}\n" for label in CLASSES))
    return {"train": TRAIN, "test": TEST}


def forget(folder: Path) -> None:
    """Empty a folder, for the next mutation of what was in it."""
    shutil.rmtree(folder)
    folder.mkdir()
