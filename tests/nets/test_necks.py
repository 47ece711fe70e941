"""The feature pyramid: sizes of its levels, and the gradients of its coarsest ones."""

import pytest
import torch
import torch.nn.functional as F

from focaldet.nets.necks import FeaturePyramid, HalvingConv
from focaldet.nets.norm import GroupNorm


@pytest.mark.parametrize(("size", "coarse"), [((64, 64), (1, 1)), ((256, 320), (2, 3)), ((32, 320), (1, 3))])
def test_each_level_halves_the_one_before_and_rounds_up(size, coarse):
    maps = [torch.zeros(1, 8, -(-size[0] // stride), -(-size[1] // stride)) for stride in (8, 16, 32)]
    levels = FeaturePyramid([8, 8, 8], 4, p6_from="P5")(maps)
    assert [level.shape[-2:] for level in levels[:3]] == [one.shape[-2:] for one in maps]
    assert levels[-1].shape == (1, 4, *coarse)


@pytest.mark.parametrize("p7_relu", [True, False])
def test_p7_sees_what_the_relu_leaves_of_p6(p7_relu):
    pyramid = FeaturePyramid([8, 8, 8], 4, p6_from="C5", p7_relu=p7_relu)
    *_, p6, p7 = pyramid([torch.randn(1, 8, side, side) for side in (16, 8, 4)])
    assert (p6 < 0).any()
    torch.testing.assert_close(p7, pyramid.p7(p6.relu() if p7_relu else p6))


def test_norm_stands_behind_lateral_and_output_convolutions_alone():
    plain, pyramid = (FeaturePyramid([8, 8, 8], 16, p6_from="P5", norm=norm) for norm in (False, True))
    assert not [module for module in plain.modules() if isinstance(module, GroupNorm)]
    assert not [name for name in plain.state_dict() if "norm" in name], "the names of weights files of before"
    assert sum(isinstance(module, GroupNorm) for module in pyramid.modules()) == 6
    assert all(conv.bias is None for conv in (*pyramid.lateral, *pyramid.output))
    maps = [100 * torch.randn(2, 8, side, side) + 50 for side in (16, 8, 4)]
    laterals = [norm(conv(x)) for norm, conv, x in zip(pyramid.lateral_norms, pyramid.lateral, maps, strict=True)]
    *levels, p6, _ = (level.detach() for level in pyramid(maps))
    torch.testing.assert_close(levels[2], pyramid.output_norms[2](pyramid.output[2](laterals[2])).detach())
    torch.testing.assert_close(p6, pyramid.p6(levels[2]).detach())
    for level in levels:
        assert float(level.mean().abs()) < 1e-4 and float(level.std()) == pytest.approx(1, abs=0.05)


def test_a_normalized_pyramid_passes_gradients_to_all_of_it_and_to_the_backbone():
    pyramid = FeaturePyramid([8, 8, 8], 16, p6_from="P5", norm=True)
    maps = [torch.randn(1, 8, side, side, requires_grad=True) for side in (16, 8, 4)]
    levels = pyramid(maps)
    sum((level * torch.randn_like(level)).sum() for level in levels).backward()
    assert all(x.grad.abs().sum() > 0 for x in (*maps, *pyramid.parameters()))


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 2), (4, 3)])
def test_halving_is_the_padded_convolution(size):
    conv = HalvingConv(6, 5)
    x = torch.randn(2, 6, *size)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1))


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_small_maps_have_the_right_gradient_in_bf16(size):
    """Between the passes memory is filled and freed, so that what is left unwritten shows."""
    torch.manual_seed(0)
    exact = HalvingConv(32, 32).double()
    conv = HalvingConv(32, 32).to(torch.bfloat16)
    conv.load_state_dict(exact.state_dict())
    x = torch.randn(4, 32, *size)
    (expected,) = torch.autograd.grad(exact(x.double()).sum(), exact.weight)
    for _ in range(8):
        rubbish = [torch.full((32 * 32 * 9 + 512 * k,), 1e20, dtype=torch.bfloat16) for k in range(3)]
        del rubbish
        rubbish = [torch.full((32 * 32 * 9 + 512 * k,), 1e20) for k in range(3)]
        del rubbish
        (actual,) = torch.autograd.grad(conv(x.to(torch.bfloat16)).sum(), conv.weight)
        torch.testing.assert_close(actual.double(), expected, rtol=0.05, atol=0.15)
