"""Layouts as they look after people had them: in other folders, other cases and other suffixes, with strange files."""

import json

import pytest

from focaldet.data.config import DataConfig
from focaldet.data.splits import find_parts, inspect_splits, open_parts, open_splits
from focaldet.errors import DataError, FocaldetError
from tests.data.layouts import (
    LAYOUTS,
    TEST,
    TRAIN,
    VAL,
    coco_json,
    csv_text,
    put,
    put_images,
    put_labels,
    put_xmls,
    renamed,
)
from tests.data.test_layouts import assert_is

CLASS_LINES = "cat\ntraffic light\n"
WITH_BOXES = {name: boxes for name, boxes in TRAIN.items() if boxes}


def nested_darknet(folder):
    return LAYOUTS["cvat_yolo_project"].write(folder / "archive" / "export 1")


def nested_coco(folder):
    return LAYOUTS["roboflow_coco"].write(folder / "My Project.v1i.coco")


def nested_yolo(folder):
    return LAYOUTS["roboflow_yolo"].write(folder / "set")


def nested_imagefolder(folder):
    return LAYOUTS["imagefolder"].write(folder / "data")


def yolo_in_capitals_without_yaml(folder):
    for split, contents in (("Train", TRAIN), ("Validation", VAL)):
        put_images(folder / split / "Images", contents)
        put_labels(folder / split / "Labels", contents)
    put(folder / "classes.txt", CLASS_LINES)
    put(folder / "README.md", "x")
    return {"Train": TRAIN, "Validation": VAL}


def yolo_of_colab(folder):
    LAYOUTS["roboflow_yolo"].write(folder)
    put(
        folder / "data.yaml",
        "train: /content/s/train/images\nval: /content/s/valid/images\nnames: [cat, traffic light]\n",
    )
    return {"train": TRAIN, "val": VAL}


def yolo_beside_coco_of_validation(folder):
    wanted = LAYOUTS["ultralytics_yolo"].write(folder)
    put(folder / "annotations" / "instances_val2017.json", coco_json(VAL))
    return wanted


def yolo_with_prefixes_on_the_images(folder):
    images = renamed(TRAIN, "0a1b2c3d-{}".format)
    put_images(folder / "images", images)
    put_labels(folder / "labels", TRAIN)
    put(folder / "classes.txt", CLASS_LINES)
    return {"all": images}


def yolo_in_one_folder_with_a_readme(folder):
    put_images(folder, TRAIN)
    put_labels(folder, TRAIN)
    put(folder / "classes.txt", CLASS_LINES)
    put(folder / "README.txt", "about these data\n")
    return {"all": TRAIN}


def voc_in_capitals(folder):
    put_images(folder / "JPEGIMAGES", TRAIN, suffix=".JPG")
    put_xmls(folder / "ANNOTATIONS", TRAIN)
    for file in (folder / "ANNOTATIONS").iterdir():
        file.rename(file.with_suffix(".XML"))
    return {"all": renamed(TRAIN, lambda name: name.replace(".jpg", ".JPG"))}


def voc_with_lists_at_the_top(folder):
    put_images(folder / "images", TRAIN)
    put_xmls(folder / "annotations", TRAIN)
    put(folder / "train.txt", "images/f0.jpg\nimages/street 1.jpg\n")
    put(folder / "val.txt", "f2\n")
    return {"train": WITH_BOXES, "val": {"f2.jpg": []}}


def voc_of_sites(folder):
    for site, contents in (("site a", TRAIN), ("site b", renamed(VAL, "b_{}".format))):
        put_images(folder / site, contents)
        put_xmls(folder / site, contents)
    return {"all": TRAIN | renamed(VAL, "b_{}".format)}


def coco_of_windows(folder):
    put_images(folder / "images", TRAIN)
    put(folder / "annotations.json", coco_json(TRAIN, name=lambda name: f"C:\\Users\\me\\pictures\\{name}"))
    return {"all": TRAIN}


