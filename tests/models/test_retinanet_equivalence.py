"""One state dict in torchvision and here gives the same logits, boxes and labels on real images."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from focaldet.models import Detector, build, find_preset
from focaldet.types import ImageSize, Resize
from focaldet.weights import load_into
from focaldet.weights.formats.torchvision import COCO_NAMES
from tests.models.torchvision_retinanet import (
    EQUIVALENTS,
    KEPT,
    coco_images,
    lively,
    lively_detections,
    photographs,
    prepared,
)

EVERYDAY_PX = 160


EVERYDAY = ("retinanet_r50_fpn_tv",)


@pytest.fixture(
    scope="module",
    params=[name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.prove) for name in EQUIVALENTS],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Detector]:
    """A lively torchvision model and our detector with its weights, read from a file."""
    reference = lively(request.param, size_px=EVERYDAY_PX)
    path = tmp_path_factory.mktemp("weights") / "lively.pth"
    torch.save(reference.state_dict(), path)
    detector = build(request.param, architecture={"detect": {"max_detections": KEPT}}).eval()
    load_into(detector, path, input="imagenet")
    path.unlink()
    return reference, detector


@torch.inference_mode()
def compare(pair: tuple[Any, Detector], images: Iterable[Tensor], *, wanted: int, size_px: int) -> None:
    reference, detector = pair
    reference.transform.min_size, reference.transform.max_size = (size_px,), size_px * 5 // 3
    resize = Resize("short", size_px, size_px * 5 // 3, rounding="down", antialias=False)
    preprocessing = replace(detector.preprocessing, resize=resize)
    results = lively_detections(reference, images, wanted=wanted)
    assert len(results) == wanted, "too few images with lively detections"
    for image, raw, expected in results:
        x, size = prepared(image, preprocessing)
        outputs = detector(x, [size])
        logits = raw["cls_logits"]
        assert outputs.logits.shape == logits.shape
        assert ((outputs.logits - logits).abs() / logits.abs().clamp(min=1)).max() <= 1e-4
        torch.testing.assert_close(outputs.deltas, raw["bbox_regression"], rtol=1e-4, atol=1e-4)
        actual = detector.detect(outputs, [size])[0].scale(image.shape[2] / size.width, image.shape[1] / size.height)
        assert len(actual) >= 100
        assert torch.equal(actual.labels, expected["labels"])
        assert (actual.boxes - expected["boxes"]).abs().max() <= 1e-2
        assert actual.names[0] == COCO_NAMES[int(actual.labels[0])]


def test_detections_on_photographs(pair: tuple[Any, Detector]) -> None:
    compare(pair, photographs(), wanted=2, size_px=EVERYDAY_PX)


@pytest.mark.prove
def test_detections_on_coco_images(pair: tuple[Any, Detector], real_data: Path) -> None:
    compare(pair, coco_images(real_data / "coco_mini" / "val2017"), wanted=2, size_px=EVERYDAY_PX)


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", EQUIVALENTS)
def test_answers_at_full_size(name: str, real_data: Path, tmp_path: Path) -> None:
    reference = lively(name, size_px=800)
    torch.save(reference.state_dict(), tmp_path / "lively.pth")
    detector = build(name, architecture={"detect": {"max_detections": KEPT}}).eval()
    load_into(detector, tmp_path / "lively.pth", input="imagenet")
    compare((reference, detector), coco_images(real_data / "coco_mini" / "val2017"), wanted=5, size_px=800)


def test_an_epsilon_of_another_version_would_be_noticed(pair: tuple[Any, Detector]) -> None:
    """The comparison can fail: the ε of BatchNorm, 1e-5 or 0, already shows."""
    _, detector = pair
    norms = [module for module in detector.backbone.modules() if hasattr(module, "eps")]
    assert {norm.eps for norm in norms} == {0.0 if detector.config.norm == "frozen" else 1e-5}
    kept = norms[0].eps
    for norm in norms:
        norm.eps = 1e-3
    try:
        with pytest.raises(AssertionError):
            compare(pair, photographs()[:2], wanted=1, size_px=EVERYDAY_PX)
    finally:
        for norm in norms:
            norm.eps = kept


@pytest.mark.parametrize("name", EQUIVALENTS)
def test_equivalents_keep_as_many_detections_as_torchvision(name: str) -> None:
    reference = EQUIVALENTS[name][0](weights=None, weights_backbone=None)
    detect = find_preset(name).config.detect
    actual = (detect.score_threshold, detect.top_k, detect.nms_iou, detect.max_detections)
    assert actual == (
        reference.score_thresh,
        reference.topk_candidates,
        reference.nms_thresh,
        reference.detections_per_img,
    )


def test_sizes_are_torchvisions() -> None:
    resize = find_preset("retinanet_r50_fpn_tv").preprocessing.resize
    transform = GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3)
    generator = torch.Generator().manual_seed(0)
    for height, width in torch.randint(60, 2000, (150, 2), generator=generator).tolist():
        thin = torch.zeros(1, 1, 1).expand(3, height, width)
        resized = transform.eval().resize(thin)[0]
        assert resize.target(ImageSize(height, width)) == tuple(resized.shape[1:]), (height, width)
