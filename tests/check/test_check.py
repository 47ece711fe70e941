"""The data doctor's figures by hand, and its exit codes."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy
import pytest
from PIL import Image

from focaldet.check.anchor_clusters import anchor_shapes
from focaldet.check.check import check_data
from focaldet.data.config import DataConfig
from focaldet.data.splits import inspect_splits
from focaldet.errors import DataError
from focaldet.models import named_config
from focaldet.models.retinanet import RetinaNetConfig
from focaldet.types import Preprocessing, Resize
from tests.data.datasets import coco_document, write_coco, write_images, write_voc


def kinds(report) -> dict[str, int]:
    return {kind: number for (_, kind), number in report.problems.counts.items()}


def at(resize: Resize) -> Preprocessing:
    return Preprocessing(resize=resize)


def test_a_clean_set(tmp_path):
    file = write_coco(tmp_path)
    report = check_data(DataConfig(path=tmp_path))
    (split,) = report.splits
    assert (split.images, split.background_images, split.boxes, split.ignored) == (3, 1, 3, 0)
    assert split.boxes_per_class == {"cat": 2, "dog": 1}
    assert split.imbalance == 2
    assert split.sizes == {"small": 2, "medium": 1, "large": 0}  # areas 1024, 192, 768
    assert split.anchors is None
    assert report.exit_code == 0
    assert "hold out a tenth" in report.chosen
    assert report.lines()[-1] == "no problems found"
    assert replace(check_data(DataConfig(path=file)).splits[0], name="train") == split


def test_anchors_are_measured_at_the_size_of_the_network(tmp_path):
    write_coco(tmp_path)
    config = DataConfig(path=tmp_path)
    small = check_data(config, detector=RetinaNetConfig(), preprocessing=at(Resize("long", 64))).splits[0].anchors
    assert small.too_small == 1  # 16 × 12 px is less than half of 32 × 32; the others have 1024 and 768 px²
    assert small.smallest_anchor_px == pytest.approx(32)
    assert small.covered == pytest.approx(2 / 3)
    assert list(small.covered_per_level) == [f"stride {stride}" for stride in (8, 16, 32, 64, 128)]
    large = check_data(config, detector=RetinaNetConfig(), preprocessing=at(Resize("long", 640))).splits[0].anchors
    assert (large.too_small, large.covered) == (0, 1)


def test_priors_and_cells_are_measured_too(tmp_path):
    write_coco(tmp_path)
    config, square = DataConfig(path=tmp_path), at(Resize("warp", 320, max_size=None))
    priors = check_data(config, detector=named_config("ssd_r18"), preprocessing=square).splits[0].anchors
    assert list(priors.covered_per_level) == ["C3", "C5", "E1", "E2", "E3", "E4"]
    assert (priors.resize, priors.by_shape, priors.smallest_anchor_px) == ("320 × 320 px", False, pytest.approx(16))
    assert 0 < priors.average_iou < 1
    letterbox = at(Resize("letterbox", 416, max_size=None))
    cells = check_data(config, detector=named_config("yolov2"), preprocessing=letterbox).splits[0].anchors
    assert cells.by_shape and list(cells.covered_per_level) == ["stride 32"]
    assert cells.covered == cells.covered_per_level["stride 32"]


def test_the_mean_of_yolov2_is_that_of_the_clusters(tmp_path):
    write_coco(tmp_path)
    letterbox = Resize("letterbox", 416, max_size=None)
    data = DataConfig(path=tmp_path)
    (dataset,) = inspect_splits(data, seed=0).datasets.values()
    shapes = anchor_shapes(dataset, letterbox, num_clusters=2, seed=0)
    config = replace(named_config("yolov2"), anchors=shapes.cells)
    (split,) = check_data(data, detector=config, preprocessing=at(letterbox)).splits
    assert split.anchors.average_iou == pytest.approx(shapes.average_iou, abs=1e-4)


def many_classes(tmp_path, count, boxes):
    """A set of `count` classes, the first ones with `boxes` boxes on one image."""
    document = coco_document()
    document["categories"] = [{"id": index + 1, "name": f"kind{index + 1:02d}"} for index in range(count)]
    one = document["annotations"][0]
    document["annotations"] = [
        one | {"id": 900 + serial, "category_id": index + 1, "bbox": [serial % 40, 1 + serial // 40, 5, 5], "area": 25}
        for serial, index in enumerate(index for index, number in enumerate(boxes) for _ in range(number))
    ]
    write_coco(tmp_path, document)
    return check_data(DataConfig(path=tmp_path))


def test_a_long_list_of_classes_shows_its_ends(tmp_path):
    report = many_classes(tmp_path, 30, [25 - index for index in range(25)])
    lines = report.lines()
    start = next(index for index, line in enumerate(lines) if line.startswith("CLASS"))
    names = [line.split()[0] for line in lines[start + 1 : start + 23]]
    assert names[:10] == [f"kind{index:02d}" for index in range(1, 11)]
    assert names[10] == "…"
    assert names[11:21] == [f"kind{index:02d}" for index in range(16, 26)]
    assert lines[start + 22] == "10 more: --all; 5 classes without a box"
    everything = [line.split()[0] for line in report.lines(all_classes=True) if line.startswith("kind")]
    assert len(everything) == 30


def test_a_short_list_of_classes_is_whole_and_the_splits_stand_side_by_side(tmp_path):
    write_voc(tmp_path, {"train": ["a", "c"], "val": ["b"]})
    lines = check_data(DataConfig(path=tmp_path)).lines()
    header = next(line for line in lines if line.startswith("CLASS"))
    assert header.split() == ["CLASS", "train", "val"]
    assert not any("--all" in line for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(("train", "val"))] == ["train", "val"]


def test_ignored_boxes_do_not_count_for_classes(tmp_path):
    document = coco_document()
    document["annotations"][0]["iscrowd"] = 1
    write_coco(tmp_path, document)
    (split,) = check_data(DataConfig(path=tmp_path)).splits
    assert (split.boxes, split.ignored, split.boxes_per_class) == (3, 1, {"cat": 1, "dog": 1})


def test_images_in_two_splits_are_found_by_content(tmp_path):
    write_coco(tmp_path)
    write_images(tmp_path / "images", {"v.png": (64, 48), "w.png": (50, 50)})
    shutil.copy(tmp_path / "images" / "b.png", tmp_path / "images" / "copy.png")
    names = ("v.png", "w.png", "copy.png")
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    (tmp_path / "instances_val.json").write_text(json.dumps(coco_document() | {"images": images, "annotations": []}))
    report = check_data(DataConfig(path=tmp_path))
    doubles = [problem for problem in report.problems if problem.kind == "image in two splits"]
    assert [problem.file.rsplit("/", 1)[1] for problem in doubles] == ["v.png", "copy.png"]  # v.png has a.png's pixels
    assert "b.png" in doubles[1].message and 'split "train"' in doubles[1].message
    assert report.exit_status(strict=True) == 1 and report.exit_code == 0
    assert kinds(report)["no boxes"] == 1


def test_copies_inside_a_split_and_boxes_that_stand_twice(tmp_path):
    document = coco_document()
    document["images"].append({"id": 5, "file_name": "d.png"})
    document["annotations"].append(document["annotations"][0] | {"id": 99})
    write_coco(tmp_path, document)
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "d.png")
    report = check_data(DataConfig(path=tmp_path))
    assert kinds(report) == {"image twice": 1, "box twice": 1}


def test_unusable_images_are_all_listed(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "images" / "a.png").write_bytes(b"<html>")
    (tmp_path / "images" / "b.png").unlink()
    report = check_data(DataConfig(path=tmp_path))
    assert report.problems.count("error") == 3 and report.exit_code == 1  # one image is left: nothing to hold out
    with pytest.warns(DeprecationWarning, match="now called problems"):
        assert report.findings is report.problems
    listed = "\n".join(report.lines(listed=True))
    assert "a.png is not an image in a known format" in listed and re.search(r"no such file: \S*b\.png", listed)
    (tmp_path / "images" / "c.png").unlink()
    with pytest.raises(DataError, match="not an image in a known format"):
        check_data(DataConfig(path=tmp_path))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_that_was_cut_off_is_found(tmp_path, suffix):
    """Its header is whole: only who decodes it sees that pixels are missing, as training would halfway."""
    document = coco_document()
    document["images"][0]["file_name"] = f"cut.{suffix}"
    write_coco(tmp_path, document)
    noise = numpy.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=numpy.uint8)
    cut = tmp_path / "images" / f"cut.{suffix}"
    Image.fromarray(noise).save(cut)
    assert check_data(DataConfig(path=tmp_path)).problems.count("error") == 0
    cut.write_bytes(cut.read_bytes()[:-1500])
    calls: list[tuple[int, int]] = []
    report = check_data(DataConfig(path=tmp_path), progress=lambda *counts: calls.append(counts))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert report.problems.count("error") == 1 and report.exit_code == 1
    (problem,) = [problem for problem in report.problems if problem.severity == "error"]
    assert (problem.kind, problem.file) == ("image unusable", str(cut)) and "is damaged" in problem.message


def test_notes_alone_are_clean(tmp_path):
    document = coco_document()
    document["categories"].append({"id": 11, "name": "cow"})
    write_coco(tmp_path, document)
    report = check_data(DataConfig(path=tmp_path))
    assert kinds(report) == {"class without boxes": 1} and report.exit_code == 0


def test_trainval_is_not_a_duplicate_of_train(tmp_path):
    write_voc(tmp_path, {"train": ["a", "c"], "val": ["b"], "trainval": ["a", "b", "c"]})
    report = check_data(DataConfig(path=tmp_path))
    assert [split.name for split in report.splits] == ["train", "val"]
    assert report.exit_code == 0


def test_bad_boxes_follow_the_setting(tmp_path):
    document = coco_document()
    document["annotations"][0]["bbox"] = [-10, 0, 30, 30]
    write_coco(tmp_path, document)
    assert kinds(check_data(DataConfig(path=tmp_path))) == {"box clipped": 1}
    assert kinds(check_data(DataConfig(path=tmp_path, bad_boxes="drop"))) == {"box outside": 1}
    refused = check_data(DataConfig(path=tmp_path, bad_boxes="error"))
    assert refused.problems.counts == {("error", "box outside"): 1} and refused.exit_code == 1
    assert refused.splits[0].boxes == 2


def test_impossible_boxes_are_all_listed_and_hide_nothing_else(tmp_path):
    document = coco_document()
    document["annotations"] += [
        {"id": 600 + i, "image_id": 100, "category_id": 3, "bbox": box}
        for i, box in enumerate([[math.nan, 0, 5, 5], [0, 0, 1e308, 5], [-10, 0, 30, 30]])
    ]
    write_coco(tmp_path, document)
    (tmp_path / "images" / "c.png").unlink()
    report = check_data(DataConfig(path=tmp_path))
    assert report.problems.counts == {
        ("error", "box impossible"): 2,
        ("error", "image missing"): 1,
        ("warning", "box clipped"): 1,
    }
    assert (report.exit_code, report.splits[0].boxes) == (1, 4)
    assert "annotations[4] (id 601) · bbox: box x1, y1, x2, y2 = 0, 0, 1e+308, 5" in "\n".join(
        report.lines(listed=True)
    )


def test_the_report_is_json(tmp_path):
    write_coco(tmp_path)
    report = check_data(DataConfig(path=tmp_path), detector=RetinaNetConfig(), preprocessing=at(Resize("long", 320)))
    assert json.loads(json.dumps(report.to_dict()))["splits"][0]["boxes_per_class"] == {"cat": 2, "dog": 1}


def test_real_blood_cells(real_data):
    report = check_data(
        DataConfig(path=real_data / "bccd"), detector=RetinaNetConfig(), preprocessing=at(Resize("long", 320))
    )
    total: dict[str, int] = {}
    for split in report.splits:
        for name, number in split.boxes_per_class.items():
            total[name] = total.get(name, 0) + number
    assert total == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}
    assert kinds(report) == {"box empty": 2} and (report.exit_code, report.exit_status(strict=True)) == (0, 1)
    assert all(split.anchors.covered > 0.9 for split in report.splits)
