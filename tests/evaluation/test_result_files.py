"""Result files of any program: which boxes they are scored against."""

import json

import pytest
from PIL import Image

from focaldet.data.config import DataConfig
from focaldet.errors import DataError
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.result_files import evaluate_files
from focaldet.evaluation.results import write_results
from focaldet.types import Detections

BOX = (8, 8, 16, 32)  # x, y, width, height


@pytest.fixture
def coco(tmp_path):
    """A folder of ten images: cats, and dogs that extend beyond their images; the file, and perfect results."""
    (tmp_path / "images").mkdir()
    for number in range(1, 11):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(1, 11)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": list(BOX) if n % 2 else [56, 8, 16, 32]}
        for n in range(1, 11)
    ]
    names = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    file, results = tmp_path / "instances_val.json", tmp_path / "results.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": names}))
    results.write_text(json.dumps([{**box, "score": 0.9} for box in boxes]))
    return file, results


def keep_cats(results):
    rows = [row for row in json.loads(results.read_text()) if row["category_id"] == 2]
    results.write_text(json.dumps(rows))


def test_settings_that_change_which_boxes_count_hold_for_a_coco_file_too(coco):
    file, results = coco
    plain = evaluate_files(results, file)
    assert (plain.num_boxes, plain.ap) == (10, pytest.approx(1.0))
    with pytest.raises(DataError, match=r"results\.json.*category_id"):  # of a class that was not asked for
        evaluate_files(results, DataConfig(path=file, classes=("cat",)))
    dropped = evaluate_files(results, DataConfig(path=file, bad_boxes="drop"))
    assert (dropped.num_boxes, dropped.per_class[0].num_boxes) == (5, 0)
    keep_cats(results)
    cats = evaluate_files(results, DataConfig(path=file, classes=("cat",)))
    assert (cats.num_boxes, [each.name for each in cats.per_class], cats.ap) == (5, ["cat"], pytest.approx(1.0))


def test_settings_that_change_no_box_need_no_image(coco):
    file, results = coco
    for image in (file.parent / "images").iterdir():
        image.unlink()
    assert evaluate_files(results, DataConfig(path=file, images=file.parent / "images")).num_boxes == 10


def test_a_single_file_of_another_format_is_taken_whole(tmp_path):
    """As `eval RUN --data FILE` takes it, whose own results are scored."""
    rows = ["image,xmin,ymin,xmax,ymax,label"]
    for number in range(20):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,8,8,24,40,cat")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    dataset = open_evaluation_split(DataConfig(path=tmp_path / "labels.csv"), "val", seed=0)
    targets = [dataset.target(index) for index in range(len(dataset))]
    detections = {n: Detections(each.boxes, each.labels * 0.0 + 0.9, each.labels) for n, each in enumerate(targets)}
    write_results(tmp_path / "results.json", dataset, detections)
    metrics = evaluate_files(tmp_path / "results.json", tmp_path / "labels.csv")
    assert (metrics.num_images, metrics.ap) == (20, pytest.approx(1.0))
