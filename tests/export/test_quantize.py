"""Which layers stay in fp32, and that the others detect as before."""

import shutil

import pytest
import torch
from torch import nn

from focaldet.cli import main
from focaldet.evaluation.evaluate import match_classes
from focaldet.export import export, quantize
from focaldet.export.images import ExportImages, open_export_images
from focaldet.export.metadata import describe_export
from focaldet.export.openvino_file import convert_openvino
from focaldet.export.proof import Limits
from focaldet.models.faster_rcnn.padded import crop_all
from focaldet.training.trainer import train
from focaldet.weights import load_detector
from focaldet.weights.exported.graphs import import_library
from tests.export.conftest import unchecked_shapes
from tests.training import squares


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


def test_a_model_that_seems_good_on_a_sample_is_measured_on_all_images(small_run, demo_data, monkeypatch):
    """The finished file is judged on all of them: where that would reject it, the next depth is tried."""
    monkeypatch.setattr(quantize, "VALIDATION_IMAGES", 2)
    sample, every = (0.4, 0.395, 0.395), (0.42, 0.37, 0.415)  # of the model, and with one and three layers in fp32
    order = (sample[0], sample[1], every[1], every[0], sample[2], every[2])
    tries = Tries(monkeypatch, *order)
    detector = load_detector(small_run).detector
    images = open_export_images(small_run, detector, data=demo_data, split="test")
    assert quantize.quantize_model(None, detector, images, max_drop=0.01) == "int8 behind layer 3"
    assert tries.depths == [1, 3]


def test_without_boxes_one_model_is_made_and_not_measured(small_run, monkeypatch):
    tries = Tries(monkeypatch, 0.4)
    detector = load_detector(small_run).detector
    images = open_export_images(small_run, detector, data=None, split="val")
    quantize.quantize_model(None, detector, images, max_drop=0.01)
    assert tries.depths == [1]


def test_where_no_box_counts_one_model_is_made(small_run, demo_data, monkeypatch):
    """An AP that is none does not fall: it would be taken for good enough whatever the model detects."""
    tries = Tries(monkeypatch, None)
    detector = load_detector(small_run).detector
    images = open_export_images(small_run, detector, data=demo_data, split="test")
    assert quantize.quantize_model(None, detector, images, max_drop=0.01) == "int8 behind layer 1"
    assert tries.depths == [1]


def test_embedded_images_are_not_calibrated_on(small_run, demo_data, tmp_path, capsys):
    """Neither for bare weights nor where the data of the run have gone: they say nothing about the user's images."""
    weights = small_run / "weights" / "best.safetensors"
    moved = tmp_path / "run"
    shutil.copytree(small_run, moved)
    settings = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(settings.replace(str(demo_data), str(tmp_path / "gone")))
    for run, reason in (
        (weights, "the weights are not in a run folder"),
        (moved, "the data of the run cannot be read"),
    ):
        arguments = ["--out", str(tmp_path / "m.xml"), "--format", "openvino", "--precision", "int8"]
        assert main(["export", str(run), *arguments]) == 2
        error = capsys.readouterr().err
        assert (reason in error, "--data" in error, str(tmp_path) in error.split("and ")[-1]) == (True, True, False)
        images = open_export_images(run, load_detector(run).detector, data=None, split="val")
        assert reason in images.embedded_because


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


class Cropped(nn.Module):
    """Features cut out where other features say: two layers, decoding, and a layer behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, images):
        features = self.first(images)
        regions = self.second(features).mean((2, 3)).exp().cumsum(1)[:, None]
        return self.third(crop_all(features, regions, size=5, frame_px=(32, 32)))


def test_what_decodes_the_regions_that_are_cut_out_is_left_alone():
    """Whether a sample lies in the map is computed from boxes, too: it must not lead back into decoding."""
    with unchecked_shapes():
        program = torch.export.export(Cropped(), (torch.zeros(2, 3, 32, 32),), strict=False)
    exported = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False)
    model = convert_openvino(exported.model_proto)
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    skipped = {kinds[name] for name in quantize.postprocess_names(model)}
    assert "Exp" in kinds.values()
    assert {"Exp", "CumSum", "LogicalAnd"} <= skipped
    assert "Convolution" not in skipped


@pytest.mark.prove
def test_an_int8_file_of_a_trained_detector_detects_as_before(tmp_path):
    """Within the limits that users have: its layers take rounded numbers, and nothing behind the last one does."""
    data = squares.squares(8)
    config = squares.small_run(tmp_path / "run", overfit=8, epochs=24, learning_rate=2e-3, backbone_factor=1.0)
    train(config, sources=(data, data))
    trained = load_detector(tmp_path / "run")
    detector = trained.detector.eval()
    images = ExportImages(data, data, "8 squares")
    with unchecked_shapes():
        ((_, write),) = export.convert_all(detector, images, [("openvino", "int8")])
    path = tmp_path / "m.xml"
    write(path, describe_export(trained, detector, tmp_path / "run", format="openvino", precision="int8"), None)
    file = load_detector(path).detector
    result = export.compare_file(detector, file, images, precision="int8", max_drop=0.01)
    assert result.is_accepted
    assert result.comparison.matched >= 8
    match = match_classes(detector.class_names, data.dataset.classes, num_classes=2)
    before, after = (export.measure_ap(export.detect(each, data), data, match) for each in (detector, file))
    assert before > 0.5
    assert after > before - 0.05
    model = import_library("openvino", extra="openvino").Core().read_model(path)
    layers = [node for node in model.get_ordered_ops() if node.get_type_name() in quantize.WEIGHTED]
    sources = [layer.input_value(0).get_node() for layer in layers]
    pooled = [each.input_value(0).get_node() if each.get_type_name() == "MaxPool" else each for each in sources]
    assert [each.get_type_name() for each in pooled].count("FakeQuantize") == len(layers) - 1  # all but the first
    skipped, kinds = {*quantize.postprocess_names(model)}, {n.get_friendly_name(): n for n in model.get_ordered_ops()}
    assert "FakeQuantize" not in {kinds[name].get_type_name() for name in skipped}
