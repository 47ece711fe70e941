"""Every kind of error by hand, and what the outcomes of an image add up to."""

import math

import pytest
import torch

from focaldet.evaluation.error_kinds import MIN_PROBABILITY, classify_outcomes
from focaldet.types import Target
from tests.evaluation.cases import make_detections

CELL, DOG = 0, 1
HERE = (0.0, 0.0, 10.0, 10.0)
BESIDE = (5.0, 0.0, 15.0, 10.0)  # half its width off: IoU 1/3
FAR = (50.0, 50.0, 60.0, 60.0)


def truth(*rows):
    """A target from (box, label) or (box, label, ignored)."""
    return Target(
        torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        torch.tensor([row[1] for row in rows], dtype=torch.int64),
        torch.tensor([len(row) == 3 and row[2] for row in rows], dtype=torch.bool),
    )


def outcomes_of(detections, target, score=0.3, **named):
    return classify_outcomes(make_detections(*detections), target, score=score, **named)


def kinds(outcomes):
    return [(one.kind, one.index) for one in outcomes]


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        ([(HERE, 0.9, CELL)], [("detected", 0)]),
        ([], [("missed", 0)]),
        ([(HERE, 0.2, CELL)], [("missed", 0)]),
        ([(HERE, 0.9, DOG)], [("wrong class", 0), ("wrong class", None)]),
        ([(HERE, 0.2, DOG)], [("missed", 0), ("wrong class", None)]),
        ([(BESIDE, 0.9, CELL)], [("poor box", 0), ("poor box", None)]),
        ([(BESIDE, 0.9, DOG)], [("missed", 0), ("background", None)]),
        ([(FAR, 0.9, CELL)], [("missed", 0), ("background", None)]),
        ([(HERE, 0.9, CELL), (HERE, 0.8, CELL)], [("detected", 0), ("duplicate", None)]),
        ([(HERE, 0.9, CELL), (HERE, 0.8, DOG)], [("detected", 0), ("wrong class", None)]),
        ([(HERE, 0.9, DOG), (HERE, 0.8, CELL)], [("detected", 0), ("wrong class", None)]),
        ([(HERE, 0.9, DOG), (BESIDE, 0.8, CELL)], [("wrong class", 0), ("wrong class", None), ("poor box", None)]),
    ],
)
def test_one_cell(detections, expected):
    assert kinds(outcomes_of(detections, truth((HERE, CELL)))) == expected


def test_numbers_of_an_object_and_of_false_positives():
    hit, wrong, duplicate = outcomes_of(
        [(HERE, 0.8, CELL), (FAR, 0.7, DOG), (BESIDE, 0.6, CELL)], truth((HERE, CELL)), score=0.5
    )
    assert (hit.probability, hit.box_loss) == (pytest.approx(0.8), 0.0)
    assert hit.loss == pytest.approx(-math.log(0.8))
    assert (wrong.label, wrong.box, wrong.detection.score) == (DOG, FAR, pytest.approx(0.7))
    assert wrong.loss == pytest.approx(-math.log(1 - 0.7))
    assert duplicate.detection.iou == pytest.approx(1 / 3)


def test_an_object_nothing_is_said_of_has_the_floor_and_the_whole_box_loss():
    (missed,) = outcomes_of([], truth((HERE, CELL)))
    assert missed.detection is None
    assert missed.loss == pytest.approx(-math.log(MIN_PROBABILITY) + 1)


def test_a_poor_box_tells_how_poor():
    one, _ = outcomes_of([(BESIDE, 0.9, CELL)], truth((HERE, CELL)))
    assert one.box_loss == pytest.approx(2 / 3)
    assert one.detection.box == BESIDE
    assert one.probability == 0.0


def test_the_better_detection_takes_the_object_and_each_takes_one():
    two = truth((HERE, CELL), ((2.0, 0.0, 12.0, 10.0), CELL))
    detections = [((1.5, 0.0, 11.5, 10.0), 0.9, CELL), (HERE, 0.8, CELL)]
    outcomes = outcomes_of(detections, two)
    assert kinds(outcomes) == [("detected", 0), ("detected", 1)]
    assert [round(one.probability, 3) for one in outcomes] == [0.8, 0.9]


def test_ignored_boxes_are_not_examples_and_take_detections_that_lie_on_them():
    target = truth((HERE, CELL), ((40.0, 40.0, 100.0, 100.0), CELL, True))
    assert kinds(outcomes_of([(HERE, 0.9, CELL), (FAR, 0.9, CELL)], target)) == [("detected", 0)]
    covered = truth(((0.0, 0.0, 50.0, 50.0), CELL, True), (HERE, CELL))
    assert kinds(outcomes_of([(HERE, 0.9, CELL)], covered)) == [("detected", 1)]


def test_weak_false_positives_can_be_left_out():
    detections = [(FAR, 0.5, CELL), (FAR, 0.05, DOG)]
    assert len(outcomes_of(detections, truth())) == 2
    assert len(outcomes_of(detections, truth(), least_score=0.1)) == 1


def test_nothing_at_all():
    assert outcomes_of([], truth()) == []


def test_every_object_and_every_detection_is_accounted_for_once():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        corners = torch.rand(2, 12, 2, generator=generator) * 40
        boxes = torch.cat([corners, corners + 5 + torch.rand(2, 12, 2, generator=generator) * 20], dim=2)
        labels = torch.randint(0, 2, (2, 12), generator=generator)
        target = Target(boxes[0], labels[0], torch.rand(12, generator=generator) < 0.1)
        scores = torch.rand(12, generator=generator).sort(descending=True).values
        rows = zip(boxes[1].tolist(), scores.tolist(), labels[1].tolist(), strict=True)
        outcomes = classify_outcomes(make_detections(*rows), target, score=0.4)
        objects = [one for one in outcomes if one.index is not None]
        assert [one.index for one in objects] == (~target.ignored).nonzero().squeeze(1).tolist()
        assert all(one.kind not in ("duplicate", "background") for one in objects)
        assert all((one.kind == "detected") == (one.probability >= 0.4) for one in objects)
        assert len(outcomes) - len(objects) <= 12
