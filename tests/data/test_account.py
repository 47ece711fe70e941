"""What is not used is counted and named; loose values are taken with a warning and refused by `strict`; both alike in
`check`, which goes on after every fault, and in `train`.
"""

import json

import pytest
from PIL import Image

from focaldet.data.config import DataConfig
from focaldet.data.formats.split_names import pick, role_of
from focaldet.data.splits import inspect_splits, open_split, open_splits
from focaldet.errors import ConfigError, DataError
from tests.data.datasets import coco_document, write_coco, write_csv, write_images, write_voc, write_yolo
from tests.data.layouts import LAYOUTS


def kinds(problems, *severities):
    return {kind: n for (severity, kind), n in problems.counts.items() if not severities or severity in severities}


def read(folder, **settings):
    """The problems that training and a check tell of, and the training split."""
    config = DataConfig(path=folder, **settings)
    train = open_splits(config, seed=0).train
    told = kinds(train.problems, "error", "warning")
    assert told == kinds(inspect_splits(config, seed=0).problems, "error", "warning")
    return train, told


@pytest.mark.parametrize("write", [write_voc, write_yolo, write_csv, write_coco])
def test_images_of_no_split_hidden_ones_and_other_kinds(tmp_path, write):
    write(tmp_path)
    folder = next(path for path in tmp_path.rglob("a.png")).parent
    for name in ("new.png", "NEW2.JPG", "._a.png", ".b.png", "phone.dng", "art.psd"):
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    told = kinds(inspect_splits(DataConfig(path=tmp_path), seed=0).problems)
    assert told["hidden file"] == 2 and told["image of another kind"] == 2
    assert told.get("image unused", 0) == (0 if write is write_yolo else 2)  # YOLO takes them for background


def test_label_files_without_an_image(tmp_path):
    write_yolo(tmp_path / "yolo")
    write_voc(tmp_path / "voc", {})
    for folder, name in (("yolo/labels/train", "gone.txt"), ("voc/Annotations", "gone.xml")):
        source = tmp_path / folder / ("a" + name[-4:])
        (tmp_path / folder / name).write_bytes(source.read_bytes())
    for folder in ("yolo", "voc"):
        train, told = read(tmp_path / folder)
        assert told == {"label without image": 1}
        assert "gone" in next(problem.file for problem in train.problems if problem.kind == "label without image")


