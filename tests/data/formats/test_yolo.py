"""YOLO: data.yaml, folders and lists, rows of labels, and faults by file and line."""

import pytest

from focaldet.data.formats import yolo
from focaldet.data.formats.assemble import build_dataset
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.errors import DataError
from tests.data.datasets import write_images, write_yolo

BOXES = [[8, 4, 40, 36], [0, 0, 16, 12], [12, 16, 36, 48]]


def find(path):
    return yolo.find_yolo(Listing(path), path if path.is_file() else None)


def read(path, split="train", *, images=None):
    (records,) = yolo.read_yolo(find(path), [split], Reading(images=images))
    return build_dataset(records)


def assert_is_the_set(dataset):
    assert dataset.boxes.tolist() == [pytest.approx(box, abs=1e-9) for box in BOXES]
    assert dataset.labels.tolist() == [0, 1, 0]
    assert [dataset.path(i).name for i in range(len(dataset))] == ["a.png", "b.png", "c.png"]
    assert dataset.classes.names == ("cat", "dog")


def test_a_yolo_folder_and_its_yaml(tmp_path):
    write_yolo(tmp_path)
    assert_is_the_set(read(tmp_path))
    dataset = read(tmp_path / "data.yaml")
    assert_is_the_set(dataset)
    assert dataset.offsets.tolist() == [0, 2, 3, 3]  # no label file: background
    assert dataset.classes.category_ids == (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\nnames: {0: cat, 1: dog}\nnc: 2\n",
        "train: ../images/train\nnames: [cat, dog]\n",  # as Roboflow writes it
        "path: ../datasets/elsewhere\ntrain: images/train\nnames: {'0': cat, '1': dog}\n",
        "train: [images/train]\nnames: [cat, dog]\n",
        "train: list.txt\nnames: [cat, dog]\n",
        "train: images\\train\nnames: [cat, dog]\n",
        'train: "images\\train"\nnames: [cat, dog]\n',  # a tab to YAML
        "train: /content/set/images/train\nnames: [cat, dog]\n",
        "path: /\ntrain: images/train\nnames: [cat, dog]\n",
    ],
)
def test_forms_of_yaml(tmp_path, text, monkeypatch):
    monkeypatch.setattr("focaldet.data.formats.listing.MAX_FILES", 100)  # a stated path is not listed as a whole
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    lines = [
        "images/train/c.png",
        "./images/train/a.png",
        str(tmp_path / "images/train/b.png"),
        "images/train/a.png",
        "",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert_is_the_set(read(tmp_path))


def test_sparse_class_numbers_become_contiguous(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: {5: dog, 2: cat}\n")
    labels = tmp_path / "labels" / "train" / "a.txt"
    labels.write_text("5 .5 .5 .5 .5\n2 .5 .5 .25 .25\n")
    (tmp_path / "labels" / "train" / "b.txt").unlink()
    dataset = read(tmp_path)
    assert dataset.classes.category_ids == (2, 5) and dataset.labels.tolist() == [1, 0]


def test_labels_beside_the_images_and_classes_txt(tmp_path):
    write_images(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 1 1\n")
    dataset = read(tmp_path, "all")
    assert dataset.boxes.tolist() == [[0, 0, 64, 48]] and dataset.labels.tolist() == [1]


def test_image_folder_named_alone_finds_the_classes_above(tmp_path):
    write_yolo(tmp_path)
    assert_is_the_set(read(tmp_path / "images" / "train", "all"))


def test_folders_of_splits_without_yaml(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match="no file names the classes"):
        find(tmp_path)
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    assert_is_the_set(read(tmp_path, "train"))


def test_a_polygon_counts_as_the_box_around_it(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.25 0.5 0.75 0.25 0.5 1\n")
    dataset = read(tmp_path)
    assert dataset.target(0).boxes.tolist() == [[16, 12, 48, 48]]
    assert dataset.problems.lines()[0].startswith("note: polygon: 1")


def test_key_points_are_ignored_where_the_yaml_tells_of_them(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\nkpt_shape: [1, 2]\n")
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5 0.9 0.9\n")
    assert read(tmp_path).target(0).boxes.tolist() == [[16, 12, 48, 36]]


def test_six_digit_rounding_at_the_border_is_not_a_fault(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.500001 0.5 1.0 1.0\n")
    dataset = read(tmp_path)
    assert dataset.problems.count("warning", "error") == 0
    assert float(dataset.target(0).boxes[0, 2]) == 64


ROWS = [
    ("2 .5 .5 .1 .1", "class: got '2'; must be the number of a class, 0…1"),
    ("cat .5 .5 .1 .1", "class: got 'cat'; must be a whole number"),
    ("0.5 .5 .5 .1 .1", "class: got '0.5'; must be the number of a class"),
    ("0 .5 .5 .1", "got 4 columns"),
    ("0 .5 .5 .1 .1 .9", "got 6 columns.*predictions"),
    ("0 .5 .5 .1 .1 .9 .9 .9", "got 8 columns"),
    ("0 .5 .5 .1 x", "got 'x'; must be a finite number"),
    ("0 nan .5 .1 .1", "got 'nan'"),
    ("0 1e308 .5 .1 .1", "fraction of the image in 0…1, not pixels"),
    ("0 320 240 100 50", "fraction of the image in 0…1, not pixels"),
]


@pytest.mark.parametrize(("row", "message"), ROWS)
def test_faults_in_rows_name_file_and_line(tmp_path, row, message):
    write_yolo(tmp_path)
    file = tmp_path / "labels" / "train" / "a.txt"
    file.write_text(f"0 .5 .5 .1 .1\n\n{row}\n")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert (caught.value.file, caught.value.record) == (str(file), "line 3")


YAMLS = [
    ("names: [cat", "not valid YAML"),
    ("[]", "must be a mapping"),
    ("a: !!int ''", "not valid YAML"),
    ("a: !!timestamp x", "not valid YAML"),
    ("a: !!bool x", "not valid YAML"),
    ("? [a]\n: b", "YAML|mapping"),
    ("[" * 1000, "not valid YAML"),
    ("names: [cat, dog]", "names no split"),
    ("train: 5\nnames: [cat]", "train: got 5; must be a folder"),
    ("train: [null]\nnames: [cat]", "train: got None"),
    ("train: images/gone\nnames: [cat]", "data.yaml · train: .*images/gone is neither a folder nor a list file"),
    (f"train: {'x' * 3000}\nnames: [cat]", r"data.yaml · train: '[^']{,70}' is neither"),
    ("path: 7\ntrain: images/train\nnames: [cat]", "path: got 7; must be a folder"),
    ("train: images/train", "names: got None; must be a list of class names"),
    ("train: images/train\nnames: []", r"names: got \[\]"),
    ("train: images/train\nnames: [yes, dog]", "names: got the class name True"),
    ("train: images/train\nnames: {-1: cat}", "got the class number -1"),
    ("train: images/train\nnames: {a: cat}", "got the class number 'a'"),
    ("train: images/train\nnames: [cat, dog]\nnc: 3", "nc: got 3, but there are 2 names"),
]


@pytest.mark.parametrize(("text", "message"), YAMLS)
def test_faults_in_the_yaml(tmp_path, text, message):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_the_folder_of_another_split_is_not_taken_for_one_that_is_gone(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\ntest: ../test/images\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"test: .*test/images is neither a folder nor a list file"):
        read(tmp_path, "test")


@pytest.mark.parametrize("line", ["../x.png", "/etc/passwd", "images/../../x.png", "a\0.png"])
def test_lists_do_not_leave_the_folder(tmp_path, line):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    (tmp_path / "list.txt").write_text(f"images/train/a.png\n{line}\n")
    with pytest.raises(DataError, match=r"leads out of the image folder|must be the name of an image") as caught:
        read(tmp_path)
    assert caught.value.record == "line 2"


def test_a_split_without_any_label_is_not_taken_for_background(tmp_path):
    write_yolo(tmp_path)
    for file in (tmp_path / "labels" / "train").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"none of its 3 images has a label file; looked for .*labels/train/a\.txt"):
        read(tmp_path)


def test_an_empty_folder_has_no_images(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "images" / "val").mkdir()
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match="no images in the split"):
        read(tmp_path, "val")


def test_a_label_file_that_is_not_text(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read(tmp_path)
