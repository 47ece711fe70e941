"""The focal loss against the paper's numbers, float64 and torchvision."""

import math

import mpmath
import pytest
import torch
import torchvision

from focaldet.ops.losses import inputs
from focaldet.ops.losses.focal import (
    balanced_focal_loss,
    focal_loss,
    focal_star_loss,
    quality_focal_loss,
    softmax_focal_loss,
)

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


def star(gamma, beta):
    return lambda x, t: focal_star_loss(x, t, gamma=gamma, beta=beta)


def focal(gamma):
    return lambda x, t: focal_loss(x, t, gamma=gamma)


@pytest.mark.parametrize(
    ("loss", "x", "value", "slope"),
    [
        (focal(0.0), -2.0, 2.126928, -0.880797),
        (focal(0.0), 0.0, 0.693147, -0.5),
        (focal(0.0), 2.0, 0.126928, -0.119203),
        (focal(2.0), -2.0, 1.650078, -1.076714),
        (focal(2.0), 0.0, 0.173287, -0.298287),
        (focal(2.0), 2.0, 0.001804, -0.004871),
        (star(2.0, 1.0), -2.0, 1.524294, -0.952574),
        (star(2.0, 1.0), 0.0, 0.156631, -0.268941),
        (star(2.0, 1.0), 2.0, 0.003358, -0.006693),
        (star(4.0, 0.0), -2.0, 2.000084, -0.999665),
        (star(4.0, 0.0), 0.0, 0.173287, -0.5),
        (star(4.0, 0.0), 2.0, 0.000084, -0.000335),
    ],
)
def test_vectors_of_the_appendix(loss, x, value, slope):
    """For y = +1; the mirror image for y = -1."""
    for y in (1.0, -1.0):
        logit = torch.tensor(x * y, dtype=torch.float64, requires_grad=True)
        actual = loss(logit, torch.tensor((1 + y) / 2, dtype=torch.float64))
        actual.backward()
        assert actual.item() == pytest.approx(value, abs=1e-6)
        assert logit.grad.item() == pytest.approx(y * slope, abs=1e-6)


def test_easy_examples_weigh_a_hundredth_and_a_thousandth():
    for p, ratio in ((0.9, 100), (0.968, 1000)):
        x = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)
        one = torch.ones((), dtype=torch.float64)
        assert focal_loss(x, one, gamma=0.0) / focal_loss(x, one, gamma=2.0) == pytest.approx(ratio, rel=0.03)


def test_gamma_zero_is_cross_entropy():
    x = torch.linspace(-120, 120, 4801)
    for target in (0.0, 1.0):
        targets = torch.full_like(x, target)
        computed = focal_loss(x, targets, gamma=0.0)
        signed = x.double() * (1 - 2 * target)
        reference = signed.clamp(min=0) + torch.log1p(torch.exp(-signed.abs()))
        torch.testing.assert_close(computed.double(), reference, rtol=2 * 2**-23, atol=1e-37)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_finite_value_and_gradient_at_extreme_logits(gamma):
    x = torch.linspace(-120, 120, 961, requires_grad=True)
    for target in (0.0, 1.0):
        loss = focal_loss(x, torch.full_like(x, target), gamma=gamma)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert torch.isfinite(loss).all() and torch.isfinite(grad).all()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_elementwise_error_against_many_digits(gamma):
    mpmath.mp.dps = 60
    x = torch.linspace(-80, 80, 81)
    computed = focal_loss(x, torch.ones_like(x), gamma=gamma).tolist()
    for logit, value in zip(x.tolist(), computed, strict=True):
        log_pt = -mpmath.log1p(mpmath.exp(-mpmath.mpf(logit)))
        true = -mpmath.power(1 - mpmath.exp(log_pt), gamma) * log_pt
        if true > 1e-30:
            assert abs(value - true) / true <= (8 + 2 * gamma * abs(logit)) * 2**-24


