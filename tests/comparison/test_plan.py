"""The job list, its parts, and what is refused before anything is trained."""

import dataclasses
import shlex
from pathlib import Path

import pytest

import focaldet
from focaldet.check.advice import advise_anchors
from focaldet.cli import main
from focaldet.cli.compare import read_budget
from focaldet.comparison.config import CompareConfig
from focaldet.comparison.plan import count_job_processes, estimate_minutes, fit_anchors, plan_jobs, shard_jobs
from focaldet.comparison.systems import (
    PAPER_DETECTORS,
    SMALL_DETECTORS,
    SYSTEMS,
    published_points,
    system_of,
)
from focaldet.errors import ConfigError
from focaldet.models import PRESETS, find_preset
from focaldet.training.config import RunConfig, check_processes
from focaldet.training.sources import open_sources
from tests.comparison.tiny_detectors import BROKEN, ONE, TWO, tiny_comparison, tiny_presets, tiny_settings


@pytest.fixture(scope="module", autouse=True)
def presets():
    with tiny_presets():
        yield


def test_every_detector_is_trained_with_every_seed_and_the_same_settings(tmp_path):
    run = RunConfig(out=tmp_path, epochs=3, seed=5)
    jobs = plan_jobs(run, tiny_comparison(seeds=2))
    assert [job.name for job in jobs] == [f"{ONE}-seed5", f"{TWO}-seed5", f"{ONE}-seed6", f"{TWO}-seed6"]
    settings = [focaldet.config.to_dict(job.run) for job in jobs]
    varied = {name for name in settings[0] if len({str(each[name]) for each in settings}) > 1}
    assert varied == {"model", "seed", "out", "data"}
    assert [job.run.data.split_seed for job in jobs] == [None, None, 5, 5], "all leave out the same images"
    assert all(job.run.evaluate_every is None and job.run.out == tmp_path / "runs" / job.name for job in jobs)


def test_small_retinanets_have_the_anchors_that_training_would_choose(demo_data, tmp_path):
    model = "retinanet_efficientnet_lite0_fpn"
    data = focaldet.DataConfig(path=demo_data, val=demo_data / "instances_test.json")
    run = RunConfig(data=data, out=tmp_path, size=320)
    source, _, _ = open_sources(run, None)
    lines = []
    jobs = plan_jobs(run, tiny_comparison(models=(model, TWO), seeds=2))
    fitted = fit_anchors(jobs, source.dataset, log=lines.append)
    choice = advise_anchors(source.dataset, find_preset(model).preprocessing.resize)
    assert [job.run.architecture for job in fitted] == [{"anchors": {"base_scale": choice.value}}, {}] * 2
    assert lines == [f"{model}: {choice}"]
    typed = plan_jobs(
        dataclasses.replace(run, architecture={"anchors": {"scales": [1.0]}}), tiny_comparison(models=(model,))
    )
    assert fit_anchors(typed, source.dataset) == typed


def test_the_parts_of_the_list_are_all_of_it_once(tmp_path):
    jobs = plan_jobs(RunConfig(out=tmp_path), tiny_comparison(seeds=4))
    parts = [shard_jobs(jobs, CompareConfig(shard=f"{part}/3").part) for part in (1, 2, 3)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in jobs)
    assert [len(part) for part in parts] == [3, 3, 2]
    assert shard_jobs(jobs, CompareConfig().part) == jobs


def test_the_paper_has_nine_systems_and_the_small_table_a_member_of_each():
    assert len(set(PAPER_DETECTORS)) == 9 == len(set(SMALL_DETECTORS))
    assert set(PAPER_DETECTORS) == {name for name, preset in PRESETS.items() if preset.published is not None}
    assert [system_of(find_preset(name).config) for name in PAPER_DETECTORS] == list(SYSTEMS)
    small = [system_of(find_preset(name).config) for name in SMALL_DETECTORS]
    assert small[:8] == list(SYSTEMS[:8])
    assert small[8].title == "RetinaNet" and SMALL_DETECTORS[7] != SMALL_DETECTORS[8]
    assert [system.published.ap for system in SYSTEMS] == [34.9, 36.2, 34.7, 36.8, 21.6, 31.2, 33.2, 39.1, 40.8]


def test_every_preset_of_a_known_kind_has_a_row_of_the_paper():
    missing = [name for name, preset in PRESETS.items() if system_of(preset.config) is None]
    assert missing in ([], ["ssd_mobilenet_v2_tf"])


def test_the_points_of_figure_2():
    points = {point.name: (point.ap, point.milliseconds) for point in published_points()}
    assert len(points) == 10 and points["RetinaNet-101-500"] == (34.4, 90.0) and points["SSD513"] == (31.2, 125.0)


def test_minutes_are_estimated_from_the_budget_or_from_a_few_steps(demo_data, tmp_path):
    for changes, expected in (({"minutes": 3.0, "epochs": 24}, 3.0), ({"epochs": 5}, None)):
        settings = tiny_settings(demo_data, tmp_path / "out", **changes)
        sources = open_sources(settings, None)[:2]
        good, bad = (
            estimate_minutes(job, sources) for job in plan_jobs(settings, tiny_comparison(models=(ONE, BROKEN)))
        )
        assert good == expected if expected else 0 < good < 1
        assert bad == expected
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": ({"epochs": 1},)}, "phases: all detectors are trained alike"),
        ({"patience": 2}, "patience: all detectors have the same budget"),
        ({"average_best": 2}, "average_best: the last weights are compared"),
        ({"overfit": 2}, "overfit: accuracy is compared"),
        ({"architecture": {"detect": {"nms_iuo": 0.3}}}, "nms_iuo"),
        ({"evaluate_every": 3}, "evaluate_every: has no effect: the last weights are evaluated"),
        ({"save_minutes": 30.0}, "save_minutes: has no effect: the state is saved every 1 min"),
    ],
)
def test_what_would_make_trainings_unequal_or_have_no_effect_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_jobs(RunConfig(out=tmp_path, **changes), tiny_comparison())


