"""What a run writes down: rows, events, lines without escape codes, trackers."""

import csv
import io
import json
import sys

import pytest
from rich.console import Console

from focaldet.errors import ConfigError
from focaldet.training.logs import MetricsFile, RunLog, clock, memory_gb, open_trackers

STEP = {
    "seconds": 0.5,
    "loading_seconds": 0.125,
    "images_per_second": 16.0,
    "learning_rate": 1e-3,
    "gradient_norm": 2.5,
    "loss": 1.25,
    "losses": {"class": 1.0, "box": 0.25},
    "eta": "0:04",
}


def open_log(folder, *, total_steps=100, done_steps=0, trackers=(), console=None, **named):
    """A log whose lines go nowhere unless there is a `console`; `named` are settings of metrics.csv."""
    metrics = MetricsFile(folder / "metrics.csv", **{"evaluation_columns": ("ap",), **named})
    steps = {"total_steps": total_steps, "done_steps": done_steps}
    console = console or Console(file=io.StringIO())
    return RunLog(metrics, events=folder / "events.jsonl", trackers=trackers, console=console, **steps)


def write_steps(log, steps):
    for step in steps:
        log.write("step", epoch=1, step=step, **STEP)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_row_per_step_and_per_evaluation(tmp_path):
    log = open_log(tmp_path, evaluation_columns=("ap", "ap50"))
    write_steps(log, [1, 2])
    log.write("evaluation", epoch=1, step=2, ap=0.5, ap50=None, text="not a column")
    log.write("note", text="no row")
    log.close()
    first, second, evaluation = rows_of(tmp_path / "metrics.csv")
    assert list(first)[:3] == ["kind", "epoch", "step"] and list(first)[-2:] == ["ap", "ap50"]
    assert (first["class_loss"], first["box_loss"], first["ap"], second["step"]) == ("1", "0.25", "", "2")
    assert (evaluation["kind"], evaluation["ap"], evaluation["ap50"], evaluation["loss"]) == (
        "evaluation",
        "0.5",
        "",
        "",
    )
    assert log.num_rows == 3


def test_a_note_of_an_evaluation_is_an_event_once_whatever_its_numbers_are(tmp_path):
    shown = io.StringIO()
    log = open_log(tmp_path, console=Console(file=shown, width=80))
    for step, notes in enumerate([["5 of 9 are cut"], ["6 of 9 are cut", "another"], [], ["7 of 9 are cut"]], start=1):
        log.write("evaluation", epoch=step, step=step, ap=0.5, notes=notes)
    log.close()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert notes == ["note: 5 of 9 are cut", "note: another"] == shown.getvalue().splitlines()
    assert not any("notes" in event for event in events)
    assert list(rows_of(tmp_path / "metrics.csv")[0])[-1] == "ap"


def test_rows_come_every_few_steps(tmp_path):
    log = open_log(tmp_path, log_every=3)
    write_steps(log, range(1, 8))
    log.close()
    assert [row["step"] for row in rows_of(tmp_path / "metrics.csv")] == ["3", "6"]


def test_the_losses_have_columns_when_an_evaluation_is_the_first_row(tmp_path):
    log = open_log(tmp_path, log_every=3)
    write_steps(log, [1, 2])
    log.write("evaluation", epoch=1, step=2, ap=0.5)
    write_steps(log, [3])
    log.close()
    evaluation, step = rows_of(tmp_path / "metrics.csv")
    assert (evaluation["step"], evaluation["ap"], evaluation["class_loss"]) == ("2", "0.5", "")
    assert (step["step"], step["class_loss"], step["box_loss"], step["ap"]) == ("3", "1", "0.25", "")
    assert log.num_rows == 2


