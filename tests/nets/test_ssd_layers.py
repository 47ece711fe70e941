"""The residual backbone in Caffe's form, and the layers that SSD puts behind it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from focaldet.errors import ConfigError
from focaldet.nets import build_backbone
from focaldet.nets.dssd import Decoder, DeconvolutionModule, fit_cells
from focaldet.nets.ssd import ExtraLayers, LevelPredictor, ProjectedBottleneck, SSDLayers, at_level, extra_strides

FROZEN = SSDLayers("frozen", 1e-3, "he")


def resnet(**switches):
    torch.manual_seed(0)
    return build_backbone("resnet50", norm="frozen", eps=1e-5, stride_in_1x1=True, **switches).eval()


@torch.no_grad()
def test_dilation_is_the_strided_stage_at_all_positions():
    """With the stride in the 1×1, every other cell of the dilated C5 is the strided C5 (à trous)."""
    image = torch.randn(1, 3, 96, 128)
    strided, dilated = resnet()(image), resnet(dilated_c5=True)(image)
    assert dilated[3].shape[-2:] == dilated[2].shape[-2:] == (6, 8)
    torch.testing.assert_close(dilated[2], strided[2])
    torch.testing.assert_close(dilated[3][..., ::2, ::2], strided[3], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_pool_of_caffe_is_not_padded_and_rounds_up():
    network = resnet(ceil_pool=True)
    seen = []
    network.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randn(1, 3, 65, 65)
    network(image)
    stem = F.relu(network.bn1(network.conv1(image)))
    assert seen[0].shape[-2:] == (16, 16)
    expected = torch.stack(
        [
            stem[..., 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].amax((-2, -1))
            for row in range(16)
            for column in range(16)
        ],
        dim=-1,
    )
    torch.testing.assert_close(seen[0].flatten(2), expected)


@pytest.mark.parametrize("side", [62, 63, 64, 65])
def test_the_pool_of_an_even_map_reaches_over_its_edge(side):
    maps = resnet(ceil_pool=True)(torch.zeros(1, 3, side, side))
    stem = (side - 1) // 2 + 1
    assert maps[0].shape[-1] == -(-(stem - 3) // 2) + 1


def test_other_backbones_have_no_such_switches():
    with pytest.raises(ConfigError, match="only ResNets"):
        build_backbone("mobilenet_v2", norm="frozen", eps=1e-5, stride_in_1x1=False, dilated_c5=True)


def extras(**changes):
    settings = {"kernels": (2,) * 5, "paddings": (0,), "layers": FROZEN} | changes
    return ExtraLayers(8, 16, **settings)


def sides(maps):
    return [one.shape[-1] for one in maps]


def test_extra_layers_halve():
    assert sides(extras()(torch.zeros(1, 8, 32, 32))) == [16, 8, 4, 2, 1]
    assert sides(extras(kernels=(2,) * 4, paddings=(0, 0, 1, 0))(torch.zeros(1, 8, 20, 20))) == [10, 5, 3, 1]
    assert sides(extras(kernels=(2, 2, 3, 3))(torch.zeros(1, 8, 20, 20))) == [10, 5, 3, 1]


def test_extra_strides_double_where_a_layer_halves():
    assert extra_strides(16, (2,), count=5) == [32, 64, 128, 256, 512]
    assert extra_strides(16, (2, 2, 3), count=4) == [32, 64, 64, 64]
    assert extra_strides(16, (2,), count=0) == []


def test_a_map_smaller_than_the_kernel_is_padded():
    actual = extras(kernels=(2, 2))(torch.ones(1, 8, 3, 1))
    assert [tuple(one.shape[-2:]) for one in actual] == [(1, 1), (1, 1)]


@torch.no_grad()
def test_a_unit_is_the_sum_of_its_branches():
    """Against the layers one by one; frozen norms with numbers of their own."""
    torch.manual_seed(0)
    unit = ProjectedBottleneck(6, 4, kernel=2, stride=2, padding=0, layers=FROZEN)
    for name, buffer in unit.named_buffers():
        buffer.uniform_(0.5, 1.5) if not name.endswith("mean") else buffer.normal_()
    x = torch.randn(2, 6, 8, 8)

    def normed(y, norm):
        y = (y - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-3).sqrt()
        return y * norm.weight[:, None, None] + norm.bias[:, None, None]

    branch = F.relu(normed(F.conv2d(x, unit.conv1.weight, stride=2), unit.norm1))
    branch = F.relu(normed(F.conv2d(branch, unit.conv2.weight, padding=1), unit.norm2))
    branch = normed(F.conv2d(branch, unit.conv3.weight), unit.norm3)
    shortcut = normed(F.conv2d(x, unit.project.weight, stride=2), unit.project_norm)
    torch.testing.assert_close(unit(x), F.relu(branch + shortcut), rtol=1e-4, atol=1e-4)


def predictor(**changes):
    settings = {"kernel": 3, "per_cell": 2, "biases": (0.0, 1.0, 2.0), "std": None, "inter_width": None}
    return LevelPredictor(8, 4, **settings | {"layers": FROZEN} | changes)


def test_values_lie_cell_by_cell_with_the_priors_of_a_cell_together():
    one = predictor(kernel=1)
    with torch.no_grad():
        one.classes.weight.zero_()
        one.classes.bias.copy_(torch.arange(6.0))
    logits, deltas = one(torch.randn(1, 8, 2, 3))
    assert (logits.shape, deltas.shape) == ((1, 12, 3), (1, 12, 4))
    assert logits[0, :2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert torch.equal(logits[0].view(6, 6), torch.arange(6.0).expand(6, 6))


def test_the_last_convolutions_start_as_caffes_xavier_or_normal():
    torch.manual_seed(0)
    bound = (3 / (16 * 9)) ** 0.5
    weight = predictor().classes.weight.detach()
    assert float(weight.abs().max()) == pytest.approx(bound, rel=0.05)
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.1)
    assert float(predictor(std=0.01).classes.weight.detach().std()) == pytest.approx(0.01, rel=0.15)
    assert predictor().classes.bias.tolist() == [0, 1, 2, 0, 1, 2]


def test_groups_are_not_single_numbers():
    """GroupNorm of one number is always 0, and what comes before it would never learn."""
    unit = ProjectedBottleneck(8, 32, kernel=2, stride=2, padding=0, layers=SSDLayers("group", 1e-3, "he"))
    groups = [module for module in unit.modules() if isinstance(module, nn.GroupNorm)]
    assert [module.num_channels // module.num_groups for module in groups] == [16] * 4
    unit(torch.randn(1, 8, 2, 2)).sum().backward()
    assert unit.conv1.weight.grad.any()


def test_the_last_value_holds_for_all_further_levels():
    assert [at_level((5, 4, 3), level) for level in range(5)] == [5, 4, 3, 3, 3]


@torch.no_grad()
def test_a_deconvolution_module_is_a_product():
    """Against the layers one by one; the frozen norms are the identity but for the root of 1 + ε."""
    torch.manual_seed(0)
    module = DeconvolutionModule(4, 6, 8, kernel=2, stride=2, layers=SSDLayers("frozen", 0.0, "he"))
    coarse, fine = torch.randn(2, 4, 3, 3), torch.randn(2, 6, 6, 6)
    raised = torch.zeros(2, 8, 6, 6)
    for row in range(3):
        for column in range(3):
            patch = torch.einsum("bc,cdij->bdij", coarse[:, :, row, column], module.up.weight)
            raised[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch
    raised = F.conv2d(raised + module.up.bias[:, None, None], module.up_conv.conv.weight, padding=1)
    side = F.relu(F.conv2d(fine, module.fine_conv1.conv.weight, padding=1))
    expected = F.relu(raised * F.conv2d(side, module.fine_conv2.conv.weight, padding=1))
    torch.testing.assert_close(module(coarse, fine, padding=0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernels", "paddings"), [((2, 2, 2, 3, 3), [0]), ((2, 2, 2, 2, 2), [0, 0, 0, 1, 0])])
def test_the_decoder_gives_the_maps_of_the_encoder(kernels, paddings):
    """SSD321's 40 … 1 with a first step from 1 cell to 3; the coarsest map stays as it is."""
    decoder = Decoder([6, 6, 6, 6, 6, 5], 8, kernels=kernels, top_kernel=3, paddings=paddings, layers=FROZEN)
    assert [step.up.stride[0] for step in decoder.steps] == [{2: 2, 3: 1}[kernel] for kernel in kernels]
    levels = [torch.randn(1, 6, side, side) for side in (40, 20, 10, 5, 3)] + [torch.randn(1, 5, 1, 1)]
    combined = decoder(levels)
    assert [tuple(level.shape[1:]) for level in combined[:-1]] == [(8, side, side) for side in (40, 20, 10, 5, 3)]
    assert combined[-1] is levels[-1]


def test_halving_with_a_rest_is_undone_at_the_right_position():
    """Cells 2 i - padding and 2 i - padding + 1 made cell i."""
    raised = torch.arange(6.0).expand(1, 1, 6, 6)
    like = torch.zeros(1, 1, 5, 5)
    assert fit_cells(raised, like=like, padding=1)[0, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert fit_cells(raised, like=like, padding=0)[0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert fit_cells(raised, like=torch.zeros(1, 1, 7, 6), padding=0).shape[-2:] == (7, 6)
    assert fit_cells(raised, like=torch.zeros(1, 1, 6, 7), padding=0)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 5]
