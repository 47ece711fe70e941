"""A comparison from end to end with detectors of a few filters: its numbers, kills, failures, shards, other results."""

import csv
import errno
import json
import re
import shutil
from dataclasses import replace

import pytest

import focaldet
from focaldet.cli import main
from focaldet.cli.compare import _print_plan
from focaldet.comparison import compare_page, jobs
from focaldet.comparison.added import check_names
from focaldet.comparison.compare import compare, find_finished
from focaldet.comparison.folder import comparison_record, read_record
from focaldet.comparison.jobs import read_result
from focaldet.comparison.machine import pick_computing
from focaldet.comparison.rows import cluster_keys
from focaldet.data.config import DataConfig
from focaldet.data.splits import open_split
from focaldet.errors import CheckpointError, ConfigError, DataError
from focaldet.evaluation.coco import percent
from focaldet.evaluation.evaluate import read_run_settings, run_data_config
from focaldet.training import trainer
from focaldet.training.config import RunConfig
from focaldet.training.run_folder import lock_run
from focaldet.training.sources import open_sources
from tests.comparison.tiny_detectors import (
    BROKEN,
    ONE,
    TWO,
    tiny_comparison,
    tiny_presets,
    tiny_settings,
    write_exported,
)


@pytest.fixture(scope="module", autouse=True)
def presets():
    with tiny_presets():
        yield


@pytest.fixture(scope="module")
def whole(demo_data, tmp_path_factory):
    """A finished comparison of two detectors and one that cannot be built, with two seeds. Read only."""
    out = tmp_path_factory.mktemp("compare") / "whole"
    lines = []
    config = tiny_comparison(models=(ONE, TWO, BROKEN), seeds=2)
    return compare(tiny_settings(demo_data, out), config, log=lines.append), lines


