"""Faster R-CNN on one map, with conv5 as its head: R101-C4, G-RMI and TDM."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet18
from torchvision.ops import roi_align

import focaldet
from focaldet.models import PRESETS, LossContext, build, find_preset
from focaldet.nets.regions import RPNHead, RPNHeadConfig
from focaldet.ops.anchors import pyramid_anchors
from focaldet.types import ImageSize, Target
from focaldet.weights import load_into, save_detector
from focaldet.weights.formats.timm import inception_resnet_tensors

C4_PRESETS = [name for name, preset in PRESETS.items() if getattr(preset.config, "trunk", None) == "c4"]
SMALL_C4 = ["faster_rcnn_r18_c4", "faster_rcnn_inception_resnet_small", "faster_rcnn_inception_resnet_small_tdm"]


SIZES = [ImageSize(64, 96), ImageSize(64, 96)]


def random_images(count=2):
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"backbone": "mobilenet_v2"}, "'mobilenet_v2' cannot be cut for trunk.*inception_resnet_v2.*resnet18"),
        ({"output_stride": 8}, "output_stride: 8 needs an Inception-ResNet-v2 backbone; resnet18 has 16"),
        ({"output_stride": 4}, "output_stride: Input should be 8 or 16"),
        (
            {"backbone": "inception_resnet_small", "pooling": {"size": 2}},
            r"pooling\.size: must be at least 3 for inception_resnet_small.*got 2",
        ),
        ({"top_down": [8, 8, 8]}, "top_down: .*at most 2 items"),
        ({"trunk": "pyramid", "top_down": [8]}, 'top_down: has no effect with trunk: "pyramid"; leave it at '),
        ({"head_width": 512}, 'head_width: has no effect with trunk: "c4"; leave it at 1024'),
        ({"rpn_head": {"depth": 0}}, "rpn_head.depth: Input should be greater than 0"),
        ({"plus": {"scales": [1.0, 0.0]}}, "plus.scales.1: Input should be greater than 0"),
        ({"plus": {"refine": {"vote_iou": 2.0}}}, "plus.refine.vote_iou: Input should be less than or equal to 1"),
    ],
)
def test_settings_out_of_range_are_named(setting, problem):
    with pytest.raises(focaldet.ConfigError, match=problem):
        build("faster_rcnn_r18_c4", num_classes=2, architecture=setting)


@torch.inference_mode()
def test_c4_and_conv5_are_torchvisions_resnet(tmp_path):
    """Its ImageNet weights fill both: C4 is its layer3, and a region's vector its layer4 on what RoIAlign cuts out."""
    torch.manual_seed(0)
    classifier = resnet18().eval()
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    detector = build("faster_rcnn_r18_c4", num_classes=2, architecture={"norm": "frozen"}).eval()
    report = load_into(detector, tmp_path / "resnet18.pth", input="imagenet")
    assert report.kind == "backbone" and report.skipped == ("fc.weight", "fc.bias")
    assert "roi_head.tail.1.conv2.weight" in report.loaded
    c = classifier
    levels, _ = detector.first_stage(random_images(), SIZES)
    stem = c.maxpool(c.relu(c.bn1(c.conv1(detector.normalize(random_images())))))
    c4 = c.layer3(c.layer2(c.layer1(stem)))
    torch.testing.assert_close(levels[0], c4, rtol=1e-3, atol=1e-3)
    raw = detector(random_images(), SIZES)
    rows = torch.cat([raw.image_index[:, None].float(), raw.regions], 1)
    vectors = c.layer4(roi_align(c4, rows, 7, 1 / 16, 2, aligned=True)).mean((2, 3))
    torch.testing.assert_close(raw.logits, detector.predictor.classes(vectors), rtol=1e-3, atol=1e-3)


def test_inception_resnet_v2_of_timm_fills_trunk_and_head():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        classifier = timm.create_model("inception_resnet_v2").state_dict()
        for name in ("faster_rcnn_inception_resnet_v2", "faster_rcnn_inception_resnet_v2_tdm"):
            detector = build(name)
            tensors, expected, left_out = inception_resnet_tensors(detector, classifier, source="timm")
            assert {name: tuple(value.shape) for name, value in tensors.items()} == expected
            assert left_out == ("classif.weight", "classif.bias")
            own = {name for name, _ in detector.named_parameters()} - set(expected)
            fresh = {name.split(".")[0] for name in own}
            assert fresh <= {"rpn_head", "predictor", "pyramid", "roi_head"}
            assert {name for name in own if name.startswith("roi_head.")} <= {
                "roi_head.adapter.weight",
                "roi_head.adapter.bias",
            }


