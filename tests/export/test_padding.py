"""A file takes images of the sizes that its detector pads to, and answers as it: also where those are any."""

from dataclasses import replace

import pytest
import torch

import focaldet
from benchmarks.export_presets import make_detector, open_images
from focaldet.export.export import convert_all
from focaldet.export.images import ExportImages
from focaldet.export.metadata import describe_export
from focaldet.export.proof import LIMITS, compare_detections
from focaldet.export.quantize import postprocess_names
from focaldet.weights import Trained, load_detector
from focaldet.weights.exported.graphs import import_library
from tests.every_detector.test_plain_torch import DETECTORS
from tests.export.conftest import unchecked_shapes

NAMES = ("faster_rcnn_r18_c4", "faster_rcnn_inception_resnet_small_tdm")
DECODING = {"Exp", "TopK", "NonMaxSuppression", "ScatterNDUpdate", "Sqrt", "Log"}
pytestmark = pytest.mark.prove  # each detector is traced and translated for half a minute


@pytest.fixture(scope="module", params=NAMES)
def exported(request, tmp_path_factory):
    """A detector that pads images to the largest of a batch alone, and its files."""
    folder, files = tmp_path_factory.mktemp("padding"), {}
    detector = make_detector(request.param, DETECTORS[request.param], open_images(None))
    detector.preprocessing = replace(detector.preprocessing, size_divisor=1)
    with unchecked_shapes():
        for (kind, precision), write in convert_all(
            detector, ExportImages(None, None, ""), [("onnx", "fp32"), ("openvino", "fp32")]
        ):
            files[kind] = folder / f"m.{'xml' if kind == 'openvino' else kind}"
            about = describe_export(Trained(detector, (), "m"), detector, "m", format=kind, precision=precision)
            write(files[kind], about, None)
    return detector, files


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("frame", [(64, 96), (101, 131), (150, 77)])
def test_the_file_answers_as_the_detector_at_sizes_that_it_pads_to(exported, kind, frame):
    detector, files = exported
    file = load_detector(files[kind]).detector
    assert file.preprocessing.size_divisor == 1
    images = torch.randint(0, 256, (2, 3, *frame), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    sizes = [focaldet.ImageSize(*frame), focaldet.ImageSize(frame[0] - 5, frame[1] - 9)]
    with torch.no_grad():
        right = detector.detect(detector(images, sizes), sizes)
    seen = compare_detections(right, file.detect(file(images, sizes), sizes))
    assert seen.matched > 10
    assert seen.reasons(LIMITS["fp32"]) == ()


def test_no_decoding_of_proposals_is_quantized(exported):
    """Where features are cut out says no feature: it is computed from boxes, of which the eighth bit is pixels."""
    _, files = exported
    model = import_library("openvino", extra="openvino").Core().read_model(files["openvino"])
    skipped = {*postprocess_names(model)}
    kinds = {node.get_type_name() for node in model.get_ordered_ops() if node.get_friendly_name() not in skipped}
    assert "Convolution" in kinds
    assert not DECODING & kinds