@pytest.fixture
def no_page():
    """Neither page nor figure is drawn, which takes longer than the trainings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compare.write_compare_page", "numbers.write_trade_off"):
            patch.setattr(f"focaldet.comparison.{name}", lambda *_, **__: None)
        yield


def record(out):
    return json.loads((out / "compare.json").read_text())


def first_seed(out):
    """What must not depend on kills or on which machine trained: the numbers of the first seed, but no times."""
    return {
        row["detector"]: (row["ap_of_seeds"][0], row["per_class"][0], row["kinds"], row["images_seen"], row["score"])
        for row in record(out)["detectors"]
        if row["error"] is None
    }


class DeadError(BaseException):
    """Stands for a kill: nothing in the program catches it."""


def test_the_numbers_are_those_of_focaldet_eval(whole, demo_data, tmp_path):
    result, _ = whole
    row = next(row for row in result.rows if row.name == TWO)
    for number, seed in enumerate((0, 1)):
        run = result.out / "runs" / f"{TWO}-seed{seed}"
        metrics = focaldet.evaluate(run, out=tmp_path / "eval", device="cpu", precision="fp32")
        assert replace(row.metrics[number], milliseconds_per_image=None) == replace(
            metrics, milliseconds_per_image=None
        )
        ours = result.out / "evaluations" / f"{TWO}-seed{seed}" / "predictions.json"
        assert ours.read_text() == (tmp_path / "eval" / "predictions.json").read_text()
        assert row.sample.ap[number] == pytest.approx(metrics.ap, abs=1e-12)
    assert metrics.num_detections > 0
    table = (result.out / "compare.md").read_text()
    assert f"| {TWO} |" in table and f"| {percent(row.mean('ap50'))} |" in table.replace("**", "")


def test_both_seeds_and_detectors_had_the_same_budget(whole):
    result, _ = whole
    for row in result.rows[:2]:
        assert [(one.images_seen, one.epochs, one.error) for one in row.results] == [(12, 1.0, None)] * 2
        assert [one.seed for one in row.results] == [0, 1]
        assert row.sample.deviation is not None and not result.spread.is_assumed


def test_a_detector_that_cannot_be_trained_is_a_row_with_its_reason(whole):
    result, lines = whole
    row = next(row for row in result.rows if row.name == BROKEN)
    assert "resnet_unheard_of" in row.error and row.metrics == ()
    assert any(line.startswith(f"training 3/6  {BROKEN}-seed0  failed: ") for line in lines)
    for text in ((result.out / "compare.md").read_text(), result.page.read_text(), "\n".join(result.sentences)):
        assert "resnet_unheard_of" in text
    with (result.out / "compare.csv").open() as file:
        errors = {line["detector"]: line["error"] for line in csv.DictReader(file)}
    assert "resnet_unheard_of" in errors[BROKEN] and errors[ONE] == ""


def test_times_have_their_parts_and_their_machine(whole):
    result, _ = whole
    timing = record(result.out)["timing"]
    assert set(timing["detectors"]) == {ONE, TWO}
    for each in timing["detectors"].values():
        median, p10, p90, count, best = each["total"]
        assert 0 < best <= median and 0 < p10 <= median <= p90 and count == 4
        assert list(each["parts"]) == ["decode", "resize", "forward", "postprocess"]
        assert 0.3 * median < sum(part[0] for part in each["parts"].values()) < 3 * median
        assert each["gflop"] > 0 and each["parameters"] > 1000 and each["memory_mb"] == 123.0
    assert timing["machine"]["torch"] and timing["rounds"] == 2 and timing["images"] == 2


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(whole):
    result, _ = whole
    page = result.page.read_text()
    for words in (
        "What it shows",
        "Results",
        "Accuracy and time",
        "Differences of AP",
        "AP by size",
        "AP by class",
        "Kinds of errors",
        "Time of an image",
        "Trainings",
        "The same images",
        "paper, COCO",
    ):
        assert words in page
    assert not re.search(r"(src|href)=.?https?:|<script", page)
    assert page.count("<img") == 4 * 3  # each image with its annotations and two detectors
    assert (result.out / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_again_trains_and_measures_nothing(whole, demo_data, monkeypatch):
    result, _ = whole
    monkeypatch.setattr(jobs, "train", None)
    monkeypatch.setattr("focaldet.comparison.timing.time_detectors", None)
    page = result.page.read_bytes()
    config = tiny_comparison(models=(ONE, TWO, BROKEN), seeds=2)
    again = compare(tiny_settings(demo_data, result.out), config)
    assert again.sentences == result.sentences and again.page.read_bytes() == page


@pytest.mark.parametrize(
    "moment", ["evaluation", *(pytest.param(moment, marks=pytest.mark.prove) for moment in ("training", "result"))]
)
def test_a_killed_comparison_continues_to_the_same_numbers(whole, demo_data, tmp_path, monkeypatch, moment, no_page):
    """Killed in the second training: after its first step, before its evaluation, and before it is written down."""
    out = tmp_path / "out"
    config, settings = tiny_comparison(), tiny_settings(demo_data, out)
    step, evaluate_run, write = trainer.train_step, jobs.evaluate_run, jobs.write_result

    def die_in(name, call, when):
        def wrapper(*values, **named):
            if when(*values):
                raise DeadError
            return call(*values, **named)

        monkeypatch.setattr(*name, wrapper)

    if moment == "training":
        die_in((trainer, "train_step"), step, lambda state, *_: TWO in str(seen[-1]) and state.step == 1)
        seen = []
        run_job = jobs.train
        monkeypatch.setattr(jobs, "train", lambda run, **more: seen.append(run.out) or run_job(run, **more))
    elif moment == "evaluation":
        die_in((jobs, "evaluate_run"), evaluate_run, lambda run, *_: TWO in str(run))
    else:
        die_in((jobs, "write_result"), write, lambda _, result: TWO in result.name)
    with pytest.raises(DeadError):
        compare(settings, config)
    assert read_result(out, f"{ONE}-seed0") is not None and read_result(out, f"{TWO}-seed0") is None
    monkeypatch.undo()
    monkeypatch.setattr("focaldet.comparison.timing.measure_peak_memory", lambda *_, **__: 123.0)
    compare(settings, config)
    assert first_seed(out) == first_seed(whole[0].out)


def test_asked_to_stop_it_stops_and_says_so(demo_data, tmp_path, monkeypatch):
    real = jobs.train

    def stop(run, **more):
        return replace(real(run, **more), interrupted=True)

    monkeypatch.setattr(jobs, "train", stop)
    lines = []
    result = compare(tiny_settings(demo_data, tmp_path / "out"), tiny_comparison(), log=lines.append)
    assert result.interrupted and result.page is None and not (tmp_path / "out" / "index.html").exists()
    assert lines[-1].endswith("the same command continues")


def test_shards_from_two_machines_are_merged(whole, demo_data, tmp_path, monkeypatch, no_page):
    config = tiny_comparison(models=(ONE, TWO, BROKEN))
    for part in (1, 2):
        result = compare(tiny_settings(demo_data, tmp_path / f"part{part}"), replace(config, shard=f"{part}/2"))
        assert result.page is None
    assert len(list((tmp_path / "part1" / "results").iterdir())) == 2
    monkeypatch.setattr(jobs, "train", None)
    settings = tiny_settings(demo_data, tmp_path / "part1")
    compare(settings, replace(config, add=(tmp_path / "part2",)))
    assert first_seed(tmp_path / "part1") == first_seed(whole[0].out)


def test_earlier_runs_and_results_of_other_programs_stand_in_the_same_table(whole, demo_data, tmp_path, no_page):
    result, _ = whole
    run = shutil.copytree(result.out / "runs" / f"{ONE}-seed1", tmp_path / "earlier run")
    peer = result.out / "evaluations" / f"{TWO}-seed0" / "predictions.json"
    config = tiny_comparison(models=(TWO,), add=(run,), results={"peer": peer}, times={"peer": 12.5}, budget_ms=20)
    merged = compare(tiny_settings(demo_data, tmp_path / "out"), config)
    rows = {row.name: row for row in merged.rows}
    assert set(rows) == {TWO, "earlier run", "peer"}
    assert rows["earlier run"].metrics[0].ap == result.rows[0].metrics[1].ap
    assert rows["earlier run"].results[0].images_seen == 12
    assert rows["peer"].milliseconds == 12.5 and rows["peer"].two_stage is None
    pair = next(each for each in merged.differences if {each.first, each.second} == {TWO, "peer"})
    assert (pair.mean, pair.low, pair.high) == (0.0, 0.0, 0.0)
    assert any(line.startswith("Within 20 ms: ") for line in merged.sentences)
    assert any("one seed" in line for line in merged.sentences)


def test_an_exported_file_is_compared_as_it_is_and_says_what_it_was_trained_on(whole, demo_data, tmp_path, no_page):
    """Whatever precision the others have."""
    data = DataConfig(path=demo_data, val=demo_data / "instances_test.json")
    marks = {part: open_split(data, part, seed=0).fingerprint() for part in ("train", "val")}
    said = {
        "unknown": {},
        "chosen": {"training": json.dumps({"data": {"train": marks["train"], "validation": marks["val"]}})},
        "learned": {"training": json.dumps({"data": {"train": marks["val"]}})},
        "odd": {"training": "[]"},
    }
    files = [write_exported(tmp_path / f"{name}.onnx", extra=extra) for name, extra in said.items()]
    settings = tiny_settings(demo_data, tmp_path / "out", precision="fp32", device="cpu")
    merged = compare(settings, tiny_comparison(models=(ONE,), add=tuple(files)))
    rows = {row.name: row for row in merged.rows}
    assert {*rows} == {ONE, *(file.name for file in files)}
    results = {name: rows[f"{name}.onnx"] for name in said}
    notes = {name: row.results[0].note.removeprefix("an exported file; ") for name, row in results.items()}
    assert notes == {
        "unknown": "how it was trained is not known here",
        "chosen": "its weights were chosen on these images",
        "learned": "it was trained on the images that are evaluated, so its AP is too high",
        "odd": "how it was trained is not known here",
    }
    assert all(row.error is None and row.metrics[0].num_detections > 0 for row in results.values())


@pytest.mark.parametrize(
    ("name", "expected"), [("m.onnx", ("cpu", None)), ("run", ("cuda", "bf16"))], ids=["a file", "a run"]
)
def test_device_and_precision_are_those_of_a_file(tmp_path, name, expected):
    (tmp_path / "m.onnx").write_bytes(b"")
    (tmp_path / "run").mkdir()
    assert pick_computing(tmp_path / name, device="cuda", precision="bf16") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2}, "other settings: epochs was 1, is 2"),
        ({"size": 96}, "size was 64, is 96"),
    ],
)
def test_other_settings_are_refused_and_named(whole, demo_data, changes, message):
    with pytest.raises(ConfigError, match=message):
        compare(tiny_settings(demo_data, whole[0].out, **changes), tiny_comparison())


def test_another_comparison_of_other_settings_is_not_added(whole, demo_data, tmp_path):
    config = tiny_comparison(add=(whole[0].out,))
    with pytest.raises(ConfigError, match=r"add: .* other settings or data: epochs was 1, is 2"):
        compare(tiny_settings(demo_data, tmp_path / "out", epochs=2), config)
    with pytest.raises(ConfigError, match="neither a run folder, an exported file nor the folder of a comparison"):
        compare(tiny_settings(demo_data, tmp_path / "other"), tiny_comparison(add=(demo_data,)))


def test_a_folder_with_something_else_is_left_alone(demo_data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"'thesis.txt' and is not the folder of a comparison"):
            compare(tiny_settings(demo_data, tmp_path, overwrite=overwrite), tiny_comparison())


def test_overwriting_begins_anew(whole, demo_data, tmp_path, no_page):
    out = shutil.copytree(whole[0].out, tmp_path / "out")
    compare(tiny_settings(demo_data, out, overwrite=True, epochs=2), tiny_comparison(models=(ONE,)))
    assert [path.name for path in (out / "runs").iterdir()] == [f"{ONE}-seed0"]
    assert read_record(out)["settings"]["epochs"] == 2
    assert record(out)["detectors"][0]["images_seen"] == 24


def test_the_command_end_to_end(demo_data, tmp_path, capsys):
    line = f"--data {demo_data} --data.val {demo_data}/instances_test.json --size 64 --batch-size 4 --seeds 1"
    line += (
        f" --epochs 1 --weights none --models {ONE} --rounds 1 --timed-images 1 --resamples 100 --out {tmp_path}/out"
    )
    assert main(["compare", *line.split(), "--dry-run"]) == 0
    assert f"{ONE}-seed0" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert main(["compare", *line.split(), "--write-jobs"]) == 0
    job = tmp_path / "out" / "jobs" / f"{ONE}-seed0.yaml"
    output = capsys.readouterr().out
    assert f"focaldet train --config {job}\n" in output and "srun --ntasks-per-node N" in output
    assert main(["train", "--config", str(job)]) == 0
    assert main(["compare", *line.split()]) == 0
    output = capsys.readouterr().out
    assert "nothing left to train" in output and f"look at  {tmp_path}/out/index.html" in output
    assert re.search(rf"{ONE} +\d+\.\d", output)


def test_a_small_setting_is_the_same_when_it_is_read_again(demo_data, tmp_path, no_page):
    """YAML takes JSON's 5e-05 for a word."""
    config, settings = tiny_comparison(models=(ONE,)), tiny_settings(demo_data, tmp_path / "out", learning_rate=5e-5)
    compare(settings, config)
    assert compare(settings, config).rows[0].error is None