def coco_of_an_address(folder):
    put_images(folder / "images", TRAIN)
    put(folder / "set.json", coco_json(TRAIN, name=lambda n: f"https://x.org/a/{n.replace(' ', '%20')}"))
    return {"all": TRAIN}


def coco_with_other_suffix(folder):
    put_images(folder / "images", TRAIN, suffix=".png")
    put(folder / "train.json", coco_json(TRAIN))
    return {"train": renamed(TRAIN, lambda name: name.replace(".jpg", ".png"))}


def coco_of_one_image_folder(folder):
    put_images(folder / "images", TRAIN | renamed(VAL, "v_{}".format))
    put(folder / "annotations" / "train.json", coco_json(TRAIN))
    put(folder / "annotations" / "my_val-v2.json", coco_json(renamed(VAL, "v_{}".format)))
    return {"train": TRAIN, "val": renamed(VAL, "v_{}".format)}


def keras_of_another_machine(folder):
    put_images(folder / "imgs", TRAIN)
    rows = [[f"/home/bob/imgs/{name}", *box, label] for name, boxes in TRAIN.items() for label, box in boxes]
    put(folder / "annotations.csv", csv_text(rows))
    return {"all": WITH_BOXES}


def table_with_width_and_height(folder):
    put_images(folder / "train", TRAIN)
    rows = [[n, label, b[0], b[1], b[2] - b[0], b[3] - b[1]] for n, boxes in TRAIN.items() for label, b in boxes]
    put(folder / "train.csv", csv_text([["image_id", "label", "x", "y", "w", "h"], *rows]))
    return {"train": WITH_BOXES}


def vott_export_folder(folder):
    wanted = LAYOUTS["vott"].write(folder / "photos")
    (folder / "vott-json-export").mkdir()
    (folder / "photos" / "Street-export.json").rename(folder / "vott-json-export" / "Street-export.json")
    return wanted


def openimages_of_fiftyone(folder):
    put_images(folder / "data", TRAIN)
    put(folder / "metadata" / "classes.csv", "/m/01yrx,cat\n/m/015qff,traffic light\n")
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    rows = [
        f"street 1,x,/m/015qff,1,0.1875,0.5625,{1 / 3},{44 / 48},0,0,0,0,0",
        "f2,x,/m/01yrx,1,0,0.5,0,0.5,0,0,0,0,0",
    ]
    put(folder / "labels" / "detections.csv", "\n".join([header, *rows]))
    return {"all": {"street 1.jpg": TRAIN["street 1.jpg"], "f2.jpg": [("cat", (0, 0, 32, 24))]}}


def labelme_with_a_stray_file(folder):
    wanted = LAYOUTS["labelme"].write(folder)
    put(folder / "package.json", "{}")
    return wanted


def macosx(folder):
    wanted = LAYOUTS["roboflow_yolo"].write(folder)
    put(folder / "__MACOSX" / "train" / "._f0.jpg", "x")
    put(folder / ".DS_Store", "x")
    return wanted


CHANGED = {
    nested_darknet: {"image by base name"},
    nested_coco: set(),
    nested_yolo: set(),
    nested_imagefolder: set(),
    yolo_in_capitals_without_yaml: set(),
    yolo_of_colab: {"image in another folder"},
    yolo_beside_coco_of_validation: set(),
    yolo_with_prefixes_on_the_images: set(),
    yolo_in_one_folder_with_a_readme: set(),
    voc_in_capitals: set(),
    voc_with_lists_at_the_top: set(),
    voc_of_sites: set(),
    coco_of_windows: {"image by base name"},
    coco_of_an_address: {"image by base name"},
    coco_with_other_suffix: {"image with another suffix"},
    coco_of_one_image_folder: set(),
    keras_of_another_machine: {"image by base name", "image unused"},
    table_with_width_and_height: {"image unused"},
    vott_export_folder: {"image by base name"},
    openimages_of_fiftyone: {"image unused", "columns unused"},
    labelme_with_a_stray_file: {"file unused", "polygon"},
    macosx: {"hidden file"},
}


