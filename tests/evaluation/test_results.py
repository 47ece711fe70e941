"""COCO result files: what is wrong is named by record and field, and what is written reads back the same."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focaldet.data.config import DataConfig
from focaldet.data.splits import open_splits
from focaldet.errors import DataError
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.result_files import evaluate_files
from focaldet.evaluation.results import read_results, result_rows, write_results
from focaldet.report.run_report import detections_per_image
from tests.evaluation.cases import make_dataset, make_detections

GOOD = {"image_id": 10, "category_id": 3, "bbox": [1, 2, 3.5, 4], "score": 0.5}
DATASET = make_dataset([[([1, 2, 4.5, 6], 0, 0)], []], category_ids=(3, 90), image_ids=(10, 2))


def read(path, dataset=DATASET):
    return read_results(path, image_ids=dataset.image_ids.tolist(), classes=dataset.classes)


def written(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_ids_become_indices_and_labels(tmp_path):
    rows = read(written(tmp_path, [GOOD, {**GOOD, "image_id": 2, "category_id": 90, "extra": None}]))
    assert rows.image_indices.tolist() == [0, 1]
    assert rows.labels.tolist() == [0, 1]
    assert rows.xywh.tolist() == [[1, 2, 3.5, 4]] * 2
    assert rows.scores.tolist() == [0.5, 0.5]


def test_an_empty_list_is_not_a_detections(tmp_path):
    assert read(written(tmp_path, [])).xywh.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"image_id": 11}, "image_id", "11 is not an image of the ground truth (it has 2: 10, 2)"),
        ({"image_id": "10"}, "image_id", "must be a whole number, got '10'"),
        ({"image_id": 10.0}, "image_id", "must be a whole number, got 10.0"),
        ({"image_id": True}, "image_id", "must be a whole number, got True"),
        ({"image_id": [1]}, "image_id", "must be a whole number, got [1]"),
        ({"category_id": 1}, "category_id", "1 is not a category of the ground truth (it has 2: 3, 90)"),
        ({"category_id": None}, "category_id", "must be a whole number, got None"),
        ({"bbox": [1, 2, 3]}, "bbox", "must be four numbers [x, y, width, height], got [1, 2, 3]"),
        ({"bbox": "box"}, "bbox", "must be four numbers"),
        ({"bbox": {"x": 1}}, "bbox", "must be four numbers"),
        ({"bbox": [1, 2, "3", 4]}, "bbox", "got '3'"),
        ({"bbox": [1, 2, True, 4]}, "bbox", "got True"),
        ({"bbox": [1, 2, -3, 4]}, "bbox", "width and height must be ≥ 0, got [1, 2, -3, 4]"),
        ({"bbox": [1, 2, 1e308, 4]}, "bbox", "must be a number within"),
        ({"bbox": [1, 2, 10**400, 4]}, "bbox", "must be a number within"),
        ({"bbox": [float("nan"), 2, 3, 4]}, "bbox", "got nan"),
        ({"score": float("nan")}, "score", "got nan"),
        ({"score": float("inf")}, "score", "got inf"),
        ({"score": None}, "score", "got None"),
        ({"score": "0.5"}, "score", "got '0.5'"),
    ],
)
def test_a_bad_value_is_named_with_its_record_and_field(tmp_path, change, field, problem):
    path = written(tmp_path, [GOOD, {**GOOD, **change}])
    with pytest.raises(DataError) as caught:
        read(path)
    error = caught.value
    assert (error.file, error.record, error.field) == (str(path), "[1]", field)
    assert problem in error.problem


@pytest.mark.parametrize("field", ["image_id", "category_id", "bbox", "score"])
def test_a_missing_field_is_named(tmp_path, field):
    record = {key: value for key, value in GOOD.items() if key != field}
    with pytest.raises(DataError, match=rf"\[0\] · {field}: is missing \(the record has: "):
        read(written(tmp_path, [record]))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"annotations": []}, "must be a list of detections, got {'annotations': []}; these are annotations"),
        (5, "must be a list of detections, got 5"),
        ([7], "must be an object with image_id, category_id, bbox, score, got 7"),
        ([[]], "must be an object"),
        (b"[", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"image_id": ' + b"9" * 5000 + b"}]", "is not valid JSON"),
    ],
)
def test_what_is_not_a_result_file_is_refused(tmp_path, content, problem):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, content))
    assert problem in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: cannot be read: No such file"):
        read(tmp_path / "none.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from([*GOOD, "x"]), inner, max_size=5),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(records=st.lists(VALUES | st.fixed_dictionaries({key: VALUES | st.just(GOOD[key]) for key in GOOD}), max_size=3))
def test_nothing_but_a_data_error_leaves(tmp_path_factory, records):
    path = written(tmp_path_factory.getbasetemp(), records)
    try:
        assert len(read(path).scores) == len(records)
    except DataError as error:
        assert error.file == str(path)


def test_what_is_written_gives_the_same_numbers_to_the_last_digit(tmp_path):
    dataset = make_dataset(
        [[([1.25, 2, 40.5, 60], 0, 0)], [([5, 5, 30, 30], 1, 0)]], category_ids=(3, 90), image_ids=(10, 2)
    )
    detections = {
        0: make_detections(([1.3, 2.1, 40.123, 61], 0.9, 0), ([5, 5, 9, 9], 0.1, 1)),
        1: make_detections(([5.1, 5, 31, 29.7], 0.7, 1)),
    }
    write_results(tmp_path / "out.json", dataset, detections)
    records = json.loads((tmp_path / "out.json").read_text())
    assert [(one["image_id"], one["category_id"]) for one in records] == [(10, 3), (10, 90), (2, 90)]
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in (10, 2)],
        "categories": [{"id": 3, "name": "cell"}, {"id": 90, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1.25, 2, 39.25, 58], "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 90, "bbox": [5, 5, 25, 25], "iscrowd": 0},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert evaluate_files(tmp_path / "out.json", tmp_path / "truth.json") == evaluate_detections(dataset, detections)


@pytest.fixture
def folder(tmp_path):
    """Training numbers ant, cell and dog 1, 2 and 3; validation numbers dog, cell and bus 1, 2 and 5, without ants."""
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    for split, categories in (("train", {"ant": 1, "cell": 2, "dog": 3}), ("valid", {"dog": 1, "cell": 2, "bus": 5})):
        boxes = [(categories["cell"], [10, 20, 30, 40]), (categories["dog"], [50, 5, 25, 25])]
        document = {
            "images": [{"id": 7, "file_name": "a.png", "height": 100, "width": 100}],
            "categories": [{"id": number, "name": name} for name, number in categories.items()],
            "annotations": [
                {"id": k, "image_id": 7, "category_id": number, "bbox": box, "area": 100, "iscrowd": 0}
                for k, (number, box) in enumerate(boxes)
            ],
        }
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(document))
    return tmp_path


def test_what_a_training_run_writes_has_the_ids_of_the_validation_file(folder):
    val = open_splits(DataConfig(path=folder), seed=0).val
    assert (val.classes.names, val.classes.category_ids) == (("ant", "cell", "dog"), (1, 2, 3))
    detections = {0: make_detections(([50, 5, 75, 30], 0.9, 2), ([10, 20, 40, 60], 0.8, 1), ([1, 1, 9, 9], 0.7, 0))}
    path = folder / "predictions.json"
    write_results(path, val, detections)
    records = json.loads(path.read_text())
    assert [(one["category_id"], one["bbox"]) for one in records] == [(1, [50, 5, 25, 25]), (2, [10, 20, 30, 40])]

    metrics = evaluate_detections(val, detections)
    assert [(one.name, one.category_id) for one in metrics.per_class] == [("ant", None), ("cell", 2), ("dog", 1)]
    for ground_truth in (folder / "instances_valid.json", folder):
        again = evaluate_files(path, ground_truth)
        assert again.ap == metrics.ap == pytest.approx(1, abs=1e-12)
    assert read(path, val).labels.tolist() == [2, 1]
    path.write_text(json.dumps([{**GOOD, "image_id": 7, "category_id": 5}]))
    with pytest.raises(DataError, match=r"5 is not a category of the ground truth \(it has 2: 2, 1\)"):
        read(path, val)


def test_rows_and_detections_turn_into_each_other():
    dataset = make_dataset([[], [], []])
    detections = {
        2: make_detections(([0, 0, 8, 8], 0.5, 1)),
        0: make_detections(([1, 2, 4, 8], 0.9, 0), ([1, 2, 4, 4], 0.9, 1)),
    }
    back = detections_per_image(result_rows(detections), dataset)
    for index, each in enumerate(back):
        expected = detections.get(index, make_detections())
        assert torch.equal(each.boxes, expected.boxes)
        assert torch.equal(each.scores, expected.scores)
        assert torch.equal(each.labels, expected.labels)


def test_detections_in_half_precision_are_counted_exactly():
    detections = make_detections(([0, 0, 8, 8], 0.5, 1))
    half = type(detections)(detections.boxes.bfloat16(), detections.scores.bfloat16(), detections.labels)
    assert result_rows({0: half}).xywh.tolist() == [[0, 0, 8, 8]]


def test_a_ground_truth_with_infinite_boxes_is_refused(tmp_path):
    truth = {
        "images": [{"id": 10, "file_name": "a.png", "height": 9, "width": 9}],
        "categories": [{"id": 3, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 10, "category_id": 3, "bbox": [0, 0, float("inf"), 1], "iscrowd": 0}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(DataError, match=r"truth\.json · annotations\[0\]"):
        evaluate_files(written(tmp_path, [GOOD]), tmp_path / "truth.json")
