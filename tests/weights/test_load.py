"""Weights of every known kind into a detector, and what is reported."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from focaldet.data.formats.text import quantity
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import Detector, build, find_preset
from focaldet.types import Preprocessing, Resize
from focaldet.weights import load as load_module
from focaldet.weights import load_detector, load_into, save_detector, sources
from focaldet.weights.formats.detector_weights import COCO_NAMES

SMALL: dict[str, Any] = {"width": 32, "head_depth": 1}


def small(**changes: Any) -> Detector:
    return build("retinanet_r18_fpn", architecture=SMALL | changes.pop("architecture", {}), **changes)


def states_equal(left: nn.Module, right: nn.Module, names: tuple[str, ...]) -> bool:
    first, second = left.state_dict(), right.state_dict()
    return all(torch.equal(first[name], second[name]) for name in names)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    torch.manual_seed(1)
    preprocessing = Preprocessing(channels="BGR", mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), resize=Resize("long", 64))
    detector = small(class_names=("cat", "dog"), preprocessing=preprocessing)
    path = tmp_path_factory.mktemp("own") / "w.safetensors"
    save_detector(path, detector, license="MIT")
    return detector, path


def test_own_weights_with_the_same_classes(own: tuple[Detector, Path]) -> None:
    saved, path = own
    detector = small(class_names=("cat", "dog"))
    report = load_into(detector, path)
    assert (report.kind, report.reset, report.skipped, report.license) == ("detector", (), (), "MIT")
    assert states_equal(detector, saved, tuple(saved.state_dict()))
    assert set(report.loaded) == set(saved.state_dict())
    assert detector.preprocessing == replace(saved.preprocessing, resize=detector.preprocessing.resize)
    assert report.preprocessing == detector.preprocessing


CLASS_LAYER = ("class_subnet.predict.weight", "class_subnet.predict.bias")


@pytest.mark.parametrize("names", [("dog", "cat"), ("cat", "dog", "cow"), ("cell",), ("a", "b")])
def test_other_classes_reset_the_class_layer_and_are_reported(
    own: tuple[Detector, Path], names: tuple[str, ...]
) -> None:
    saved, path = own
    detector = small(class_names=names)
    fresh = {name: detector.state_dict()[name].clone() for name in CLASS_LAYER}
    report = load_into(detector, path)
    assert report.reset == CLASS_LAYER
    assert all(torch.equal(detector.state_dict()[name], fresh[name]) for name in CLASS_LAYER)
    kept = tuple(name for name in saved.state_dict() if name not in CLASS_LAYER)
    assert states_equal(detector, saved, kept)
    assert set(report.loaded) == set(kept)
    assert detector.class_names == names
    text = " ".join(report.sentences())
    assert f"class layer reset, it starts from random weights: here {quantity(len(names), 'class', 'classes')}" in text
    assert "in the file 2 classes (cat, dog)" in text


@pytest.mark.parametrize("names", [("cat", "dog"), ("cell",)])
def test_another_classifier_resets_the_class_layer_both_ways(
    own: tuple[Detector, Path], tmp_path: Path, names: tuple[str, ...]
) -> None:
    softmax = small(class_names=names, architecture={"classifier": "softmax", "prior": 0.4})
    fresh = {name: softmax.state_dict()[name].clone() for name in CLASS_LAYER}
    report = load_into(softmax, own[1])
    assert report.reset == CLASS_LAYER
    assert all(torch.equal(softmax.state_dict()[name], fresh[name]) for name in CLASS_LAYER)
    assert f"({', '.join(names)}) in a softmax, in the file 2 classes (cat, dog)" in " ".join(report.sentences())
    save_detector(tmp_path / "softmax.safetensors", softmax)
    assert load_detector(tmp_path / "softmax.safetensors").detector.config == softmax.config
    assert load_into(small(class_names=names), tmp_path / "softmax.safetensors").reset == CLASS_LAYER
    again = small(class_names=names, architecture={"classifier": "softmax"})
    assert load_into(again, tmp_path / "softmax.safetensors").reset == ()


def test_a_detector_without_names_takes_those_of_the_file(own: tuple[Detector, Path]) -> None:
    detector = small(num_classes=2)
    assert load_into(detector, own[1]).reset == ()
    assert detector.class_names == ("cat", "dog")


def test_a_named_input_overrules_the_file(own: tuple[Detector, Path]) -> None:
    detector = small(num_classes=2)
    report = load_into(detector, own[1], input="unit")
    assert (detector.preprocessing.channels, detector.preprocessing.std) == ("RGB", (255.0,) * 3)
    assert "input: unit (RGB)" in report.sentences()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"backbone": "resnet34"}, "backbone is 'resnet18' in the file, 'resnet34' here"),
        ({"stride_in_1x1": True}, "stride_in_1x1 is False in the file, True here"),
    ],
)
def test_another_backbone_is_refused(own: tuple[Detector, Path], setting: dict[str, Any], message: str) -> None:
    detector = small(num_classes=2, architecture=setting)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"made for another network: .*{message}"):
        load_into(detector, own[1])
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items()), "nothing was copied"


def test_group_norm_and_batch_norm_are_two_networks(tmp_path: Path) -> None:
    detector = build("faster_rcnn_r18_c4", class_names=("cat", "dog"))
    save_detector(tmp_path / "batch.safetensors", detector)
    load_into(build("faster_rcnn_r18_c4", class_names=("cat", "dog")), tmp_path / "batch.safetensors")
    load_into(
        build("faster_rcnn_r18_c4", num_classes=2, architecture={"norm": "frozen"}), tmp_path / "batch.safetensors"
    )
    with pytest.raises(CheckpointError, match="norm is 'batch' in the file, 'group' here"):
        load_into(build("faster_rcnn_r18_c4", architecture={"norm": "group"}), tmp_path / "batch.safetensors")


def test_settings_of_training_may_differ(own: tuple[Detector, Path]) -> None:
    setting = {"norm": "batch", "frozen_stages": 0, "loss": {"gamma": 1.0}, "detect": {"max_detections": 7}}
    detector = small(num_classes=2, architecture=setting)
    load_into(detector, own[1])
    assert detector.config.detect.max_detections == 7


# --- backbones


@pytest.fixture(scope="module")
def classifier() -> dict[str, Tensor]:
    torch.manual_seed(2)
    state: dict[str, Tensor] = torchvision.models.resnet18(weights=None).state_dict()
    return state


@pytest.fixture(scope="module")
def backbone_path(classifier: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "resnet18.pth"
    torch.save(classifier, path)
    return path


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_a_backbone_alone(backbone_path: Path, classifier: dict[str, Tensor], norm: str) -> None:
    detector = small(num_classes=2, architecture={"norm": norm})
    pyramid = detector.state_dict()["pyramid.p6.weight"].clone()
    report = load_into(detector, backbone_path, input="imagenet")
    assert (report.kind, report.reset, report.skipped) == ("backbone", (), ("fc.weight", "fc.bias"))
    state = detector.state_dict()
    for name, value in classifier.items():
        if not name.startswith("fc.") and "num_batches" not in name:
            assert torch.equal(state[f"backbone.{name}"], value), name
            assert f"backbone.{name}" in report.loaded
    assert torch.equal(state["pyramid.p6.weight"], pyramid)
    assert "skipped: fc.weight, fc.bias" in report.sentences()[0]


def test_a_file_that_states_no_input_is_never_guessed(backbone_path: Path) -> None:
    detector = small(num_classes=2)
    with pytest.raises(ConfigError, match=r"resnet18\.pth: does not state .* --weights\.input"):
        load_into(detector, backbone_path)


def test_a_stated_input_is_taken_and_an_unknown_one_refused(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    detector = small(num_classes=2)
    save_file(classifier, tmp_path / "w", metadata={"input": "x/127.5-1, BGR"})
    report = load_into(detector, tmp_path / "w")
    assert (detector.preprocessing.channels, detector.preprocessing.mean) == ("BGR", (127.5,) * 3)
    assert report.preprocessing == detector.preprocessing
    save_file(classifier, tmp_path / "w", metadata={"input": "the usual"})
    with pytest.raises(ConfigError, match="'the usual' is neither"):
        load_into(detector, tmp_path / "w")
    load_into(detector, tmp_path / "w", input="unit")
    assert detector.preprocessing.std == (255.0,) * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer4.1.conv2.weight"), r"missing backbone\.layer4\.1\.conv2\.weight"),
        (lambda state: state.update({"layer5.weight": torch.zeros(1)}), r"left over backbone\.layer5\.weight"),
        (
            lambda state: state.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"conv1\.weight has shape \(64, 1, 7, 7\) in the file, \(64, 3, 7, 7\) in the network",
        ),
        (
            lambda state: state.update({"bn1.bias": torch.zeros(64, dtype=torch.int64)}),
            r"bn1\.bias: is torch\.int64, must be floating",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_is_named(
    classifier: dict[str, Tensor], tmp_path: Path, change: Any, message: str
) -> None:
    state = dict(classifier)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_into(small(num_classes=2), tmp_path / "w.pth", input="imagenet")


def test_a_backbone_of_another_depth_is_refused(backbone_path: Path) -> None:
    detector = build("retinanet_mobilenet_v2_fpn", num_classes=1)
    with pytest.raises(CheckpointError, match=r"made for another network: missing backbone\.features\.0\.0\.weight"):
        load_into(detector, backbone_path, input="imagenet")


def test_msra_strides_contradict_torchvision(backbone_path: Path) -> None:
    with pytest.raises(ConfigError, match="stride_in_1x1 must be false"):
        load_into(small(num_classes=1, architecture={"stride_in_1x1": True}), backbone_path, input="imagenet")


def test_the_epsilon_follows_the_weights(backbone_path: Path) -> None:
    detector = small(num_classes=2, architecture={"norm_eps": 0.0})
    report = load_into(detector, backbone_path, input="imagenet")
    assert detector.config.norm_eps == 1e-5
    assert {module.eps for module in detector.modules() if hasattr(module, "running_var")} == {1e-5}
    assert any("norm_eps is now 1e-05 instead of 0" in line for line in report.sentences())


def test_an_unknown_layout_is_named(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"not a layout that focaldet knows \(first tensors: encoder\.weight\)"):
        load_into(small(num_classes=2), tmp_path / "w.pth", input="imagenet")


def test_the_shared_mobilenet_states_its_input_and_stays_frozen(real_weights: Path) -> None:
    detector = build("retinanet_mobilenet_v2_fpn", num_classes=3)
    path = real_weights / "mobilenet_v2.safetensors"
    report = load_into(detector, path)
    assert (detector.preprocessing.mean, detector.preprocessing.std) == ((127.5,) * 3, (127.5,) * 3)
    text = " ".join(report.sentences())
    assert "input: symmetric (RGB)" in text
    assert "BatchNorm of the backbone stays frozen" in text
    assert report.license == "Apache-2.0"
    assert {name.split(".")[0] for name in report.skipped} <= {"classifier", "features"}
    trained = build("retinanet_mobilenet_v2_fpn", num_classes=3, architecture={"norm": "batch"})
    with pytest.raises(ConfigError, match="asks to keep BatchNorm frozen"):
        load_into(trained, path)


# --- torchvision's detectors


@pytest.fixture(scope="module")
def retinanet() -> dict[str, Tensor]:
    """The state dict of torchvision's V1 with 91 classes; its BatchNorm is frozen, as in the published file."""
    torch.manual_seed(3)
    model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    return {name: value for name, value in model.state_dict().items() if "num_batches" not in name}


