"""What int8 leaves alone, and the benchmark of all formats."""

import sys

import pytest

from focaldet.cli import main
from focaldet.export import benchmark as benchmarks
from focaldet.export import export, quantize
from focaldet.export.images import open_export_images
from focaldet.export.proof import Limits
from focaldet.export.quantize import postprocess_names
from focaldet.weights import load_detector
from focaldet.weights.exported.graphs import import_library


def test_everything_behind_the_network_is_left_alone(exported):
    model = import_library("openvino", extra="openvino").Core().read_model(exported.openvino.path)
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    skipped = {kinds[name] for name in postprocess_names(model)}
    assert {"NonMaxSuppression", "TopK", "Sigmoid", "Exp", "ScatterNDUpdate"} <= skipped
    assert not {"Convolution", "MVN", "Relu", "MaxPool"} & skipped


class Tries:
    """Stands for the quantizer: AP by how many layers stay in fp32, and which were tried."""

    def __init__(self, monkeypatch, before, *after):
        aps = iter([before, *after])
        self.depths = []
        monkeypatch.setattr(quantize, "measure_compiled_ap", lambda *_, **__: next(aps))
        monkeypatch.setattr(quantize, "quantize_behind", self.quantize)

    def quantize(self, model, depth, detector, calibration):
        self.depths.append(depth)
        return f"int8 behind layer {depth}"


@pytest.mark.parametrize(
    ("after", "depths", "taken"),
    [
        ((0.395,), [1], 1),
        ((0.35, 0.395), [1, 3], 3),
        ((0.35, 0.37, 0.36, 0.34), [1, 3, 9, 27], 3),  # none is good enough: the best
    ],
)
def test_more_layers_stay_in_fp32_until_the_ap_falls_no_more_than_allowed(
    small_run, demo_data, monkeypatch, after, depths, taken
):
    tries = Tries(monkeypatch, 0.4, *after)
    detector = load_detector(small_run).detector
    images = open_export_images(small_run, detector, data=demo_data, split="test")
    chosen = quantize.quantize_model(None, detector, images, max_drop=0.01)
    assert (tries.depths, chosen) == (depths, f"int8 behind layer {taken}")


def test_without_boxes_one_model_is_made_and_not_measured(small_run, monkeypatch):
    tries = Tries(monkeypatch, 0.4)
    detector = load_detector(small_run).detector
    images = open_export_images(small_run, detector, data=None, split="val")
    quantize.quantize_model(None, detector, images, max_drop=0.01)
    assert tries.depths == [1]


def test_layers_are_counted_from_the_image(exported):
    """The ResNet of the tests, its pyramid and its heads: the first convolution is the only first layer."""
    model = import_library("openvino", extra="openvino").Core().read_model(exported.openvino.path)
    depths = quantize.layer_depths(model)
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    assert {kinds[name] for name in depths} == {"Convolution"}
    assert sorted(depths.values())[:2] == [1, 2]
    assert 10 < max(depths.values()) < len(depths)


@pytest.mark.prove
def test_int8_weights_are_written_and_compared(traced_once, small_run, demo_data, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(export.LIMITS, "int8", Limits(px=99.0, score=1.0, unmatched=1.0, least_score=0.0))
    out = tmp_path / "int8.xml"
    result = export.export_detector(
        small_run, out, format="openvino", precision="int8", data=demo_data, split="test", max_drop=1.0
    )
    assert result.is_accepted
    assert result.exported_ap is not None
    assert result.comparison.largest_score > 0
    assert "FakeQuantize" in out.read_text()
    assert capfd.readouterr().out == ""  # NNCF would draw its progress where our JSON goes


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
