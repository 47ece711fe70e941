"""A run that is watched while it is trained: what it shows, when it writes, and what it survives."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from focaldet.errors import ConfigError
from focaldet.report.history import History
from focaldet.report.monitor import PAGE, RunMonitor, draw_blocks, watch_run
from tests.report.runs import METRICS, STEPS, make_run


def test_a_run_is_watched_until_it_ends(data, tmp_path):
    """The second look sees the end that was written while the program slept."""
    run = make_run(tmp_path / "run", data)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        assert '<meta http-equiv="refresh" content="3">' in (run / PAGE).read_text()
        with (run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": "finished", "text": "finished after 1 epoch"}) + "\n")

    for is_terminal in (False, True):
        make_unfinished(run)
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=is_terminal, width=120)
        assert watch_run(run, seconds=3.0, console=console, sleep=sleep) == run / PAGE
        assert slept == [3.0]
        slept.clear()
        assert "refresh" not in (run / PAGE).read_text()
        for text in ("finished", "best AP 25.0", "loading 25 %", "learning rate 1.00e-02", "25.0"):
            assert text in shown.getvalue()
    page = (run / PAGE).read_text()
    for text in ("Training loss", "The twelve COCO numbers", "finished after 1 epoch", "Where the time went"):
        assert text in page


def make_unfinished(run):
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("".join(line + "\n" for line in lines if "finished" not in line))


def test_one_look_is_enough_where_that_is_asked_for(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    console = Console(file=io.StringIO())
    watch_run(run, once=True, console=console, sleep=pytest.fail)
    assert "in training" in (run / PAGE).read_text()
    assert "The worst images" not in (run / PAGE).read_text()  # nothing is wrong


def test_a_run_that_has_only_begun_is_shown(tmp_path):
    """No step, no evaluation, no detections, no data on this machine."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: m1\ndata: {path: /nowhere}\n")
    watch_run(run, once=True, console=Console(file=io.StringIO()))
    assert "in training" in (run / PAGE).read_text()
    (run / "predictions.json").write_text("[")
    watch_run(run, once=True, console=Console(file=io.StringIO()))
    assert 'class="note"' in (run / PAGE).read_text()


