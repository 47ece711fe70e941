"""COCO json: layouts, ids, crowds, and faults by file, record and field."""

import json
import math

import numpy
import pytest

from focaldet.data.dataset import CROWD, Dataset
from focaldet.data.formats import coco
from focaldet.data.formats.assemble import build_dataset
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.reading import Reading
from focaldet.errors import DataError
from focaldet.types import ImageSize
from tests.data.datasets import coco_document, write_coco, write_images


def read(file, **options) -> Dataset:
    return build_dataset(coco.read_coco_file(file, name="train"), **options)


def test_ids_are_sparse_in_the_file_and_contiguous_inside(tmp_path):
    dataset = read(write_coco(tmp_path))
    assert dataset.classes.names == ("cat", "dog")
    assert dataset.classes.category_ids == (3, 7)
    assert dataset.image_ids.tolist() == [100, 101, 102]
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.offsets.tolist() == [0, 2, 3, 3]
    assert dataset.boxes.tolist() == [[8, 4, 40, 36], [0, 0, 16, 12], [12, 16, 36, 48]]
    assert dataset.size(1) == ImageSize(64, 48)
    assert dataset.problems.lines() == []


def stated_sides(dataset) -> list[list[float]]:
    return (dataset.boxes[:, 2:] - dataset.boxes[:, :2] + dataset.side_remainders).tolist()


def test_sides_are_those_of_the_file_to_the_last_digit_unless_they_were_cut(tmp_path):
    document = coco_document()
    boxes = [[10.1, 0.7, 53.9, 0.3], [33.33, 17.77, 0.01, 20.02], [0.1, 40.1, 7.7, 100], [-3.3, 1.1, 13.3, 2.2]]
    document["annotations"] = [{"id": i, "image_id": 100, "category_id": 3, "bbox": box} for i, box in enumerate(boxes)]
    records = coco.read_coco_file(write_coco(tmp_path, document), name="train")
    assert records.sides.tolist() == [box[2:] for box in boxes]
    assert (records.boxes[:, 2:] - records.boxes[:, :2]).tolist() != records.sides.tolist()
    dataset = build_dataset(records)
    assert stated_sides(dataset) == [[53.9, 0.3], [0.01, 20.02], [7.7, 48 - 40.1], [-3.3 + 13.3, 2.2]]
    assert stated_sides(dataset.subset([1, 0], "turned")) == stated_sides(dataset)


def test_boxes_follow_their_images_whatever_their_order(tmp_path):
    document = coco_document()
    document["annotations"].reverse()
    dataset = read(write_coco(tmp_path, document))
    assert dataset.target(0).boxes.tolist() == [[0, 0, 16, 12], [8, 4, 40, 36]]
    assert dataset.target(1).boxes.tolist() == [[12, 16, 36, 48]]


def test_crowds_are_flagged_and_areas_kept(tmp_path):
    document = coco_document()
    document["annotations"][0] |= {"iscrowd": 1, "area": 77.5, "segmentation": {"counts": [1, 2], "size": [3, 4]}}
    del document["annotations"][1]["area"]
    document["annotations"][2]["area"] = None
    dataset = read(write_coco(tmp_path, document))
    assert dataset.flags.tolist() == [CROWD, 0, 0]
    assert dataset.target(0).ignored.tolist() == [True, False]
    assert dataset.areas.tolist() == [77.5, 16 * 12, 24 * 32]


@pytest.mark.parametrize(
    ("annotations", "images", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017", "train2017"),
        ("instances_train.json", "images", "train"),
        ("instances_train.json", ".", "train"),
        ("train.json", "train", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("_annotations.coco.json", ".", "all"),
        ("annotations.json", "images", "all"),
    ],
)
def test_layouts_are_recognized(tmp_path, annotations, images, split):
    write_images(tmp_path / images)
    file = tmp_path / annotations
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(coco_document()))
    layout = coco.find_coco(Listing(tmp_path))
    assert dict(layout.splits) == {split: (file,)}
    (records,) = coco.read_coco(layout, [split], Reading())
    assert build_dataset(records).path(0) == tmp_path / images / "a.png"


def test_images_may_lie_elsewhere(tmp_path):
    file = tmp_path / "labels" / "x.json"
    file.parent.mkdir()
    file.write_text(json.dumps(coco_document()))
    write_images(tmp_path / "photos")
    records = coco.read_coco_file(file, Reading(images=tmp_path / "photos"), name="x")
    assert len(build_dataset(records, Reading(bad_boxes="error"))) == 3


def test_two_files_for_one_split_are_refused(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(coco_document()))
    with pytest.raises(DataError, match="two files"):
        coco.find_coco(Listing(tmp_path))


def test_folders_without_coco_are_left_to_others(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    assert coco.find_coco(Listing(tmp_path)) is None


def test_without_images_the_declared_sizes_count(tmp_path):
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(coco_document()))
    assert read(file, read_images=False).sizes.tolist() == [[48, 64], [64, 48], [32, 32]]
    document = coco_document()
    del document["images"][1]["height"]
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"images\[1\] \(id 101\).*no width and height"):
        read(file, read_images=False)


def test_two_classes_of_one_name_stay_apart(tmp_path):
    document = coco_document()
    document["categories"].append({"id": 9, "name": "dog"})
    dataset = read(write_coco(tmp_path, document))
    assert dataset.classes.names == ("cat", "dog", "dog")
    assert "class name twice" in dataset.problems.lines()[0]


