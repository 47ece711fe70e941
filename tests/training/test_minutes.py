"""Runs that are given minutes, on a clock that the test turns: they end in time, and resume to the same weights."""

import csv
import dataclasses
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from focaldet.errors import ConfigError
from focaldet.training import batch_norm, evaluation_time, logs, timing, trainer
from focaldet.training.config import RunConfig
from focaldet.training.minutes import END_SECONDS, Plan, first_plan, revise_plan
from focaldet.training.run_folder import RunFolder
from focaldet.training.sources import choose_images
from focaldet.training.state import TrainState
from focaldet.training.timing import Pace
from focaldet.training.trainer import train
from tests.training.squares import small_run, squares

EIGHT = squares(8)


class Clock:
    """Turned by every step and every image that is passed through beside it; after step `slower` all is half as fast.

    `evaluation` are the seconds of detecting on eight images; measuring BatchNorm passes 32 through. With `idle` a step
    does nothing else.
    """

    def __init__(self, monkeypatch, *, step=1.0, evaluation=1.0, slower=1000, stop_at=None, idle=False):
        self.now, self.steps, self.timed = 100.0, 0, 0
        for module in (timing, trainer, evaluation_time):
            monkeypatch.setattr(module, "read_clock", lambda: self.now)
        plain_step, plain_detect, plain_measure = trainer.train_step, trainer.detect_all, trainer.measure_norm

        def timed_step(state, batches, *, stopwatch, **named):
            self.steps += 1
            self.now += step * (1 + (state.step >= slower))
            if idle:
                state.step += 1
                stopwatch.lap(timing.FORWARD)
                return {"class": 1.0}, 1.0, False
            if state.step + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain_step(state, batches, stopwatch=stopwatch, **named)

        def timed_detect(detector, source, **named):
            self.now += evaluation * len(source.dataset) / 8 * (1 + (self.steps >= slower))
            return plain_detect(detector, source, **named)

        def timed_few(detector, source, **named):
            self.timed += len(source.dataset)
            return timed_detect(detector, source, **named)

        def timed_measure(*args, **named):
            self.now += evaluation * batch_norm.NUM_BATCHES * 4 / 8 * (1 + (self.steps >= slower))
            return plain_measure(*args, **named)

        monkeypatch.setattr(trainer, "measure_norm", timed_measure)
        monkeypatch.setattr(trainer, "train_step", timed_step)
        monkeypatch.setattr(trainer, "detect_all", timed_detect)
        monkeypatch.setattr(evaluation_time, "detect_all", timed_few)


def rates_of(out):
    with RunFolder(out).metrics.open() as file:
        return [float(row["learning_rate"]) for row in csv.DictReader(file) if row["kind"] == "step"]


@pytest.mark.parametrize("slower", [1000, 12])
def test_a_run_ends_in_its_minutes_and_its_schedule_with_it(tmp_path, monkeypatch, capsys, slower):
    monkeypatch.setattr(logs, "SECONDS_TO_FIRST_LINE", 0.0)
    clock = Clock(monkeypatch, slower=slower, idle=True)
    begin = clock.now
    result = train(small_run(tmp_path, epochs=24, minutes=1.0, evaluate_every=3), sources=(EIGHT, EIGHT))
    spent = clock.now - begin
    assert 54 <= spent + END_SECONDS <= 61 and result.last is not None and not result.interrupted
    rates = rates_of(tmp_path)
    assert len(rates) == clock.steps and rates[-1] < 0.1 * max(rates)
    peak = rates.index(max(rates)) / len(rates)
    # Where the machine has become slow after the peak, what is left after it is shorter.
    assert 0.25 < peak < (0.35 if slower == 1000 else 0.5)
    printed = capsys.readouterr().out
    assert "as many steps as fit into 1 min" in printed
    assert "1 s a step and " in printed and " epochs\n" in printed
    assert "step 1/48  epoch 1  ETA 0:59" in printed  # not the 48 steps and 8 evaluations of the plan before any speed


def test_the_average_of_the_best_weights_is_within_the_minutes(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, idle=True)
    begin = clock.now
    config = small_run(tmp_path, epochs=24, minutes=1.0, evaluate_every=3, average_best=2)
    train(config, sources=(EIGHT, EIGHT))
    assert 45 <= clock.now - begin + END_SECONDS <= 60


@pytest.mark.parametrize(("evaluation", "least"), [(0.2, 57), (4.0, 52)])
def test_the_first_evaluation_is_timed_before_it_is_made(tmp_path, monkeypatch, evaluation, least):
    """A guess from the steps would be 5.5 s for 1 s, a tenth of the time unused, or for 20 s, which is exceeded."""
    clock = Clock(monkeypatch, evaluation=evaluation, idle=True)
    begin = clock.now
    train(small_run(tmp_path, epochs=24, minutes=1.0, evaluate_every=1000), sources=(EIGHT, EIGHT))
    assert least <= clock.now - begin + END_SECONDS <= 60
    assert clock.timed == (12 if evaluation == 0.2 else 4), "more batches only where they take next to no time"


def test_a_run_of_epochs_times_nothing_beforehand(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, idle=True)
    train(small_run(tmp_path, epochs=3, evaluate_every=1), sources=(EIGHT, EIGHT))
    assert clock.timed == 0