def test_entries_of_lists_that_stand_twice(tmp_path):
    write_voc(tmp_path / "voc", {"train": ["a", "b", "a", "c"]})
    write_yolo(tmp_path / "yolo")
    (tmp_path / "yolo" / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")
    lines = ["images/train/a.png", "images\\train\\b.png", "./images/train/a.png"]
    (tmp_path / "yolo" / "train.txt").write_text("\n".join(lines))
    for folder, number in (("voc", 3), ("yolo", 2)):
        train, told = read(tmp_path / folder)
        assert told == {"image listed twice": 1} and len(train) == number - 1


def test_an_image_in_another_folder_and_another_file_of_annotations(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "instances_train.json").rename(tmp_path / "result.json")
    (tmp_path / "second try.json").write_text(json.dumps(coco_document()))
    write_images(tmp_path / "unlabeled", {"x.png": (9, 9)})
    problems = inspect_splits(DataConfig(path=tmp_path), seed=0).problems
    assert kinds(problems)["image in another folder"] == 1
    assert kinds(problems, "warning") == {"annotation file unused": 1}


def test_links_inside_are_followed_and_links_outside_only_if_asked(tmp_path):
    write_images(tmp_path / "elsewhere")
    write_coco(tmp_path / "set")
    images = tmp_path / "set" / "images"
    (tmp_path / "set" / "pool").mkdir()
    (images / "a.png").rename(tmp_path / "set" / "pool" / "a.png")
    (images / "a.png").symlink_to("../pool/a.png")
    assert len(read(tmp_path / "set")[0]) == 2 and read(tmp_path / "set")[1] == {}
    (images / "a.png").unlink()
    (images / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    with pytest.raises(DataError, match=r"images/a.png is a link that leads out .*--data.follow-links takes it"):
        read(tmp_path / "set")
    assert len(read(tmp_path / "set", follow_links=True)[0]) == 2
    (tmp_path / "set" / "pool" / "a.png").unlink()
    images.rename(tmp_path / "moved")
    images.symlink_to(tmp_path / "moved")
    with pytest.raises(DataError, match="follow-links"):
        read(tmp_path / "set")
    (images / "circle").symlink_to(images)
    assert len(read(tmp_path / "set", follow_links=True)[0]) == 2


@pytest.mark.parametrize("fmt", ["coco", "voc", "yolo", "csv"])
def test_images_that_are_named_and_not_there(tmp_path, fmt):
    write = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "csv": write_csv}[fmt]
    write(tmp_path)
    if fmt == "yolo":
        (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")
        (tmp_path / "train.txt").write_text("".join(f"images/train/{name}.png\n" for name in "abc"))
    next(tmp_path.rglob("b.png")).unlink()
    with pytest.raises(DataError, match=r"b.* --data.missing skip"):
        open_splits(DataConfig(path=tmp_path), seed=0)
    checked = inspect_splits(DataConfig(path=tmp_path), seed=0)
    assert kinds(checked.problems, "error") == {"image missing": 1} and len(checked.datasets["train"]) == 2
    train, told = read(tmp_path, missing="skip")
    assert told["image missing"] == 1 and len(train) == 1


LOOSE = [
    (lambda d: d["images"][0].update(id=100.0), "loose value"),
    (lambda d: d["images"][0].update(width="64", height="48.0"), "loose value"),
    (lambda d: d["images"][0].update(width=0), "loose value"),
    (lambda d: d["images"][0].update(width="unknown"), "loose value"),
    (lambda d: d["annotations"][0].update(image_id="100"), "loose value"),
    (lambda d: d["annotations"][0].update(category_id=3.0), "loose value"),
    (lambda d: d["annotations"][0].update(iscrowd=None), "loose value"),
    (lambda d: d["annotations"][0].update(iscrowd="0"), "loose value"),
    (lambda d: d["annotations"][0].update(area="1024.0"), "loose value"),
    (lambda d: d["annotations"][0].update(bbox=["8", 4, "32.0", 32]), "loose value"),
    (lambda d: d["annotations"][0].update(bbox=None, segmentation=[[8, 4, 40, 4, 40, 36]]), "box from polygon"),
    (lambda d: d["annotations"].append(d["annotations"][0] | {"id": 9, "image_id": 77}), "box without image"),
]


@pytest.mark.parametrize(("spoil", "kind"), LOOSE)
def test_loose_values_of_coco_are_taken_and_counted(tmp_path, spoil, kind):
    document = coco_document()
    spoil(document)
    write_coco(tmp_path, document)
    train = open_split(DataConfig(path=tmp_path, val=tmp_path), "train", seed=0)
    whole = inspect_splits(DataConfig(path=tmp_path), seed=0)
    assert whole.datasets["train"].boxes.tolist() == [[8, 4, 40, 36], [0, 0, 16, 12], [12, 16, 36, 48]]
    assert set(kinds(train.problems, "warning")) == {kind} == set(kinds(whole.problems, "warning"))
    with pytest.raises(DataError, match=r"refused by --data.strict"):
        open_splits(DataConfig(path=tmp_path, strict=True), seed=0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<difficult>0", "<difficult>Unspecified"),
        ("<difficult>0", "<difficult>"),
        ("<difficult>0", "<difficult>0.0"),
        ("<width>64", "<width>"),
        ("<width>64", "<width>wide"),
    ],
)
def test_loose_values_of_voc_are_taken_and_counted(tmp_path, old, new):
    write_voc(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace(old, new))
    dataset = inspect_splits(DataConfig(path=tmp_path), seed=0).datasets["train"]
    assert dataset.flags.tolist() == [0, 0, 0]
    assert set(kinds(dataset.problems, "warning")) == {"loose value"}
    with pytest.raises(DataError, match=r"a\.xml .*refused by --data.strict"):
        open_splits(DataConfig(path=tmp_path, strict=True), seed=0)


def test_polygons_of_voc_without_a_box(tmp_path):
    write_voc(tmp_path)
    points = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(((3, 4), (9, 4), (9, 20)), 1))
    polygon = f"<object><name>cat</name><polygon>{points}</polygon></object>"
    (tmp_path / "Annotations" / "c.xml").write_text(f"<annotation>{polygon}</annotation>")
    dataset = inspect_splits(DataConfig(path=tmp_path), seed=0).datasets["train"]
    assert dataset.boxes[-1].tolist() == [3, 4, 9, 20] and kinds(dataset.problems) == {"box from polygon": 1}


