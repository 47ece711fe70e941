"""Inception-ResNet-v2, trunk and tail: timm's numbers where nothing is padded, TensorFlow's where everything is."""

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focaldet.nets.inception_resnet import (
    INCEPTION_RESNETS,
    InceptionResNetShape,
    InceptionResNetTail,
    InceptionResNetTrunk,
    max_pool,
    pad_for_halving,
)
from focaldet.nets.norm import NormKind

PUBLISHED = INCEPTION_RESNETS["inception_resnet_v2"]
THIN = InceptionResNetShape(factor=0.25, repeats=(1, 2, 1))


class TrunkAndTail(nn.Module):
    """Trunk and tail in one module, so that their state has timm's names; the tail sees the whole map as one crop."""

    def __init__(self, shape: InceptionResNetShape, **settings):
        super().__init__()
        norm = settings.get("norm", "frozen")
        self.trunk = InceptionResNetTrunk(shape, **settings)
        self.tail = InceptionResNetTail(shape, norm=norm)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.trunk(images)
        return [*maps, self.tail(maps[-1])]

    def named_tensors(self) -> dict[str, Tensor]:
        return self.trunk.state_dict() | self.tail.state_dict()

    def take(self, tensors: dict[str, Tensor]) -> "TrunkAndTail":
        for half in (self.trunk, self.tail):
            half.load_state_dict({name: tensors[name] for name in half.state_dict()})
        return self


@torch.no_grad()
def enliven(model: nn.Module, images: Tensor) -> nn.Module:
    """Random weights, affine parts and biases, and statistics measured on `images`."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    model.train()(images)
    return model.eval()


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Lively weights of the thin network by timm's names."""
    torch.manual_seed(0)
    return enliven(TrunkAndTail(THIN, norm="batch"), torch.randn(2, 3, 96, 96)).named_tensors()


def without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


# --- the published network


def test_parameter_counts() -> None:
    """With the scales of BatchNorm 26,873,312 and 27,433,152; slim's network has none of those 30,272."""
    with torch.device("meta"):
        trunk = InceptionResNetTrunk(PUBLISHED, norm="batch")
        tail = InceptionResNetTail(PUBLISHED, norm="batch")
    learned, scales = [], []
    for half in (trunk, tail):
        learned.append(sum(parameter.numel() for parameter in half.parameters()))
        scales.append(sum(value.numel() for name, value in half.named_buffers() if name.endswith("bn.weight")))
    assert [own + scale for own, scale in zip(learned, scales, strict=True)] == [26_873_312, 27_433_152]
    assert sum(scales) == 30_272
    assert (trunk.channels, tail.in_channels, tail.channels) == ((192, 320, 1088), 1088, 1536)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_maps_of_an_image_have_their_strides_rounded_up(output_stride) -> None:
    with torch.device("meta"):
        trunk = InceptionResNetTrunk(PUBLISHED, output_stride=output_stride)
        tail = InceptionResNetTail(PUBLISHED)
        maps = trunk(torch.zeros(1, 3, 601, 1000))
        crops = tail(torch.zeros(5, 1088, 17, 17))
    assert trunk.strides_px == (4, 8, output_stride)
    expected = [(ceil(601 / stride), ceil(1000 / stride)) for stride in trunk.strides_px]
    assert [tuple(x.shape[-2:]) for x in maps] == expected
    assert [x.shape[1] for x in maps] == [192, 320, 1088]
    assert tuple(crops.shape) == (5, 1536, 8, 8)


def test_names_and_shapes_are_timms() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        reference = timm.create_model("inception_resnet_v2")
        network = TrunkAndTail(PUBLISHED, norm="batch").named_tensors()
        frozen = TrunkAndTail(PUBLISHED).named_tensors()
    reference_shapes = {name: x.shape for name, x in reference.state_dict().items() if not name.startswith("classif.")}
    assert {name: x.shape for name, x in network.items()} == reference_shapes
    assert set(frozen) == set(without_counters(network))


