"""The benchmark beside torchvision works anywhere; under `prove` its ratios must not fall below their guards."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

RUN = Path(__file__).resolve().parent.parent / "benchmarks" / "run.py"
OPERATIONS = ("focal", "RoIAlign", "matching", "NMS", "loading")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """What the benchmark prints and writes."""
    before = {*sys.modules}
    monkeypatch.syspath_prepend(str(RUN.parent))
    threads = torch.get_num_threads()

    def run_rows(*arguments):
        monkeypatch.setattr(sys, "argv", [str(RUN), "--threads", "1", "--out", str(tmp_path), *arguments])
        runpy.run_path(str(RUN), run_name="__main__")
        return capsys.readouterr().out, json.loads((tmp_path / "run_cpu.json").read_text())

    yield run_rows
    torch.set_num_threads(threads)
    for name in {"losses", "measure", "photographs"} - before:
        sys.modules.pop(name, None)


def test_every_operation_has_its_row_in_the_table_the_file_and_the_drawing(tmp_path, run):
    printed, result = run("--small", "--rounds", "1", "--rows", *OPERATIONS)
    assert len(result["rows"]) == 12 and len(result["load before"]) == 3
    assert (tmp_path / "run_cpu.svg").read_text().count("<path") > 10
    for name, row in result["rows"].items():
        assert f"| {name} |" in printed
        assert row["speed-up"]["min"] == row["seconds"]["torchvision"]["min"] / row["seconds"]["focaldet"]["min"]


@pytest.mark.parametrize(
    ("rows", "small", "out", "folder"),
    [
        ([""], False, None, None),
        (["NMS"], False, None, "build/benchmarks"),
        ([""], True, None, "build/benchmarks"),
        (["NMS"], True, Path("mine"), "mine"),
    ],
)
def test_only_a_whole_run_replaces_the_results_that_are_kept(monkeypatch, rows, small, out, folder):
    monkeypatch.syspath_prepend(str(RUN.parent))
    before = {*sys.modules}
    choose_folder = runpy.run_path(str(RUN))["choose_folder"]
    for name in {"losses", "measure", "photographs"} - before:
        sys.modules.pop(name, None)
    chosen = choose_folder(SimpleNamespace(rows=rows, small=small, out=out))
    assert chosen is None if folder is None else str(chosen).endswith(folder)


@pytest.mark.prove
def test_no_operation_has_fallen_behind_torchvision(run):
    """Ratios of one interleaved run, never seconds: a busy machine slows both."""
    _, result = run("--rounds", "5", "--rows", *OPERATIONS)
    behind = {name: row["speed-up"] for name, row in result["rows"].items() if row["speed-up"]["min"] < row["guard"]}
    assert not behind


@pytest.mark.prove
def test_whole_detectors_run_side_by_side(run):
    _, result = run("--small", "--rounds", "1", "--rows", "predict")
    assert set(result["rows"]) == {"predict retinanet R50", "predict faster_rcnn R50"}


def test_a_good_request_that_is_cut_fails_the_load_on_the_service():
    """Before SIGTERM; and others may be refused or cut, but not with 500."""
    find_faults = runpy.run_path(str(RUN.with_name("serve_load.py")))["find_faults"]
    statuses = {"good": {"200": 90, "503": 9}, "broken": {"422": 5}, "lying": {"closed": 1, "ReadError": 2, "503": 1}}
    assert find_faults(statuses) == []
    for kind, status in (("good", "ReadError"), ("good", "422"), ("good", "500"), ("slow", "500")):
        assert find_faults({**statuses, kind: {"200": 1, status: 1}}) == [f"{kind}: {status}"]
