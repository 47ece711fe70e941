"""Batches, devices, precision: what evaluation and prediction share."""

from dataclasses import fields, replace
from typing import get_type_hints

import pytest
import torch

from focaldet.data.loading.collate import pad_images
from focaldet.errors import ConfigError
from focaldet.evaluation.inference import InferenceFields, InferenceOptions, apply_options, detect_batch
from focaldet.models import build
from focaldet.runtime import eval_mode, has_native_bf16, pick_device, pick_precision
from focaldet.types import ImageSize, Resize
from tests.evaluation.cases import BrightDetector, make_image

CPU = torch.device("cpu")


def test_boxes_are_scaled_and_clipped_to_the_original():
    detector = BrightDetector()
    batch = pad_images([make_image(size=(32, 64), box=(0, 0, 64, 16))], preprocessing=detector.preprocessing)
    (detections,) = detect_batch(
        detector, batch, sizes=[ImageSize(32, 64)], original_sizes=[ImageSize(100, 127)], precision="fp32"
    )
    assert detections.boxes.tolist() == [[0.0, 0.0, 127.0, 50.0]]


def test_lower_precision_reaches_the_products_only():
    class Products(BrightDetector):
        def forward(self, images, sizes, targets=None):
            self.product = torch.ones(2, 2) @ torch.ones(2, 2)
            return super().forward(images, sizes)

    detector = Products()
    one = pad_images([make_image()], preprocessing=detector.preprocessing)
    sizes = [ImageSize(48, 64)]
    for precision, dtype in [("fp32", torch.float32), ("bf16", torch.bfloat16)]:
        (detections,) = detect_batch(detector, one, sizes=sizes, original_sizes=sizes, precision=precision)
        assert detector.product.dtype == dtype
        assert detections.boxes.dtype == torch.float32


def test_every_module_gets_its_mode_back():
    detector = BrightDetector().train()
    detector.dropout.eval()
    with pytest.raises(RuntimeError, match="within"), eval_mode(detector):
        assert not detector.training
        raise RuntimeError("within")
    assert detector.training
    assert not detector.dropout.training


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ({}, Resize("short", 800, 1333, "down", False)),
        ({"size": 320}, Resize("long", 320, None, "down", False)),
        ({"short_side": 600}, Resize("short", 600, None, "down", False)),
        ({"short_side": 600, "max_side": 1000}, Resize("short", 600, 1000, "down", False)),
    ],
)
def test_sides_that_are_asked_for_keep_the_way_of_resizing(sides, expected):
    assert Resize("short", 800, 1333, "down", False).with_sides(**sides) == expected


@pytest.mark.parametrize(
    ("sides", "problem"),
    [
        ({"size": 64, "short_side": 64}, "give either"),
        ({"max_side": 64}, "max_side: needs short_side"),
        ({"size": 0}, "must be at least 1"),
        ({"short_side": 64, "max_side": -1}, "must be at least 1"),
    ],
)
def test_contradicting_sides_are_refused(sides, problem):
    with pytest.raises(ConfigError, match=problem):
        Resize().with_sides(**sides)


def test_every_option_can_be_given_by_keyword():
    assert list(get_type_hints(InferenceFields)) == [field.name for field in fields(InferenceOptions)]


def test_options_are_laid_over_the_detector_in_place():
    detector = build("retinanet_mobilenet_v2_fpn", architecture={"width": 16, "head_depth": 1})
    detect = replace(detector.config.detect, nms_iou=0.4)
    options = InferenceOptions(short_side=96, max_side=128, architecture={"detect": {"nms_iou": 0.4}})
    assert apply_options(detector, options) is detector
    assert detector.preprocessing.resize == Resize("short", 96, 128)
    assert detector.config.detect == detect
    before = detector.config, detector.preprocessing
    apply_options(detector, InferenceOptions())
    assert (detector.config, detector.preprocessing) == before


def test_an_override_of_what_was_trained_is_refused():
    options = InferenceOptions(architecture={"width": 32})
    with pytest.raises(ConfigError, match=r"architecture\.width: is part of what the weights were trained as"):
        apply_options(build("retinanet_mobilenet_v2_fpn", architecture={"width": 16, "head_depth": 1}), options)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gpu", "device: 'gpu' is unknown; allowed: cpu, cuda"),
        ("cuda:x", "device: 'cuda:x' is unknown"),
        ("cuda:99", "device: 'cuda:99' is not there"),
        ("cpu:1", "device: 'cpu:1' is not there"),
        ("99", "device: '99' is not there"),
    ],
)
def test_devices_that_are_not_there_are_refused(name, problem):
    with pytest.raises(ConfigError, match=problem):
        pick_device(name)


def test_the_best_device_there_is(monkeypatch):
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device(None) == torch.device("cuda")
    assert pick_device("cuda:1") == pick_device("1") == torch.device("cuda:1")


def test_precision_follows_the_hardware_unless_it_is_given(monkeypatch):
    assert pick_precision("fp16", device=CPU) == "fp16"
    for capable, expected in [(True, "bf16"), (False, "fp32")]:
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda capable=capable: {"avx512_bf16": capable}, raising=False
        )
        assert has_native_bf16(CPU) is capable
        assert pick_precision(None, device=CPU) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_native_bf16(CPU)
    assert not has_native_bf16(torch.device("mps"))