def compare_with_timm(repeats: tuple[int, int, int], size_px: tuple[int, int], norm: NormKind) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    with torch.device("meta"):
        reference = timm.create_model("inception_resnet_v2", num_classes=0)
        for name, count in zip(("repeat", "repeat_1", "repeat_2"), repeats, strict=True):
            setattr(reference, name, getattr(reference, name)[:count])
        network = TrunkAndTail(InceptionResNetShape(repeats=repeats), padding="valid", norm=norm)
    images = torch.randn(4, 3, *size_px)
    reference = enliven(reference.to_empty(device="cpu"), images)
    network = network.to_empty(device="cpu").eval().take(reference.state_dict())
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        x = images[:1].to(dtype)
        with torch.inference_mode():
            last, maps = reference.to(dtype).forward_intermediates(x, indices=[1, 2, 3, 4])
            actual = network.to(dtype)(x)
        assert torch.equal(last, maps[-1])
        assert (actual[-1] - last).mean((2, 3)).abs().max() <= tolerance, "timm's output, whatever its scale"
        for left, right in zip(actual, maps, strict=True):
            scale = right.abs().max()
            assert 0.5 < scale < 1e3, "a dead or exploding reference proves nothing"
            assert (left - right).abs().max() <= tolerance * max(1, scale)


def test_without_padding_it_is_timms() -> None:
    compare_with_timm((1, 1, 1), (107, 91), "frozen")


@pytest.mark.prove
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_without_padding_the_whole_network_is_timms(norm: NormKind) -> None:
    compare_with_timm(PUBLISHED.repeats, (299, 299), norm)


# --- TensorFlow's padding


