"""The benchmark beside torchvision works anywhere; under `prove` its ratios must not fall below their guards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent / "benchmarks" / "run.py"
OPERATIONS = ("focal", "RoIAlign", "matching", "NMS")


def run(out, *arguments):
    command = [sys.executable, str(RUN), "--threads", "1", "--out", str(out), *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return printed, json.loads((out / "run_cpu.json").read_text())


def test_every_operation_has_its_row_in_the_table_the_file_and_the_drawing(tmp_path):
    printed, result = run(tmp_path, "--small", "--rounds", "1", "--rows", *OPERATIONS)
    assert len(result["rows"]) == 10 and len(result["load before"]) == 3
    assert (tmp_path / "run_cpu.svg").read_text().count("<path") > 10
    for name, row in result["rows"].items():
        assert f"| {name} |" in printed
        assert row["speed-up"]["min"] == row["seconds"]["torchvision"]["min"] / row["seconds"]["focaldet"]["min"]


@pytest.mark.prove
def test_no_operation_has_fallen_behind_torchvision(tmp_path):
    """Ratios of one interleaved run, never seconds: a busy machine slows both."""
    _, result = run(tmp_path, "--rounds", "5", "--rows", *OPERATIONS)
    behind = {name: row["speed-up"] for name, row in result["rows"].items() if row["speed-up"]["min"] < row["guard"]}
    assert not behind


@pytest.mark.prove
def test_whole_detectors_run_side_by_side(tmp_path):
    _, result = run(tmp_path, "--small", "--rounds", "1", "--rows", "predict")
    assert set(result["rows"]) == {"predict retinanet R50", "predict faster_rcnn R50"}
