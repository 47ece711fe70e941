"""What a comparison concludes, from numbers written by hand."""

import math
from dataclasses import replace

from focaldet.comparison.sentences import (
    conclude,
    describe_differences,
    level_with_best,
    pareto_front,
    points,
    recommend,
    sort_by_ap,
)
from focaldet.evaluation.bootstrap import SeedSpread
from tests.comparison.rows_by_hand import make_difference, make_row

BEST, LEVEL, FAST, SLOW = (
    make_row("best", [0.50], 90.0),
    make_row("level", [0.49], 40.0),
    make_row("fast", [0.30], 10.0),
    make_row("slow", [0.20], 95.0),
)
ROWS = [FAST, BEST, SLOW, LEVEL]
DIFFERENCES = [
    make_difference("best", "level", 0.01, -0.01, 0.03, 0.5),
    make_difference("best", "fast", 0.20, 0.15, 0.25, 0.001),
    make_difference("best", "slow", 0.30, 0.25, 0.35, 0.001),
    make_difference("level", "fast", 0.19, 0.14, 0.24, 0.001),
    make_difference("level", "slow", 0.29, 0.24, 0.34, 0.001),
    make_difference("fast", "slow", 0.10, 0.01, 0.19, 0.06),
]


def test_points_have_a_sign():
    assert [points(value) for value in (0.015, -0.2, 0.0, -0.0001)] == ["+1.5", "−20.0", "0.0", "0.0"]


def test_real_differences_are_named_and_the_others_counted():
    lines = describe_differences(DIFFERENCES)
    assert lines[0] == "Real differences of AP, at 5 % after Holm's correction for 6 pairs:"
    assert lines[1] == "best is better than fast (+20.0, 95 % +15.0 to +25.0), slow (+30.0, 95 % +25.0 to +35.0)."
    assert lines[-1] == "2 other differences may be chance.", "an interval without 0 is not enough after the correction"
    assert "chance explains each of the 1 pair" in describe_differences(DIFFERENCES[:1])[0]


def test_the_fastest_that_is_level_with_the_best_is_to_be_taken():
    ordered = sort_by_ap(ROWS)
    assert [row.name for row in ordered] == ["best", "level", "fast", "slow"]
    assert [row.name for row in level_with_best(ordered, DIFFERENCES)] == ["best", "level"]
    lines = recommend(ordered, DIFFERENCES, budget_ms=15.0)
    assert lines[0].startswith(
        "Take level: its AP cannot be distinguished from that of the best, best, and it is the fastest of the 2"
    )
    assert lines[1] == "Within 15 ms: fast, AP 30.0."
    assert (
        lines[2] == "Highest AP by time: below 40 ms fast (30.0), below 90 ms level (49.0), with more time best (50.0)."
    )
    assert recommend(ordered, DIFFERENCES, budget_ms=5.0)[1] == "No detector takes at most 5 ms."


def test_without_times_nothing_is_recommended():
    rows = [make_row("a", [0.5]), make_row("b", [0.4])]
    assert recommend(rows, [], budget_ms=None) == ["No times were measured, so nothing is said on which one to take."]


def test_the_front_are_those_that_none_beats_in_both():
    assert [row.name for row in pareto_front(ROWS)] == ["fast", "level", "best"]
    twins = [make_row("one", [0.5], 10.0), make_row("two", [0.5], 10.0)]
    assert len(pareto_front(twins)) == 1


def test_what_the_numbers_rest_on_is_said():
    failed = make_row("broken", [], model="yolov2", error="no memory")
    lines = conclude([*ROWS, failed], DIFFERENCES, SeedSpread(0.01, math.inf), num_images=87)
    assert "one seed: 1.0 points were assumed" in lines[-2] and "87 images" in lines[-2]
    assert lines[-1] == "broken has no numbers: no memory"
    several = [make_row("a", [0.5, 0.52], 1.0), make_row("b", [0.3], 2.0)]
    measured = conclude(
        several, [make_difference("a", "b", 0.2, 0.1, 0.3, 0.01)], SeedSpread(0.0141, 1.0), num_images=9
    )
    assert "Between seeds AP deviates by 1.4 points (all detectors together); b with one seed only" in measured[-1]
    assert conclude([failed], [], SeedSpread(0.01, math.inf), num_images=9)[0].startswith("No detector was trained")


def test_nobody_is_recommended_where_nothing_was_detected():
    lines = conclude([make_row("a", [0.0], 1.0)], [], SeedSpread(0.01, math.inf), num_images=9)
    assert lines[0].startswith("No detector was right anywhere") and not any("Take" in line for line in lines)


def test_a_row_that_was_trained_elsewhere_is_named_with_its_budget():
    added = make_row("a", [0.5], 1.0, model="ssd_r18")
    added = replace(added, results=tuple(replace(each, note="trained before, for 24 epochs") for each in added.results))
    rows = [added, make_row("b", [0.4], 2.0, model="yolov2_tiny"), make_row("c", [0.3], 3.0)]
    lines = conclude(rows, [], SeedSpread(0.01, math.inf), num_images=9)
    text = "Not trained by this comparison: c (another program's); a (trained before, for 24 epochs). "
    assert any(line.startswith(text) for line in lines)
    assert not any("Not trained" in line for line in conclude(rows[1:2], [], SeedSpread(0.01, math.inf), num_images=9))


def test_unlike_starts_and_clusters_are_said():
    trained = make_row("a", [0.5], 1.0, model="ssd_r18")
    trained = replace(trained, results=tuple(replace(each, initial="embedded") for each in trained.results))
    rows = [trained, make_row("b", [0.4], 2.0, model="yolov2_tiny")]
    lines = conclude(rows, [], SeedSpread(0.01, math.inf), num_images=9, num_clusters=3)
    assert any("did not start alike" in line and "a from embedded; b from random weights" in line for line in lines)
    assert "9 images in 3 clusters" in lines[-1]


def test_a_detector_some_of_whose_trainings_failed_is_named_with_the_reason():
    row = make_row("a", [0.5, 0.52], 1.0, model="ssd_r18")
    failed = replace(row.results[0], name="a-seed2", seed=2, images_seen=0, error="out of memory")
    row = replace(row, results=(*row.results, failed))
    lines = conclude([row, make_row("b", [0.3], 2.0)], [], SeedSpread(0.0141, 1.0), num_images=9)
    assert lines[-1] == "a: 1 of 3 trainings failed, its numbers are of the rest: out of memory"
    assert not any("has no numbers" in line for line in lines)


def test_of_an_exported_file_nobody_says_what_it_started_from():
    trained, added = (make_row(name, [0.5], 1.0, model="ssd_r18") for name in "ab")
    trained = replace(trained, results=tuple(replace(each, initial="embedded") for each in trained.results))
    exported = tuple(replace(each, images_seen=0, num_images=0, note="an exported file") for each in added.results)
    lines = conclude([trained, replace(added, results=exported)], [], SeedSpread(0.01, math.inf), num_images=9)
    assert not any("did not start alike" in line for line in lines)