@pytest.mark.parametrize(
    "name", [name if name in SMALL_C4 else pytest.param(name, marks=pytest.mark.prove) for name in C4_PRESETS]
)
@pytest.mark.parametrize("change", [{}, {"output_stride": 8}, {"top_down": [8]}, {"top_down": [8, 8]}])
def test_anchors_are_as_large_on_every_map(name, change):
    config = find_preset(name).config
    if change.get("output_stride") and not config.backbone.startswith("inception"):
        return
    with torch.device("meta"):
        detector = build(name, num_classes=2, architecture=change)
        levels = detector.levels(torch.empty(1, 3, 128, 160))
    (stride,) = detector.config.strides_px
    assert [tuple(level.shape[-2:]) for level in levels] == [(128 // stride, 160 // stride)]
    anchors = pyramid_anchors(
        detector.config.laid_anchors, strides_px=(stride,), shapes=((8 * 16 // stride, 10),), image=(128, 160)
    )
    sides = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt().unique()
    smallest = {"faster_rcnn_r101_c4": 32.0, "faster_rcnn_r101_c4_plus": 64.0}.get(name, 64.0)
    smallest = 16.0 if name in SMALL_C4 else smallest
    assert float(sides.min()) == pytest.approx(smallest, rel=1e-5)
    grids = detector.config.grids(ImageSize(128, 160))
    assert [grid.cells for grid in grids] == [(128 // stride, 160 // stride)]
    assert grids[0].smallest_area == pytest.approx(smallest**2, rel=1e-4)
    assert detector.rpn_head.tower[0].dilation[0] == 16 // stride


@torch.inference_mode()
def test_two_values_of_an_anchor_are_the_logit_of_a_softmax():
    torch.manual_seed(0)
    head = RPNHead(4, config=RPNHeadConfig(width=6, relu6=True, softmax=True), per_cell=3, dilation=2, bias=0.7)
    assert head.objectness.bias.tolist() == pytest.approx([0.0, 0.7] * 3)
    for layer in (head.tower[0], head.objectness):
        torch.nn.init.normal_(layer.weight, std=0.5)
    x = torch.randn(2, 4, 5, 7) * 4
    logit, boxes = head([x])
    tower = F.relu6(F.conv2d(x, head.tower[0].weight, head.tower[0].bias, padding=2, dilation=2))
    assert float(tower.max()) == 6.0
    values = F.conv2d(tower, head.objectness.weight, head.objectness.bias)  # anchors outer, nothing and object inner
    pairs = values.reshape(2, 3, 2, 5, 7).permute(0, 3, 4, 1, 2)
    torch.testing.assert_close(logit.sigmoid(), pairs.softmax(-1)[..., 1].reshape(2, -1), rtol=1e-4, atol=1e-6)
    assert boxes.shape == (2, 105, 4)


def test_without_objects_among_the_regions_proposals_are_alone():
    target = Target(torch.tensor([[3.0, 5.0, 31.0, 37.0]]), torch.tensor([1]), torch.tensor([False]))
    for joined in (True, False):
        detector = build(
            "faster_rcnn_r18_c4", num_classes=2, architecture={"proposals": {"objects_join": joined}}
        ).eval()
        with torch.inference_mode():
            raw = detector(random_images(1), SIZES[:1], [target])
        assert bool((raw.regions == target.boxes).all(1).any()) == joined
    assert not find_preset("faster_rcnn_inception_resnet_v2").config.proposals.objects_join


@pytest.mark.parametrize("name", SMALL_C4)
@pytest.mark.parametrize("change", [{}, {"norm": "batch", "plus": {"context": True}}])
def test_without_a_single_region_all_parameters_have_a_gradient(name, change, monkeypatch):
    monkeypatch.setattr("focaldet.models.faster_rcnn.losses.propose", lambda *_, **__: torch.zeros(0, 4))
    torch.manual_seed(0)
    detector = build(name, num_classes=2, architecture=change).train()
    empty = [Target.empty(), Target.empty()]
    raw = detector(random_images(), SIZES, empty)
    assert raw.regions.shape == (0, 4) and raw.logits.shape == (0, 3)
    torch.stack(list(detector.losses(raw, empty, LossContext()).values())).sum().backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert not detector.predictor.classes.weight.grad.any()


def test_top_down_modules_go_into_a_trained_detector(tmp_path):
    """TDM's second phase: trunk, head and last layers are those of the first, the modules are fresh."""
    torch.manual_seed(0)
    first = build("faster_rcnn_inception_resnet_small", class_names=("cat", "dog"))
    save_detector(tmp_path / "first.safetensors", first)
    second = build("faster_rcnn_inception_resnet_small_tdm", class_names=("cat", "dog"))
    before = copy.deepcopy(second.state_dict())
    report = load_into(second, tmp_path / "first.safetensors")
    assert report.kind == "encoder" and {"rpn_head.boxes.bias"} <= set(report.skipped)
    assert report.notes[-1].startswith("starts from random weights: pyramid.") and "predictor" not in report.notes[-1]
    given, taken_over = first.state_dict(), second.state_dict()
    for name, value in taken_over.items():
        taken = name.startswith(("backbone.", "roi_head.tail.", "predictor."))
        assert torch.equal(value, given[name] if taken else before[name]), name
    for names in (("cat", "dog", "hen"), ("dog", "cat")):
        other = build("faster_rcnn_inception_resnet_small_tdm", class_names=names)
        fresh = other.predictor.boxes.weight.clone()
        report = load_into(other, tmp_path / "first.safetensors")
        assert not any(name.startswith("predictor.") for name in report.loaded)
        assert len(report.reset) == 4 and "class layer reset" in report.notes[-1]
        assert torch.equal(other.predictor.boxes.weight, fresh)
    with pytest.raises(focaldet.CheckpointError, match=r"pooling\.size is 9 in the file, 7 here"):
        load_into(
            build("faster_rcnn_inception_resnet_small_tdm", num_classes=2, architecture={"pooling": {"size": 7}}),
            tmp_path / "first.safetensors",
        )
    with pytest.raises(focaldet.CheckpointError, match="made for another network"):
        load_into(build("faster_rcnn_r18_c4", num_classes=2), tmp_path / "first.safetensors")