def test_the_images_that_are_timed_lie_evenly_and_the_quickest_batch_counts(monkeypatch):
    clock, seconds, batches = [0.0], iter([4.0, 0.3, 0.2]), []

    def detect(detector, source, *, batch_size, precision):
        assert (detector, precision, batch_size) == ("average", "fp32", len(source.positions))
        batches.append(source.positions)
        clock[0] += next(seconds)

    state = TrainState.__new__(TrainState)
    state.ema, state.autocast = "average", SimpleNamespace(precision="fp32")
    monkeypatch.setattr(evaluation_time, "read_clock", lambda: clock[0])
    monkeypatch.setattr(evaluation_time, "detect_all", detect)
    assert evaluation_time.time_detection(state, squares(10), batch_size=4, total=6000.0) == pytest.approx(0.05)
    assert batches == [(0, 2, 5, 7), (1, 3, 6, 8), (2, 4, 7, 9)]
    seconds = iter([4.0])
    assert evaluation_time.time_detection(state, squares(3), batch_size=4, total=180.0) == pytest.approx(4 / 3)
    assert batches[3:] == [(0, 1, 2)], "one batch of those that there are, as it took more than a hundredth"
    nothing = choose_images(squares(3), [], name="nothing")
    assert evaluation_time.time_detection(state, nothing, batch_size=4, total=180.0) == 0.0


def test_what_went_before_the_call_counts_where_it_is_said(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, idle=True)
    begin = clock.now
    train(small_run(tmp_path, epochs=24, minutes=1.0), sources=(EIGHT, EIGHT), begin=begin - 30)
    assert 20 <= clock.now - begin + END_SECONDS <= 30


@pytest.mark.prove
def test_a_run_of_minutes_that_is_stopped_keeps_to_what_is_left_and_ends_alike(tmp_path, monkeypatch):
    config = small_run(tmp_path / "straight", epochs=24, minutes=0.6, evaluate_every=2, ema=0.9)
    Clock(monkeypatch)
    train(config, sources=(EIGHT, EIGHT))
    monkeypatch.undo()
    config = dataclasses.replace(config, out=tmp_path / "stopped")
    Clock(monkeypatch, stop_at=7)
    assert train(config, sources=(EIGHT, EIGHT)).interrupted
    monkeypatch.undo()
    clock = Clock(monkeypatch)
    begin = clock.now
    train(dataclasses.replace(config, resume=True), sources=(EIGHT, EIGHT))
    assert clock.now - begin < 20, "what it took before the stop is not made again"
    states = [torch.load(RunFolder(tmp_path / name).state, weights_only=True) for name in ("straight", "stopped")]
    assert states[0]["time"]["plan"] == states[1]["time"]["plan"]
    assert rates_of(tmp_path / "straight") == rates_of(tmp_path / "stopped")
    for first, second in zip(*(state["ema"].values() for state in states), strict=True):
        assert torch.equal(first, second)


def pace_of(*, step, evaluation):
    pace = Pace(images_per_step=8, validation_images=8, evaluation=evaluation)
    pace.count_step(step)
    return pace


def plan_from(step, *, left, every=1, total=600.0, step_seconds=1.0, evaluation=5.0):
    before = first_plan(steps_per_epoch=20, epochs=24)
    pace = pace_of(step=step_seconds, evaluation=evaluation)
    return revise_plan(before, step=step, left=left, total=total, pace=pace, steps_per_epoch=20, evaluate_every=every)


def test_a_plan_leaves_time_for_what_follows_the_last_step():
    pace = Pace(images_per_step=4, validation_images=0)
    for _ in range(5):
        pace.count_step(1.0)
    ends = [
        revise_plan(
            first_plan(steps_per_epoch=1000, epochs=1),
            step=5,
            left=100.0,
            total=105.0,
            pace=pace,
            steps_per_epoch=1000,
            evaluate_every=None,
            closing=closing,
        ).end_step
        for closing in (0.0, 8.0)
    ]
    assert ends == [int(5 + 100 - END_SECONDS), int(5 + 100 - END_SECONDS - 8)]


def test_a_plan_counts_every_evaluation():
    """From step 20 on 60 steps and three evaluations take 75 s; whole epochs are kept where that costs little."""
    assert plan_from(20, left=75 + END_SECONDS).end_step == 80
    assert plan_from(20, left=75 + END_SECONDS - 0.5).end_step == 79
    assert plan_from(20, left=75 + END_SECONDS + 7).end_step == 80
    assert plan_from(20, left=75 + END_SECONDS + 7, total=60.0).end_step == 82
    assert plan_from(20, left=70 + END_SECONDS, every=3).end_step == 80
    assert plan_from(20, left=60 + END_SECONDS, every=None).end_step == 80
    assert plan_from(25, left=1.0).end_step == 25, "no time is left"
    assert plan_from(20, left=1.0, every=3).end_step == 21, "an epoch without an evaluation cannot be the last"


def test_progress_never_jumps_and_ends_with_the_plan():
    first = Plan(0, 0.0, 100, 5, 5)
    second = first._replace(start_step=40, start_progress=first.progress(40), end_step=60)
    assert (first.progress(40), second.progress(40), second.progress(50), second.progress(60)) == (0.4, 0.4, 0.7, 1.0)
    assert second.num_epochs(25) == 3


def test_minutes_exclude_what_says_the_length_otherwise():
    with pytest.raises(ConfigError, match="epochs cannot be 7 as well"):
        RunConfig(minutes=5.0, epochs=7)
    with pytest.raises(ConfigError, match="a run with phases is as long as they say"):
        RunConfig(minutes=5.0, phases=({"epochs": 1},))
    with pytest.raises(ConfigError, match="minutes"):
        RunConfig(minutes=0.0)
