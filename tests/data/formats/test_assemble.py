"""Boxes against their images: what is clipped, dropped and refused, by hand; and links that lead out."""

import math

import pytest
import torch
from PIL import Image

from focaldet.data.formats.assemble import build_dataset
from focaldet.data.formats.coco import read_coco_file
from focaldet.data.formats.reading import Reading
from focaldet.data.images import read_header
from focaldet.errors import DataError
from tests.data.datasets import coco_document, write_coco, write_images


def read(folder, boxes, *, bad_boxes="clip", lenient=False, **image):
    """A dataset whose first image (64 × 48) has exactly these xyxy boxes."""
    document = coco_document()
    document["images"][0] |= image
    document["annotations"] = [
        {"id": i, "image_id": 100, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    return build_dataset(
        read_coco_file(write_coco(folder, document), name="train"), Reading(bad_boxes=bad_boxes, lenient=lenient)
    )


def kinds(dataset) -> dict[str, int]:
    return {kind: number for (_, kind), number in dataset.problems.counts.items()}


GOOD = (1, 2, 30, 40)


@pytest.mark.parametrize(
    ("box", "clipped", "kind"),
    [
        ((-5, -5, 10, 10), (0, 0, 10, 10), "box clipped"),
        ((60, 40, 70, 50), (60, 40, 64, 48), "box clipped"),
        ((-9, -9, 99, 99), (0, 0, 64, 48), "box clipped"),
        ((-0.25, 0, 10, 48.4), (0, 0, 10, 48), "box rounded"),
        ((0, 0, 64, 48), (0, 0, 64, 48), None),
        ((64, 0, 70, 10), None, "box empty"),
        ((-10, 0, 0, 10), None, "box empty"),
        ((5, 5, 5, 20), None, "box empty"),
        ((20, 20, 10, 30), None, "box empty"),
        ((100, 100, 110, 110), None, "box empty"),
    ],
)
def test_clip(tmp_path, box, clipped, kind):
    dataset = read(tmp_path, [GOOD, box])
    assert dataset.boxes.tolist() == [list(GOOD)] + ([list(clipped)] if clipped else [])
    assert kinds(dataset) == ({kind: 1} if kind else {})


def test_drop_leaves_out_every_bad_box_and_counts_it(tmp_path):
    boxes = [GOOD, (-5, -5, 10, 10), (5, 5, 5, 9), (0, 0, 64.3, 48), (0, 0, 1e300, 3), (math.nan, 0, 1, 1)]
    dataset = read(tmp_path, boxes, bad_boxes="drop")
    assert dataset.boxes.tolist() == [list(GOOD), [0, 0, 64, 48]]
    assert kinds(dataset) == {"box outside": 1, "box empty": 1, "box rounded": 1, "box impossible": 2}


@pytest.mark.parametrize("box", [(-5, -5, 10, 10), (5, 5, 5, 9), (20, 20, 10, 30), (0, 0, 1e308, 1)])
def test_error_names_the_box(tmp_path, box):
    with pytest.raises(
        DataError, match=r"annotations\[1\] \(id 1\) · bbox: box x1, y1, x2, y2 = .* 64 × 48 pixels; .*allowed"
    ):
        read(tmp_path, [GOOD, box], bad_boxes="error")


@pytest.mark.parametrize(("bad_boxes", "severity"), [("clip", "error"), ("error", "error"), ("drop", "warning")])
def test_lenient_lists_impossible_boxes_and_keeps_the_rest(tmp_path, bad_boxes, severity):
    dataset = read(tmp_path, [GOOD, (math.nan, 0, 5, 5), (0, 0, 1e308, 1)], bad_boxes=bad_boxes, lenient=True)
    assert dataset.boxes.tolist() == [list(GOOD)]
    assert dataset.problems.counts == {(severity, "box impossible"): 2}


def test_lenient_lists_every_box_that_would_be_refused(tmp_path):
    dataset = read(tmp_path, [(-5, -5, 10, 10), GOOD, (5, 5, 5, 9)], bad_boxes="error", lenient=True)
    assert dataset.boxes.tolist() == [list(GOOD)]
    assert dataset.problems.counts == {("error", "box outside"): 1, ("error", "box empty"): 1}


def test_error_lets_rounding_pass(tmp_path):
    assert read(tmp_path, [(0, 0, 64.4, 48)], bad_boxes="error").boxes.tolist() == [[0, 0, 64, 48]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e7])
def test_what_is_not_a_coordinate_is_not_clipped(tmp_path, value):
    with pytest.raises(DataError, match="not pixel coordinates"):
        read(tmp_path, [(value, 0, 10, 10)])


def test_areas_are_those_of_the_clipped_box_unless_stated(tmp_path):
    assert read(tmp_path, [(-5, -5, 10, 10)]).areas.tolist() == [100]


def test_a_contradicting_size_is_told_and_the_image_counts(tmp_path):
    dataset = read(tmp_path, [GOOD], width=640, height=480)
    assert dataset.sizes[0].tolist() == [48, 64]
    (problem,) = dataset.problems
    assert problem.kind == "size differs" and problem.record == "images[0] (id 100)"
    assert "640 × 480" in problem.message and "64 × 48" in problem.message


def test_an_exif_rotation_that_the_annotations_ignore_is_reported(tmp_path):
    index_folder = tmp_path / "images"
    write_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(index_folder / "a.png", exif=exif)
    dataset = build_dataset(read_coco_file(tmp_path / "instances_train.json", name="train"))
    assert dataset.sizes[0].tolist() == [64, 48]
    assert "EXIF" in dataset.problems.examples[0].message and "exchanged" in dataset.problems.examples[0].message


def test_links_that_lead_out_are_refused(tmp_path):
    inside, outside = tmp_path / "set", tmp_path / "outside"
    write_images(outside)
    file = write_coco(inside)
    (inside / "images" / "a.png").unlink()
    (inside / "images" / "a.png").symlink_to(outside / "a.png")
    with pytest.raises(DataError, match="link that leads out of the image folder"):
        build_dataset(read_coco_file(file, name="train"))
    document = coco_document()
    document["images"][0]["file_name"] = "linked/a.png"
    file = write_coco(tmp_path / "second", document)
    (tmp_path / "second" / "images" / "linked").symlink_to(outside)
    with pytest.raises(DataError, match="link that leads out of the image folder"):
        build_dataset(read_coco_file(file, name="train"))


def test_links_that_stay_inside_and_linked_folders_are_fine(tmp_path):
    file = write_coco(tmp_path / "real")
    (tmp_path / "real" / "images" / "b2.png").symlink_to("b.png")
    document = coco_document()
    document["images"][1]["file_name"] = "b2.png"
    write_coco(tmp_path / "real", document)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(build_dataset(read_coco_file(tmp_path / "link" / file.name, name="train"))) == 3


def test_lenient_lists_unusable_images_and_keeps_the_rest(tmp_path):
    file = write_coco(tmp_path)
    (tmp_path / "images" / "a.png").write_bytes(b"")
    records = read_coco_file(file, name="train")
    with pytest.raises(DataError, match="is empty"):
        build_dataset(records)
    dataset = build_dataset(records, Reading(lenient=True))
    assert dataset.image_ids.tolist() == [101, 102]
    assert dataset.boxes.tolist() == [[12, 16, 36, 48]]
    assert kinds(dataset) == {"image unusable": 1}
    for name in ("b.png", "c.png"):
        (tmp_path / "images" / name).unlink()
    with pytest.raises(DataError, match="is empty"):
        build_dataset(read_coco_file(file, name="train"), Reading(lenient=True))


def test_an_image_listed_twice_is_reported(tmp_path):
    document = coco_document()
    document["images"].append({"id": 7, "file_name": "a.png"})
    dataset = build_dataset(read_coco_file(write_coco(tmp_path, document), name="train"))
    assert kinds(dataset) == {"image listed twice": 1} and len(dataset) == 4


def test_many_images_are_measured_in_threads_and_stay_in_order(tmp_path):
    sizes = {f"{i}.png": (20 + i, 30) for i in range(80)}
    write_images(tmp_path / "images", sizes)
    document = coco_document()
    document["images"] = [{"id": i, "file_name": name} for i, name in enumerate(sizes)]
    document["annotations"] = []
    dataset = build_dataset(read_coco_file(write_coco(tmp_path, document), name="train"))
    assert dataset.sizes[:, 1].tolist() == [20 + i for i in range(80)]
    assert dataset.sizes[7].tolist() == list(read_header(tmp_path / "images" / "7.png"))
    assert torch.equal(dataset.offsets, torch.zeros(81, dtype=torch.int64))