def test_every_seed_leaves_out_the_same_images_and_its_run_says_so(demo_data, tmp_path, no_page):
    data = DataConfig(path=demo_data / "instances_test.json")
    config = tiny_comparison(models=(ONE,), seeds=2)
    result = compare(replace(tiny_settings(demo_data, tmp_path / "out"), data=data), config)
    marks = []
    for seed in (0, 1):
        run = result.out / "runs" / f"{ONE}-seed{seed}"
        marks.append(json.loads((run / "environment.json").read_text())["data"])
        settings = read_run_settings(run)
        opened = open_split(run_data_config(None, settings), "val", seed=settings["seed"])
        assert opened.fingerprint() == marks[-1]["validation"]
    assert marks[0] == marks[1]


def test_a_training_that_another_process_has_is_left_to_it(demo_data, tmp_path, no_page):
    settings, lines = tiny_settings(demo_data, tmp_path / "out"), []
    taken = tmp_path / "out" / "runs" / f"{ONE}-seed0"
    compare(settings, tiny_comparison(models=(TWO,)))
    with lock_run(taken):
        result = compare(settings, tiny_comparison(), log=lines.append)
    assert result.page is None and "1 training not finished" in lines[-1]
    assert read_result(tmp_path / "out", f"{ONE}-seed0") is None
    assert compare(settings, tiny_comparison()).page is not None