@pytest.fixture
def retinanet_path(retinanet: dict[str, Tensor], tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "retinanet.pth"
    torch.save(retinanet, path)
    yield path
    path.unlink()


def test_a_torchvision_detector_opens_as_its_equivalent_preset(
    retinanet_path: Path, retinanet: dict[str, Tensor]
) -> None:
    state = torch.get_rng_state()
    trained = load_detector(retinanet_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert trained.detector.config == find_preset("retinanet_r50_fpn_tv").config
    assert trained.detector.class_names == COCO_NAMES
    assert trained.category_ids == tuple(range(91))
    state = trained.detector.state_dict()
    pairs = {
        "backbone.layer3.5.bn2.running_var": "backbone.body.layer3.5.bn2.running_var",
        "pyramid.lateral.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "pyramid.output.2.bias": "backbone.fpn.layer_blocks.2.0.bias",
        "pyramid.p7.weight": "backbone.fpn.extra_blocks.p7.weight",
        "class_subnet.tower.3.weight": "head.classification_head.conv.3.0.weight",
        "class_subnet.predict.weight": "head.classification_head.cls_logits.weight",
        "box_subnet.predict.bias": "head.regression_head.bbox_reg.bias",
    }
    assert all(torch.equal(state[left], retinanet[right]) for left, right in pairs.items())


def test_old_names_and_fine_tuning(retinanet: dict[str, Tensor], tmp_path: Path) -> None:
    """Before torchvision 0.13: no `.0` in the pyramid, towers numbered with their ReLUs."""
    old = {}
    for name, value in retinanet.items():
        key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0", r"\1.\2", name)
        old[re.sub(r"_head\.conv\.(\d)\.0", lambda match: f"_head.conv.{2 * int(match[1])}", key)] = value
    assert "backbone.fpn.inner_blocks.0.weight" in old and "head.regression_head.conv.6.bias" in old
    torch.save({"model": old, "epoch": 25}, tmp_path / "old.pth")
    detector = build("retinanet_r50_fpn_tv", class_names=("plate",))
    report = load_into(detector, tmp_path / "old.pth")
    assert report.reset == CLASS_LAYER
    assert "in the file 91 classes (__background__, person, bicycle, car and 87 more)" in " ".join(report.sentences())
    assert "the file states no input" in " ".join(report.sentences())
    weight = detector.state_dict()["class_subnet.tower.3.weight"]
    assert torch.equal(weight, retinanet["head.classification_head.conv.3.0.weight"])


def test_counted_batches_tell_the_ordinary_epsilon(retinanet: dict[str, Tensor], tmp_path: Path) -> None:
    state = dict(retinanet) | {"backbone.body.bn1.num_batches_tracked": torch.tensor(7)}
    torch.save(state, tmp_path / "w.pth")
    assert load_detector(tmp_path / "w.pth").detector.config.norm_eps == 1e-5


def test_another_preset_is_refused_and_the_right_one_named(retinanet_path: Path) -> None:
    with torch.device("meta"):
        detector = build("retinanet_r50_fpn")
    with pytest.raises(CheckpointError, match=r"anchors\.flavor is 'torchvision'.*it fits retinanet_r50_fpn_tv"):
        load_into(detector, retinanet_path)


@pytest.mark.parametrize("drop", ["backbone.fpn.extra_blocks.p6.bias", "head.regression_head.bbox_reg.weight"])
def test_a_missing_tensor_is_named(retinanet: dict[str, Tensor], tmp_path: Path, drop: str) -> None:
    torch.save({name: value for name, value in retinanet.items() if name != drop}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"missing (pyramid\.p6\.bias|.*box_subnet\.predict\.weight)"):
        load_into(build("retinanet_r50_fpn_tv"), tmp_path / "w.pth")


def test_coco_names_are_torchvisions() -> None:
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    assert list(COCO_NAMES) == RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert (len(COCO_NAMES), COCO_NAMES.count("N/A"), COCO_NAMES[90]) == (91, 10, "toothbrush")


# --- opening


def test_run_folders_open_their_best_weights(own: tuple[Detector, Path], tmp_path: Path) -> None:
    saved, path = own
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / "best.safetensors").write_bytes(path.read_bytes())
    trained = load_detector(tmp_path / "run")
    assert states_equal(trained.detector, saved, tuple(saved.state_dict()))
    assert trained.detector.preprocessing == saved.preprocessing
    changed = load_detector(str(tmp_path / "run"), input="unit").detector.preprocessing
    assert changed == replace(saved.preprocessing, channels="RGB", mean=(0.0,) * 3, std=(255.0,) * 3)


def test_a_backbone_alone_is_not_a_detector(backbone_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a detector"):
        load_detector(backbone_path)


def test_published_names_carry_their_input(backbone_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.WeightsSource("torchvision:imagenet_v1", backbone_path, input="imagenet", license="BSD")
    asked: dict[str, object] = {}

    def find_weights(spec: object, **known: object) -> sources.WeightsSource:
        asked.update(known, spec=spec)
        return source

    monkeypatch.setattr(load_module, "find_weights", find_weights)
    report = load_into(small(num_classes=2), "torchvision:imagenet_v1")
    assert asked["backbone"] == "resnet18"
    assert (report.preprocessing.mean, report.license) == (Preprocessing().mean, "BSD")
