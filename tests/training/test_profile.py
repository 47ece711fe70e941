"""What a run does beside learning: the profile of its steps, and fewer threads beside other programs."""

import json

import pytest
import torch

from focaldet.training import profile, trainer
from focaldet.training.run_folder import RunFolder
from focaldet.training.trainer import train
from tests.training.squares import small_run, squares

EIGHT = squares(8)


def notes_of(out):
    events = [json.loads(line) for line in RunFolder(out).events.read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "note"]


def test_a_profile_is_a_table_and_a_trace_of_the_steps(tmp_path, monkeypatch):
    for name in ("SKIPPED_STEPS", "WARM_UP_STEPS", "MEASURED_STEPS"):
        monkeypatch.setattr(profile, name, 1)
    train(small_run(tmp_path / "run", epochs=2, profile=True), sources=(EIGHT, EIGHT))
    (text,) = [note for note in notes_of(tmp_path / "run") if note.startswith("profile: ")]
    assert text.count(" %") == 3 and "profile.txt" in text
    assert "aten::convolution_backward" in (tmp_path / "run" / "profile.txt").read_text()
    trace = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert sum("convolution_backward" in str(event.get("name")) for event in trace["traceEvents"]) > 4


def test_a_run_too_short_for_a_profile_ends_without_one(tmp_path):
    train(small_run(tmp_path / "run", epochs=1, profile=True), sources=(EIGHT, EIGHT))
    assert not (tmp_path / "run" / "profile.txt").exists()
    told = [note for note in notes_of(tmp_path / "run") if note.startswith("profile: ")]
    assert told == ["profile: nothing was measured, as the run has fewer than 4 steps"]


def test_a_profile_that_the_end_cuts_short_is_told_too(tmp_path):
    train(small_run(tmp_path / "run", epochs=2, profile=True), sources=(EIGHT, EIGHT))
    (text,) = [note for note in notes_of(tmp_path / "run") if note.startswith("profile: ")]
    assert "of a step " in text and (tmp_path / "run" / "profile.txt").exists()


class BusyFrom:
    """A watch that after the third step wants one thread."""

    def __init__(self, threads):
        self.most, self.threads, self.waiting, self.looks = 2, 2, 0.5, 0

    def look(self):
        self.looks += 1
        self.threads = 1 if self.looks >= 3 else 2
        return self.looks == 3


@pytest.mark.parametrize("fixed", [{}, {"threads": 2}, {"deterministic": True}, "OMP_NUM_THREADS"])
def test_beside_other_programs_threads_are_taken_back_where_their_number_is_free(tmp_path, monkeypatch, fixed):
    monkeypatch.setattr(trainer, "CoreWatch", BusyFrom)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = {} if isinstance(fixed, str) else fixed
    if isinstance(fixed, str):
        monkeypatch.setenv(fixed, "2")
    # No thread is really started: on a busy core two of them would show for minutes what the rule is for.
    numbers, counts, plain = [2], [], trainer.train_step
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(trainer, "usable_cores", lambda: 2)

    def count_threads(*arguments, **named):
        counts.append(numbers[-1])
        return plain(*arguments, **named)

    monkeypatch.setattr(trainer, "train_step", count_threads)
    train(small_run(tmp_path / "run", epochs=3, **settings), sources=(EIGHT, EIGHT))
    assert numbers[-1] == 2, "as it was before the run"
    notes = [note for note in notes_of(tmp_path / "run") if "other programs use the cores" in note]
    assert counts == ([2] * 6 if fixed else [2, 2, 2, 1, 1, 1])
    assert len(notes) == 1 and ("--threads 1 would be faster" in notes[0]) == bool(fixed)


class FreeFrom(BusyFrom):
    """A watch that has one thread, and after the third step two; it still waits a little, as always."""

    def look(self):
        self.looks += 1
        before, self.threads, self.waiting = self.threads, 1 + (self.looks >= 3), 0.01
        return self.threads != before


def test_cores_that_are_free_again_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CoreWatch", FreeFrom)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    numbers = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(trainer, "usable_cores", lambda: 2)
    train(small_run(tmp_path / "run", epochs=3), sources=(EIGHT, EIGHT))
    told = [note for note in notes_of(tmp_path / "run") if "from here on" in note]
    assert [note.partition(":")[0] for note in told] == ["other programs use the cores", "there are free cores again"]


def test_the_cores_are_looked_at_while_a_run_evaluates(tmp_path, monkeypatch):
    watches = []

    class Counting(BusyFrom):
        def __init__(self, threads):
            super().__init__(threads)
            watches.append(self)

        def look(self):
            self.looks += 1
            return False

    monkeypatch.setattr(trainer, "CoreWatch", Counting)
    train(small_run(tmp_path / "run", epochs=1, evaluate_every=1), sources=(EIGHT, EIGHT))
    assert watches[0].looks == 2 + 2, "two steps, and two batches of the evaluation"
