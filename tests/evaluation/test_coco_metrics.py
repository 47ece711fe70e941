"""The twelve numbers: against pycocotools on anything random, against published digits, and against hand counts."""

import contextlib
import io
import json
import time

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from focaldet.data.config import DataConfig
from focaldet.data.splits import open_split
from focaldet.errors import ConfigError
from focaldet.evaluation import coco, evaluator
from focaldet.evaluation.coco import HEADLINES, Metrics, evaluate_detections
from focaldet.evaluation.result_files import evaluate_files
from focaldet.evaluation.results import write_results
from focaldet.types import Detections
from tests.evaluation.cases import make_dataset, make_detections

# pycocotools on the shared fixture, to six digits.
COCO_EVAL = {
    "ap": 0.503647,
    "ap50": 0.696973,
    "ap75": 0.571667,
    "ap_small": 0.593252,
    "ap_medium": 0.557991,
    "ap_large": 0.489363,
    "ar1": 0.386813,
    "ar10": 0.593680,
    "ar100": 0.595353,
    "ar_small": 0.654764,
    "ar_medium": 0.603130,
    "ar_large": 0.553744,
}

# COCO adds the smallest number to what it divides by, so that perfect is a hair below 1.
ONE = pytest.approx(1.0, abs=1e-12)


def referee(annotations, results):
    """pycocotools' evaluator after accumulation and summary, without its chatter."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        detections = truth.loadRes(results) if results else COCO()
        if not results:
            detections.dataset = {**annotations, "annotations": []}
            detections.createIndex()
        evaluator = COCOeval(truth, detections, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def same(number, expected):
    return number is None if expected == -1 else abs(number - expected) <= 1e-12


def class_numbers(evaluator, index):
    """AP, AP50 and AR100 of a class as pycocotools counts them."""
    precision, recall = evaluator.eval["precision"][:, :, index], evaluator.eval["recall"][:, index]
    parts = (precision[:, :, 0, 2], precision[0, :, 0, 2], recall[:, 0, 2])
    return [part[part > -1].mean() if (part > -1).any() else -1 for part in parts]


def annotations_of(dataset):
    offsets = dataset.offsets.tolist()
    image_of = [image for image in range(len(dataset)) for _ in range(offsets[image], offsets[image + 1])]
    return {
        "info": {},
        "images": [{"id": image_id, "height": 100, "width": 100} for image_id in dataset.image_ids.tolist()],
        "categories": [
            {"id": i, "name": n} for i, n in zip(dataset.classes.category_ids, dataset.classes.names, strict=True)
        ],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(dataset.image_ids[image]),
                "category_id": dataset.classes.category_ids[int(dataset.labels[row])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(dataset.areas[row]),
                "iscrowd": int(dataset.flags[row] != 0),
            }
            for row, (image, (x1, y1, x2, y2)) in enumerate(zip(image_of, dataset.boxes.tolist(), strict=True))
        ],
    }


def results_of(dataset, detections):
    ids = dataset.image_ids.tolist()
    return [
        record
        for index, each in detections.items()
        for record in each.to_coco(image_id=ids[index], category_ids=dataset.classes.category_ids)
    ]


def random_case(seed, *, num_images=12, num_classes=4, crowds=0.2, ties=True, detected=0.8):
    """Overlapping boxes of all sizes, sparse shuffled ids, images and classes without boxes, equal scores."""
    rng = numpy.random.default_rng(seed)
    images, detections = [], {}
    for image in range(num_images):
        count = int(rng.integers(0, 7))
        centers, sides = rng.uniform(0, 200, (count, 2)), rng.choice([12, 50, 150], (count, 2)) * rng.uniform(0.7, 1.3)
        boxes = numpy.concatenate([centers - sides / 2, centers + sides / 2], axis=1).round(1)
        labels = rng.integers(0, max(1, num_classes - 1), count)
        images.append(
            [(box, int(k), int(rng.random() < crowds)) for box, k in zip(boxes.tolist(), labels, strict=True)]
        )
        repeated = numpy.repeat(boxes, rng.integers(0, 5, count), axis=0) if count else numpy.zeros((2, 4)) + 5
        moved = repeated + rng.normal(0, 4, repeated.shape)
        moved[:, 2:] = numpy.maximum(moved[:, 2:], moved[:, :2])
        scores = rng.choice([0.1, 0.5, 0.5, 0.9], len(moved)) if ties else rng.random(len(moved))
        if rng.random() < detected:
            rows = zip(moved.tolist(), scores, rng.integers(0, num_classes, len(moved)), strict=True)
            detections[image] = make_detections(*rows)
    dataset = make_dataset(
        images,
        names=[f"class {k}" for k in range(num_classes)],
        category_ids=rng.permutation(numpy.arange(3, 3 + 7 * num_classes, 7)).tolist(),
        image_ids=rng.choice(2**40, num_images, replace=False).tolist(),
    )
    return dataset, detections


def assert_equals_referee(dataset, detections):
    metrics = evaluate_detections(dataset, detections)
    evaluator = referee(annotations_of(dataset), results_of(dataset, detections))
    for name, expected in zip(HEADLINES, evaluator.stats, strict=True):
        assert same(getattr(metrics, name), expected), (name, getattr(metrics, name), expected)
    ranks = {category: index for index, category in enumerate(sorted(dataset.classes.category_ids))}
    for one in metrics.per_class:
        for number, expected in zip(
            (one.ap, one.ap50, one.ar100), class_numbers(evaluator, ranks[one.category_id]), strict=True
        ):
            assert same(number, expected), (one, expected)
    return metrics


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), crowds=st.sampled_from([0.0, 0.3, 1.0]), ties=st.booleans())
def test_twelve_numbers_and_every_class_equal_pycocotools(seed, crowds, ties):
    dataset, detections = random_case(seed, crowds=crowds, ties=ties)
    assert_equals_referee(dataset, detections)


def test_the_random_cases_are_not_trivial():
    metrics = [evaluate_detections(*random_case(seed)) for seed in range(20)]
    assert numpy.mean([one.ap50 for one in metrics]) > 0.1
    assert len({one.ap for one in metrics}) > 15
    assert all(one.ap50 > one.ap75 for one in metrics)


def test_more_than_a_hundred_detections_in_an_image_count_as_in_coco():
    boxes = [([0, 0, 10 + i % 3, 10], i / 300, 0) for i in range(250)] + [([50, 50, 90, 90], 0.001, 0)]
    dataset = make_dataset([[([0, 0, 10, 10], 0, 0), ([50, 50, 90, 90], 0, 0)]])
    metrics = assert_equals_referee(dataset, {0: make_detections(*boxes)})
    assert metrics.ar100 == pytest.approx(0.5)  # the second object's only detection is the 251st


def test_no_detections_at_all_give_zero():
    metrics = assert_equals_referee(make_dataset([[([0, 0, 10, 10], 0, 0)], []]), {})
    assert (metrics.ap, metrics.ap_small, metrics.ar100, metrics.num_detections) == (0.0, 0.0, 0.0, 0)
    assert metrics.ap_large is None


def test_no_boxes_at_all_leave_every_number_undefined():
    metrics = assert_equals_referee(make_dataset([[], []]), {0: make_detections(([0, 0, 5, 5], 0.9, 0))})
    assert {getattr(metrics, name) for name in HEADLINES} == {None}
    assert json.loads(json.dumps(metrics.to_dict()))["ap"] is None


def test_an_index_without_images_is_survived():
    assert evaluate_detections(make_dataset([]), {}).ap is None


def test_perfect_detections_score_one_in_every_size_there_is():
    boxes = [([0, 0, 20, 20], 0, 0), ([0, 0, 60, 60], 1, 0), ([0, 0, 99, 99], 1, 0)]
    metrics = evaluate_detections(make_dataset([boxes]), {0: make_detections(*[(b, 0.9, k) for b, k, _ in boxes])})
    numbers = {name: getattr(metrics, name) for name in HEADLINES}
    # With one detection per class, half of the dogs are detected.
    assert numbers == pytest.approx({name: 0.75 if name == "ar1" else 1.0 for name in HEADLINES}, abs=1e-12)
    assert [(one.name, one.num_boxes, one.ap) for one in metrics.per_class] == [("cell", 1, ONE), ("dog", 2, ONE)]


def test_a_hand_case():
    """Two boxes; ranked: hit, miss, hit. Precision 1 up to recall .5 (51 of 101 points), then 2/3."""
    dataset = make_dataset([[([0, 0, 10, 10], 0, 0), ([50, 50, 90, 90], 0, 0)]], names=("cell",))
    metrics = evaluate_detections(
        dataset,
        {0: make_detections(([0, 0, 10, 10], 0.9, 0), ([20, 0, 30, 10], 0.8, 0), ([50, 50, 90, 90], 0.7, 0))},
    )
    assert metrics.ap == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
    assert (metrics.num_images, metrics.num_boxes, metrics.num_detections) == (1, 2, 3)


def test_iou_thresholds_count_one_by_one():
    """IoU .62 passes .50, .55 and .60 of the ten thresholds."""
    dataset = make_dataset([[([0, 0, 100, 100], 0, 0)]])
    metrics = evaluate_detections(dataset, {0: make_detections(([0, 0, 62, 100], 0.9, 0))})
    assert (metrics.ap, metrics.ap50, metrics.ap75) == (pytest.approx(0.3), ONE, 0.0)


@pytest.mark.parametrize("flag", [1, 2, 3])
def test_crowd_and_difficult_boxes_are_neither_missed_nor_background(flag):
    dataset = make_dataset([[([0, 0, 10, 10], 0, 0), ([30, 30, 90, 90], 0, flag)]])
    on_the_crowd = [([35, 35, 50, 50], 0.95, 0), ([55, 55, 80, 80], 0.94, 0)]
    metrics = evaluate_detections(dataset, {0: make_detections(([0, 0, 10, 10], 0.9, 0), *on_the_crowd)})
    assert (metrics.ap, metrics.ar100, metrics.num_boxes, metrics.per_class[0].num_boxes) == (ONE, 1.0, 1, 1)
    missed = evaluate_detections(dataset, {0: make_detections(([0, 0, 10, 10], 0.9, 0))})
    assert missed.ap == ONE


def test_the_stated_area_decides_the_size():
    dataset = make_dataset([[([0, 0, 40, 40], 0, 0)]])
    dataset.areas[0] = 500.0  # COCO states the area of the mask
    metrics = evaluate_detections(dataset, {0: make_detections(([0, 0, 40, 40], 0.9, 0))})
    assert (metrics.ap_small, metrics.ap_medium) == (ONE, None)


def test_an_image_left_out_has_no_detections():
    dataset = make_dataset([[([0, 0, 10, 10], 0, 0)], [([0, 0, 10, 10], 0, 0)]])
    metrics = evaluate_detections(dataset, {1: make_detections(([0, 0, 10, 10], 0.9, 0))})
    assert metrics.ar100 == 0.5


def test_indices_and_labels_outside_the_dataset_are_errors():
    dataset = make_dataset([[], []])
    with pytest.raises(IndexError, match=r"indices must be in 0…1, got 2…2"):
        evaluate_detections(dataset, {2: make_detections(([0, 0, 1, 1], 0.5, 0))})
    with pytest.raises(IndexError, match=r"labels must be in 0…1, got 0…5"):
        evaluate_detections(dataset, {0: make_detections(([0, 0, 1, 1], 0.5, 0), ([0, 0, 1, 1], 0.5, 5))})


def test_classes_of_the_same_name_keep_their_own_numbers():
    dataset = make_dataset([[([0, 0, 10, 10], 0, 0), ([20, 20, 40, 40], 1, 0)]], names=("cell", "cell"))
    metrics = evaluate_detections(dataset, {0: make_detections(([0, 0, 10, 10], 0.9, 0))})
    assert [one.ap for one in metrics.per_class] == [ONE, 0.0]


def test_metrics_survive_json():
    metrics = evaluate_detections(*random_case(5))
    assert Metrics.from_dict(json.loads(json.dumps(metrics.to_dict()))) == metrics


def test_nothing_is_written_to_the_terminal(capfd):
    evaluate_detections(*random_case(1))
    assert capfd.readouterr() == ("", "")


def test_the_real_fixture_gives_the_published_digits(real_data):
    metrics = evaluate_files(real_data / "coco_eval" / "results.json", real_data / "coco_eval" / "instances.json")
    assert {name: round(getattr(metrics, name), 6) for name in HEADLINES} == COCO_EVAL
    assert (metrics.num_images, metrics.num_detections, len(metrics.per_class)) == (100, 734, 80)


def test_the_real_fixture_equals_pycocotools_to_the_last_digit(real_data):
    annotations, results = (
        json.loads((real_data / "coco_eval" / name).read_text()) for name in ("instances.json", "results.json")
    )
    metrics = evaluate_files(real_data / "coco_eval" / "results.json", real_data / "coco_eval" / "instances.json")
    for name, expected in zip(HEADLINES, referee(annotations, results).stats, strict=True):
        assert same(getattr(metrics, name), expected), name


def test_coco_mini_gives_pycocotools_numbers_through_the_index_and_through_files(real_data, tmp_path):
    """80 sparse categories, crowds, images without boxes; noisy copies of the truth stand in for a detector."""
    dataset = open_split(DataConfig(path=real_data / "coco_mini"), "val", seed=0)
    generator = torch.Generator().manual_seed(0)
    detections = {}
    for index in range(len(dataset)):
        target = dataset.target(index)
        boxes = target.boxes.repeat(3, 1) + torch.randn(3 * len(target.boxes), 4, generator=generator) * 3
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
        detections[index] = Detections(boxes, torch.rand(len(boxes), generator=generator), target.labels.repeat(3))
    write_results(tmp_path / "results.json", dataset, detections)
    truth = real_data / "coco_mini" / "annotations" / "instances_val2017.json"
    evaluator = referee(json.loads(truth.read_text()), json.loads((tmp_path / "results.json").read_text()))
    for metrics in (evaluate_detections(dataset, detections), evaluate_files(tmp_path / "results.json", truth)):
        for name, expected in zip(HEADLINES, evaluator.stats, strict=True):
            assert same(getattr(metrics, name), expected), name


def boxes_on_thresholds(num_images=300):
    """Annotations with two decimals, some up to the border, and results of half or three quarters of their height."""
    rng = numpy.random.default_rng(7)
    images, annotations, results = [], [], []
    for image in range(num_images):
        images.append({"id": image, "file_name": "a.png", "height": 640, "width": 640})
        for _ in range(3):
            x, y, width, height = (round(float(value), 2) for value in rng.uniform(1, 300, 4))
            width, height = (round(640 - x, 2), round(640 - y, 2)) if rng.random() < 0.2 else (width, height)
            record = {"image_id": image, "category_id": int(rng.integers(1, 4))}
            area = {"id": len(annotations) + 1, "area": width * height, "iscrowd": 0}
            annotations.append(record | area | {"bbox": [x, y, width, height]})
            share = float(rng.choice([0.5, 0.75]))
            results.append(record | {"bbox": [x, y, width, height * share], "score": float(rng.random())})
    categories = [{"id": number, "name": f"class {number}"} for number in (1, 2, 3)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, results


@pytest.mark.parametrize("ground_truth", ["instances_val.json", "."])
def test_overlaps_on_a_threshold_fall_on_the_side_where_pycocotools_has_them(tmp_path, ground_truth):
    annotations, results = boxes_on_thresholds()
    (tmp_path / "instances_val.json").write_text(json.dumps(annotations))
    (tmp_path / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (640, 640)).save(tmp_path / "a.png")
    metrics = evaluate_files(tmp_path / "results.json", tmp_path / ground_truth)
    for name, expected in zip(HEADLINES, referee(annotations, results).stats, strict=True):
        assert same(getattr(metrics, name), expected), (name, getattr(metrics, name), expected)


def test_half_a_million_detections_take_two_seconds_of_two_cores():
    """Counted in seconds of the processor, which other programs beside the test do not lengthen."""
    rng = torch.Generator().manual_seed(0)
    num_images, each = 5000, 100
    corner = torch.rand(num_images * each, 2, generator=rng) * 400
    boxes = torch.cat([corner, corner + 5 + torch.rand(num_images * each, 2, generator=rng) * 200], 1)
    scores = torch.rand(num_images * each, generator=rng)
    labels = torch.randint(80, (num_images * each,), generator=rng)
    rows = [slice(start, start + each) for start in range(0, num_images * each, each)]
    detections = {index: Detections(boxes[row], scores[row], labels[row]) for index, row in enumerate(rows)}
    truth = [
        [(box, label, 0) for box, label in zip(boxes[row][:7].tolist(), labels[row][:7].tolist(), strict=True)]
        for row in rows
    ]
    dataset = make_dataset(truth, names=[str(k) for k in range(80)])
    begin = time.process_time()
    metrics = evaluate_detections(dataset, detections)
    assert time.process_time() - begin <= 4.0
    assert metrics.num_detections == 500_000


def test_ranks_keep_the_order():
    assert evaluator.rank_ids(numpy.array([50, 7, 1000])).tolist() == [1, 0, 2]


def test_what_the_limit_of_detections_cuts_is_told_and_the_limit_can_be_raised():
    """150 objects of one class in an image, all detected, and 20 of another class."""
    boxes = [([x * 20.0, y * 20.0, x * 20.0 + 10, y * 20.0 + 10], 0, 0) for x in range(15) for y in range(10)]
    boxes += [([x * 20.0, 300.0, x * 20.0 + 10, 310.0], 1, 0) for x in range(20)]
    dataset = make_dataset([boxes])
    detections = {0: make_detections(*((box, 0.9, label) for box, label, _ in boxes))}
    limited = evaluate_detections(dataset, detections)
    assert limited.max_detections == 100 and limited.per_class[0].ar100 == pytest.approx(100 / 150)
    assert limited.notes == (
        "the best 100 detections of each image and class count in COCO: 1 image with more than 100 objects of a class: "
        "50 of 170 objects are out of reach; 50 of 170 detections do not count; focaldet eval --max-detections "
        "raises the limit",
    )
    raised = evaluate_detections(dataset, detections, max_detections=150)
    assert (raised.ap, raised.ar100, raised.max_detections, raised.notes) == (ONE, ONE, 150, ())
    assert coco.headline("ar100", max_detections=150) == ("AR150", "recall with 150")
    assert Metrics.from_dict(raised.to_dict()) == raised
    with pytest.raises(ConfigError, match="max_detections: must be at least 11"):
        evaluate_detections(dataset, detections, max_detections=10)


def test_what_a_detector_cannot_reach_that_answers_with_fewer_objects_an_image_is_told():
    """Of three classes sixty objects each in an image: none has more than COCO's hundred, together they do."""
    boxes = [([x * 20.0, y * 20.0, x * 20.0 + 10, y * 20.0 + 10], x % 3, 0) for x in range(18) for y in range(10)]
    dataset = make_dataset([boxes, boxes[:100], []], names=("a", "b", "c"))
    detections = {0: make_detections(*((box, 0.9, label) for box, label, _ in boxes[:100]), names=("a", "b", "c"))}
    assert evaluate_detections(dataset, detections).notes == ()
    assert evaluate_detections(dataset, detections, image_limit=100).notes == (
        "the detector answers with at most 100 objects an image: 1 image with more, 80 of 280 objects are out of "
        "reach; focaldet eval --max-detections raises the limit",
    )
    assert evaluate_detections(dataset, detections, image_limit=180).notes == ()
    assert evaluate_detections(make_dataset([[], []]), {}, image_limit=100).notes == ()