def test_gradcheck_and_its_gradient_in_double():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.rand(5, 3, generator=generator) > 0.5
    qualities = torch.rand(5, 3, dtype=torch.float64, generator=generator)
    classes = torch.tensor([0, 1, 2, 0, 1])
    alpha = torch.tensor([0.2, 0.5, 0.8])
    for loss in (
        *(lambda x, g=g: focal_loss(x, targets, gamma=g) for g in (0.0, 0.5, 2.0)),
        lambda x: balanced_focal_loss(x, targets, alpha=alpha, gamma=0.2),
        lambda x: focal_star_loss(x, targets, gamma=3.0, beta=0.5),
        lambda x: quality_focal_loss(x, qualities, beta=2.0),
        lambda x: softmax_focal_loss(x, classes, gamma=0.5, alpha=alpha),
        lambda x: softmax_focal_loss(x, qualities.softmax(-1), gamma=2.0),
    ):
        assert torch.autograd.gradcheck(loss, (x,))
        assert torch.autograd.gradgradcheck(loss, (x,))


def test_equals_torchvision_where_that_is_finite():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(500, 4, generator=generator)
    targets = (torch.rand(500, 4, generator=generator) > 0.7).float()
    reference = torchvision.ops.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    computed = balanced_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(computed, reference, rtol=1e-4, atol=1e-7)


