"""A sweep of a few steps: its settings, its files, resuming after a kill, and what it refuses."""

import csv
import dataclasses
import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from focaldet.cli import main
from focaldet.errors import ConfigError, NonFiniteLossError
from focaldet.study import sweep
from focaldet.study.sweep import study_sweep, sweep_settings
from focaldet.study.sweep_page import SweepRow, best_row, compare_balance, read_published, sweep_sentences
from focaldet.training.trainer import TrainResult, train
from tests.study.kill_sweep import DATA, FEW, of_squares
from tests.training.squares import squares

NAMES = ["gamma_0_alpha_0.25", "gamma_0_alpha_none", "gamma_2_alpha_0.25", "gamma_2_alpha_none"]


def run_sweep(out, *, messages=None, run=None, **grid):
    return study_sweep(
        run or of_squares(out),
        sources=(DATA, DATA),
        log=None if messages is None else messages.append,
        **{**FEW, **grid},
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A whole sweep with OHEM and softmax. Read only."""
    out = tmp_path_factory.mktemp("sweep") / "whole"
    messages = []
    return run_sweep(out, messages=messages, ohem=True, softmax=True), messages


def contents(out):
    """The bytes and the time of every file of the finished settings."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(out.rglob("*")) if path.is_file()}


def numbers(rows):
    return [(row.name, row.ap, row.ap50, row.ap75, row.epochs, row.diverged) for row in rows]


def test_the_grid_has_every_pair_once_under_its_name():
    settings = sweep_settings((0.0, 0.5, 0.5), (0.75, None), ohem=False, softmax=False)
    assert [one.name for one in settings] == [
        "gamma_0_alpha_0.75",
        "gamma_0_alpha_none",
        "gamma_0.5_alpha_0.75",
        "gamma_0.5_alpha_none",
    ]
    assert settings[2].architecture() == {"loss": {"gamma": 0.5, "alpha": 0.75}}
    others = sweep_settings((2.0,), (0.25,), ohem=True, softmax=True)[1:]
    assert [one.name for one in others] == ["ohem_128_nms_0.5", "ohem_256_nms_0.5", "ohem_128_nms_0.5_1to3", "softmax"]
    assert all((one.gamma, one.alpha) == (0.0, None) for one in others), "plain cross entropy"
    assert others[2].loss == (0.0, None, 128, 0.5, 3.0)
    assert others[3].architecture()["classifier"] == "softmax"


@pytest.mark.parametrize("empty", ["gamma", "alpha"])
def test_nothing_to_try_is_refused(empty, tmp_path):
    with pytest.raises(ConfigError, match=f"{empty}: a sweep needs at least one value"):
        run_sweep(tmp_path / "out", **{f"{empty}s": ()})


def test_every_setting_is_a_run_that_was_trained_as_it_says(unbroken):
    result, messages = unbroken
    assert [row.name for row in result.rows] == [
        *NAMES,
        "ohem_128_nms_0.5",
        "ohem_256_nms_0.5",
        "ohem_128_nms_0.5_1to3",
        "softmax",
    ]
    for row in result.rows:
        folder = result.out / "runs" / row.name
        written = (folder / "config.yaml").read_text()
        assert f"gamma: {row.gamma}" in written and f"alpha: {'null' if row.alpha is None else row.alpha}" in written
        assert ("mining:" in written) == (row.batch is not None)
        assert ("classifier: softmax" in written) == (row.classifier == "softmax")
        assert (folder / "weights" / "last.safetensors").exists()
        assert row.epochs == 2 and row.ap is not None and row.seconds > 0
    assert len({row.seconds for row in result.rows}) == len(result.rows)
    assert any(re.match(r"setting 3/8  gamma_2_alpha_0.25  (about|less)", line) for line in messages), messages
    assert sum(line.startswith("setting 8/8  softmax  AP ") for line in messages) == 1


def test_the_files(unbroken):
    result, _ = unbroken
    record = json.loads((result.out / "sweep.json").read_text())
    assert [row["name"] for row in record["rows"]] == [row.name for row in result.rows]
    assert record["sentences"] == list(result.sentences) and record["seeds"] == [0]
    assert [one["gamma"] for one in record["balance"]] == [0.0, 2.0]
    with (result.out / "sweep.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(row["ap"]) for row in table] == [row.ap for row in result.rows]
    assert table[6]["ratio"] == "3.0" and table[7]["classifier"] == "softmax" and table[1]["alpha"] == ""
    assert (result.out / "ap.png").read_bytes().startswith(b"\x89PNG")
    assert (result.out / "ap.svg").read_text().lstrip().startswith("<?xml")
    page = result.page.read_text()
    assert page.count("<svg") == 1 and not re.search(r"(src|href)=.?https?:", page)
    assert page.count("★") == 2, "in the explanation and at the best"
    for words in (
        "trained once, with seed 0, and evaluated on 6 images",
        "Table 1d",
        "36.0",
        "1:3",
        "softmax cross entropy",
    ):
        assert words in page


def test_again_trains_nothing_and_leaves_the_same_bytes(unbroken, monkeypatch):
    result, _ = unbroken
    runs, outer = contents(result.out / "runs"), {path: path.read_bytes() for path in result.out.glob("*.*")}
    monkeypatch.setattr(sweep, "train", lambda *_, **__: pytest.fail("trained again"))
    assert run_sweep(result.out, ohem=True, softmax=True) == result
    assert contents(result.out / "runs") == runs
    assert {path: path.read_bytes() for path in result.out.glob("*.*")} == outer
    fewer = run_sweep(result.out, gammas=(2.0,))
    assert [row.name for row in fewer.rows] == NAMES[2:], "a smaller grid takes its rows from the same runs"
    run_sweep(result.out, ohem=True, softmax=True)


@pytest.mark.prove
def test_a_killed_sweep_goes_on_where_it_was(unbroken, tmp_path, monkeypatch):
    """Four updates a setting: killed in the third one's third, which was saved after its second."""
    out = tmp_path / "out"
    process = subprocess.run([sys.executable, Path(__file__).with_name("kill_sweep.py"), out, "10"], check=False)
    assert process.returncode == -signal.SIGKILL
    finished = {name: contents(out / "runs" / name) for name in NAMES[:2]}
    assert not (out / "runs" / NAMES[2] / "result.json").exists() and not (out / "runs" / NAMES[3]).exists()
    resumed = []
    monkeypatch.setattr(
        sweep, "train", lambda config, **more: (resumed.append(config.resume), train(config, **more))[1]
    )
    result = run_sweep(out)
    assert resumed == [True, False]
    events = (out / "runs" / NAMES[2] / "events.jsonl").read_text()
    assert '"event": "resumed", "step": 2' in events
    assert {name: contents(out / "runs" / name) for name in NAMES[:2]} == finished
    assert numbers(result.rows) == numbers(unbroken[0].rows[:4]), "the numbers of the sweep that nobody killed"
    for name in NAMES:
        last = Path("runs", name, "weights", "last.safetensors")
        assert (out / last).read_bytes() == (unbroken[0].out / last).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "epochs was 2, is 3"),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"architecture": {"width": 32}}, "architecture.width was 16, is 32"),
    ],
)
def test_other_settings_are_refused_and_named(unbroken, changes, message):
    out = unbroken[0].out
    before = contents(out)
    with pytest.raises(ConfigError, match=rf"{message}.*--overwrite"):
        run_sweep(out, run=of_squares(out, **changes))
    assert contents(out) == before


