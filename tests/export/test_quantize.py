"""Which layers stay in fp32."""

import shutil

import pytest

from focaldet.cli import main
from focaldet.export import export, quantize
from focaldet.export.images import open_export_images
from focaldet.export.proof import Limits
from focaldet.weights import load_detector


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
