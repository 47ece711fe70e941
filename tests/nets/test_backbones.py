"""Backbones give torchvision's feature maps for torchvision's weights."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.nets import BACKBONES, Backbone, build_backbone
from focaldet.nets.norm import FrozenBatchNorm, NormKind

SIZE_PX = (96, 64)
TORCHVISIONS = [name for name in BACKBONES if hasattr(torchvision.models, name)]


@torch.no_grad()
def lively(name: str) -> nn.Module:
    """torchvision's classifier with random affine parts and statistics measured on noise with structure.

    The last norm of a block is small, as in trained networks: else 100 random layers amplify the last digit of fp32.
    """
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None)
    for module_name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            low, high = (0.1, 0.4) if module_name.endswith((".bn3", ".conv.3")) else (0.5, 1.5)
            nn.init.uniform_(module.weight, low, high)
            nn.init.normal_(module.bias, std=0.3)
    model.train()
    model(random_images(6))
    return model.eval()


def random_images(count: int) -> Tensor:
    coarse = torch.randn(count, 3, SIZE_PX[0] // 8, SIZE_PX[1] // 8)
    return nn.functional.interpolate(coarse, size=SIZE_PX, mode="bilinear") + 0.2 * torch.randn(count, 3, *SIZE_PX)


def reference_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """torchvision's maps after strides 4, 8, 16 and 32."""
    maps = []
    if hasattr(model, "features"):
        x = images
        for position, block in enumerate(model.features):
            x = block(x)
            if position in (3, 6, 13, 17):
                maps.append(x)
        return maps
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        maps.append(x)
    return maps


def compare(name: str, norm: NormKind) -> None:
    reference = lively(name)
    network = build_backbone(name, norm=norm, eps=1e-5, stride_in_1x1=False).eval()
    missing, left_over = network.load_state_dict(reference.state_dict(), strict=False)
    assert not missing
    assert {name.split(".")[0] for name in left_over if "num_batches" not in name} <= {"fc", "classifier", "features"}
    images = random_images(2)
    # fp32 for what users run (a frozen norm folded into its convolution rounds otherwise); fp64 shows that both are
    # the same function and not merely close.
    for dtype, tolerance in ((torch.float32, 1e-5 if norm == "batch" else 5e-5), (torch.float64, 1e-12)):
        x, model, backbone = images.to(dtype), reference.to(dtype), network.to(dtype)
        with torch.inference_mode():
            expected, actual = reference_maps(model, x), backbone(x)
        assert [x.shape[1] for x in actual] == list(network.channels)
        for left, right in zip(actual, expected, strict=True):
            scale = right.abs().max()
            assert 0.5 < scale < 1e3, "a dead or exploding reference proves nothing"
            assert (left - right).abs().max() <= tolerance * max(1, scale)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_maps_are_torchvisions(name: str, norm: NormKind) -> None:
    compare(name, norm)


@pytest.mark.prove
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_maps_of_every_backbone_are_torchvisions(name: str) -> None:
    compare(name, "frozen")


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)(weights=None)
        network = build_backbone(name, norm="batch", eps=1e-5, stride_in_1x1=False)
    reference_shapes = {key: value.shape for key, value in reference.state_dict().items()}
    dropped = ("fc.", "classifier.", "features.18.")
    expected = {key: shape for key, shape in reference_shapes.items() if not key.startswith(dropped)}
    assert {key: value.shape for key, value in network.state_dict().items()} == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_hold_every_tensor_once(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, norm="batch", eps=1e-5, stride_in_1x1=False)
    held = [id(p) for stage in backbone.stages() for module in stage for p in module.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in backbone.parameters())
    assert len(backbone.stages()) == 5


def trained(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("count", "first_trained"), [(0, "conv1"), (1, "layer1"), (2, "layer2"), (4, "layer4"), (5, None)]
)
def test_freezing_stops_at_the_asked_stage(count: int, first_trained: str | None) -> None:
    with torch.device("meta"):
        backbone = build_backbone("resnet18", norm="batch", eps=1e-5, stride_in_1x1=False)
    backbone.freeze(count)
    tops = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    expected = set(tops[tops.index(first_trained) :]) if first_trained else set()
    assert {name.split(".")[0] for name in trained(backbone)} == expected