def test_a_full_disk_ends_the_comparison_and_is_no_fault_of_the_detector(demo_data, tmp_path, monkeypatch, no_page):
    def fail(*_, **__):
        raise CheckpointError("no space") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jobs, "train", fail)
    with pytest.raises(CheckpointError):
        compare(tiny_settings(demo_data, tmp_path / "out"), tiny_comparison(models=(ONE,)))
    assert read_result(tmp_path / "out", f"{ONE}-seed0") is None


def test_names_of_rows_are_told_apart(whole, demo_data, tmp_path, no_page):
    """Two folders of one name, and a run with the name of a detector that is trained."""
    source = whole[0].out / "runs"
    first, second, third = tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c" / ONE
    for seed, folder in ((0, first), (1, second), (1, third)):
        shutil.copytree(source / f"{ONE}-seed{seed}", folder)
    config = tiny_comparison(models=(ONE,), add=(first, second, third))
    rows = {row.name: row for row in compare(tiny_settings(demo_data, tmp_path / "out"), config).rows}
    assert set(rows) == {ONE, "a/run", "b/run", f"c/{ONE}"}
    assert all(len(row.sample.ap) == 1 for row in rows.values())
    assert rows["a/run"].metrics[0] != rows["b/run"].metrics[0]
    assert "trained before, for 1 epoch" in rows["a/run"].results[0].note
    with pytest.raises(ConfigError, match="is named twice"):
        check_names(tiny_comparison(add=(first, first)))
    for config in (tiny_comparison(), tiny_comparison(models=("yolov2_tiny",), add=(whole[0].out,))):
        with pytest.raises(ConfigError, match=f"{ONE}' is the name of a detector"):
            check_names(replace(config, results={ONE: tmp_path / "peer.json"}))


