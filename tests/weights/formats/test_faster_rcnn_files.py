"""torchvision's Faster R-CNN files: both layouts, old names, the position of the background, and what is refused."""

import re

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2

from focaldet.errors import CheckpointError
from focaldet.models import build, find_preset
from focaldet.weights import load_detector, load_into
from focaldet.weights.formats.detector_weights import COCO_NAMES
from focaldet.weights.formats.torchvision import rename_torchvision_tensors

# Names of torchvision's first and second model, and where their tensors go.
PAIRS = {
    "faster_rcnn_r50_fpn_tv": {
        "backbone.layer3.5.bn2.running_var": "backbone.body.layer3.5.bn2.running_var",
        "pyramid.lateral.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "pyramid.output.3.bias": "backbone.fpn.layer_blocks.3.0.bias",
        "rpn_head.tower.0.weight": "rpn.head.conv.0.0.weight",
        "rpn_head.objectness.bias": "rpn.head.cls_logits.bias",
        "rpn_head.boxes.weight": "rpn.head.bbox_pred.weight",
        "roi_head.fc6.weight": "roi_heads.box_head.fc6.weight",
        "roi_head.fc7.bias": "roi_heads.box_head.fc7.bias",
    },
    "faster_rcnn_r50_fpn_v2_tv": {
        "pyramid.lateral.2.weight": "backbone.fpn.inner_blocks.2.0.weight",
        "pyramid.lateral_norms.2.running_mean": "backbone.fpn.inner_blocks.2.1.running_mean",
        "pyramid.output_norms.0.weight": "backbone.fpn.layer_blocks.0.1.weight",
        "rpn_head.tower.1.bias": "rpn.head.conv.1.0.bias",
        "roi_head.tower.3.weight": "roi_heads.box_head.3.0.weight",
        "roi_head.norms.0.running_var": "roi_heads.box_head.0.1.running_var",
        "roi_head.fc.weight": "roi_heads.box_head.5.weight",
    },
}
BUILDERS = {
    "faster_rcnn_r50_fpn_tv": fasterrcnn_resnet50_fpn,
    "faster_rcnn_r50_fpn_v2_tv": fasterrcnn_resnet50_fpn_v2,
}


def drawn(name, *, counters):
    """Random values under the names and shapes of torchvision's own model."""
    with torch.device("meta"):
        shapes = BUILDERS[name](weights=None, weights_backbone=None).state_dict()
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(value.shape, generator=generator) if value.ndim else torch.tensor(3)
        for key, value in shapes.items()
        if counters or value.ndim
    }


@pytest.fixture(scope="module")
def first():
    return drawn("faster_rcnn_r50_fpn_tv", counters=False)


@pytest.mark.parametrize("name", PAIRS)
def test_it_opens_as_its_equivalent_preset(name, tmp_path):
    tensors = drawn(name, counters=name.endswith("v2_tv"))
    torch.save(tensors, tmp_path / "w.pth")
    trained = load_detector(tmp_path / "w.pth")
    (tmp_path / "w.pth").unlink()
    assert trained.detector.config == find_preset(name).config
    assert trained.detector.class_names == COCO_NAMES[1:]
    assert trained.category_ids == tuple(range(1, 91))
    state = trained.detector.state_dict()
    assert all(torch.equal(state[left], tensors[right]) for left, right in PAIRS[name].items())
    classes, boxes = (tensors[f"roi_heads.box_predictor.{layer}.weight"] for layer in ("cls_score", "bbox_pred"))
    assert torch.equal(state["predictor.classes.weight"], torch.cat([classes[1:], classes[:1]]))
    assert torch.equal(state["predictor.boxes.weight"], torch.cat([boxes[4:], boxes[:4]]))


def test_old_names_are_the_same_file(first):
    """Before torchvision 0.13: one name less in the pyramid and in the proposal head."""
    old = {}
    for name, value in first.items():
        key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0", r"\1.\2", name)
        old[key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = value
    assert "rpn.head.conv.weight" in old and "backbone.fpn.layer_blocks.3.bias" in old
    new, renamed = rename_torchvision_tensors(first), rename_torchvision_tensors(old)
    assert new.keys() == renamed.keys() and all(torch.equal(new[name], renamed[name]) for name in new)


def test_fine_tuning_resets_the_class_layer(first, tmp_path):
    torch.save({"model": first}, tmp_path / "w.pth")
    detector = build("faster_rcnn_r50_fpn_tv", class_names=("plate",))
    report = load_into(detector, tmp_path / "w.pth")
    assert set(report.reset) == {
        f"predictor.{layer}.{part}" for layer in ("classes", "boxes") for part in ("weight", "bias")
    }
    assert "in the file 90 classes (person, bicycle, car, motorcycle and 86 more)" in " ".join(report.sentences())
    assert torch.equal(detector.roi_head.fc7.weight, first["roi_heads.box_head.fc7.weight"])


def test_how_it_learns_may_differ_and_what_a_tensor_means_may_not(first, tmp_path):
    torch.save(first, tmp_path / "w.pth")
    free = {"rpn": {"beta": 0.5}, "region": {"loss": "focal"}, "proposals": {"nms_iou": 0.6}, "straddle_px": 0.0}
    load_into(build("faster_rcnn_r50_fpn_tv", architecture=free), tmp_path / "w.pth")
    with torch.device("meta"):
        other = build("faster_rcnn_r50_fpn", num_classes=90)
    with pytest.raises(CheckpointError, match=r"anchors\.flavor is 'torchvision'.*pooling\.kind is 'align_legacy'"):
        load_into(other, tmp_path / "w.pth")
    with torch.device("meta"):
        retinanet = build("retinanet_r50_fpn_tv")
    with pytest.raises(CheckpointError, match="FasterRCNNConfig, not RetinaNetConfig"):
        load_into(retinanet, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("rpn.head.bbox_pred.bias", r"missing rpn_head\.boxes\.bias"),
        ("roi_heads.mask_head.mask_fcn1.weight", r"left over roi_heads\.mask_head\.mask_fcn1\.weight"),
    ],
)
def test_missing_and_left_over_tensors_are_named(first, tmp_path, change, problem):
    tensors = dict(first)
    if tensors.pop(change, None) is None:
        tensors[change] = torch.zeros(1)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=problem):
        load_into(build("faster_rcnn_r50_fpn_tv"), tmp_path / "w.pth")


@pytest.mark.parametrize("count", [0, 1, 1_000_000])
def test_a_class_layer_of_no_classes_or_too_many_names_the_file(first, tmp_path, count):
    layer = "roi_heads.box_predictor.cls_score.weight"
    torch.save(first | {layer: torch.zeros(count, 1)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: its class and box layers are not of a whole number"):
        load_detector(tmp_path / "odd.pth")


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_number_in_the_place_of_a_layer_names_the_file(first, tmp_path, part):
    torch.save(first | {f"roi_heads.box_predictor.cls_score.{part}": torch.tensor(1.0)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: "):
        load_detector(tmp_path / "odd.pth")