@pytest.mark.parametrize("fmt", ["coco", "voc", "csv"])
def test_boxes_that_are_fractions_are_recognized(tmp_path, fmt):
    if fmt == "coco":
        document = coco_document()
        for row, box in zip(
            document["annotations"], [[0.125, 0.25, 0.5, 0.5], [0, 0, 0.25, 0.25], [0.25, 0.25, 0.5, 0.5]], strict=True
        ):
            row |= {"bbox": box, "area": 0.1}
        write_coco(tmp_path, document)
    elif fmt == "csv":
        write_csv(tmp_path)
        (tmp_path / "train.csv").write_text(
            "a.png,0.125,0.25,0.625,0.75,cat\na.png,0,0,.25,.25,dog\nb.png,.25,.25,.75,.75,cat\n"
        )
    else:
        write_voc(tmp_path)
        for name, corners in (("a", (0.125, 0.25, 0.625, 0.75)), ("b", (0.25, 0.25, 0.75, 0.75))):
            tags = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
            text = f"<annotation><object><name>cat</name><bndbox>{tags}</bndbox></object></annotation>"
            (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
    dataset = inspect_splits(DataConfig(path=tmp_path), seed=0).datasets["train"]
    assert dataset.target(0).boxes[0].tolist() == [8, 12, 40, 36] and dataset.areas[0] == 32 * 24
    assert kinds(dataset.problems, "warning") == {"boxes are fractions": 1}
    with pytest.raises(DataError, match=r"all . boxes lie in 0…1.*strict"):
        open_splits(DataConfig(path=tmp_path, strict=True), seed=0)


def test_a_check_lists_every_bad_record_file_and_split(tmp_path):
    write_voc(tmp_path / "voc")
    for name in "ab":
        file = tmp_path / "voc" / "Annotations" / f"{name}.xml"
        file.write_text(file.read_text().replace("<xmin>8", "<xmin>x").replace("<xmin>12", "<xmin>x"))
    (tmp_path / "voc" / "Annotations" / "c.xml").write_text("<html>")
    problems = inspect_splits(DataConfig(path=tmp_path / "voc"), seed=0).problems
    assert kinds(problems, "error") == {"record unreadable": 2, "file unreadable": 1}
    write_yolo(tmp_path / "yolo")
    (tmp_path / "yolo" / "labels" / "train" / "a.txt").write_text("0 x 1 1 1\n9 1 1 1 1\n0 .5 .5 .5 .5\n")
    text = (tmp_path / "yolo" / "data.yaml").read_text()
    (tmp_path / "yolo" / "data.yaml").write_text(f"{text}test: ../test/images\n")
    inspection = inspect_splits(DataConfig(path=tmp_path / "yolo"), seed=0)
    assert kinds(inspection.problems, "error") == {"record unreadable": 2, "split unreadable": 1}
    assert list(inspection.datasets) == ["train"] and len(inspection.datasets["train"].boxes) == 2
    document = coco_document()
    document["annotations"][0]["bbox"] = document["annotations"][1]["category_id"] = "nothing"
    document["images"][2]["file_name"] = 5
    document["annotations"].append(
        {"id": "x", "image_id": [], "category_id": {}, "bbox": [1, 2], "iscrowd": 7, "area": "?"}
    )
    write_coco(tmp_path / "coco", document)
    inspection = inspect_splits(DataConfig(path=tmp_path / "coco"), seed=0)
    assert kinds(inspection.problems, "error") == {"record unreadable": 4}
    assert inspection.datasets["train"].boxes.tolist() == [[12, 16, 36, 48]]


def test_classes_that_differ_in_case_or_only_validation_has(tmp_path):
    for split, names in (("train", ("cat", "dog")), ("valid", ("Cat", "lynx"))):
        document = coco_document()
        document["categories"] = [{"id": 3, "name": names[0]}, {"id": 7, "name": names[1]}]
        write_images(tmp_path / split)
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(document))
    val = open_splits(DataConfig(path=tmp_path), seed=0).val
    told = kinds(val.problems, "warning")
    assert told == {"class differs in case": 1, "class not trained": 1}
    assert told == kinds(inspect_splits(DataConfig(path=tmp_path), seed=0).problems, "warning")
    assert any("'Cat'" in problem.message and "'cat'" in problem.message for problem in val.problems)
    assert val.labels.tolist() == [0, 0] and val.classes.own_ids == (3, None)