def test_a_later_phase_may_have_other_losses(tmp_path):
    path = tmp_path / "metrics.csv"
    log = open_log(tmp_path)
    log.write("step", phase=1, epoch=1, step=1, **STEP)
    log.write("step", phase=2, epoch=2, step=2, **{**STEP, "losses": {"class": 1.0, "region": 0.5}})
    log.write("evaluation", phase=2, epoch=2, step=2, ap=0.5)
    log.close()
    again = open_log(tmp_path, keep_rows=2)
    again.write("step", phase=2, epoch=2, step=3, **{**STEP, "losses": {"region": 0.25}})
    again.close()
    assert path.read_text().splitlines() == [
        "kind,phase,epoch,step,seconds,loading_seconds,images_per_second,learning_rate,gradient_norm,loss,class_loss,box_loss,"
        "region_loss,ap",
        "step,1,1,1,0.5,0.125,16,0.001,2.5,1.25,1,0.25,,",
        "step,2,2,2,0.5,0.125,16,0.001,2.5,1.25,1,,0.5,",
        "step,2,2,3,0.5,0.125,16,0.001,2.5,1.25,,,0.25,",
    ]
    assert {entry.name for entry in tmp_path.iterdir()} == {"metrics.csv", "events.jsonl"}


def test_resuming_forgets_the_rows_after_the_saved_state(tmp_path):
    path = tmp_path / "metrics.csv"
    log = open_log(tmp_path)
    write_steps(log, range(1, 6))
    log.close()
    again = open_log(tmp_path, keep_rows=3)
    assert again.num_rows == 3
    write_steps(again, [4])
    again.close()
    assert [row["step"] for row in rows_of(path)] == ["1", "2", "3", "4"]
    open_log(tmp_path, keep_rows=0).close()
    assert path.read_text() == ""


def test_events_are_a_history(tmp_path):
    for start in ("started", "resumed"):
        log = open_log(tmp_path)
        log.write(start, step=4, where=tmp_path)
        write_steps(log, [5])
        log.close()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "resumed"]
    assert events[0]["step"] == 4 and events[0]["time"][:2] == "20"


def test_plain_lines_without_a_terminal(tmp_path):
    text = io.StringIO()
    log = open_log(tmp_path, total_steps=3, console=Console(file=text))
    log.write("note", text="[model] with brackets " + "x" * 100)
    write_steps(log, [1, 2, 3])
    log.close()
    lines = text.getvalue().splitlines()
    assert len(lines) == 2, "the first line is one line, and the second comes at the end, not for every step"
    assert lines[0].startswith("[model] with brackets xx")
    assert lines[1].startswith("step 3/3  epoch 1  ETA 0:04  class 1.0000  box 0.2500  16.0 images/s  lr 1.00e-03  ")
    assert "\x1b" not in text.getvalue()


def test_progress_bar_on_a_terminal(tmp_path):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=200)
    log = open_log(tmp_path, total_steps=40, done_steps=30, console=console)
    write_steps(log, [31])
    log.close()
    assert "\x1b" in text.getvalue() and "31/40" in text.getvalue()
    assert "ETA 0:04" in text.getvalue() and "images/s" in text.getvalue()


def test_tensorboard_gets_the_numbers(tmp_path):
    trackers = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = open_log(tmp_path, trackers=open_trackers(("tensorboard",), folder=tmp_path, settings={"epochs": 2}))
    write_steps(log, [1, 2])
    log.write("evaluation", epoch=1, step=2, ap=0.25, text="not a number")
    log.close()
    written = trackers.EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert [event.value for event in written.Scalars("step/class_loss")] == [1.0, 1.0]
    assert [(event.step, event.value) for event in written.Scalars("evaluation/ap")] == [(2, 0.25)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_tracker_that_is_not_installed(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch.loggers", None)
    with pytest.raises(ConfigError, match=f"pip install {name}"):
        open_trackers((name,), folder=tmp_path, settings={})


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7384, "2:03:04")])
def test_clock(seconds, shown):
    assert clock(float(seconds)) == shown


def test_memory_is_that_of_this_process():
    assert 0.05 < memory_gb() < 200
