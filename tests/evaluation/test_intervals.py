"""Bootstrap intervals against an independent bootstrap, and their laws."""

import random

import pytest

from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.evaluator import open_evaluator
from focaldet.evaluation.intervals import bootstrap_intervals, compare_metrics, count_rounds
from focaldet.evaluation.results import result_rows
from tests.evaluation import oracle
from tests.evaluation.cases import make_dataset, make_detections


def resample(dataset, detections, images):
    """The dataset and detections with these images, one of them maybe several times."""
    targets = [dataset.target(image) for image in images]
    rows = [[(b.tolist(), int(n), 0) for b, n in zip(t.boxes, t.labels, strict=True)] for t in targets]
    drawn = make_dataset(rows, names=dataset.classes.names)
    return evaluate_detections(drawn, {row: detections[image] for row, image in enumerate(images)})


def test_the_interval_is_that_of_another_bootstrap():
    """150 rounds of whole evaluations in Python against 1000 of hotcoco's: ends as near as chance lets them be."""
    dataset, detections = oracle.scenes(5, images=40, classes=2)
    truth, _, evaluator = oracle.columns(dataset, detections)
    interval = bootstrap_intervals(truth, evaluator)["ap50"]
    rng = random.Random(0)
    values = sorted(resample(dataset, detections, [rng.randrange(40) for _ in range(40)]).ap50 for _ in range(150))
    assert interval.low == pytest.approx(values[4], abs=0.04)
    assert interval.high == pytest.approx(values[-5], abs=0.04)
    assert interval.low < evaluate_detections(dataset, detections).ap50 < interval.high


def test_a_number_that_does_not_exist_has_no_interval():
    dataset, detections = oracle.scenes(1)
    truth, _, evaluator = oracle.columns(dataset, detections)
    assert evaluate_detections(dataset, detections).ap_large is None
    assert "ap_large" not in bootstrap_intervals(truth, evaluator, rounds=20)


def test_without_images_there_is_no_interval():
    truth, _, evaluator = oracle.columns(make_dataset([]), {})
    assert bootstrap_intervals(truth, evaluator) == {}


def test_a_detector_against_itself_is_no_different_and_against_a_better_one_it_is_lower():
    dataset, detections = oracle.scenes(4, images=30)
    truth, rows, evaluator = oracle.columns(dataset, detections)
    same = compare_metrics(evaluator, open_evaluator(truth, rows), rounds=50)["ap"]
    assert (same.value, *same.interval) == (0, 0, 0)
    perfect = open_evaluator(truth, perfect_rows(dataset))
    gain = compare_metrics(evaluator, perfect, rounds=200)["ap"]
    assert gain.interval.low > 0 and gain.probability > 0.98
    assert gain.value == pytest.approx(1 - evaluate_detections(dataset, detections).ap, abs=1e-3)


def perfect_rows(dataset):
    """Every object detected where it is."""
    targets = {image: dataset.target(image) for image in range(len(dataset))}
    return result_rows(
        {
            image: make_detections(
                *((box.tolist(), 0.9, int(label)) for box, label in zip(t.boxes, t.labels, strict=True)),
                names=dataset.classes.names,
            )
            for image, t in targets.items()
        }
    )


def test_large_sets_take_fewer_rounds():
    assert (count_rounds(0), count_rounds(87), count_rounds(5000), count_rounds(10**6)) == (1000, 1000, 100, 100)
