"""The weights that come with focaldet: which they are, and that detectors start from them."""

from pathlib import Path

import pytest
import torch

from focaldet.models import PRESETS, build
from focaldet.weights import load_into, read_tensors
from focaldet.weights.download import sha256
from focaldet.weights.sources import EMBEDDED_FOLDER, EMBEDDED_WEIGHTS, embedded_weights

NAME = "embedded:efficientnet_lite0"
FILE = EMBEDDED_FOLDER / "efficientnet_lite0.safetensors"
SHA256 = "48732393ba55df5de3f8f8ddaf343bf617edb57bbffc63819c7dba1fce281a39"


def test_the_file_is_the_one_that_was_measured_and_says_whose_it_is() -> None:
    assert sha256(FILE) == SHA256
    assert FILE.stat().st_size < 10e6
    stated = read_tensors(FILE).statements
    assert (stated["license"], stated["input"]) == ("Apache-2.0", "RGB, (x - 127) / 128")
    assert "Apache License" in (EMBEDDED_FOLDER / "LICENSE").read_text()
    assert "ML Illustrated" in (EMBEDDED_FOLDER / "NOTICE").read_text()


@pytest.mark.parametrize("model", [name for name in PRESETS if "lite0" in name])
def test_detectors_start_from_it(model: str) -> None:
    detector = build(model, num_classes=2)
    report = load_into(detector, NAME)
    assert (report.kind, report.source, report.skipped, report.license) == ("backbone", NAME, (), "Apache-2.0")
    assert (detector.preprocessing.mean, detector.preprocessing.std) == ((127.0,) * 3, (128.0,) * 3)
    assert detector.preprocessing.resize == PRESETS[model].preprocessing.resize
    assert not [note for note in report.notes if "norm_eps" in note], "the presets have the ε of these weights"
    stored = read_tensors(FILE).tensors
    for name, value in detector.get_submodule("backbone").state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float())


def test_its_numbers_are_the_originals_in_fp16(real_weights: Path) -> None:
    original = read_tensors(real_weights / "efficientnet_lite0.safetensors").tensors
    for name, value in read_tensors(FILE).tensors.items():
        assert torch.equal(value, original[name].to(value.dtype)), name
    detector = build("ssd_efficientnet_lite0", num_classes=2)
    report = load_into(detector, real_weights / "efficientnet_lite0.safetensors")
    assert {name.split(".")[0] for name in report.skipped} == {"conv_head", "bn2", "classifier"}
    assert detector.preprocessing.std == (128.0,) * 3


def test_which_backbones_have_any() -> None:
    assert all(embedded_weights(backbone) == name for name, backbone in EMBEDDED_WEIGHTS.items())
    assert embedded_weights("resnet50") is embedded_weights(None) is None
