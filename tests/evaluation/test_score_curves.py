"""Precision, recall and F1 from each score on, against counting anew at every score; and the best score."""

import numpy
import pytest

from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.score_curves import make_curve, measure_curves
from tests.evaluation import oracle
from tests.evaluation.cases import make_dataset, make_detections


def curve(*rows, num_boxes):
    scores, right = (numpy.array(column) for column in zip(*rows, strict=True)) if rows else (numpy.zeros(0),) * 2
    return make_curve(scores.astype(float), right.astype(bool), num_boxes=num_boxes)


def test_a_curve_by_hand():
    """Right .9, wrong .8, right .8, wrong .3, of four objects."""
    made = curve((0.8, 0), (0.9, 1), (0.3, 0), (0.8, 1), num_boxes=4)
    assert made.scores.tolist() == [0.9, 0.8, 0.3]
    assert made.precision.tolist() == [1, 2 / 3, 2 / 4]
    assert made.recall.tolist() == [0.25, 0.5, 0.5]
    assert made.f1 == pytest.approx([2 / 5, 4 / 7, 4 / 8])
    best = made.best()
    assert (best.score, best.num_boxes) == (0.55, 4)  # in the middle between what it keeps and what it drops
    assert (best.f1, best.precision, best.recall) == pytest.approx((4 / 7, 2 / 3, 2 / 4))
    assert made.best_range(loss=0.08) == (0.3, 0.8)
    assert made.best_range() == (0.8, 0.8)


def test_a_best_score_keeps_what_it_was_measured_with():
    near = curve((0.50001, 1), (0.5, 0), num_boxes=1).best()
    assert 0.5 < near.score < 0.50001
    alone = curve((0.123456, 1), num_boxes=1).best()
    assert 0.1234 <= alone.score <= 0.123456


def test_where_nothing_is_right_no_score_is_best():
    for made in (curve(num_boxes=3), curve((0.5, 0), num_boxes=3), curve((0.5, 0), num_boxes=0)):
        assert made.best() is None
        assert made.best_range() is None
    dataset = make_dataset([[([0, 0, 9, 9], 0, 0)]])
    assert evaluate_detections(dataset, {}).score_thresholds is None
    assert evaluate_detections(dataset, {}).confusion is None


@pytest.mark.parametrize("seed", range(6))
def test_curves_are_those_of_counting_anew_at_every_score(seed):
    dataset, detections = oracle.scenes(seed, crowds=True)
    truth, rows, evaluator = oracle.columns(dataset, detections)
    curves = measure_curves(evaluator, truth, rows)
    objects, every = oracle.boxes_of(truth), oracle.detections_of(rows)
    for name, label in [("all", None), *zip("abc", range(3), strict=True)]:
        made = curves.overall if label is None else curves.per_class[name]
        wanted = [k for k in objects if not k[3] and label in (None, k[1])]
        assert made.num_boxes == len(wanted)
        for score, precision, recall in zip(made.scores, made.precision, made.recall, strict=True):
            kept = [d for d in every if d[3] >= score and label in (None, d[1])]
            counted = [one for one in oracle.match(kept, objects) if one != "ignored"]
            right = len([one for one in counted if one is not None])
            assert precision == pytest.approx(right / len(counted))
            assert recall == pytest.approx(right / max(1, len(wanted)))


def test_thresholds_are_in_the_metrics_and_survive_their_file():
    dataset, detections = oracle.scenes(1, images=30)
    metrics = evaluate_detections(dataset, detections)
    best = metrics.score_thresholds
    assert best.data == dataset.name
    assert [each.name for each in best.per_class] == ["a", "b", "c"]
    kept = {k: each.above(best.overall.score) for k, each in detections.items()}
    again = measure_curves(*[oracle.columns(dataset, kept)[k] for k in (2, 0, 1)]).overall
    assert again.f1[-1] == pytest.approx(best.overall.f1)
    assert type(metrics).from_dict(metrics.to_dict()) == metrics
    old = {name: value for name, value in metrics.to_dict().items() if name not in ("score_thresholds", "confusion")}
    assert type(metrics).from_dict(old).score_thresholds is None


def test_f1_at_its_best_is_near_the_libraries_own():
    """hotcoco's F1 is the largest at one of 101 recalls, of the precision made monotone, mean over the classes."""
    dataset, detections = oracle.scenes(3, images=60)
    truth, rows, evaluator = oracle.columns(dataset, detections)
    curves = measure_curves(evaluator, truth, rows)
    mean = sum(each.f1.max() for each in curves.per_class.values()) / 3
    assert evaluator.f_scores()["F1_50"] == pytest.approx(mean, abs=0.02)


def test_ties_and_one_detection_make_one_point():
    dataset = make_dataset([[([0, 0, 10, 10], 0, 0)]])
    detections = {0: make_detections(([0, 0, 10, 10], 0.5, 0), ([50, 50, 60, 60], 0.5, 0))}
    best = evaluate_detections(dataset, detections).score_thresholds.overall
    assert (best.score, best.precision, best.recall) == (0.5, 0.5, 1.0)