def test_frozen_norm_has_no_parameters_and_ignores_training_mode() -> None:
    norm = FrozenBatchNorm(4)
    norm.load_state_dict(
        {"weight": torch.rand(4), "bias": torch.rand(4), "running_mean": torch.rand(4), "running_var": torch.rand(4)}
    )
    x = torch.randn(2, 4, 3, 3)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert not list(norm.parameters())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_msra_stride_moves_to_the_first_convolution() -> None:
    with torch.device("meta"):
        network = build_backbone("resnet50", norm="frozen", eps=1e-5, stride_in_1x1=True)
    block = network.get_submodule("layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    maps = network(torch.zeros(1, 3, 64, 64, device="meta"))
    assert [tuple(x.shape[-2:]) for x in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_unknown_backbones_are_named() -> None:
    with pytest.raises(ConfigError, match="resnet51"):
        build_backbone("resnet51", norm="frozen", eps=1e-5, stride_in_1x1=False)


def test_timm_backbones_give_four_maps() -> None:
    pytest.importorskip("timm")
    backbone = build_backbone("timm:resnet18", norm="batch", eps=1e-5, stride_in_1x1=False)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    assert backbone.channels == (64, 128, 256, 512)


@pytest.mark.parametrize(
    ("name", "first_trained"),
    [
        ("resnet18", ("layer1", "layer2", "layer4")),
        ("mobilenetv3_small_050", ("blocks.0", "blocks.1", "blocks.4")),
        ("convnext_atto", ("stages_0", "stages_1", "stages_3")),
    ],
)
def test_freezing_timm_backbones_stops_at_the_asked_stage(name: str, first_trained: tuple[str, str, str]) -> None:
    """The names of timm's maps tell where stages end: with stem and C2 frozen the rest still trains."""
    pytest.importorskip("timm")
    for count, first in zip((1, 2, 4), first_trained, strict=True):
        with torch.device("meta"):
            backbone = build_backbone(f"timm:{name}", norm="batch", eps=1e-5, stride_in_1x1=False)
        names = [name.removeprefix("model.") for name, _ in backbone.named_parameters()]
        backbone.freeze(count)
        start = next(position for position, name in enumerate(names) if name.startswith(f"{first}."))
        assert {name.removeprefix("model.") for name in trained(backbone)} == set(names[start:])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "densenet121", "vgg11"])
def test_stages_of_timm_backbones_are_what_their_maps_hang_on(name: str) -> None:
    """Stage after stage, the parameters so far are those with a gradient from the map that the stage ends in."""
    pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = build_backbone(f"timm:{name}", norm="batch", eps=1e-5, stride_in_1x1=False)
        maps = backbone(torch.zeros(2, 3, 64, 64))
    parameters = list(backbone.parameters())
    stages = [{id(p) for module in stage for p in module.parameters()} for stage in backbone.stages()]
    assert len(stages) == 5
    for count, features in enumerate(maps, start=2):
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True, retain_graph=True)
        used = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        assert set().union(*stages[:count]) == used


def test_timm_backbones_without_known_stages_are_frozen_whole_or_not_at_all() -> None:
    """HRNet's branches run side by side: no map cuts it in two."""
    pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = build_backbone("timm:hrnet_w18_small", norm="batch", eps=1e-5, stride_in_1x1=False)
    for count in (1, 2, 4):
        with pytest.raises(ConfigError, match=r"frozen_stages: .* timm:hrnet_w18_small .* 0 .* or 5"):
            backbone.freeze(count)
    backbone.freeze(0)
    assert len(trained(backbone)) == len(list(backbone.parameters()))
    backbone.freeze(5)
    assert not trained(backbone)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_lite0"])
@pytest.mark.parametrize("count", [0, 2, 5])
def test_frozen_stages_keep_the_statistics_of_their_norms(name: str, count: int) -> None:
    """Of BatchNorm that learns, too, and however often somebody switches to evaluation and back."""
    torch.manual_seed(0)
    backbone = build_backbone(name, norm="batch", eps=1e-5, stride_in_1x1=False)
    backbone.freeze(count)
    backbone = copy.deepcopy(backbone)  # as the moving average of the weights does
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    backbone.train().eval()
    assert not any(norm.training for norm in norms)
    backbone.train()(torch.rand(2, 3, 64, 64))
    still = [torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True)]
    frozen = [norm.weight is not None and not norm.weight.requires_grad for norm in norms]
    assert still == frozen
    assert (any(frozen), all(frozen)) == (count > 0, count == 5)


def test_timm_names_that_do_not_exist() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="timm:no_such_net"):
        build_backbone("timm:no_such_net", norm="batch", eps=1e-5, stride_in_1x1=False)


def test_timm_backbones_whose_maps_have_channels_last_are_turned() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = build_backbone("timm:mambaout_femto", norm="batch", eps=1e-5, stride_in_1x1=False)
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[-2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(x.shape[1] for x in maps) == backbone.channels


def test_timm_backbones_for_one_size_of_images_are_refused() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"), pytest.raises(ConfigError, match=r"timm:swin_tiny.*: takes no image of 160 × 128 px"):
        build_backbone("timm:swin_tiny_patch4_window7_224", norm="batch", eps=1e-5, stride_in_1x1=False)
