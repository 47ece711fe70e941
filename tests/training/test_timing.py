"""Where the time goes, in words, and how much is left."""

import pytest

from focaldet.training import timing
from focaldet.training.timing import (
    BACKWARD,
    EVALUATION,
    FORWARD,
    LOADING,
    OTHER,
    UPDATE,
    Pace,
    Stopwatch,
    describe_epoch,
)


def test_a_stopwatch_gives_every_second_to_one_part(monkeypatch):
    now = iter([10.0, 11.0, 14.0, 14.5, 15.0])
    monkeypatch.setattr(timing, "read_clock", lambda: next(now))
    watch = Stopwatch()
    assert (watch.lap("a"), watch.lap("b"), watch.lap("a")) == (1.0, 3.0, 0.5)
    assert watch.reset() == {"a": 1.5, "b": 3.0}
    assert watch.lap("b") == 0.5 and watch.reset() == {"b": 0.5}


def test_the_pace_forgets_the_warm_up_and_guesses_the_first_evaluation():
    pace = Pace(images_per_step=8, validation_images=16)
    assert pace.seconds_for(steps=10, evaluations=1) == 0.0
    for seconds in (9.0, 5.0, 2.0, 4.0):
        pace.count_step(seconds)
    assert (pace.step, pace.evaluation) == (3.0, timing.EVALUATION_GUESS * 2 * 3.0)
    pace.count_evaluation(7.0)
    assert pace.seconds_for(steps=10, evaluations=2) == 44.0
    with_norm = Pace(images_per_step=8, validation_images=16, norm_images=64)
    with_norm.count_step(2.0)
    assert with_norm.norm == timing.NORM_GUESS * 8 * 2.0
    assert with_norm.evaluation == timing.EVALUATION_GUESS * 2 * 2.0 + with_norm.norm
    with_norm.count_evaluation(7.0)
    assert with_norm.evaluation == 7.0 and not with_norm.is_guess


def test_images_that_were_timed_take_the_place_of_the_guess_and_an_evaluation_theirs():
    pace = Pace(images_per_step=8, validation_images=16, norm_images=64)
    pace.count_step(2.0)
    assert pace.is_guess
    pace.count_detection(0.05)
    each = 0.05 * timing.EVALUATION_MARGIN
    assert not pace.is_guess and each > 0.05
    assert (pace.norm, pace.evaluation) == (pytest.approx(64 * each), pytest.approx(80 * each))
    pace.count_evaluation(5.0)
    assert (pace.norm, pace.evaluation) == (pytest.approx(64 * each), 5.0)


SECONDS = {LOADING: 12.0, FORWARD: 18.0, BACKWARD: 17.0, UPDATE: 1.25, EVALUATION: 3.5, OTHER: 0.25}


@pytest.mark.parametrize(("loading", "workers", "hint"), [(12.0, 0, False), (60.0, 0, True), (60.0, 2, False)])
def test_an_epoch_in_words(loading, workers, hint):
    seconds = {**SECONDS, LOADING: loading}
    text = describe_epoch(seconds, num_images=193, left=1100.0, workers=workers, epoch="epoch 3/24")
    assert text.startswith(
        f"epoch 3/24 took {'0:52' if loading == 12 else '1:40'}: loading {loading:.0f} s, steps 36 s"
    )
    assert "(forward and losses 18 s, backward 17 s, update 1.2 s), evaluation 3.5 s; " in text
    assert "18:20 left" in text and ("4.0 images/s" in text) == (loading == 12)
    assert ("--workers 2" in text) == hint


@pytest.mark.parametrize(("evaluation", "hint"), [(30.0, False), (40.0, True)])
def test_an_evaluation_that_takes_much_of_an_epoch_is_told(evaluation, hint):
    seconds = {**SECONDS, EVALUATION: evaluation}
    text = describe_epoch(seconds, num_images=193, left=0.0, workers=0, epoch="epoch 1/2")
    assert ("--evaluate-every 2" in text) == hint
