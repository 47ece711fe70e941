"""Bootstrap intervals against new evaluations of the resampled images, and their laws."""

import random
from dataclasses import replace

import pytest
import torch

from focaldet.evaluation import bootstrap
from focaldet.evaluation.bootstrap import draw_splits
from focaldet.evaluation.coco import HEADLINES, evaluate_detections
from focaldet.evaluation.evaluator import ground_truth_of
from focaldet.evaluation.intervals import bootstrap_intervals, compare_metrics, count_rounds, resample_metrics
from focaldet.evaluation.results import result_rows
from tests.evaluation import oracle
from tests.evaluation.cases import make_dataset, make_detections


def resample(dataset, detections, images):
    """The dataset and detections with these images, one of them maybe several times."""
    drawn = replace(dataset.subset(images, "drawn"), image_ids=torch.arange(len(images)))
    return evaluate_detections(drawn, {row: detections[image] for row, image in enumerate(images)})


def mixed_scenes(seed, *, images=8):
    """Small, medium and large objects of two classes, some ignored, with up to twelve detections; no score is twice."""
    rng = random.Random(seed)
    objects, detections = [], {}
    for image in range(images):
        boxes, rows = [], []
        for side in (16, 25, 50, 80, 120, 200):
            x, y, label = rng.uniform(0, 190), rng.uniform(0, 190), rng.randrange(2)
            boxes.append(([x, y, x + side, y + side], label, int(rng.random() < 0.15)))
            for _ in range(rng.choice([0, 1, 1, 2, 12])):
                dx, dy = rng.gauss(0, side / 9), rng.gauss(0, side / 9)
                guess = label if rng.random() < 0.8 else 1 - label
                rows.append(([x + dx, y + dy, x + dx + side, y + dy + side], rng.random(), guess))
        objects.append(boxes)
        detections[image] = make_detections(*sorted(rows, key=lambda row: -row[1]))
    return make_dataset(objects, sizes=[(400, 400)] * images), detections


def resampled(dataset, detections, **settings):
    return resample_metrics(ground_truth_of(dataset), result_rows(detections), **settings)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("images_at_once", [3, 500])
def test_every_number_is_that_of_a_new_evaluation_on_each_resampled_split(seed, images_at_once, monkeypatch):
    monkeypatch.setattr(bootstrap, "IMAGES_AT_ONCE", images_at_once)
    dataset, detections = mixed_scenes(seed)
    values = resampled(dataset, detections, rounds=5)
    splits = [[1] * 8, *draw_splits(8, num_splits=5).long().tolist()]
    for row, counts in enumerate(splits):
        images = [image for image, count in enumerate(counts) for _ in range(count)]
        metrics = resample(dataset, detections, images)
        for field in HEADLINES:
            expected = getattr(metrics, field)
            if expected is not None:
                assert float(values[field][row]) == pytest.approx(expected, abs=1e-9), (field, counts)
    assert set(values) == set(HEADLINES)


def test_the_limit_of_detections_counts():
    rows = [([4 * k, 0, 4 * k + 3, 9], 0, 0) for k in range(40)]
    dataset = make_dataset([rows, rows], sizes=[(10, 200)] * 2)
    detections = {image: make_detections(*((box, 0.9, 0) for box, _, _ in rows)) for image in range(2)}
    for limit in (20, 60):
        values = resampled(dataset, detections, max_detections=limit, rounds=3)
        metrics = evaluate_detections(dataset, detections, max_detections=limit)
        assert float(values["ar100"][0]) == pytest.approx(metrics.ar100) == pytest.approx(min(1.0, limit / 40))


def test_the_interval_is_that_of_another_bootstrap():
    """150 rounds of whole evaluations in Python against 1000: ends as near as chance lets them be."""
    dataset, detections = oracle.scenes(5, images=40, classes=2)
    interval = bootstrap_intervals(resampled(dataset, detections))["ap50"]
    rng = random.Random(0)
    values = sorted(resample(dataset, detections, [rng.randrange(40) for _ in range(40)]).ap50 for _ in range(150))
    assert interval.low == pytest.approx(values[4], abs=0.04)
    assert interval.high == pytest.approx(values[-5], abs=0.04)
    assert interval.low < evaluate_detections(dataset, detections).ap50 < interval.high


def test_a_number_that_does_not_exist_has_no_interval():
    dataset, detections = oracle.scenes(1)
    assert evaluate_detections(dataset, detections).ap_large is None
    assert "ap_large" not in bootstrap_intervals(resampled(dataset, detections, rounds=20))


def test_without_images_or_classes_there_is_no_interval():
    assert resampled(make_dataset([]), {}) == {}
    assert resampled(make_dataset([[]], names=()), {}, rounds=2) == {}


def test_a_detector_against_itself_is_no_different_and_against_a_better_one_it_is_lower():
    dataset, detections = oracle.scenes(4, images=30)
    values = resampled(dataset, detections, rounds=200)
    same = compare_metrics(values, resampled(dataset, detections, rounds=200))["ap"]
    assert (same.value, *same.interval, same.probability) == (0, 0, 0, 0.5)
    perfect = resample_metrics(ground_truth_of(dataset), perfect_rows(dataset), rounds=200)
    gain = compare_metrics(values, perfect)["ap"]
    assert gain.interval.low > 0 and gain.probability == 1.0
    assert gain.value == pytest.approx(1 - evaluate_detections(dataset, detections).ap, abs=1e-9)


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
