"""timm's Inception-ResNet-v2 into the two halves of a detector."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import Detector, DetectorConfig, build
from focaldet.nets.inception_resnet import (
    INCEPTION_RESNETS,
    InceptionResNetShape,
    InceptionResNetTail,
    InceptionResNetTrunk,
)
from focaldet.nets.regions import PooledTail
from focaldet.types import Preprocessing
from focaldet.weights import load_into
from focaldet.weights.formats.timm import inception_resnet_tensors, is_inception_resnet
from tests.batches import full_sizes

THIN = InceptionResNetShape(factor=0.25, repeats=(1, 1, 1))


@dataclass(frozen=True)
class HalvesConfig(DetectorConfig):
    num_classes: int = 2
    backbone: str = "inception_resnet_v2"
    norm: str = "frozen"
    norm_eps: float = 1e-5
    shape: InceptionResNetShape = THIN


class TwoHalves(Detector):
    """A detector as far as weights go: the tail sits deep inside, behind an adapter of its own."""

    def __init__(self, config: HalvesConfig) -> None:
        super().__init__(config, class_names=("a", "b"), preprocessing=Preprocessing())
        self.backbone = InceptionResNetTrunk(config.shape, norm=config.norm, eps=config.norm_eps)
        tail = InceptionResNetTail(config.shape, norm=config.norm, eps=config.norm_eps)
        self.box_head = PooledTail(8, tail, tail_channels=tail.in_channels, width=tail.channels)

    def forward(self, images, sizes, targets=None):
        return self.box_head.tail(self.backbone(images)[-1])

    def losses(self, outputs, targets, context):
        return {}

    def detect(self, outputs, sizes):
        return []

    def backbone_parameters(self):
        return list(self.backbone.parameters())


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """What timm would save of a thin network, with its classifier; BatchNorm's scales are ones."""
    torch.manual_seed(0)
    halves = InceptionResNetTrunk(THIN, norm="batch"), InceptionResNetTail(THIN, norm="batch")
    named = {name: value for half in halves for name, value in half.state_dict().items()}
    for name, value in named.items():
        if name.endswith((".bias", "running_mean")):
            value.normal_(std=0.1)
    return named | {"classif.weight": torch.zeros(7, 384), "classif.bias": torch.zeros(7)}


def saved(tensors: dict[str, Tensor], path: Path, **statements: str) -> Path:
    save_file(tensors, path, metadata=statements)
    return path


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_both_halves_are_filled_and_the_classifier_is_skipped(tensors, tmp_path, norm: str) -> None:
    detector = TwoHalves(HalvesConfig(norm=norm))
    adapter = detector.box_head.adapter.weight.clone()
    report = load_into(detector, saved(tensors, tmp_path / "w", license="apache-2.0"), input="symmetric")
    state = detector.state_dict()
    new_names = {
        name: f"backbone.{name}" if f"backbone.{name}" in state else f"box_head.tail.{name}" for name in tensors
    }
    taken = [name for name in tensors if not name.startswith("classif.") and "num_batches" not in name]
    assert all(torch.equal(state[new_names[name]], tensors[name]) for name in taken)
    assert set(report.loaded) == {new_names[name] for name in taken}
    assert report.kind == "backbone"
    assert set(report.skipped) == {"classif.weight", "classif.bias"}
    assert report.license == "apache-2.0"
    assert torch.equal(detector.box_head.adapter.weight, adapter)
    text = " ".join(report.sentences())
    assert "input: symmetric (RGB)" in text and "norm_eps is now 0.001" in text and "scales" not in text
    assert detector.preprocessing.mean == (127.5,) * 3
    assert {module.eps for module in detector.modules() if hasattr(module, "running_var")} == {1e-3}


def test_a_file_of_timms_whole_network_fits_name_by_name() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        reference = timm.create_model("inception_resnet_v2").state_dict()
        detector = TwoHalves(HalvesConfig(shape=INCEPTION_RESNETS["inception_resnet_v2"]))
    assert is_inception_resnet(reference)
    renamed, expected, skipped = inception_resnet_tensors(detector, reference, source="timm")
    assert {name: tuple(value.shape) for name, value in renamed.items()} == expected
    assert set(detector.state_dict()) - set(expected) == {"box_head.adapter.weight", "box_head.adapter.bias"}
    assert skipped == ("classif.weight", "classif.bias")


def test_other_scales_are_kept_and_told_of(tensors, tmp_path) -> None:
    """A network that timm trained on has learned scales; the answer is the same with both kinds of norm."""
    name = "mixed_6a.branch1.2.bn.weight"
    tensors[name] = torch.rand(96)
    path, image, outputs = saved(tensors, tmp_path / "w", input="symmetric"), torch.randn(1, 3, 40, 40), []
    for norm in ("frozen", "batch"):
        detector = TwoHalves(HalvesConfig(norm=norm)).eval()
        report = load_into(detector, path)
        assert "1 of 42 scales of BatchNorm in the file are not 1 (first: mixed_6a.branch1.2.bn" in report.notes[0]
        assert torch.equal(detector.state_dict()[f"backbone.{name}"], tensors[name])
        with torch.inference_mode():
            outputs.append(detector(image, full_sizes(image)))
    torch.testing.assert_close(*outputs)


def test_cadenes_classifier_and_files_without_one(tensors, tmp_path) -> None:
    renamed = {name.replace("classif.", "last_linear."): value for name, value in tensors.items()}
    report = load_into(TwoHalves(HalvesConfig()), saved(renamed, tmp_path / "w"), input="symmetric")
    assert set(report.skipped) == {"last_linear.weight", "last_linear.bias"}
    bare = {name: value for name, value in tensors.items() if not name.startswith("classif.")}
    assert load_into(TwoHalves(HalvesConfig()), saved(bare, tmp_path / "b"), input="symmetric").skipped == ()


def test_what_does_not_fit_is_named(tensors, tmp_path) -> None:
    detector = TwoHalves(HalvesConfig())
    with pytest.raises(ConfigError, match=r"does not state .*--weights\.input .*Inception-ResNet-v2.*: symmetric"):
        load_into(detector, saved(tensors, tmp_path / "w"))
    lost = {name: value for name, value in tensors.items() if name != "block8.conv2d.bias"}
    with pytest.raises(CheckpointError, match=r"missing box_head\.tail\.block8\.conv2d\.bias"):
        load_into(detector, saved(lost, tmp_path / "lost"), input="symmetric")
    more = tensors | {"repeat.1.conv2d.bias": torch.zeros(80)}
    with pytest.raises(CheckpointError, match=r"left over backbone\.repeat\.1\.conv2d\.bias"):
        load_into(detector, saved(more, tmp_path / "more"), input="symmetric")


def test_a_detector_without_it_is_told_so(tensors, tmp_path) -> None:
    detector = build("retinanet_r18_fpn", num_classes=1, architecture={"width": 32, "head_depth": 1})
    path = saved(tensors, tmp_path / "w")
    with pytest.raises(CheckpointError, match=r"is an Inception-ResNet-v2, RetinaNetConfig .* 'resnet18' has none"):
        load_into(detector, path, input="symmetric")