@pytest.mark.parametrize(("write", "told"), CHANGED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_changed_layout_is_read_and_what_is_odd_is_told(tmp_path, write, told):
    wanted = write(tmp_path)
    config = DataConfig(path=tmp_path)
    datasets = open_parts(config, find_parts(config))
    assert set(datasets) == set(wanted)
    for split, contents in wanted.items():
        assert_is(datasets[split], contents, background=True)
    assert {kind for dataset in datasets.values() for _, kind in dataset.problems.counts} == told
    assert inspect_splits(config, seed=0).problems.count("error") == 0
    open_splits(config, seed=0)


REFUSED = [
    ("results.json", json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]), "detections"),
    (
        "ls.json",
        json.dumps([{"id": 1, "annotations": [], "data": {"image": "a.jpg"}}]),
        "label studio: export it as COCO",
    ),
    ("labels.json", json.dumps({"classes": ["a"], "labels": {"f0": []}}), r"fiftyone: export it as COCODetection"),
    ("info.json", json.dumps({"images": [], "categories": []}), "images without annotations"),
    ("annotations.xml", "<annotations><version>1.1</version></annotations>", r"1 file \.xml.*export it as COCO 1\.0"),
]


@pytest.mark.parametrize(("name", "text", "message"), REFUSED)
def test_what_is_not_read_is_described(tmp_path, name, text, message):
    put_images(tmp_path, TEST)
    put(tmp_path / name, text)
    with pytest.raises(DataError, match=message) as caught:
        open_splits(DataConfig(path=tmp_path), seed=0)
    assert "docs/guide/data.md#layouts" in str(caught.value)


def test_two_files_that_might_be_meant_and_only_a_test_split(tmp_path):
    for name in ("a.json", "b.json"):
        put(tmp_path / "two" / name, coco_json(TRAIN))
    with pytest.raises(DataError, match=r'two files for the split "all": .*a.json and .*b.json; name one'):
        open_splits(DataConfig(path=tmp_path / "two"), seed=0)
    put_images(tmp_path / "one" / "test", TRAIN)
    put_xmls(tmp_path / "one" / "test", TRAIN)
    with pytest.raises(FocaldetError, match=r"no split to train on .*--data.train test"):
        open_splits(DataConfig(path=tmp_path / "one"), seed=0)
    assert len(open_splits(DataConfig(path=tmp_path / "one", train="test"), seed=0).train) == 2
    checked = inspect_splits(DataConfig(path=tmp_path / "one"), seed=0)
    assert checked.problems.counts["error", "no training split"] == 1


def test_folders_that_are_links(tmp_path):
    LAYOUTS["roboflow_voc"].write(tmp_path / "all")
    (tmp_path / "set").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "set" / split).symlink_to(tmp_path / "all" / split)
    with pytest.raises(DataError, match=r"no .* data .*2 links that lead out.*--data.follow-links"):
        open_splits(DataConfig(path=tmp_path / "set"), seed=0)
    splits = open_splits(DataConfig(path=tmp_path / "set", follow_links=True), seed=0)
    assert (len(splits.train), len(splits.val)) == (3, 2)


@pytest.mark.parametrize("text", ['{"images": [], "annotations": [], "categories": 5}', '{"images": [', ""])
def test_a_test_file_that_is_broken_stops_no_training(tmp_path, text):
    coco_of_one_image_folder(tmp_path)
    put(tmp_path / "annotations" / "instances_test.json", text)
    assert len(open_splits(DataConfig(path=tmp_path), seed=0).train) == 3
    checked = inspect_splits(DataConfig(path=tmp_path), seed=0)
    assert checked.problems.counts["error", "split unreadable"] == 1 and len(checked.datasets) == 2
