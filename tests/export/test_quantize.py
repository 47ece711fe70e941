"""What int8 leaves alone, and the benchmark of all formats."""

import sys

import pytest

from focaldet.cli import main
from focaldet.export import benchmark as benchmarks
from focaldet.export import export
from focaldet.export.proof import Limits
from focaldet.export.quantize import postprocess_names
from focaldet.weights.exported.graphs import import_library


def test_everything_behind_the_network_is_left_alone(exported):
    model = import_library("openvino", extra="openvino").Core().read_model(exported.openvino.path)
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    skipped = {kinds[name] for name in postprocess_names(model)}
    assert {"NonMaxSuppression", "TopK", "Sigmoid", "Exp", "ScatterNDUpdate"} <= skipped
    assert not {"Convolution", "MVN", "Relu", "MaxPool"} & skipped


@pytest.mark.prove
def test_int8_weights_are_written_and_compared(traced_once, small_run, demo_data, tmp_path, monkeypatch):
    monkeypatch.setitem(export.LIMITS, "int8", Limits(px=99.0, score=1.0, unmatched=1.0, least_score=0.0))
    out = tmp_path / "int8.xml"
    result = export.export_detector(
        small_run, out, format="openvino", precision="int8", data=demo_data, split="test", max_drop=1.0
    )
    assert result.is_accepted
    assert result.exported_ap is not None
    assert result.comparison.largest_score > 0
    assert "FakeQuantize" in out.read_text()


def test_the_benchmark_has_a_row_for_every_format(traced_once, small_run, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "VARIANTS", (("onnx", "fp32"), ("openvino", "fp32")))
    assert main(["benchmark", str(small_run), "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("  ")[0] for line in lines[1:]} == {"torch, eager", "onnx fp32", "openvino fp32"}
    (eager,) = (line for line in lines if line.startswith("torch, eager"))
    assert eager.split()[-1] == "1.00"


def test_a_format_whose_library_is_missing_says_so(traced_once, small_run, monkeypatch):
    monkeypatch.setattr(benchmarks, "VARIANTS", (("openvino", "fp32"),))
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = {row.name: row for row in benchmarks.benchmark(small_run, rounds=1)}
    assert rows["openvino fp32"].milliseconds_per_image is None
    assert "pip install 'focaldet[openvino]'" in rows["openvino fp32"].note
