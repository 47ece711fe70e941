"""A detector that puts every image into a fixed square: its file, OpenVINO's ModelAPI, and the detector afterwards."""

import numpy
import pytest
import torch

import focaldet
from benchmarks.export_presets import make_detector, open_images, set_size
from focaldet.export.export import convert_all
from focaldet.export.images import ExportImages
from focaldet.export.metadata import describe_export
from focaldet.export.openvino_file import fit_model_api
from focaldet.export.proof import LIMITS, compare_detections
from focaldet.weights import Trained, load_detector
from focaldet.weights.exported.graphs import import_library
from tests.every_detector.test_plain_torch import DETECTORS
from tests.export.conftest import unchecked_shapes

NAME, SIDE = "ssd_efficientnet_lite0", 128
OUTPUTS = ["boxes", "scores", "labels", "count"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The detector, which nobody has run before, and its file of OpenVINO."""
    detector = make_detector(NAME, DETECTORS[NAME], open_images(None))
    set_size(detector, SIDE)
    path = tmp_path_factory.mktemp("fixed") / "m.xml"
    with unchecked_shapes():
        ((_, write),) = convert_all(detector, ExportImages(None, None, ""), [("openvino", "fp32")])
    trained = Trained(detector, (), "m")
    write(path, describe_export(trained, detector, "m", format="openvino", precision="fp32"), None)
    return detector, path


@pytest.fixture
def images():
    small = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return torch.nn.functional.interpolate(small.float(), (SIDE, SIDE), mode="bilinear").byte()


@pytest.mark.prove
def test_the_detector_detects_at_the_traced_size_and_so_does_its_file(exported, images):
    """What a trace makes of priors stands for numbers that do not exist yet: none may stay behind."""
    detector, path = exported
    sizes, file = [focaldet.ImageSize(SIDE, SIDE)] * 2, load_detector(path).detector
    assert file.input_size == (SIDE, SIDE)
    with torch.no_grad():
        right = detector.detect(detector(images, sizes), sizes)
    assert all(type(each.boxes) is torch.Tensor and each.boxes.isfinite().all() for each in right)
    seen = compare_detections(right, file.detect(file(images, sizes), sizes))
    assert seen.matched > 50
    assert seen.reasons(LIMITS["fp32"]) == ()


@pytest.mark.prove
def test_the_rules_of_model_api_are_kept(exported, images):
    """One image of a fixed size, one further input that takes (height, width, 1), three outputs told by their names."""
    _, path = exported
    compiled = import_library("openvino", extra="openvino").Core().compile_model(path, "CPU")
    shapes = {each.get_any_name(): str(each.get_partial_shape()) for each in compiled.inputs}
    assert shapes == {"images": f"[?,3,{SIDE},{SIDE}]", "sizes": "[?,2..3]"}
    names = [each.get_any_name() for each in compiled.outputs]
    assert names == [*OUTPUTS, "bboxes"]
    assert [sum(word in name for name in names) for word in ("bboxes", "scores", "labels")] == [1, 1, 1]
    plain = compiled({"images": images.numpy(), "sizes": numpy.array([[SIDE, SIDE]] * 2)})
    wide = compiled({"images": images.numpy(), "sizes": numpy.array([[SIDE, SIDE, 1]] * 2)})
    for name in OUTPUTS:
        numpy.testing.assert_array_equal(plain[name], wide[name])
    numpy.testing.assert_allclose(plain["bboxes"] * SIDE, plain["boxes"], atol=1e-4)
    assert plain["count"].min() > 0
    assert '<model_type value="SSD"' in path.read_text()


@pytest.mark.prove
def test_model_api_detects_what_predict_does(exported, images):
    """Of an image that is neither resized nor padded, as OpenCV reads it; it rounds boxes to whole pixels, and some
    values of the image down.
    """
    models = pytest.importorskip("model_api.models")
    _, path = exported
    model = models.Model.create_model(str(path), device="CPU")
    result = model(numpy.ascontiguousarray(images[0].permute(1, 2, 0).numpy()[..., ::-1]))
    predictor = focaldet.load(path)
    detections = predictor(images[0])
    is_large = (detections.boxes.round().clip(0, SIDE)[:, 2:] - detections.boxes.round()[:, :2]).prod(1) > 1
    threshold = float(predictor.detector.metadata.extra["score_threshold"])
    right = detections[is_large & (detections.scores > threshold)]
    assert len(right) > 20
    boxes, scores, labels = map(torch.from_numpy, (result.bboxes, result.scores, result.labels))
    seen = focaldet.Detections(boxes.float(), scores, labels.long())
    same = compare_detections([right], [seen])
    assert same.matched >= 0.95 * len(right)
    assert same.largest_px <= 1.5
    assert same.largest_score < 0.05
    assert {*result.label_names} <= {*predictor.class_names}


def test_a_network_gets_what_model_api_asks_for():
    """Boxes of the whole image, whose size is read from `sizes`."""
    openvino = import_library("openvino", extra="openvino")
    ops = openvino.opset13
    images = ops.parameter([-1, 3, 32, 64], dtype=numpy.uint8)
    sizes = ops.parameter([-1, 2], dtype=numpy.int64)
    for node, name in ((images, "images"), (sizes, "sizes")):
        node.output(0).set_names({name})
    corners = ops.concat([ops.multiply(sizes, numpy.array([0, 0])), sizes], 1)
    boxes = ops.convert(ops.unsqueeze(corners, numpy.array([1])), "f32")
    boxes.output(0).set_names({"boxes"})
    network = openvino.Model([ops.result(boxes)], [images, sizes])
    fit_model_api(network, focaldet.ImageSize(32, 64))
    compiled = openvino.Core().compile_model(network, "CPU")
    for given in ([16, 32], [16, 32, 1]):
        values = compiled({"images": numpy.zeros((1, 3, 32, 64), "uint8"), "sizes": numpy.array([given])})
        assert values["boxes"].tolist() == [[[0, 0, 16, 32]]]
        assert values["bboxes"].tolist() == [[[0, 0, 0.25, 1]]]
