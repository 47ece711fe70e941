"""Any backbone of timm from a file of its classifier, and what two detectors of focaldet's share."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import Detector, build
from focaldet.weights import find_weights, load_into, read_tensors, save_detector, sources

timm = pytest.importorskip("timm")


def small(backbone: str, **architecture: Any) -> Detector:
    return build(
        "retinanet_r18_fpn",
        num_classes=2,
        architecture={"backbone": backbone, "width": 32, "head_depth": 1} | architecture,
    )


# ConvNeXt's maps have other names in timm's network of feature maps than in its classifier.
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "efficientnet_lite0"])
def test_a_backbone_of_timm_gives_the_maps_of_its_classifier(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    detector = small(f"timm:{name}", frozen_stages=0).eval()
    state = torch.get_rng_state()
    report = load_into(detector, tmp_path / "w.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model.forward_intermediates(x, intermediates_only=True)[-4:]
        actual = detector.get_submodule("backbone")(x)
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right)
    classifier = {"fc", "classifier", "conv_head", "head", "bn2"}
    assert report.skipped and {part.split(".")[0] for part in report.skipped} <= classifier
    mean = torch.tensor(timm.data.resolve_data_config(model=model)["mean"]) * 255
    torch.testing.assert_close(torch.tensor(detector.preprocessing.mean), mean)
    assert f"that is what timm states for {name}" in " ".join(report.sentences())


def test_torchvisions_file_is_timms_too_and_states_go_before_timms(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    save_file(state, tmp_path / "w.safetensors", metadata={"input": "unit", "licence": "MIT"})
    detector = small("timm:resnet18")
    report = load_into(detector, tmp_path / "w.safetensors")
    assert torch.equal(detector.state_dict()["backbone.model.conv1.weight"], state["conv1.weight"])
    assert (detector.preprocessing.std, report.license) == ((255.0,) * 3, "MIT")
    assert report.notes == ()


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"^[^\n]*made for another network: [^\n]*size mismatch[^\n]*$"):
        load_into(small("timm:resnet26"), tmp_path / "w.safetensors")
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"made for another network: missing model\.layer1\.0\.conv1\.weight$"):
        load_into(small("timm:resnet18"), tmp_path / "w.safetensors")


def test_batch_norm_of_timm_is_frozen_or_trained(tmp_path: Path) -> None:
    for norm in ("frozen", "batch"):
        backbone = small("timm:resnet18", norm=norm, frozen_stages=0).get_submodule("backbone").train()
        norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        before = [module.running_mean.clone() for module in norms]
        backbone(torch.randn(2, 3, 64, 64))
        changed = [not torch.equal(module.running_mean, old) for module, old in zip(norms, before, strict=True)]
        learns = [module.weight.requires_grad for module in norms]
        assert (all(changed), any(changed)) == (all(learns), any(learns)) == ((norm == "batch"),) * 2
        assert backbone.model.conv1.weight.requires_grad
    with pytest.raises(ConfigError, match=r"timm:resnet18: .* norm must be batch or frozen"):
        small("timm:resnet18", norm="group")


def test_a_name_of_timm_is_downloaded_from_where_timm_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Path]] = []

    def download(url: str, folder: Path, *, progress: object) -> Path:
        asked.append((url, folder))
        return folder / "model.safetensors"

    monkeypatch.setenv("FOCALDET_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "download", download)
    source = find_weights("timm:tf_efficientnet_lite0")
    full = "tf_efficientnet_lite0.in1k"
    assert asked == [
        (f"https://huggingface.co/timm/{full}/resolve/main/model.safetensors", tmp_path / "weights" / "timm" / full)
    ]
    assert (source.label, source.input) == (f"timm:{full}", "(x - (127.5, 127.5, 127.5)) / (127.5, 127.5, 127.5), RGB")
    for name in ("timm:no_such_model", "timm:resnet18.no_such_tag"):
        with pytest.raises(ConfigError, match=name):
            find_weights(name)


# --- another detector of focaldet's


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("retinanet") / "w.safetensors"
    detector = build("retinanet_mobilenet_v2_fpn", class_names=("cat", "dog"), architecture={"width": 32})
    save_detector(path, detector, license="MIT")
    return path


@pytest.mark.parametrize(
    ("model", "architecture", "kind", "levels"),
    [
        ("retinanet_mobilenet_v2_fpn", {"anchors": {"base_scale": 3.0}}, "backbone and pyramid", "012"),
        ("retinanet_mobilenet_v2_fpn", {"p6_from": "C5"}, "backbone and pyramid", "012"),
        ("faster_rcnn_mobilenet_v2_fpn", {"head_width": 32}, "backbone and pyramid", "123"),  # which begins with P2
        ("retinanet_mobilenet_v2_fpn", {"width": 64}, "backbone", ""),
        ("ssd_mobilenet_v2", {}, "backbone", ""),
    ],
)
def test_another_detector_gives_backbone_and_pyramid(
    retinanet: Path, model: str, architecture: dict[str, Any], kind: str, levels: str
) -> None:
    detector = build(
        model, class_names=("cat", "dog"), architecture={"width": 32} | architecture if "ssd" not in model else {}
    )
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    report = load_into(detector, retinanet)
    assert (report.kind, report.license) == (kind, "MIT")
    text = " ".join(report.sentences())
    assert "the file is of another detector: " in text and "starts from random weights: " in text
    file = read_tensors(retinanet).tensors
    now = detector.state_dict()
    for name, value in now.items():
        if name.startswith("backbone."):
            assert torch.equal(value, file[name])
        if name not in report.loaded:
            assert torch.equal(value, before[name])
    offset = int(levels[0]) if levels else 0
    for level in levels:
        for part in ("lateral", "output"):
            name, old = (f"pyramid.{part}.{number}.weight" for number in (int(level), int(level) - offset))
            assert torch.equal(now[name], file[old]) and name in report.loaded
    coarse = architecture == {"anchors": {"base_scale": 3.0}}
    assert ("pyramid.p6.weight" in report.loaded) == coarse
    assert ("pyramid.p6.weight" in report.skipped) != coarse


def test_norms_of_timm_keep_what_they_add_to_the_variance(tmp_path: Path) -> None:
    """A file of another detector with the same backbone says it of the norms that are focaldet's."""
    other = {"backbone": "timm:resnet18", "norm_eps": 1e-3}
    save_detector(tmp_path / "w.safetensors", build("ssd_mobilenet_v2", class_names=("a", "b"), architecture=other))
    detector = small("timm:resnet18", norm_eps=1e-5, frozen_stages=0)
    report = load_into(detector, tmp_path / "w.safetensors")
    assert report.kind == "backbone" and detector.config.norm_eps == 1e-3
    norms = [module for module in detector.get_submodule("backbone").modules() if isinstance(module, nn.BatchNorm2d)]
    assert {module.eps for module in norms} == {1e-5}
