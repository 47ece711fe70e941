"""How many objects of an image a detector answers with: raised as far as is asked for, in real networks."""

import json

import pytest
import torch

from focaldet.errors import ConfigError
from focaldet.evaluation.evaluate import evaluate
from focaldet.evaluation.limits import REGIONS_PER_DETECTION, answer_limit, raise_limit
from focaldet.models import build
from focaldet.types import ImageSize
from tests.evaluation.cases import BrightDetector

# Whatever its score, and suppressing only what is almost the same: limits alone decide how many there are.
EVERYTHING = {"score_threshold": 0.0, "nms_iou": 0.95, "max_detections": 20}
DETECTORS = {
    "retinanet_mobilenet_v2_fpn": {"width": 16, "head_depth": 1, "detect": {**EVERYTHING, "top_k": 20}},
    "ssd_mobilenet_v2": {"detect": {**EVERYTHING, "top_k": 20}},
    "yolov2_tiny": {"detect": {**EVERYTHING, "top_k": 20}},
    "faster_rcnn_mobilenet_v2_fpn": {"detect": EVERYTHING, "proposals": {"detect": {"keep": 20, "top_k": 20}}},
}


def count_detections(detector):
    size = detector.preprocessing.resize.size if detector.preprocessing.resize.mode == "warp" else 128
    images = torch.randint(0, 256, (1, 3, size, size), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        (detections,) = detector.detect(detector(images, [ImageSize(size, size)]), [ImageSize(size, size)])
    return len(detections)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_answers_with_as_many_as_are_asked_for(name):
    torch.manual_seed(0)
    detector = build(name, class_names=("a", "b", "c"), architecture=DETECTORS[name]).eval()
    assert (count_detections(detector), answer_limit(detector)) == (20, 20)
    raise_limit(detector, 150)
    assert (count_detections(detector), answer_limit(detector)) == (150, 150)


def test_nothing_is_lowered_and_what_is_enough_stays():
    architecture = {"detect": {"max_detections": 200}, "proposals": {"detect": {"keep": 3000, "top_k": 5000}}}
    detector = build("faster_rcnn_mobilenet_v2_fpn", num_classes=2, architecture=architecture)
    before = detector.config
    for number in (100, 150, 200):
        raise_limit(detector, number)
        assert detector.config == before
    raise_limit(detector, 300)
    regions = detector.config.proposals.detect
    assert (detector.config.detect.max_detections, regions.keep, regions.top_k) == (300, 3000, 5000)
    raise_limit(detector, 1500)
    regions = detector.config.proposals.detect
    assert (regions.keep, regions.top_k) == (1500 * REGIONS_PER_DETECTION, 10_000)
    assert detector.config.proposals.train == before.proposals.train


def test_pairs_grow_with_the_limit_and_a_limit_beyond_all_anchors_is_taken():
    detector = build("retinanet_mobilenet_v2_fpn", num_classes=2)
    raise_limit(detector, 1500)
    assert (detector.config.detect.max_detections, detector.config.detect.top_k) == (1500, 15_000)
    raise_limit(detector, 10_000_000)
    assert detector.config.detect.max_detections == 10_000_000


def test_a_detector_that_says_nothing_of_a_limit_is_left_alone():
    detector = BrightDetector()
    raise_limit(detector, 500)
    assert answer_limit(detector) is None


def test_images_with_more_objects_than_the_detector_answers_with_are_noted(tiny_run, tmp_path):
    """A detector that answers with one object an image, on scenes of several."""
    metrics = evaluate(tiny_run, device="cpu", out=tmp_path, architecture={"detect": {"max_detections": 1}})
    (note,) = [each for each in metrics.notes if "answers with" in each]
    assert "at most 1 object an image: 2 images with more, 5 of 8 objects are out of reach" in note
    assert note in json.loads((tmp_path / "metrics.json").read_text())["notes"]


def test_a_limit_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match=r"detect\.max_detections"):
        raise_limit(build("retinanet_mobilenet_v2_fpn", num_classes=2), 10_000_001)
