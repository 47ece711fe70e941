"""The benchmark of a GPU works without one; a wrong check, a failed row and the end of the time are told apart."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from focaldet import losses
from focaldet.nets.resnet import RESNETS

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
# Packages of focaldet that a machine with a GPU need not have.
ABSENT = ("hotcoco", "lightning_fabric", "matplotlib", "cyclopts", "docstring_parser", "sklearn", "timm", "pycocotools")
WITHOUT_THEM = f"""
import runpy, sys
sys.modules |= dict.fromkeys({ABSENT!r})
sys.path.insert(0, {str(BENCHMARKS)!r})
runpy.run_path({str(BENCHMARKS / "gpu.py")!r}, run_name="__main__")
"""
ROWS = (
    *("focal loss against fp64", "NMS against brute force", "RoIAlign against torchvision in fp64"),
    *("DDP of one process", "focal loss", "train YOLOv2", "predict YOLOv2", "data, host, device"),
    *("predict YOLOv2, CUDA graph", "matching × 100"),
)


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module; what it imports from its folder is forgotten afterwards."""
    before = {*sys.modules}
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu")
    RESNETS.pop("resnext50_32x4d", None)
    for name in {*sys.modules} - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).parent == BENCHMARKS:
            del sys.modules[name]


def run_script(tmp_path, *arguments, code=0):
    """What the script prints and writes without the packages that it can do without."""
    command = [sys.executable, "-c", WITHOUT_THEM, "--small", "--out", str(tmp_path), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, json.loads((tmp_path / "gpu.json").read_text())


def test_rows_are_in_the_table_and_the_file_without_optional_packages(tmp_path):
    printed, result = run_script(tmp_path, "--rows", *ROWS)
    assert set(result["rows"]) == set(ROWS)
    states = {name: row["state"] for name, row in result["rows"].items()}
    assert {states.pop(name) for name in ROWS[:4]} == {"right"}
    assert states.pop("predict YOLOv2, CUDA graph") == "failed"
    assert set(states.values()) == {"measured"}, result["rows"]
    assert "| predict YOLOv2, CUDA graph | failed: RuntimeError: CUDA graphs need a GPU |" in printed
    sums = [*result["rows"]["focal loss"]["sums"].values()]
    assert len(sums) == 3 and max(sums) / min(sums) - 1 < 1e-5
    split = result["rows"]["data, host, device"]
    assert split["images/s"] == pytest.approx(8 / sum(split["seconds"].values()))
    assert all(seconds >= 0 for seconds in split["seconds"].values())
    assert result["environment"]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_a_package_that_is_not_there_has_no_version(gpu, monkeypatch):
    import measure

    monkeypatch.setattr(measure, "PACKAGES", ("torch", "no-package-of-this-name"))
    versions = measure.environment()["versions"]
    assert versions["torch"] and versions["no-package-of-this-name"] is None


def test_every_network_predicts_and_trains_in_three_forms(gpu):
    names = {*gpu.build_tasks(torch.device("cpu"), small=True, rounds=1)}
    for network in ("RetinaNet", "Faster R-CNN", "SSD", "YOLOv2"):
        for work in ("predict", "train"):
            assert {f"{work} {network}", f"{work} {network}, compiled"} < names
            assert [name for name in names if name.startswith(f"{work} {network}, CUDA graph")]
    assert {"train RetinaNet ResNeXt-50 at 800 px", "data, host, device", "NMS 5000 × 80", *gpu.CHECKS} < names


def test_the_network_of_mlperf_is_a_resnext_50(gpu):
    with torch.device("meta"):
        backbone = gpu.MLPERF.build(small=False).backbone
    norms = [*backbone.buffers()]
    # torchvision's resnext50_32x4d has 25,028,904 parameters, 2,049,000 of them in its classifier.
    weights = sum(p.numel() for p in backbone.parameters()) + sum(n.numel() for n in norms) // 2
    assert weights == 25_028_904 - 2_049_000


def test_failures_are_rows_and_wrong_answers_are_told(gpu):
    def fail():
        raise torch.OutOfMemoryError("no memory | left\nmore")

    def err():
        raise AssertionError("sum off by 2e-3")

    results = dict(
        gpu.run_tasks({"a": gpu.Task(fail), "b": gpu.Task(err)}, [], deadline=time.monotonic() + 60, apart=False)
    )
    assert (results["a"]["state"], results["a"]["text"]) == ("failed", "OutOfMemoryError: no memory / left")
    assert (results["b"]["state"], results["b"]["text"]) == ("wrong", "AssertionError: sum off by 2e-3")
    late = dict(gpu.run_tasks({"a": gpu.Task(fail)}, [], deadline=time.monotonic(), apart=False))
    assert late["a"]["state"] == "not run"


def test_a_check_notices_what_is_wrong(gpu, monkeypatch):
    import gpu_checks

    def scale(function):
        return lambda *arguments, **options: 1.001 * function(*arguments, **options)

    monkeypatch.setattr(losses, "focal_loss_sum", scale(losses.focal_loss_sum))
    monkeypatch.setattr(gpu_checks, "pool_pyramid", scale(gpu_checks.pool_pyramid))
    monkeypatch.setattr(gpu_checks, "class_nms", lambda boxes, scores, *_, **options: scores.argsort(descending=True))
    for name in ("focal loss against fp64", "NMS against brute force", "RoIAlign against torchvision in fp64"):
        row = gpu.run_here(gpu.build_tasks(torch.device("cpu"), small=True, rounds=1)[name])
        assert row["state"] == "wrong", row


def test_a_row_in_its_own_process_is_killed_when_its_time_is_over(gpu):
    begin = time.monotonic()
    result = gpu.run_apart("deterministic mode", ["--small"], seconds=0.3)
    assert result == {"state": "failed", "text": "took more than 0 s"}
    assert time.monotonic() - begin < 20


def test_a_word_that_is_a_name_means_that_row_alone(gpu):
    names = {"focal loss": 1, "focal loss, compiled": 2}
    assert [gpu.is_meant("focal loss", name, names) for name in names] == [True, False]
    assert [gpu.is_meant("focal", name, names) for name in names] == [True, True]


@pytest.mark.prove
def test_all_rows_run_in_processes_of_their_own_where_they_have_one(tmp_path):
    _, result = run_script(tmp_path, "--apart")
    reasons = {row["text"] for row in result["rows"].values() if row["state"] == "failed"}
    assert reasons == {"RuntimeError: CUDA graphs need a GPU"}
    assert not [name for name, row in result["rows"].items() if row["state"] in ("wrong", "not run")]