def test_the_detections_are_read_again_only_where_they_are_new(data, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", data)
    monitor = RunMonitor(run)
    monitor.write_page(seconds=1.0)
    monkeypatch.setattr("focaldet.report.monitor.evaluation_sections", pytest.fail)
    monitor.write_page(seconds=1.0)
    assert "The twelve COCO numbers" in (run / PAGE).read_text()


def test_what_cannot_be_watched_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        watch_run(tmp_path)
    with pytest.raises(ConfigError, match="seconds: must be above 0"):
        watch_run(make_run(tmp_path / "run", data), seconds=0.0)


def test_blocks_follow_the_values():
    assert draw_blocks([0.0, 3.5, 7.0, 7.0]) == "▁▄██"
    assert draw_blocks([8.0, 4.0, 0.0])[-1] == "▁"
    assert len(draw_blocks([1.0] * 1000)) == 48


class TestARunThatWasKilled:
    """A minute of steps of a second each, then nothing."""

    def killed(self, tmp_path, data, *, minutes, events=()):
        run = make_run(tmp_path / "run", data, events=events)
        written = max((run / name).stat().st_mtime for name in ("metrics.csv", "events.jsonl"))
        return RunMonitor(run, now=lambda: written + 60 * minutes), run

    def test_it_is_said_for_how_long_nothing_has_come(self, data, tmp_path):
        monitor, run = self.killed(tmp_path, data, minutes=8)
        monitor.write_page(seconds=5.0)
        page = (run / PAGE).read_text()
        assert "nothing new for 8 min" in page and "refresh" not in page
        console = Console(file=io.StringIO(), width=120)
        console.print(monitor.render())
        assert "nothing new for 8 min" in console.file.getvalue()

    def test_a_short_pause_is_not_a_silence(self, data, tmp_path):
        monitor, run = self.killed(tmp_path, data, minutes=4)
        monitor.write_page(seconds=5.0)
        assert "nothing new" not in (run / PAGE).read_text() and "refresh" in (run / PAGE).read_text()

    @pytest.mark.parametrize(("minutes", "is_silent"), [(19, False), (21, True)])
    def test_neither_is_an_evaluation_of_usual_length(self, data, tmp_path, minutes, is_silent):
        events = [{"event": "epoch", "seconds": {"evaluation": 100.0, "saving and logging": 20.0}}]
        monitor, _ = self.killed(tmp_path, data, minutes=minutes, events=events)
        assert (monitor.silence is not None) == is_silent

    def test_slow_steps_are_usual_too(self):
        steps = [{"kind": "step", "step": str(10 * k), "seconds": "30"} for k in range(1, 5)]
        assert History(steps, [], []).usual_pause == 300

    def test_a_run_that_has_ended_is_not_silent(self, data, tmp_path):
        monitor, _ = self.killed(tmp_path, data, minutes=600, events=[{"event": "finished"}])
        assert (monitor.silence, monitor.state) == (None, "finished")


def test_a_page_that_nobody_renews_does_not_load_itself_anew(data, tmp_path):
    run = make_run(tmp_path / "run", data)

    def interrupt(seconds):
        assert "refresh" in (run / PAGE).read_text()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch_run(run, console=Console(file=io.StringIO()), sleep=interrupt)
    assert "refresh" not in (run / PAGE).read_text()


def test_the_page_has_the_data(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    (run / "predictions.json").unlink()  # before the first evaluation
    RunMonitor(run).write_page(seconds=1.0)
    page = (run / PAGE).read_text()
    assert "<h2>Data</h2>" in page and "Boxes in train" in page and "Boxes in val" in page
    assert "Settings of the training" in page and "<h2>Environment</h2>" in page


def test_nothing_is_drawn_or_written_while_nothing_is_new(data, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", data)
    monitor = RunMonitor(run)
    monitor.write_page(seconds=1.0)
    with monkeypatch.context() as patch:
        for name in ("write_page", "history_sections", "read_history"):
            patch.setattr(f"focaldet.report.monitor.{name}", pytest.fail)
        monitor.refresh()
        monitor.write_page(seconds=1.0)
    with (run / "metrics.csv").open("a") as file:
        file.write("step,1,9,0.01,5.0,0.125,1.0,,,\n")
    monitor.refresh()
    monitor.write_page(seconds=1.0)
    assert "step 9" in (run / PAGE).read_text()


def test_files_that_vanish_between_two_looks_are_survived(data, tmp_path, monkeypatch):
    """`--overwrite` removes them one after the other."""
    run = make_run(tmp_path / "run", data)
    monitor = RunMonitor(run)
    monitor.write_page(seconds=1.0)
    for name in ("config.yaml", "metrics.csv", "events.jsonl", "environment.json", "predictions.json"):
        (run / name).unlink()
    monkeypatch.setattr(Path, "is_file", lambda path: path.name in ("metrics.csv", "events.jsonl", "predictions.json"))
    monitor.refresh()
    monitor.write_page(seconds=1.0)
    monitor.render()
    assert monitor.history.steps == []


def test_new_settings_of_a_run_that_is_started_anew_are_read(data, tmp_path):
    run = make_run(tmp_path / "run", data, model="before")
    monitor = RunMonitor(run)
    (run / "config.yaml").write_text(f"model: after\nseed: 0\ndata: {{path: {data}}}\n")
    os.utime(run / "config.yaml", ns=(1, 1))
    monitor.refresh()
    monitor.write_page(seconds=1.0)
    assert '<p class="model">after</p>' in (run / PAGE).read_text()


def test_numbers_and_images_of_a_run_that_is_started_anew_are_gone(data, tmp_path):
    """`train --overwrite` removes the detections before it writes the settings; the first evaluation comes later."""
    run = make_run(tmp_path / "run", data, shift=5)
    monitor = RunMonitor(run)
    monitor.write_page(seconds=1.0)
    assert "The twelve COCO numbers" in (run / PAGE).read_text()
    (run / "predictions.json").rename(tmp_path / "later.json")
    os.utime(run / "config.yaml", ns=(1, 1))
    monitor.refresh()
    monitor.write_page(seconds=1.0)
    assert "The twelve COCO numbers" not in (run / PAGE).read_text() and "<img" not in (run / PAGE).read_text()
    (tmp_path / "later.json").rename(run / "predictions.json")
    monitor.refresh()
    monitor.write_page(seconds=1.0)
    assert "The twelve COCO numbers" in (run / PAGE).read_text()


def test_no_text_of_a_run_is_a_command_for_the_terminal(data, tmp_path):
    evil = "\x1b]0;owned\x07 [red]x[/red] \u202e"
    run = make_run(tmp_path / "run", data)
    with (run / "config.yaml").open("a") as file:
        file.write(f"model: {json.dumps(evil)}\n")
    head = METRICS.replace("class_loss", '"[/]\x1b[31m_loss"')
    (run / "metrics.csv").write_text(
        head + STEPS + f'step,"{evil}","{evil}",1,1,1,1,,,\nevaluation,"{evil}",9,,,,,.2,,\n'
    )
    events = [{"event": "epoch", "seconds": {evil: 1.0, "huge": 10**400, "none": None}}, {"event": "e", "text": evil}]
    (run / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events) + "[" * 100_000)
    console = Console(file=io.StringIO(), width=300)
    console.print(RunMonitor(run).render())
    shown = console.file.getvalue()
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert shown.count("[red]x[/red]") >= 4


@pytest.mark.parametrize("phases", ["[1]", "[{lr: 1}]", "{a: 1}"])
def test_phases_that_cannot_be_read_are_not_listed(data, tmp_path, phases):
    run = make_run(tmp_path / "run", data, settings=f"phases: {phases}\n")
    RunMonitor(run).write_page(seconds=1.0)
    assert "Phases" not in (run / PAGE).read_text()
