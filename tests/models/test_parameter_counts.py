"""Parameter counts of the published networks; P counts BatchNorm's affine part only where it is trained."""

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2

from focaldet.models import build

COUNTS = {
    "retinanet_r50_fpn": 37_915_572,
    "retinanet_r101_fpn": 56_855_476,
    "retinanet_x101_32x8d_fpn": 101_000_116,
    "retinanet_r50_fpn_tv": 34_014_999,
    "retinanet_r50_fpn_v2_tv": 38_198_935,
    "faster_rcnn_r50_fpn": 41_704_036,
    "faster_rcnn_r101_fpn": 60_643_940,
    "faster_rcnn_x101_32x8d_fpn": 104_788_580,
    "faster_rcnn_r50_fpn_tv": 41_755_286,
    "faster_rcnn_r101_c4": 52_731_548,
}
WITH_NORMS = {
    "faster_rcnn_r101_c4": 52_836_892,
    "faster_rcnn_r101_c4_plus": 53_659_153,
    "faster_rcnn_inception_resnet_v2": 59_943_481,
    "faster_rcnn_inception_resnet_v2_tdm": 61_354_617,
}
"""With what BatchNorm learns: of G-RMI's the shifts alone, as slim's has no scale."""
# torchvision counts the parameters of its V1 as it is built for the published weights: frozen BatchNorm has none.


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        detector = build(name)
    assert sum(parameter.numel() for parameter in detector.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", WITH_NORMS)
def test_parameter_counts_with_what_batch_norm_learns(name: str) -> None:
    with torch.device("meta"):
        detector = build(name, architecture={"norm": "batch"})
    assert sum(parameter.numel() for parameter in detector.parameters()) == WITH_NORMS[name]


@pytest.mark.parametrize(
    ("name", "difference"), [("retinanet_r101_fpn", 52_726_708 - 56_855_476), ("retinanet_x101_32x8d_fpn", -4_128_768)]
)
def test_p6_from_p5_saves_the_wide_convolution(name: str, difference: int) -> None:
    with torch.device("meta"):
        detector = build(name, architecture={"p6_from": "P5"})
    assert sum(parameter.numel() for parameter in detector.parameters()) == COUNTS[name] + difference


def test_torchvisions_own_counts_of_faster_rcnn() -> None:
    """Both, counted there; the first without BatchNorm's affine part, which its weights freeze."""
    with torch.device("meta"):
        first, second = (
            builder(weights=None, weights_backbone=None)
            for builder in (fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2)
        )
        preset = build("faster_rcnn_r50_fpn_v2_tv")
    norms = [module for module in first.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    frozen = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    assert sum(p.numel() for p in first.parameters()) - frozen == COUNTS["faster_rcnn_r50_fpn_tv"]
    assert sum(p.numel() for p in second.parameters()) == sum(p.numel() for p in preset.parameters()) == 43_712_278
    with torch.device("meta"):
        without = build("faster_rcnn_r50_fpn", architecture={"background_box": False})
    assert sum(p.numel() for p in without.parameters()) == COUNTS["faster_rcnn_r50_fpn"] - 4 * 1025


def test_mmdetections_counts_of_what_is_trained() -> None:
    """37.74 M: BatchNorm trained, but for the stem and the first stage, which are frozen (225 344 values)."""
    with torch.device("meta"):
        detector = build("retinanet_r50_fpn", architecture={"norm": "batch"})
    trained = sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)
    assert trained == 37_743_348


def test_backbone_parameters_are_those_of_the_backbone() -> None:
    with torch.device("meta"):
        detector = build("retinanet_r101_fpn", architecture={"norm": "batch"})
    assert sum(parameter.numel() for parameter in detector.backbone_parameters()) == 42_500_160
