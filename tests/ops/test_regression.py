import pytest
import torch

from focaldet.ops.losses.regression import giou_loss, smooth_l1_loss


def test_smooth_l1_by_hand():
    predicted, target = torch.tensor([0.0, 0.05, 0.11, 1.11]), torch.zeros(4)
    expected = [0.0, 0.5 * 0.05**2 / 0.11, 0.055, 1.055]
    torch.testing.assert_close(smooth_l1_loss(predicted, target, beta=0.11), torch.tensor(expected))


def test_beta_zero_is_l1():
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(smooth_l1_loss(x, torch.zeros(9), beta=0.0), x.abs())


def test_slope_is_continuous_at_the_corner():
    x = torch.tensor([0.5 - 1e-6, 0.5 + 1e-6], dtype=torch.float64, requires_grad=True)
    smooth_l1_loss(x, torch.zeros(2, dtype=torch.float64), beta=0.5).sum().backward()
    assert x.grad.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth_l1_loss(x, torch.zeros_like(x), beta=0.11), (x,))


def test_giou_loss_of_the_same_box_is_zero_and_grows_with_distance():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    losses = [giou_loss(box + shift, box).item() for shift in (0.0, 5.0, 20.0, 100.0)]
    assert losses[0] == pytest.approx(0.0, abs=1e-6)
    assert losses == sorted(losses) and losses[-1] < 2
