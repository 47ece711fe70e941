"""Weights files of version 0.1 open, and detect what they detected then."""

import json
import lzma
from pathlib import Path

import numpy
import pytest
import torch

import focaldet
from focaldet.weights import load_into, read_metadata

FOLDER = Path(__file__).parent / "version_0_1"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.fixture(scope="module")
def unpack(tmp_path_factory):
    """The weights file of a name; unpacked once."""
    folder = tmp_path_factory.mktemp("version_0_1")

    def unpack_once(name):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            path.write_bytes(lzma.decompress((FOLDER / f"{name}.safetensors.xz").read_bytes()))
        return path

    return unpack_once


@pytest.fixture(scope="module")
def image():
    """As `make.py` draws it."""
    rows, columns, channels = numpy.mgrid[0:96, 0:128, 0:3]
    waves = rows * columns // 7 + 40 * (rows // 24 + columns // 16) * (channels + 1)
    return (waves % 256).astype(numpy.uint8)


def test_there_is_a_file_of_every_kind():
    assert len(NAMES) == 7


@pytest.mark.parametrize("name", NAMES)
def test_detections_are_those_of_version_0_1(name, unpack, image):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    predictor = focaldet.load(unpack(name), device="cpu", precision="fp32")
    detections = predictor.predict(image)
    count = len(expected["scores"])
    assert len(detections.scores) == expected["detections"]
    assert detections.labels[:count].tolist() == expected["labels"]
    torch.testing.assert_close(detections.scores[:count], torch.tensor(expected["scores"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(detections.boxes[:count], torch.tensor(expected["boxes"]), rtol=1e-4, atol=1e-3)
    assert (predictor.class_names, predictor.category_ids) == (("circle", "square", "혈소판"), (1, 5, 7))


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_goes_into_a_new_detector(name, unpack):
    path = unpack(name)
    detector = focaldet.load(path, device="cpu", precision="fp32").detector
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with torch.no_grad():
        for value in detector.parameters():
            value.zero_()
    report = load_into(detector, path)
    assert report.reset == report.skipped == ()
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_license_is_read(name, unpack):
    assert read_metadata(unpack(name)).license == "made for a test"
