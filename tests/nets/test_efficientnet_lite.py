"""EfficientNet-Lite0 gives timm's feature maps for timm's weights, and SAME padding is TensorFlow's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from focaldet.nets import build_backbone
from focaldet.nets.efficientnet_lite import conv_norm_relu6
from focaldet.nets.norm import FrozenBatchNorm, NormKind, conv_norm, norm_layer
from focaldet.nets.same_padding import SameConv2d

SIZES_PX = ((96, 64), (75, 94))  # even and odd sides: padded otherwise


def random_images(size: tuple[int, int], count: int = 2) -> Tensor:
    coarse = torch.randn(count, 3, size[0] // 8, size[1] // 8)
    return functional.interpolate(coarse, size=size, mode="bilinear") + 0.2 * torch.randn(count, 3, *size)


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """timm's network with random affine parts, and statistics measured on noise with structure."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        model.train()(random_images(SIZES_PX[0], 6))
    return model.eval()


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_maps_and_gradients_are_timms(reference: nn.Module, norm: NormKind) -> None:
    """In fp64, where both are the same function and not merely close; gradients of the images too."""
    network = build_backbone("efficientnet_lite0", norm=norm, eps=1e-3, stride_in_1x1=False).eval()
    missing, left_over = network.load_state_dict(reference.state_dict(), strict=False)
    assert not missing
    assert all("num_batches" in name for name in left_over)
    model, backbone = reference.double(), network.double()
    for size in SIZES_PX:
        pairs = []
        for net in (model, backbone):
            x = random_images(size).double() if not pairs else pairs[0][0].detach().clone()
            maps = net(x.requires_grad_())
            (gradient,) = torch.autograd.grad(sum(features.square().sum() for features in maps), x)
            pairs.append((x, *maps, gradient))
        assert [x.shape[1] for x in pairs[1][1:5]] == list(network.channels)
        for left, right in zip(*pairs, strict=True):
            assert right.abs().max() > 0.1, "a dead reference proves nothing"
            assert (left - right).abs().max() <= 1e-11 * right.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5]), stride=st.integers(1, 3), size=st.tuples(st.integers(1, 13), st.integers(1, 13))
)
def test_same_padding_is_tensorflows(kernel: int, stride: int, size: tuple[int, int]) -> None:
    """⌈side / stride⌉ cells; of the zeros half, an odd one at the end. In training a frozen norm takes another way."""
    conv = SameConv2d(4, 4, kernel, stride=stride, groups=4).double()
    norm = FrozenBatchNorm(4).double()
    norm.running_mean.normal_()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    zeros = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in size]
    before = [count // 2 for count in zeros]
    pads = (before[1], zeros[1] - before[1], before[0], zeros[0] - before[0])
    expected = functional.conv2d(functional.pad(x, pads), conv.weight, None, stride, groups=4)
    assert expected.shape[2:] == tuple(-(-side // stride) for side in size)
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv_norm(x, conv, norm), norm(expected))
    torch.testing.assert_close(conv_norm(x.requires_grad_(), conv, norm), norm(expected))


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (3, 2)])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_depthwise_gradients_under_autocast_are_those_of_fp32(kernel: int, stride: int, norm: NormKind) -> None:
    torch.manual_seed(0)
    conv, layer = SameConv2d(8, 8, kernel, stride=stride, groups=8), norm_layer(norm, 8)
    x = torch.randn(2, 8, 12, 14).bfloat16().requires_grad_()
    expected = conv_norm(x.float(), conv, layer)
    slope = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * slope).sum(), (x, conv.weight))
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_norm(x, conv, layer)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.01, atol=0.01)
    for left, right in zip(torch.autograd.grad((y.float() * slope).sum(), (x, conv.weight)), wanted, strict=True):
        assert (left - right).abs().max() <= 0.02 * right.abs().max()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_graph_with_open_sides_writes_into_no_view(stride):
    """An activation in place on a part of a map becomes a `slice_scatter`: OpenVINO could not open its int8 form."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = SameConv2d(4, 4, 3, stride=stride), norm_layer("frozen", 4)

        def forward(self, x):
            return conv_norm_relu6(x, self.conv, self.norm)

    sides = {2: 32 * Dim("rows", min=1, max=8), 3: 32 * Dim("columns", min=1, max=8)}
    program = torch.export.export(
        Layer().eval(), (torch.zeros(2, 4, 64, 96),), dynamic_shapes=({0: Dim("b"), **sides},)
    )
    graph = program.run_decompositions().graph
    assert not [node for node in graph.nodes if "scatter" in str(node.target)]