STRUCTURE = [
    (lambda d: d.pop("images"), "images: is missing"),
    (lambda d: d.update(annotations={}), "annotations: must be a list"),
    (lambda d: d.update(categories=[]), "categories: is empty"),
    (lambda d: d["images"].append(5), r"images\[3\]: got 5; must be an object"),
    (lambda d: d.update(images=[]), "no images in the split"),
    (lambda d: d["images"][1].pop("file_name"), r"images\[1\] \(id 101\) · file_name: is missing"),
    (lambda d: d["images"][1].update(id=100), r"images\[1\] \(id 100\) · id: 100 is used twice"),
    (lambda d: d["images"][1].update(id="x1"), "id: got 'x1'; must be a whole number"),
    (lambda d: d["images"][1].update(id=True), "id: got True"),
    (lambda d: d["images"][1].update(id=2**70), "at most 64 bits"),
    (lambda d: d["annotations"][2].update(id=500), r"annotations\[2\] \(id 500\) · id: 500 is used twice"),
    (
        lambda d: d["annotations"][2].update(category_id=1),
        "category_id: got 1; must be the id of one of the 2 categories",
    ),
    (lambda d: d["annotations"][2].pop("bbox"), "bbox: is missing"),
    (lambda d: d["annotations"][2].update(bbox=[1, 2, 3]), r"bbox: got \[1, 2, 3\]; must be a list of four numbers"),
    (lambda d: d["annotations"][2].update(bbox=[1, 2, 3, "4x"]), "four numbers"),
    (lambda d: d["annotations"][2].update(bbox=[1, 2, 3, None]), "four numbers"),
    (lambda d: d["annotations"][2].update(bbox=[1, 2, 3, 10**400]), "too large a number"),
    (lambda d: d["annotations"][2].update(bbox=None), "bbox: got None"),
    (lambda d: d["annotations"][2].update(bbox=[1, 2, math.nan, 4]), "not pixel coordinates"),
    (lambda d: d["annotations"][2].update(bbox=[1, 2, 1e308, 4]), "not pixel coordinates"),
    (lambda d: d["annotations"][2].update(bbox=[-math.inf, 2, 3, 4]), "not pixel coordinates"),
    (lambda d: d["annotations"][2].update(iscrowd=2), "iscrowd: got 2; must be 0 or 1"),
    (lambda d: d["annotations"][2].update(area=-1), "area: got -1; must be a finite number, at least 0"),
    (lambda d: d["annotations"][2].update(area=math.nan), "area: got nan"),
    (lambda d: d["annotations"][2].update(area="nine"), "area: got 'nine'"),
    (lambda d: d["categories"][0].update(name=""), r"categories\[0\] \(id 7\) · name: got ''"),
    (lambda d: d["categories"][0].update(id=3), "id: 3 is used twice in categories"),
    (lambda d: d["images"][0].update(file_name="../secret.png"), "leads out of the image folder"),
    (lambda d: d["images"][0].update(file_name="/etc/passwd"), "leads out of the image folder"),
    (lambda d: d["images"][0].update(file_name="..\\secret.png"), "leads out of the image folder"),
    (lambda d: d["images"][0].update(file_name="C:\\secret.png"), "leads out of the image folder"),
    (lambda d: d["images"][0].update(file_name="a\0.png"), "must be the name of an image file"),
    (lambda d: d["images"][0].update(file_name="\ud800.png"), "not valid text"),
    (lambda d: d["images"][0].update(file_name="x" * 5000), "no such file"),
    (lambda d: d["images"][0].update(file_name=""), "must be the name of an image file"),
    (lambda d: d["images"][0].update(file_name="gone.png"), r"images\[0\] \(id 100\) · file_name: .*no such file"),
]


@pytest.mark.parametrize(("spoil", "message"), STRUCTURE)
def test_faults_name_file_record_and_field(tmp_path, spoil, message):
    document = coco_document()
    spoil(document)
    file = write_coco(tmp_path, document)
    with pytest.raises(DataError, match=message) as caught:
        read(file)
    assert caught.value.file == str(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", r"line 1, column 2: is not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images":' * 100_000, "nested too deeply"),
        (b"\xff\xfe\x00{", "not valid JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"images": "x"}', "images: must be a list, got 'x'"),
        (b"\x89PNG\r\n\x1a\n", "not valid JSON"),
    ],
)
def test_files_that_are_not_a_data_set(tmp_path, content, message):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(file)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    file = write_coco(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read(file)) == 3


def test_real_coco_agrees_with_pycocotools(real_data, capsys):
    from pycocotools.coco import COCO

    file = real_data / "coco_mini" / "annotations" / "instances_val2017.json"
    dataset = read(file)
    judge = COCO(str(file))
    assert dataset.image_ids.tolist() == judge.getImgIds()[: len(dataset)] or set(dataset.image_ids.tolist()) == set(
        judge.getImgIds()
    )
    assert dataset.classes.category_ids == tuple(sorted(judge.getCatIds()))
    for i, image in enumerate(dataset.image_ids.tolist()):
        annotations = judge.loadAnns(judge.getAnnIds(imgIds=[image], iscrowd=None))
        rows = slice(*dataset.offsets[i : i + 2].tolist())
        xywh = numpy.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
        wanted = numpy.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        assert numpy.abs(dataset.boxes[rows].numpy() - wanted).max(initial=0) < 1e-9
        assert dataset.areas[rows].tolist() == [a["area"] for a in annotations]
        assert dataset.target(i).ignored.tolist() == [bool(a["iscrowd"]) for a in annotations]
    assert sum(dataset.flags.tolist()) == 5