def test_a_result_file_that_cannot_be_read_is_said_before_any_training(demo_data, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "train", None)
    config = tiny_comparison(results={"peer": tmp_path / "peer.json"})
    with pytest.raises(DataError, match=r"peer\.json"):
        compare(tiny_settings(demo_data, tmp_path / "out"), config)
    assert not (tmp_path / "out").exists()


def test_the_runs_tell_predict_from_which_score_on_boxes_count(whole):
    result, _ = whole
    predictor = focaldet.load(result.out / "runs" / f"{TWO}-seed0", device="cpu")
    assert predictor.thresholds is not None
    assert predictor.thresholds.overall.score == pytest.approx(result.rows[1].score, abs=1e-6)


def test_a_training_beyond_its_budget_is_marked(whole):
    result, _ = whole
    assert all(each.wall_seconds > each.seconds > 0 for row in result.rows[:2] for each in row.results)
    assert "★" in compare_page._wall_cell(70.0, 60.0) and "★" not in compare_page._wall_cell(65.0, 60.0)


def test_a_pattern_of_clusters_that_matches_nothing_is_refused(demo_data, tmp_path):
    with pytest.raises(ConfigError, match=r"cluster: 'film_\(\.\*\)' matches no image"):
        compare(tiny_settings(demo_data, tmp_path / "out"), tiny_comparison(cluster="film_(.*)"))


