"""The trainings of a comparison: who computed them, what they saw, which of them die, and what their weights keep."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import focaldet
from focaldet.comparison import jobs
from focaldet.comparison.compare import compare, write_job_files
from focaldet.comparison.jobs import JobResult, count_images, read_result
from focaldet.comparison.plan import plan_jobs
from focaldet.comparison.rows import _network_config
from focaldet.comparison.started import mark_start
from focaldet.errors import TakenError
from focaldet.training.run_folder import RunFolder, lock_run
from focaldet.training.trainer import count_threads
from focaldet.weights.checkpoint import save_detector
from tests.comparison.tiny_detectors import ONE, TWO, tiny_comparison, tiny_presets, tiny_settings

JOB = f"{ONE}-seed0"


@pytest.fixture(scope="module", autouse=True)
def presets():
    with tiny_presets():
        yield


@pytest.fixture(autouse=True)
def pages(monkeypatch):
    """Neither page nor figure is drawn, which takes longer than the trainings; the notes of each page."""
    notes = []
    page = "focaldet.comparison.compare.write_compare_page"
    monkeypatch.setattr(page, lambda *_, **values: notes.append(values["notes"]))
    monkeypatch.setattr("focaldet.comparison.numbers.write_trade_off", lambda *_, **__: None)
    return notes


def short_comparison(**changes):
    return tiny_comparison(**{"models": (ONE,), "rounds": 1, "timed_images": 1, **changes})


def fail(*_, **__):
    raise RuntimeError("weights were lost")


def test_images_seen_are_those_of_the_batches_and_not_of_whole_ones(demo_data, tmp_path):
    """Twelve images, eight an update in two parts: the second update has one part alone."""
    compare(tiny_settings(demo_data, tmp_path / "out", batch_size=8, accumulate=2), short_comparison())
    result = read_result(tmp_path / "out", JOB)
    assert (result.images_seen, result.epochs) == (12, 1.0)
    ending = jobs.read_ending(result.run)
    run = tiny_settings(demo_data, tmp_path, batch_size=8)
    assert ending["step"] == 2 and count_images(ending, run) == 12
    del ending["images_seen"]
    assert count_images(ending, run) == 16, "an older run does not say it"


def test_device_threads_and_processes_are_those_of_the_training(demo_data, tmp_path, pages):
    """One job was trained elsewhere by eight processes; this process only collects it."""
    settings, config = tiny_settings(demo_data, tmp_path / "out"), short_comparison(models=(ONE, TWO))
    write_job_files(settings, config)
    run = plan_jobs(settings, config)[0].run
    focaldet.train(run)
    file = RunFolder(run.out).environment
    elsewhere = {"device": "cuda:0", "threads": 4, "processes": 8, "commit": "of that machine"}
    file.write_text(json.dumps(json.loads(file.read_text()) | elsewhere))
    compare(settings, config)
    result, here = (read_result(tmp_path / "out", f"{name}-seed0") for name in (ONE, TWO))
    assert (result.device, result.threads, result.processes) == ("cuda:0", 4, 8)
    assert (here.device, here.threads, here.processes) == ("cpu", count_threads(run), 1)
    assert json.loads(file.read_text())["commit"] == "of that machine", "nothing was left to train"
    (note,) = (each for each in pages[-1] if "different machines" in each)
    assert "cuda with 4 threads in each of 8 processes" in note and f"cpu with {here.threads} thread" in note


@pytest.mark.parametrize(("split", "are_stored"), [("val", True), ("train", False)])
def test_only_validation_images_choose_the_scores_that_predict_takes(demo_data, tmp_path, split, are_stored):
    out = tmp_path / "out"
    compare(tiny_settings(demo_data, out), short_comparison(models=(TWO,), split=split))
    assert jobs.read_metrics(out / "evaluations" / f"{TWO}-seed0").score_thresholds is not None
    predictor = focaldet.load(out / "runs" / f"{TWO}-seed0", device="cpu")
    assert (predictor.thresholds is not None) == are_stored


def test_a_detector_that_failed_is_trained_again_when_asked_to(demo_data, tmp_path, monkeypatch):
    settings, config = tiny_settings(demo_data, tmp_path / "out"), short_comparison()
    train = jobs.train
    monkeypatch.setattr(jobs, "train", fail)
    assert compare(settings, config).rows[0].error == "RuntimeError: weights were lost"
    monkeypatch.setattr(jobs, "train", train)
    assert compare(settings, config).rows[0].error == "RuntimeError: weights were lost", "nobody asked"
    (row,) = compare(settings, replace(config, retry=True)).rows
    assert row.error is None and row.sample is not None
    monkeypatch.setattr(jobs, "train", fail)
    assert compare(settings, replace(config, retry=True)).rows[0].error is None, "it has not failed"


def leave_mark(out):
    """What a process leaves that is killed in the training of JOB; how often it was before."""
    file = out / "results" / f"{JOB}.started"
    with mark_start(file, out / "runs" / JOB) as deaths:
        text = file.read_text()
    file.write_text(text)
    return deaths


def test_a_training_that_dies_twice_without_a_new_state_has_failed(demo_data, tmp_path, monkeypatch):
    settings, config = tiny_settings(demo_data, tmp_path / "out"), short_comparison()
    write_job_files(settings, config)
    assert [leave_mark(settings.out), leave_mark(settings.out)] == [0, 1]
    train = jobs.train
    monkeypatch.setattr(jobs, "train", fail)
    (row,) = compare(settings, config).rows
    assert row.error.startswith("its process was killed 2 times in a row without saving anything new")
    monkeypatch.setattr(jobs, "train", train)
    assert compare(settings, replace(config, retry=True)).rows[0].error is None
    assert [file.name for file in (settings.out / "results").iterdir()] == [f"{JOB}.json"]


def test_one_death_or_one_after_a_new_state_is_resumed(demo_data, tmp_path):
    settings, config = tiny_settings(demo_data, tmp_path / "out"), short_comparison()
    write_job_files(settings, config)
    state = RunFolder(settings.out / "runs" / JOB).state
    state.parent.mkdir(parents=True)
    for moment in (1, 2, 3):  # each process has saved something before it died
        state.write_bytes(b"")
        os.utime(state, ns=(moment, moment))
        assert leave_mark(settings.out) == 0
    shutil.rmtree(settings.out / "runs" / JOB)
    assert leave_mark(settings.out) == 0
    assert compare(settings, config).rows[0].error is None


def test_a_mark_of_a_process_that_is_alive_or_of_a_training_is_no_death(tmp_path):
    file, run = tmp_path / "results" / f"{JOB}.started", tmp_path / "runs" / JOB
    leave_mark(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"process": os.getppid()}))
    assert leave_mark(tmp_path) == 0, "another process evaluates"
    assert leave_mark(tmp_path) == 1
    before = file.read_text()
    with lock_run(run), pytest.raises(TakenError), mark_start(file, run):
        pass
    assert file.read_text() == before
    file.write_text("{")
    assert leave_mark(tmp_path) == 0, "a damaged mark says nothing"
    with pytest.raises(KeyboardInterrupt), mark_start(file, run):
        raise KeyboardInterrupt
    assert not file.exists(), "a user who stops it twice is no death"


@pytest.mark.prove
def test_a_training_that_the_kernel_kills_again_and_again_has_failed(demo_data, tmp_path):
    command = [sys.executable, "-m", "tests.comparison.killed_jobs", str(demo_data), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-3:] == ["-9", "-9", "0"]
    assert "killed 2 times in a row" in read_result(tmp_path / "out", JOB).error


def test_asked_to_stop_while_it_evaluates_it_stops_and_goes_on(demo_data, tmp_path, monkeypatch):
    settings, config, lines = tiny_settings(demo_data, tmp_path / "out"), short_comparison(), []
    detect_all = jobs.detect_all

    def stop_first(*values, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return detect_all(*values, **named)

    monkeypatch.setattr(jobs, "detect_all", stop_first)
    assert compare(settings, config, log=lines.append).interrupted and lines[-1].endswith("the same command continues")
    assert list((settings.out / "results").iterdir()) == []
    monkeypatch.setattr(jobs, "detect_all", detect_all)
    assert compare(settings, config).rows[0].error is None


def test_the_network_of_an_added_run_is_that_of_its_weights(tmp_path):
    """`train --model ONE --architecture.backbone resnet_tiny_bottleneck`, then `compare --add`."""
    other = focaldet.build(ONE, num_classes=2, architecture={"backbone": "resnet_tiny_bottleneck"})
    file = tmp_path / "weights" / "last.safetensors"
    file.parent.mkdir()
    save_detector(file, other)
    trained = JobResult("job", "row", ONE, 0, Path("nowhere"), None, 8, 8, 1.0)
    assert _network_config(trained, {}).backbone == "resnet_tiny"
    added = replace(trained, run=tmp_path, note="trained before, for 1 epoch")
    assert _network_config(added, {}).backbone == "resnet_tiny_bottleneck"
    assert _network_config(replace(added, run=Path("nowhere")), {}) is None