def test_alpha_per_class_weighs_each_column():
    x, targets = torch.randn(6, 2), torch.rand(6, 2) > 0.5
    computed = balanced_focal_loss(x, targets, alpha=torch.tensor([0.25, 0.9]), gamma=2.0)
    columns = [balanced_focal_loss(x[:, k], targets[:, k], alpha=a, gamma=2.0) for k, a in enumerate((0.25, 0.9))]
    torch.testing.assert_close(computed, torch.stack(columns, 1))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_targets_may_be_of_any_type(dtype):
    x, targets = torch.randn(20), torch.rand(20) > 0.5
    computed = balanced_focal_loss(x, targets.to(dtype), alpha=0.25, gamma=2.0)
    assert torch.equal(computed, balanced_focal_loss(x, targets, alpha=0.25, gamma=2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_give_fp32_losses_and_gradients_of_one_rounding(dtype):
    x = (torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 4).to(dtype).requires_grad_()
    targets = torch.rand(4000, generator=torch.Generator().manual_seed(1)) > 0.9
    exact = x.detach().double().requires_grad_()
    computed, true = focal_loss(x, targets, gamma=2.0), focal_loss(exact, targets, gamma=2.0)
    assert computed.dtype == torch.float32
    assert computed.sum().item() == pytest.approx(true.sum().item(), rel=1e-6)
    (computed.sum().backward(), true.sum().backward())
    torch.testing.assert_close(x.grad, exact.grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_autocast_does_not_change_the_type_that_is_computed_in():
    x, targets = torch.randn(50), torch.rand(50) > 0.5
    classes = torch.zeros(10, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = focal_loss(x, targets, gamma=2.0), softmax_focal_loss(x.view(10, 5), classes, gamma=2.0)
    outside = focal_loss(x, targets, gamma=2.0), softmax_focal_loss(x.view(10, 5), classes, gamma=2.0)
    assert all(map(torch.equal, inside, outside))


def test_vmap_gives_the_same():
    x, targets = torch.randn(6, 4), torch.rand(6, 4) > 0.5
    for loss in (focal(2.0), lambda x, t: balanced_focal_loss(x, t, alpha=torch.full((4,), 0.3), gamma=0.5)):
        assert torch.equal(torch.func.vmap(loss)(x, targets), loss(x, targets))
    classes = torch.arange(6) % 4
    soft = torch.func.vmap(lambda row, c: softmax_focal_loss(row, c, gamma=2.0))(x, classes)
    torch.testing.assert_close(soft, softmax_focal_loss(x, classes, gamma=2.0))
    slopes = torch.func.vmap(torch.func.grad(lambda row, t: focal_loss(row, t, gamma=2.0).sum()))(x, targets)
    leaf = x.clone().requires_grad_()
    focal_loss(leaf, targets, gamma=2.0).sum().backward()
    torch.testing.assert_close(slopes, leaf.grad)


@pytest.mark.parametrize("name", ["focal", "star", "quality", "softmax"])
def test_ignored_elements_may_hold_anything_and_count_nothing(name):
    losses = {
        "focal": lambda x, t, i: balanced_focal_loss(x, t, alpha=0.25, gamma=0.5, ignore=i),
        "star": lambda x, t, i: focal_star_loss(x, t, gamma=2.0, beta=1.0, ignore=i),
        "quality": lambda x, t, i: quality_focal_loss(x, t.float() * 0.7, ignore=i),
        "softmax": lambda x, t, i: softmax_focal_loss(x, t.long().argmax(1), gamma=2.0, ignore=i[:, 0]),
    }
    x, targets = torch.randn(4, 3), torch.rand(4, 3) > 0.5
    ignore = torch.tensor([False, True, False, True])[:, None].expand(4, 3)
    expected = losses[name](x, targets, torch.zeros_like(ignore))
    x[1], x[3] = torch.nan, torch.inf
    x.requires_grad_()
    actual = losses[name](x, targets, ignore)
    actual.sum().backward()
    assert torch.equal(actual[[0, 2]], expected[[0, 2]]) and not actual[[1, 3]].any()
    assert torch.isfinite(x.grad).all() and not x.grad[[1, 3]].any() and x.grad[[0, 2]].all()


def test_hard_qualities_are_the_focal_loss():
    x, targets = torch.randn(100), (torch.rand(100) > 0.5).float()
    for gamma in (0.0, 1.0, 2.0):
        torch.testing.assert_close(quality_focal_loss(x, targets, beta=gamma), focal_loss(x, targets, gamma=gamma))


def test_a_sure_quality_costs_nothing_but_the_entropy_is_left_without_focus():
    y = torch.tensor([0.3, 0.8], dtype=torch.float64)
    x = torch.logit(y)
    assert quality_focal_loss(x, y).abs().max() < 1e-30
    entropy = -(y * y.log() + (1 - y) * (1 - y).log())
    torch.testing.assert_close(quality_focal_loss(x, y, beta=0.0), entropy)


def test_softmax_of_two_classes_is_the_binary_loss_of_their_difference():
    x = torch.randn(30, 2) * 6
    classes = torch.arange(30) % 2
    binary = focal_loss(x[:, 1] - x[:, 0], classes, gamma=2.0)
    torch.testing.assert_close(softmax_focal_loss(x, classes, gamma=2.0), binary, rtol=1e-5, atol=0)
    weighted = softmax_focal_loss(x, classes, gamma=2.0, alpha=torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(weighted, balanced_focal_loss(x[:, 1] - x[:, 0], classes, alpha=0.25, gamma=2.0))


def test_a_distribution_of_one_class_is_its_index():
    x, classes = torch.randn(12, 5), torch.arange(12) % 5
    hot = torch.nn.functional.one_hot(classes, 5).float()
    alpha = torch.rand(5)
    torch.testing.assert_close(
        softmax_focal_loss(x, hot, gamma=1.5, alpha=alpha), softmax_focal_loss(x, classes, gamma=1.5, alpha=alpha)
    )


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda x, t: focal_loss(x, t, gamma=-1.0), "gamma must be ≥ 0, got -1.0"),
        (lambda x, t: focal_loss(x, t, gamma=math.nan), "gamma must be ≥ 0, got nan"),
        (lambda x, t: balanced_focal_loss(x, t, alpha=1.5, gamma=2.0), r"alpha must be in \[0, 1\], got 1.5"),
        (lambda x, t: focal_star_loss(x, t, gamma=0.0, beta=1.0), "gamma must be > 0"),
        (lambda x, t: quality_focal_loss(x, t, beta=0.5), "beta must be 0 or ≥ 1"),
        (lambda x, t: softmax_focal_loss(x[:, None], t.long(), gamma=2.0), "at least 2 classes"),
    ],
)
def test_settings_out_of_range_are_refused(call, problem):
    with pytest.raises(ValueError, match=problem):
        call(torch.randn(3), torch.ones(3))


def test_probabilities_are_told_once(monkeypatch):
    monkeypatch.setattr(inputs, "_warned_of_probabilities", False)
    probabilities, ones = torch.linspace(0.1, 0.9, 8), torch.ones(8)
    for logits in (probabilities * 2, probabilities - 0.2, torch.zeros(8)):
        focal_loss(logits, ones, gamma=2.0)
    focal_loss(probabilities[:7], ones[:7], gamma=2.0)  # too few to judge
    with pytest.warns(UserWarning, match="take logits"):
        focal_loss(probabilities, ones, gamma=2.0)
    focal_loss(probabilities, ones, gamma=2.0)
