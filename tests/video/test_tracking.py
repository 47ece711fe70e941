"""Tracks: one number an object, through crossings, gaps and weak detections."""

import pytest
import torch

from focaldet.errors import ConfigError
from focaldet.types import Detections
from focaldet.video.tracking import Tracker, match_greedily


def detections(*rows):
    """Rows of left side, score and class; boxes are 20 px squares."""
    boxes = torch.tensor([[x, 0.0, x + 20.0, 20.0] for x, _, _ in rows]).reshape(-1, 4)
    scores, labels = (
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([k for _, _, k in rows], dtype=torch.int64),
    )
    return Detections(boxes, scores.float(), labels, ("cell", "dog"))


def numbers(tracker, *frames):
    return [tracker.update(detections(*rows), frame=index)[1] for index, rows in enumerate(frames)]


def test_an_object_that_moves_keeps_its_number():
    frames = [[(8.0 * index, 0.9, 0), (200.0 - 8 * index, 0.8, 0)] for index in range(8)]
    assert numbers(Tracker(score=0.5), *frames) == [[1, 2]] * 8


def test_velocity_bridges_a_gap_in_which_the_boxes_no_longer_overlap():
    seen = [[(10.0 * index, 0.9, 0)] for index in range(5)]
    assert numbers(Tracker(score=0.5), *seen, [], [], [], [(80.0, 0.9, 0)])[-1] == [1]
    still = [[(0.0, 0.9, 0)]] * 5
    assert numbers(Tracker(score=0.5), *still, [], [], [], [(80.0, 0.9, 0)])[-1] == [2]


def test_weak_detections_continue_tracks_and_begin_none():
    tracker = Tracker(score=0.5)
    assert numbers(tracker, [(0.0, 0.9, 0), (100.0, 0.3, 0)], [(1.0, 0.2, 0), (100.0, 0.3, 0)]) == [[1], [1]]
    assert tracker.update(detections((2.0, 0.05, 0)), frame=2)[1] == []


def test_classes_do_not_share_tracks():
    assert numbers(Tracker(score=0.5), [(0.0, 0.9, 0)], [(0.0, 0.9, 1)], [(0.0, 0.9, 0), (0.0, 0.8, 1)]) == [
        [1],
        [2],
        [1, 2],
    ]


def test_a_track_that_was_lost_for_long_is_over():
    tracker = Tracker(score=0.5, max_lost_frames=2)
    row = detections((0.0, 0.9, 0))
    assert [tracker.update(row, frame=frame)[1] for frame in (0, 2, 5)] == [[1], [1], [2]]


def test_chosen_detections_are_those_with_numbers_in_their_order():
    tracker = Tracker(score=0.5)
    chosen, tracks = tracker.update(detections((0.0, 0.9, 0), (50.0, 0.7, 1), (100.0, 0.2, 0)), frame=0)
    assert (chosen.scores.tolist(), tracks) == (pytest.approx([0.9, 0.7]), [1, 2])
    empty, tracks = tracker.update(detections(), frame=1)
    assert (len(empty), tracks) == (0, [])


def test_pairs_are_taken_by_their_value_each_row_and_column_once():
    values = torch.tensor([[0.6, 0.9], [0.8, 0.7]])
    assert match_greedily(values, least=0.1) == [(0, 1), (1, 0)]
    assert match_greedily(values, least=0.85) == [(0, 1)]
    assert match_greedily(torch.zeros(0, 3), least=0.1) == match_greedily(torch.zeros(3, 0), least=0.1) == []


def test_settings_out_of_range_are_refused():
    for settings in ({"score": 1.5}, {"score": 0.5, "low_score": -1.0}, {"score": 0.5, "max_lost_frames": -1}):
        with pytest.raises(ConfigError, match="tracker"):
            Tracker(**settings)