def test_an_optional_group_of_a_cluster_that_takes_no_part_is_no_match(demo_data):
    dataset = open_split(DataConfig(path=demo_data / "instances_test.json"), "val", seed=0)
    keys = cluster_keys(dataset, r"(0000[01])?\.png")
    matched = {key for key in keys if key.startswith("cluster ")}
    assert matched <= {"cluster 00000", "cluster 00001"} and matched
    assert len({*keys} - matched) == sum(not key.startswith("cluster ") for key in keys)


@pytest.mark.parametrize(("size", "said"), [(None, False), (320, True)])
def test_an_older_comparison_in_which_each_had_its_own_size_goes_on(demo_data, tmp_path, capsys, size, said):
    run = RunConfig(data=DataConfig(path=demo_data), minutes=1, size=size)
    train, val, _ = open_sources(run, None)
    (tmp_path / "compare.json").write_text(json.dumps({"identity": comparison_record(run, train, val)}))
    line = ["compare", "--data", str(demo_data), "--models", ONE, "--budget", "60s", "--dry-run"]
    assert main([*line, "--out", str(tmp_path)]) == 0
    assert ("size 320 for all" in capsys.readouterr().out) == said


def test_comparisons_that_share_a_training_are_not_both_added(whole, tmp_path):
    other = shutil.copytree(whole[0].out, tmp_path / "other")
    with pytest.raises(ConfigError, match=f"two of the comparisons have a training {ONE}-seed0"):
        check_names(tiny_comparison(add=(whole[0].out, other)))


def test_a_dry_run_counts_what_would_be_trained(whole, demo_data, tmp_path, capsys):
    out, config = whole[0].out, tiny_comparison(models=(ONE, TWO, BROKEN), seeds=1)
    settings = tiny_settings(demo_data, out)
    names = [f"{name}-seed0" for name in (ONE, TWO, BROKEN)]
    finished = find_finished(settings, config)
    assert [finished[name] for name in names] == ["finished", "finished", "failed"]
    assert BROKEN not in " ".join(find_finished(settings, replace(config, retry=True)))
    overwriting = replace(settings, overwrite=True)
    assert find_finished(overwriting, config) == {}
    elsewhere = find_finished(tiny_settings(demo_data, tmp_path / "new"), replace(config, add=(out,)))
    assert [elsewhere[name] for name in names] == ["added", "added", "failed"]
    _print_plan(overwriting, replace(config, models=(ONE,)))
    assert re.search(rf"{ONE}-seed0 +{ONE} +0 +\d", capsys.readouterr().out), "minutes, as it would be trained"
    assert read_result(out, names[0]) is not None, "nothing was removed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster": "film_(.*)"}, "cluster: .* matches no image"),
        ({"results": {"peer": "peer.json"}}, r"peer\.json"),
        ({"add": ("nowhere",)}, "add: nowhere is neither a run folder"),
    ],
)
def test_a_dry_run_is_refused_for_what_the_comparison_would_be(demo_data, tmp_path, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        _print_plan(tiny_settings(demo_data, tmp_path / "out"), tiny_comparison(**changes))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_other_settings_is_refused(whole, demo_data):
    with pytest.raises(ConfigError, match="other settings: epochs was 1, is 2"):
        _print_plan(tiny_settings(demo_data, whole[0].out, epochs=2), tiny_comparison())


def test_a_device_that_is_not_there_is_no_fault_of_each_detector(demo_data, tmp_path):
    with pytest.raises(ConfigError, match="device: 'cuda:77'"):
        compare(tiny_settings(demo_data, tmp_path / "out", device="cuda:77"), tiny_comparison())
    assert not (tmp_path / "out").exists()
