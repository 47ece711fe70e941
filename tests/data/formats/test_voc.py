"""Pascal VOC folders: splits, corners, difficult objects, and faults by file and object."""

import pytest

from focaldet.data.dataset import DIFFICULT
from focaldet.data.formats import voc
from focaldet.data.formats.assemble import build_dataset
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.errors import DataError
from focaldet.types import ImageSize
from tests.data.datasets import write_images, write_voc, xml


def find(path):
    return voc.find_voc(Listing(path), path if path.is_file() else None)


def read(folder, split="train", **options):
    (records,) = voc.read_voc(find(folder), [split], Reading())
    return build_dataset(records, **options)


def test_a_voc_folder(tmp_path):
    dataset = read(write_voc(tmp_path))
    assert dataset.classes.names == ("cat", "dog") and dataset.classes.category_ids == (1, 2)
    assert dataset.boxes.tolist() == [[8, 4, 40, 36], [0, 0, 16, 12], [12, 16, 36, 48]]
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.path(1).name == "b.png" and dataset.size(1) == ImageSize(64, 48)
    assert dataset.image_ids.tolist() == [1, 2, 3]
    assert len(dataset.target(2).boxes) == 0
    assert dataset.problems.lines() == []


def test_only_files_of_voc_itself_count_from_one(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(
        xml("a.png", boxes=[("cat", (1, 1, 64, 48))], database="The VOC2007 Database")
    )
    dataset = read(tmp_path)
    assert dataset.boxes[0].tolist() == [0, 0, 64, 48]
    assert dataset.boxes[1].tolist() == [12, 16, 36, 48]
    assert "1 xml files are of VOC itself" in dataset.problems.lines()[0]


def test_all_splits_have_the_same_classes(tmp_path):
    write_voc(tmp_path, {"train": ["b", "c"], "val": ["a"]})
    train, val = (read(tmp_path, split) for split in ("train", "val"))
    assert train.classes == val.classes
    assert val.labels.tolist() == [0, 1]


def test_difficult_objects_are_flagged(tmp_path):
    write_voc(tmp_path)
    text = xml("b.png").replace("<difficult>0", "<difficult>1")
    (tmp_path / "Annotations" / "b.xml").write_text(text)
    assert read(tmp_path).flags.tolist() == [0, 0, DIFFICULT]
    assert read(tmp_path).target(1).ignored.tolist() == [True]


def test_lists_of_single_classes_are_not_splits_but_can_be_read(tmp_path):
    write_voc(tmp_path, {"train": ["a"], "cat_train": ["a  1", "b -1", "c.png"]})
    assert set(find(tmp_path).splits) == {"train"}
    layout = find(tmp_path / "ImageSets" / "Main" / "cat_train.txt")
    (records,) = voc.read_voc(layout, ["all"], Reading())
    assert list(records.paths) == ["a.png", "b.png", "c.png"]


def test_without_lists_all_xml_files_count(tmp_path):
    write_voc(tmp_path)
    for file in (tmp_path / "ImageSets" / "Main").iterdir():
        file.unlink()
    assert len(read(tmp_path, "all")) == 3


def test_images_and_xml_side_by_side(tmp_path):
    for split in ("train", "valid"):
        write_images(tmp_path / split)
        for name in ("a", "b"):
            (tmp_path / split / f"{name}.xml").write_text(xml(f"{name}.png"))
    layout = find(tmp_path)
    assert set(layout.splits) == {"train", "valid"}
    assert read(tmp_path, "valid").path(0) == tmp_path / "valid" / "a.png"
    assert len(read(tmp_path / "train", "all")) == 2


def test_a_wrong_size_is_told_and_no_size_is_not(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(xml("a.png", size=(0, 0)))
    (tmp_path / "Annotations" / "b.xml").write_text(xml("b.png").replace("size>", "other>"))
    dataset = read(tmp_path)
    (problem,) = dataset.problems
    assert problem.kind == "size differs" and problem.file.endswith("a.xml")
    assert dataset.size(0) == ImageSize(48, 64)


def test_names_without_xml_or_image_are_listed(tmp_path):
    write_voc(tmp_path, {"train": ["a", "gone", "lost"], "val": ["b"]})
    with pytest.raises(DataError, match=r"2 of 3 names have no xml file in .*: 'gone', 'lost'"):
        read(tmp_path)
    assert len(read(tmp_path, "val")) == 1  # what is missing elsewhere does not matter
    (tmp_path / "JPEGImages" / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 names have no image in .*: 'b'"):
        read(tmp_path, "val")


@pytest.mark.parametrize("line", ["../../secret", "/etc/passwd", ".", "..", "/", "a\0b", "x" * 5000])
def test_names_that_lead_out_find_nothing(tmp_path, line):
    write_voc(tmp_path, {"train": ["a", line]})
    with pytest.raises(DataError, match="names have no xml file"):
        read(tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path):
    write_voc(tmp_path)
    write_images(tmp_path / "JPEGImages", {"a.jpg": (3, 3)})
    with pytest.raises(DataError, match=r"two images have one name: a\.jpg and a\.png"):
        read(tmp_path)


def test_no_object_anywhere_means_no_classes(tmp_path):
    write_voc(tmp_path, {"train": ["c"]})
    with pytest.raises(DataError, match="no classes"):
        read(tmp_path)


BOMB = '<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
FAULTS = [
    ("", "not valid XML"),
    ("<annotation>", "not valid XML"),
    ("<html></html>", "must begin with <annotation>, got 'html'"),
    (xml("a.png", head=BOMB), "DTD or entities"),
    (xml("a.png", head='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), "DTD or entities"),
    (xml("a.png", head='<?xml version="1.0" encoding="nonsense"?>'), "not valid XML"),
    (xml("a.png").replace("<name>dog</name>", ""), r"a.xml · object 2 · name: is missing"),
    (xml("a.png").replace("<name>dog", "<name> "), r"object 2 · name: is missing or empty"),
    (xml("a.png").replace("<xmin>8</xmin>", ""), r"object 1 · bndbox/xmin: is missing"),
    (
        xml("a.png").replace("<xmin>8", "<xmin>eight"),
        r"object 1 · bndbox/xmin: got 'eight'; must be a number of pixels",
    ),
    (xml("a.png").replace("<xmin>8", "<xmin>nan"), r"object 1 · bndbox/xmin: got 'nan'"),
    (xml("a.png").replace("<xmin>8", "<xmin>"), r"object 1 · bndbox/xmin: got ''"),
    (xml("a.png").replace("<xmin>8", "<xmin>1e308"), r"object 1 · bndbox: .*not pixel coordinates"),
    (xml("a.png").replace("<difficult>0", "<difficult>maybe"), r"difficult: got 'maybe'; must be 0 or 1"),
    ("<annotation>" + "<object>" * 50_000, "not valid XML"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_faults_name_file_and_object(tmp_path, text, message):
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert caught.value.file.endswith("a.xml")


def test_deep_nesting_is_read_or_refused(tmp_path):
    write_voc(tmp_path)
    depth = 100_000
    deep = "<annotation>" + "<part>" * depth + "</part>" * depth + "</annotation>"
    (tmp_path / "Annotations" / "a.xml").write_text(deep)
    try:
        assert len(read(tmp_path).target(0).boxes) == 0
    except DataError as error:
        assert error.file.endswith("a.xml")


def test_parts_of_objects_are_not_objects(tmp_path):
    write_voc(tmp_path)
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
    part = f"<part><name>head</name><bndbox>{corners}</bndbox></part></object>"
    (tmp_path / "Annotations" / "a.xml").write_text(xml("a.png").replace("</object>", part))
    assert len(read(tmp_path).target(0).boxes) == 2


def test_blood_cells(real_data):
    names = ("train", "val", "test")
    every_split = voc.read_voc(find(real_data / "bccd"), names, Reading())
    sizes = {records.name: build_dataset(records) for records in every_split}
    assert {split: len(dataset) for split, dataset in sizes.items()} == {"train": 205, "val": 87, "test": 72}
    assert sum(len(dataset.boxes) for dataset in sizes.values()) == 4155 + 372 + 361 - 2
    empty = [problem for dataset in sizes.values() for problem in dataset.problems if problem.kind == "box empty"]
    assert sorted(problem.file[-9:-4] for problem in empty) == ["00338", "00343"]
    assert all(dataset.classes.names == ("Platelets", "RBC", "WBC") for dataset in sizes.values())