def test_other_data_are_refused(unbroken):
    other = squares(6, seed=1)
    with pytest.raises(ConfigError, match="the train data changed; the validation data changed"):
        study_sweep(of_squares(unbroken[0].out), sources=(other, other), **FEW)


def test_what_only_changes_where_it_computes_may_change(unbroken):
    out = unbroken[0].out
    run = of_squares(out, log_every=7, resume=True)
    assert numbers(run_sweep(out, run=run).rows) == numbers(unbroken[0].rows[:4])


def test_overwriting_begins_anew(tmp_path):
    out = tmp_path / "out"
    alone = {"gammas": (0.0,), "alphas": (None,)}
    run_sweep(out, run=of_squares(out, epochs=1), **alone)
    (out / "runs" / "left over").mkdir()
    result = run_sweep(out, run=of_squares(out, overwrite=True), **alone)
    assert result.rows[0].epochs == 2
    assert sorted(path.name for path in out.iterdir()) == [
        "ap.png",
        "ap.svg",
        "index.html",
        "runs",
        "sweep.csv",
        "sweep.json",
    ]
    assert [path.name for path in (out / "runs").iterdir()] == ["gamma_0_alpha_none"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"contains 'thesis\.tex' and is not the folder of a sweep"):
        run_sweep(tmp_path, run=of_squares(tmp_path, overwrite=overwrite))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate_every": None}, "evaluate_every: a sweep compares AP"),
        ({"phases": ({"epochs": 1},), "epochs": 1}, "phases: a sweep trains every setting without phases"),
        ({"architecture": {"loss": {"gamma": 1.0}}}, r"architecture\.loss\.gamma: is varied by the sweep"),
        ({"architecture": {"classifier": "softmax"}}, r"architecture\.classifier: is varied by the sweep"),
        ({"model": "retinanet_r9"}, "unknown detector 'retinanet_r9'"),
        ({"epochs": 0}, "epochs: Input should be greater than 0"),
    ],
)
def test_mistakes_are_reported_before_anything_is_made(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_sweep(tmp_path / "out", run=of_squares(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value", "message"), [("alphas", 1.5, "loss.alpha"), ("gammas", -1.0, "loss.gamma")])
def test_a_bad_value_of_the_grid_is_reported_before_the_good_ones_are_trained(tmp_path, name, value, message):
    with pytest.raises(ConfigError, match=message):
        run_sweep(tmp_path / "out", **{name: (0.5, value)})
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "num_processes", lambda: 2)
    with pytest.raises(ConfigError, match="runs in one process"):
        run_sweep(tmp_path)


def fake_train(monkeypatch, answers):
    """Instead of training: the result of each setting, by its name."""

    def answer(config, *, sources):
        config.out.mkdir(parents=True)
        given = answers[config.out.name]
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(sweep, "train", answer)


def trained(ap, *, interrupted=False):
    """The result of a training with this AP at its end, and a better one before."""
    metrics = dict.fromkeys(
        ("ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
    )
    last = sweep_metrics(ap=ap, ap50=ap, **metrics)
    return TrainResult(Path("run"), dataclasses.replace(last, ap=0.99), last, 2, 3.0, interrupted=interrupted)


def sweep_metrics(**values):
    from focaldet.evaluation.coco import Metrics

    return Metrics(**values)


def test_a_diverged_setting_is_a_row_and_stays_one(tmp_path, monkeypatch):
    answers = dict(
        zip(NAMES, (trained(0.1), NonFiniteLossError("the loss is nan"), trained(0.3), trained(0.2)), strict=True)
    )
    fake_train(monkeypatch, answers)
    messages = []
    result = run_sweep(tmp_path / "out", messages=messages)
    assert [row.diverged for row in result.rows] == [None, "the loss is nan", None, None]
    assert [row.ap for row in result.rows] == [0.1, None, 0.3, 0.2], "of the last evaluation, not of the best"
    assert "setting 2/4  gamma_0_alpha_none  diverged" in messages
    assert "Diverged: γ = 0, α off." in result.sentences
    assert "<td>diverged</td>" in result.page.read_text()
    monkeypatch.setattr(sweep, "train", lambda *_, **__: pytest.fail("trained again"))
    assert run_sweep(tmp_path / "out") == result


def test_an_interrupted_training_stops_the_sweep(tmp_path, monkeypatch):
    answers = {NAMES[0]: trained(0.1), NAMES[1]: trained(0.1, interrupted=True)}
    fake_train(monkeypatch, answers)
    messages = []
    result = run_sweep(tmp_path / "out", messages=messages)
    assert result.interrupted and result.page is None and [row.name for row in result.rows] == NAMES[:1]
    assert messages[-1] == "stopped in setting 2/4, gamma_0_alpha_none; the same command continues"
    assert not (tmp_path / "out" / "runs" / NAMES[1] / "result.json").exists()


def test_a_result_of_another_setting_is_not_a_result(tmp_path, monkeypatch):
    fake_train(monkeypatch, {name: trained(0.1) for name in NAMES})
    run_sweep(tmp_path / "out")
    runs = tmp_path / "out" / "runs"
    (runs / NAMES[0] / "result.json").write_bytes((runs / NAMES[1] / "result.json").read_bytes())
    with pytest.raises(ConfigError, match="is of another setting than gamma_0_alpha"):
        run_sweep(tmp_path / "out")


ROWS = (
    SweepRow("a", 0.0, None, ap=0.20),
    SweepRow("b", 0.0, 0.5, ap=0.23),
    SweepRow("c", 0.0, 0.75, ap=0.24),
    SweepRow("d", 2.0, None, ap=0.302),
    SweepRow("e", 2.0, 0.25, ap=0.30),
    SweepRow("f", 5.0, 0.25, ap=0.25),
    SweepRow("g", 0.0, None, batch=128, nms_iou=0.5, ap=0.35),
    SweepRow("h", 0.0, None, classifier="softmax", ap=0.1),
)


def test_the_balance_is_compared_where_both_forms_were_trained():
    compared = compare_balance(ROWS)
    assert [(one.gamma, one.off, one.balanced, one.alpha) for one in compared] == [
        (0.0, 0.2, 0.24, 0.75),
        (2.0, 0.302, 0.3, 0.25),
    ]
    assert compared[0].gain == pytest.approx(0.04)
    text = " ".join(sweep_sentences(ROWS))
    assert "better than none (eq. 4)? With its best α at 1 of 2 γ, by +1.9 points" in text
    assert "1 of the differences reach 2 points" in text
    assert "γ = 2: 30.2 off, 30.0 with α = 0.25 (−0.2)" in text


def test_the_sentences_name_the_best_and_compare():
    text = sweep_sentences(ROWS)
    assert text[0] == "Best: cross entropy with OHEM, batch 128, NMS 0.5, with AP 35.0."
    assert "The best focal loss (γ = 2, α off) against the best cross entropy (γ = 0): 30.2 to 24.0 (+6.2)." in text
    assert "The best focal loss (γ = 2, α off) against the best OHEM: 30.2 to 35.0 (−4.8)." in text
    assert "The best focal loss (γ = 2, α off) against softmax: 30.2 to 10.0 (+20.2)." in text
    assert sweep_sentences([SweepRow("a", 2.0, None)]) == ()
    assert best_row([]) is None


def test_the_papers_best():
    tables = {name: [row for row in read_published() if row.name == name] for name in ("1a", "1b", "1d")}
    assert {name: len(rows) for name, rows in tables.items()} == {"1a": 7, "1b": 7, "1d": 10}
    assert best_row(tables["1b"]).loss == (2.0, 0.25, None, None, None)
    assert best_row(tables["1a"]) == dataclasses.replace(tables["1b"][0], name="1a")
    assert best_row(row for row in tables["1d"] if row.batch is not None).ap == 0.328


@pytest.mark.prove
def test_the_command_end_to_end(demo_data, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["study", "sweep", "--data", str(demo_data), "--data.val", str(demo_data / "instances_test.json")]
    words += ["--model", "retinanet_mobilenet_v2_fpn", "--size", "64", "--epochs", "1", "--precision", "fp32"]
    words += ["--architecture.width", "16", "--architecture.head_depth", "1", "--architecture.norm", "batch"]
    words += ["--gamma", "0", "2", "--alpha", "0.25", "none", "--out", str(out)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "setting 4/4  gamma_2_alpha_none  AP " in text
    assert re.search(r"γ = 0, α = 0\.25 +[\d.]+ +[\d.]+ +[\d.]+", text)
    assert f"look at  {out / 'index.html'}" in text
    assert sorted(path.name for path in (out / "runs").iterdir()) == NAMES
    assert main([*words, "--seed", "1"]) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err


def test_the_command_without_a_folder_has_one_of_its_own(tmp_path, monkeypatch, capsys):
    asked = []

    def noted(run, **more):
        asked.append((run, more))
        return sweep.SweepStudy(run.out, None, (), (), interrupted=True)

    monkeypatch.setattr(importlib.import_module("focaldet.cli.study"), "study_sweep", noted)
    (tmp_path / "settings.yaml").write_text("epochs: 3\nsize: 96\n")
    assert main(["study", "sweep", "--config", str(tmp_path / "settings.yaml"), "--size", "64", "--ohem"]) == 130
    run, more = asked[0]
    assert (run.out, run.epochs, run.size) == (Path("runs/study/sweep"), 3, 64)
    assert (more["gammas"], more["alphas"]) == ((0, 0.5, 1, 2, 5), (0.25, 0.5, 0.75, None))
    assert (more["ohem"], more["softmax"]) == (True, False)
    assert main(["study", "sweep", "--out", str(tmp_path / "mine")]) == 130
    assert asked[1][0].out == tmp_path / "mine"