def tensorflow_same(x: Tensor, kernel: tuple[int, int], stride: int, dilation: int, value: float) -> Tensor:
    """The law of tf.nn: as little padding as ⌈n / stride⌉ outputs need, the odd one behind."""
    pads = []
    for cells, side in zip(reversed(x.shape[-2:]), reversed(kernel), strict=True):
        needed = (ceil(cells / stride) - 1) * stride + (side - 1) * dilation + 1
        total = max(needed - cells, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class Slim:
    """slim's inception_resnet_v2_base and what the detector runs on crops, written out over timm's names."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1, padding: str = "SAME") -> Tensor:
        weight = self.tensors[f"{name}.conv.weight"]
        if padding == "SAME":
            x = tensorflow_same(x, tuple(weight.shape[-2:]), stride, dilation, 0.0)
        x = F.conv2d(x, weight, None, stride, 0, dilation)
        parts = (self.tensors[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, variance, gamma, beta = (part[:, None, None] for part in parts)
        return torch.clamp((x - mean) / torch.sqrt(variance + 0.001) * gamma + beta, min=0)

    def pool(self, x: Tensor, stride: int) -> Tensor:
        return F.max_pool2d(tensorflow_same(x, (3, 3), stride, 1, float("-inf")), 3, stride)

    def mean(self, x: Tensor) -> Tensor:
        sums, counts = (F.avg_pool2d(tensorflow_same(y, (3, 3), 1, 1, 0.0), 3, 1) for y in (x, torch.ones_like(x)))
        return sums / counts

    def chain(self, x: Tensor, name: str, count: int, **last: int | str) -> Tensor:
        for position in range(count):
            x = self.conv(x, f"{name}.{position}", **(last if position == count - 1 else {}))
        return x

    def residual(self, x: Tensor, name: str, scale: float, branches: list[Tensor], relu: bool = True) -> Tensor:
        weight, bias = (self.tensors[f"{name}.conv2d.{part}"] for part in ("weight", "bias"))
        x = x + scale * F.conv2d(torch.cat(branches, 1), weight, bias)
        return torch.clamp(x, min=0) if relu else x

    def trunk(self, x: Tensor, repeats: tuple[int, int, int], atrous: bool) -> list[Tensor]:
        x = self.conv(self.conv(self.conv(x, "conv2d_1a", 2), "conv2d_2a"), "conv2d_2b")
        fine = self.conv(self.conv(self.pool(x, 2), "conv2d_3b"), "conv2d_4a")
        x = self.pool(fine, 2)
        name = "mixed_5b"
        branches = [self.conv(x, f"{name}.branch0"), self.chain(x, f"{name}.branch1", 2)]
        branches += [self.chain(x, f"{name}.branch2", 3), self.conv(self.mean(x), f"{name}.branch3.1")]
        x = torch.cat(branches, 1)
        for position in range(repeats[0]):
            name = f"repeat.{position}"
            branches = [self.conv(x, f"{name}.branch0"), self.chain(x, f"{name}.branch1", 2)]
            x = self.residual(x, name, 0.17, [*branches, self.chain(x, f"{name}.branch2", 3)])
        middle, stride = x, 1 if atrous else 2
        branches = [self.conv(x, "mixed_6a.branch0", stride), self.chain(x, "mixed_6a.branch1", 3, stride=stride)]
        x = torch.cat([*branches, self.pool(x, stride)], 1)
        rate = 2 if atrous else 1
        for position in range(repeats[1]):
            name = f"repeat_1.{position}"
            y = self.conv(self.conv(x, f"{name}.branch1.0"), f"{name}.branch1.1", 1, rate)
            branches = [self.conv(x, f"{name}.branch0"), self.conv(y, f"{name}.branch1.2", 1, rate)]
            x = self.residual(x, name, 0.1, branches)
        return [fine, middle, x]

    def tail(self, x: Tensor, repeats: tuple[int, int, int]) -> Tensor:
        counts = (2, 2, 3)
        branches = [
            self.chain(x, f"mixed_7a.branch{position}", count, stride=2, padding="VALID")
            for position, count in enumerate(counts)
        ]
        x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
        for name in [*(f"repeat_2.{position}" for position in range(repeats[2])), "block8"]:
            last = name == "block8"
            branches = [self.conv(x, f"{name}.branch0"), self.chain(x, f"{name}.branch1", 3)]
            x = self.residual(x, name, 1.0 if last else 0.2, branches, relu=not last)
        return self.conv(x, "conv2d_7b")


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size_px", [(64, 72), (73, 50), (61, 31)])
@torch.no_grad()
def test_with_padding_it_is_tensorflows(tensors: dict[str, Tensor], size_px: tuple[int, int], output_stride) -> None:
    images = torch.randn(2, 3, *size_px)
    network = InceptionResNetTrunk(THIN, output_stride=output_stride)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    expected = Slim(tensors).trunk(images, THIN.repeats, output_stride == 8)
    for actual, right in zip(network(images), expected, strict=True):
        assert 0.5 < right.max() < 1e3
        torch.testing.assert_close(actual, right, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_tail_is_slims(tensors: dict[str, Tensor]) -> None:
    network = InceptionResNetTail(THIN)
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    crops = torch.randn(3, network.in_channels, 17, 16)
    expected = Slim(tensors).tail(crops, THIN.repeats)
    assert tuple(expected.shape) == (3, 384, 8, 7)
    torch.testing.assert_close(network(crops), expected, rtol=1e-4, atol=1e-4)


def test_padding_by_hand() -> None:
    """Windows of an even row begin at its cells 0, 2, 4; of an odd one at -1, 1, 3."""
    even, odd = torch.arange(1.0, 7.0).view(1, 1, 1, 6), torch.arange(1.0, 6.0).view(1, 1, 1, 5)
    kernel = torch.ones(1, 1, 3, 3)
    sums = [F.conv2d(pad_for_halving(row), kernel, stride=2).flatten().tolist() for row in (even, odd)]
    assert sums == [[6, 12, 11], [3, 9, 9]]
    assert max_pool(even, stride=2, padding="same").flatten().tolist() == [3, 5, 6]
    assert max_pool(-odd, stride=2, padding="same").flatten().tolist() == [-1, -2, -4]
    assert max_pool(-odd, stride=1, padding="same").flatten().tolist() == [-1, -1, -2, -3, -4]


@pytest.mark.parametrize("size_px", [(6, 8), (7, 8), (1, 5)])
def test_in_an_export_the_maximum_is_the_same(monkeypatch, size_px) -> None:
    """There padding may not depend on whether a number that is open is even."""
    x = torch.randn(2, 3, *size_px).relu()
    expected = max_pool(x, stride=2, padding="same")
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.equal(max_pool(x, stride=2, padding="same"), expected)


@pytest.mark.parametrize("size_px", [(64, 80), (72, 56), (65, 96), (50, 41), (7, 23)])
@torch.no_grad()
def test_the_map_of_stride_16_is_every_other_row_of_that_of_stride_8(tensors: dict[str, Tensor], size_px) -> None:
    """Rows 2i where Mixed_6a gets an odd number of them, else 2i + 1; columns likewise; for every size of image."""
    images = torch.randn(1, 3, *size_px)
    maps = {}
    for stride in (8, 16):
        trunk = InceptionResNetTrunk(THIN, output_stride=stride)
        trunk.load_state_dict({name: tensors[name] for name in trunk.state_dict()})
        maps[stride] = trunk(images)
    entering = maps[16][1]
    assert torch.equal(entering, maps[8][1])
    assert tuple(entering.shape[-2:]) == tuple(ceil(side / 8) for side in size_px)
    rows, columns = ((cells + 1) % 2 for cells in entering.shape[-2:])
    torch.testing.assert_close(maps[16][2], maps[8][2][..., rows::2, columns::2], rtol=1e-5, atol=1e-5)
    if min(entering.shape[-2:]) > 1:
        assert (maps[16][2] - maps[8][2][..., : maps[16][2].shape[-2], : maps[16][2].shape[-1]]).abs().max() > 0.1


# --- training


def test_gradients_reach_everything_and_frozen_norm_stays(tensors: dict[str, Tensor]) -> None:
    model = TrunkAndTail(THIN).take(tensors).train()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sum(x.square().mean() for x in model(torch.randn(1, 3, 64, 64))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    optimizer.step()
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert not [name for name, _ in model.named_parameters() if ".bn." in name]


def test_batch_norm_learns_a_shift_and_statistics_but_no_scale(tensors: dict[str, Tensor]) -> None:
    model = TrunkAndTail(THIN, norm="batch").take(tensors).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 64, 64))[-1].square().mean().backward()
    optimizer.step()
    name = "trunk.repeat.0.branch1.1.bn."
    changed = {
        n.removeprefix(name) for n, x in model.state_dict().items() if n.startswith(name) and (x != before[n]).any()
    }
    assert changed == {"bias", "running_mean", "running_var", "num_batches_tracked"}
    fresh = InceptionResNetTail(THIN, norm="batch").state_dict()
    assert all((value == 1).all() for name, value in fresh.items() if name.endswith("bn.weight"))


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_no_regions_give_no_features(norm: NormKind) -> None:
    tail = InceptionResNetTail(THIN, norm=norm)
    features = tail(torch.zeros(0, tail.in_channels, 17, 17))
    assert tuple(features.shape) == (0, tail.channels, 8, 8)
    features.sum().backward()
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in tail.parameters())


def test_group_norm_takes_a_single_image() -> None:
    trunk = InceptionResNetTrunk(THIN, norm="group")
    maps = trunk(torch.randn(1, 3, 40, 40))
    assert tuple(x.shape[1] for x in maps) == trunk.channels == (48, 80, 272)
    groups = {m.num_channels // m.num_groups for m in trunk.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {8}


def test_widths_and_repeats_are_thinned_by_one_setting() -> None:
    small = INCEPTION_RESNETS["inception_resnet_small"]
    trunk, tail = InceptionResNetTrunk(small), InceptionResNetTail(small)
    assert [len(part) for part in (trunk.repeat, trunk.repeat_1, tail.repeat_2)] == list(small.repeats)
    assert trunk.channels[-1] == tail.in_channels
    published = (32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 288, 320, 384, 1536)
    assert [PUBLISHED.width(width) for width in published] == list(published)
    quarter = InceptionResNetShape(factor=0.25)
    assert [quarter.width(width) for width in published[:5]] == [8, 16, 16, 24, 24]
    assert InceptionResNetShape(factor=0.01).width(32) == 8


@pytest.mark.parametrize(
    ("count", "first_trained"),
    [(0, "conv2d_1a"), (1, "conv2d_3b"), (2, "mixed_5b"), (3, "mixed_6a"), (4, None), (5, None)],
)
def test_freezing_the_trunk_stops_at_the_asked_stage(count: int, first_trained: str | None) -> None:
    with torch.device("meta"):
        trunk = InceptionResNetTrunk(THIN, norm="batch")
    trunk.freeze(count)
    tops = [name for name, _ in trunk.named_children()]
    held = [module for stage in trunk.stages() for module in stage]
    assert held == list(trunk.children())
    expected = set(tops[tops.index(first_trained) :]) if first_trained else set()
    assert {name.split(".")[0] for name, parameter in trunk.named_parameters() if parameter.requires_grad} == expected