def test_the_state_is_saved_every_minute_or_more_often(tmp_path):
    saved = [
        plan_jobs(RunConfig(out=tmp_path, **changes), tiny_comparison())[0].run.save_minutes
        for changes in ({}, {"save_minutes": 0.5})
    ]
    assert saved == [1.0, 0.5]


@pytest.mark.parametrize(
    ("num_gpus", "changes", "count"),
    [
        (0, {}, 1),
        (4, {}, 4),
        (6, {}, 4),
        (8, {"accumulate": 4}, 2),
        (8, {"device": "cpu"}, 1),
        (3, {"batch_size": 6}, 3),
    ],
)
def test_a_job_is_divided_among_the_gpus_that_can_share_its_images(tmp_path, monkeypatch, num_gpus, changes, count):
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    run = RunConfig(out=tmp_path, **changes)
    assert count_job_processes(run) == count
    check_processes(run, num_processes=count)


def test_several_processes_are_told_of_the_job_files(tmp_path, monkeypatch):
    monkeypatch.setattr("focaldet.comparison.plan.num_processes", lambda: 2)
    with pytest.raises(ConfigError, match="--write-jobs"):
        plan_jobs(RunConfig(out=tmp_path), tiny_comparison())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": "3/2"}, "shard: must be a part of so many"),
        ({"shard": "0/2"}, "shard: must be"),
        ({"shard": "half"}, "shard: must be"),
        ({"models": ("yolov2", "yolov2")}, "models: named twice"),
        ({"times": {"peer": 3.0}}, "times: 'peer' is not among the results"),
        ({"cluster": "(frame"}, "cluster: .* is not a regular expression"),
        ({"seeds": 0}, "seeds"),
        ({"seed_deviation": 3.0, "seeds": 2}, "seed_deviation: has no effect with 2 seeds"),
    ],
)
def test_bad_settings_are_refused_where_they_are_written(changes, message):
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**changes)


@pytest.mark.parametrize(("text", "minutes"), [("90s", 1.5), ("10m", 10), ("1.5 h", 90), ("7", 7), ("2min", 2)])
def test_a_budget_is_a_time(text, minutes):
    assert read_budget(text) == pytest.approx(minutes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data D --budget soon", "--budget: must be a time such as 90s, 10m or 2h, got 'soon'"),
        ("--data D --budget 0s", "--budget: must be"),
        ("--data D --budget 3m --epochs 2", "give one of --epochs and --budget"),
        ("--data D --model yolov2", "--model is for one training; use --models"),
        ("--data D --resume", "--resume is for one training; use the same command"),
        ("--data D --preset small --models yolov2", "give either --models or --preset"),
        ("--data D --models yolov3", "unknown detector 'yolov3'"),
        ("--data D --evaluate-every 2", "--evaluate-every has no effect: the last weights are evaluated, once"),
        ("--data D --save-minutes 10", "--save-minutes has no effect: the state is saved every 1 min"),
        ("--data D --seed-deviation 1 --seeds 3", "seed_deviation: has no effect with 3 seeds"),
        ("--data D --dry-run --write-jobs", "give either --dry-run or --write-jobs"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, line, message):
    assert main(["compare", *line.split()]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: yolov2", "model in {file} is for one training; use --models"),
        ("evaluate_every: 1", "evaluate_every in {file} has no effect"),
        ("save_minutes: 10.0", "save_minutes in {file} has no effect"),
    ],
)
def test_what_a_file_says_without_effect_is_refused(tmp_path, capsys, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert main(["compare", "--data", "D", "--config", str(file)]) == 2
    assert message.format(file=file) in capsys.readouterr().err


def test_a_file_of_what_holds_anyway_is_taken(demo_data, tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text("evaluate_every: null\nsave_minutes: 0.5\nresume: false\nminutes: 1\n")
    line = ["compare", "--data", str(demo_data), "--models", ONE, "--config", str(file), "--out", str(tmp_path / "out")]
    assert main([*line, "--dry-run"]) == 0
    assert "budget of each training: 60 s" in capsys.readouterr().out


def test_all_detectors_get_the_size_that_training_would_choose(demo_data, tmp_path, capsys):
    line = [
        "compare",
        "--data",
        str(demo_data),
        "--models",
        ONE,
        TWO,
        "--budget",
        "60s",
        "--seeds",
        "1",
        "--write-jobs",
    ]
    assert main([*line, "--out", str(tmp_path / "chosen size")]) == 0
    output = capsys.readouterr().out
    assert "size 320 for all: " in output
    commands = [shlex.split(text) for text in output.splitlines() if text.startswith("focaldet train --config ")]
    assert [Path(command[3]).is_file() for command in commands] == [True, True], "a path with a blank is quoted"
    assert main([*line, "--out", str(tmp_path / "typed"), "--size", "96"]) == 0
    assert "for all" not in capsys.readouterr().out
    for folder, size in (("chosen size", 320), ("typed", 96)):
        jobs = sorted((tmp_path / folder / "jobs").iterdir())[:2]
        assert [focaldet.config.read_mapping(job)["size"] for job in jobs] == [size, size]
