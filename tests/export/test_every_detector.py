"""One small detector of every kind in every format: the file answers as the detector, at two batch and image sizes."""

import pytest

from benchmarks.export_presets import measure
from focaldet.export.proof import LIMITS
from tests.every_detector.test_plain_torch import DETECTORS
from tests.export.conftest import unchecked_shapes


@pytest.mark.prove
@pytest.mark.parametrize("name", DETECTORS)
def test_files_of_every_detector_answer_as_it_does(name):
    with unchecked_shapes():
        rows = measure(name, DETECTORS[name], ["onnx", "openvino", "torch"])
    assert [row["format"] for row in rows] == ["onnx", "openvino", "torch"]
    for row in rows:
        assert row["num_detections"] > 100
        assert row["unmatched"] <= LIMITS["fp32"].unmatched * 2 * row["num_detections"]
        assert row["largest_score"] <= LIMITS["fp32"].score
        assert row["largest_px"] <= LIMITS["fp32"].px