def test_some_of_the_classes(tmp_path):
    write_coco(tmp_path)
    config = {"path": tmp_path, "classes": ("cat",)}
    whole = inspect_splits(DataConfig(**config), seed=0)
    assert len(whole.datasets["train"].boxes) == 2 and whole.datasets["train"].classes.category_ids == (3,)
    assert kinds(whole.problems)["other classes"] == 1
    ignored = inspect_splits(DataConfig(**config, other_classes="ignore"), seed=0).datasets["train"]
    assert ignored.target(0).ignored.tolist() == [False, True]
    for classes in (("dog,cat",), ("dog", "cat")):
        assert open_split(DataConfig(path=tmp_path, classes=classes, val=tmp_path), "train", seed=0).classes.names == (
            "cat",
            "dog",
        )
    with pytest.raises(DataError, match="1 box of other classes, such as 'dog'"):
        open_splits(DataConfig(**config, other_classes="error"), seed=0)
    with pytest.raises(ConfigError, match=r"no class 'cta' \(did you mean .cat.\?\)"):
        open_splits(DataConfig(path=tmp_path, classes=("cta",)), seed=0)


ROLES = [
    ("Train", "train"),
    ("VALIDATION", "val"),
    ("val2017", "val"),
    ("obj_valid_data", "val"),
    ("my-train v2", "train"),
    ("test-dev2017", "test"),
    ("trainval", "train"),
    ("train_val", "train"),
    ("Testing", "test"),
    ("constraint", None),
    ("default", None),
    ("site_a", None),
]


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_names_of_splits(name, role):
    assert role_of(name) == role


def test_the_best_name_for_a_role():
    assert pick(["train2014", "train2017", "Train"], "train") == "Train"
    assert pick(["train2014", "train2017"], "train") == "train2017"
    assert pick(["site"], "train") == "site" and pick(["a", "b"], "train") is None
    assert pick(["default", "extra", "test"], "train") == "default" and pick(["test"], "train") is None


def test_what_to_type_where_no_split_is_for_training_works(tmp_path):
    LAYOUTS["cvat_coco_project"].write(tmp_path)
    for split, name in (("Train", "siteT"), ("Validation", "siteV"), ("Test", "siteX")):
        annotations = tmp_path / "annotations"
        (annotations / f"instances_{split}.json").rename(annotations / f"instances_{name}.json")
        (tmp_path / "images" / split).rename(tmp_path / "images" / name)
    typed = f"--data {tmp_path} --data.train siteT"
    with pytest.raises(ConfigError, match=rf"no split to train on \(splits: siteT, siteV, siteX; name one .*{typed}"):
        open_splits(DataConfig(path=tmp_path), seed=0)
    splits = open_splits(DataConfig(path=tmp_path, train="siteV", val="SITET"), seed=0)
    assert (splits.train.name, len(splits.train), len(splits.val)) == ("train", 2, 3)
    same = open_splits(DataConfig(path=tmp_path, train="siteV", val="siteV"), seed=0)
    assert (same.train.name, same.val.name, len(same.train), len(same.val)) == ("train", "val", 2, 2)


def test_names_that_may_be_of_several_images_are_refused(tmp_path):
    for folder in ("x", "y"):
        write_images(tmp_path / folder)
    document = coco_document()
    document["images"] = [dict(image, file_name=f"gone/{image['file_name']}") for image in document["images"]]
    (tmp_path / "all.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"'gone/a.png' may be any of x/a.png, y/a.png"):
        open_splits(DataConfig(path=tmp_path), seed=0)


def test_an_image_of_another_split_is_not_taken_for_one_that_is_missing(tmp_path):
    LAYOUTS["cvat_coco_project"].write(tmp_path)
    (tmp_path / "images" / "Train" / "f0.jpg").unlink()
    with pytest.raises(DataError, match=r"no such file: .*Train/f0.jpg"):
        open_splits(DataConfig(path=tmp_path), seed=0)


def test_every_refusal_names_its_place_in_the_guide(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"in it: 1 file .png; .*docs/guide/data.md#layouts"):
        open_splits(DataConfig(path=tmp_path), seed=0)
    write_yolo(tmp_path / "yolo")
    (tmp_path / "yolo" / "labels" / "train" / "a.txt").write_text("x\n")
    with pytest.raises(DataError, match=r"docs/guide/data.md#yolo"):
        open_splits(DataConfig(path=tmp_path / "yolo"), seed=0)
