"""The CSV dialect of keras-retinanet: background rows, classes, and faults by line."""

import pytest

from focaldet.data.formats import csv
from focaldet.data.formats.assemble import build_dataset
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.errors import DataError
from tests.data.datasets import write_csv, write_images


def find(path):
    return csv.find_csv(Listing(path), path if path.is_file() else None)


def read(path, split="train", *, images=None):
    (records,) = csv.read_csv(find(path), [split], Reading(images=images))
    return build_dataset(records)


def test_a_csv_folder(tmp_path):
    dataset = read(write_csv(tmp_path))
    assert dataset.boxes.tolist() == [[8, 4, 40, 36], [0, 0, 16, 12], [12, 16, 36, 48]]
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.offsets.tolist() == [0, 2, 3, 3]  # the row c.png,,,,, is background
    assert dataset.classes.names == ("cat", "dog") and dataset.classes.category_ids == (0, 1)


def test_a_file_by_itself_with_header_quotes_and_crlf(tmp_path):
    write_images(tmp_path, {"a, b.png": (64, 48)})
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbfpath,x1,y1,x2,y2,class\r\n"a, b.png", 1,2,3.5,4,cat\r\n\r\n')
    dataset = read(tmp_path / "x.csv", "all")
    assert dataset.boxes.tolist() == [[1, 2, 3.5, 4]]
    assert dataset.classes.names == ("cat",)


def test_rows_of_one_image_may_stand_apart(tmp_path):
    write_csv(tmp_path)
    rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([rows[2], rows[0], rows[3], rows[1], rows[3]]))
    dataset = read(tmp_path)
    assert [dataset.path(i).name for i in range(3)] == ["b.png", "a.png", "c.png"]
    assert dataset.target(1).labels.tolist() == [0, 1]


def test_without_a_class_file_names_are_sorted_over_all_splits(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "classes.csv").unlink()
    (tmp_path / "val.csv").write_text("a.png,1,1,5,5,ant\n")
    assert read(tmp_path).classes == read(tmp_path, "val").classes
    assert read(tmp_path).classes.names == ("ant", "cat", "dog")
    (tmp_path / "val.csv").unlink()
    (tmp_path / "train.csv").write_text("c.png,,,,,\n")
    with pytest.raises(DataError, match="no classes"):
        read(tmp_path)


def test_sparse_ids_become_contiguous(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "classes.csv").write_text("dog,9\ncat,4\n")
    assert read(tmp_path).classes.category_ids == (4, 9)
    assert read(tmp_path).labels.tolist() == [0, 1, 0]


def test_images_elsewhere_and_absolute_paths_inside(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    write_images(tmp_path / "photos")
    (folder / "x.csv").write_text(f"a.png,1,1,5,5,cat\n{tmp_path / 'photos' / 'b.png'},1,1,5,5,cat\n")
    dataset = read(folder / "x.csv", "all", images=tmp_path / "photos")
    assert [dataset.path(i).name for i in range(2)] == ["a.png", "b.png"]


ROWS = [
    ("a.png,1,2,3,4", "got 5 fields; must be path,x1,y1,x2,y2,class"),
    ("a.png,1,2,3,4,cat,9", "got 7 fields"),
    ("a.png,1,2,3,,cat", "y2: got ''; must be a finite number"),
    ("a.png,1,2,3,4,", "class: got ''; must be a class"),
    ("a.png,,,,,cat", "x1: got ''"),
    ("a.png,one,2,3,4,cat", "x1: got 'one'"),
    ("a.png,inf,2,3,4,cat", "x1: got 'inf'"),
    ("a.png,1,2,3,4,cta", r'class: got \'cta\'; must be a class \(did you mean "cat"\?\)'),
    (",1,2,3,4,cat", "path: got ''; must be the name of an image file"),
    ("../x.png,1,2,3,4,cat", "path: '../x.png' leads out of the image folder"),
    ("/etc/passwd,1,2,3,4,cat", "leads out of the image folder"),
    ("gone.png,1,2,3,4,cat", "no such file"),
    ("a.png,1,2,1e308,4,cat", "not pixel coordinates"),
    ('"' + "x" * 200_000 + '"', "not valid CSV"),
]


@pytest.mark.parametrize(("row", "message"), ROWS)
def test_faults_name_file_and_line(tmp_path, row, message):
    write_csv(tmp_path)
    (tmp_path / "train.csv").write_text(f"a.png,1,2,3,4,cat\n{row}\n")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert (caught.value.file, caught.value.record) == (str(tmp_path / "train.csv"), "line 2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class"),
        ("cat\n", "got 1 fields; must be name,id"),
        ("cat,x\n", "got 'x'; must be a whole number"),
        ("cat,1.5\n", "whole number from 0"),
        ("cat,-1\n", "whole number from 0"),
        (",1\n", "must be the name of a class"),
        ("cat,0\ncat,1\n", "every name and every id must be unique"),
        ("cat,0\ndog,0\n", "every name and every id must be unique"),
    ],
)
def test_faults_in_the_class_file(tmp_path, text, message):
    write_csv(tmp_path)
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert caught.value.file == str(tmp_path / "classes.csv")


def test_two_files_for_one_split_and_no_file(tmp_path):
    assert find(tmp_path) is None
    write_csv(tmp_path)
    (tmp_path / "train_annotations.csv").write_text("")
    with pytest.raises(DataError, match="two files"):
        find(tmp_path)
