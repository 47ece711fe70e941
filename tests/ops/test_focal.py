"""The focal loss against the paper's numbers, float64 and torchvision."""

import math

import mpmath
import pytest
import torch
import torchvision

from focaldet.ops.losses.focal import balanced_focal_loss, focal_loss, focal_loss_sum

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


@pytest.mark.parametrize(
    ("x", "value", "slope"),
    [(-2.0, 1.650078, -1.076714), (0.0, 0.173287, -0.298287), (2.0, 0.001804, -0.004871)],
)
def test_vectors_of_the_appendix(x, value, slope):
    logit = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    loss = focal_loss(logit, torch.tensor(1.0, dtype=torch.float64), gamma=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert logit.grad.item() == pytest.approx(slope, abs=1e-6)


def test_easy_examples_weigh_a_hundredth_and_a_thousandth():
    for p, ratio in ((0.9, 100), (0.968, 1000)):
        x = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)
        one = torch.ones((), dtype=torch.float64)
        assert focal_loss(x, one, gamma=0.0) / focal_loss(x, one, gamma=2.0) == pytest.approx(ratio, rel=0.03)


def test_gamma_zero_is_cross_entropy():
    x = torch.linspace(-120, 120, 4801)
    for target in (0.0, 1.0):
        targets = torch.full_like(x, target)
        ours = focal_loss(x, targets, gamma=0.0)
        signed = x.double() * (1 - 2 * target)
        theirs = signed.clamp(min=0) + torch.log1p(torch.exp(-signed.abs()))
        torch.testing.assert_close(ours.double(), theirs, rtol=2 * 2**-23, atol=1e-37)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_finite_value_and_gradient_at_extreme_logits(gamma):
    x = torch.linspace(-120, 120, 961, requires_grad=True)
    for target in (0.0, 1.0):
        loss = focal_loss(x, torch.full_like(x, target), gamma=gamma)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert torch.isfinite(loss).all() and torch.isfinite(grad).all()
    rows = x.detach().reshape(-1, 1).requires_grad_()
    for label in (0, 1):
        (grad,) = torch.autograd.grad(focal_loss_sum(rows, torch.full((961,), label), alpha=0.25, gamma=gamma), rows)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_elementwise_error_against_many_digits(gamma):
    mpmath.mp.dps = 60
    x = torch.linspace(-80, 80, 81)
    ours = focal_loss(x, torch.ones_like(x), gamma=gamma).tolist()
    for logit, value in zip(x.tolist(), ours, strict=True):
        log_pt = -mpmath.log1p(mpmath.exp(-mpmath.mpf(logit)))
        true = -mpmath.power(1 - mpmath.exp(log_pt), gamma) * log_pt
        if true > 1e-30:
            assert abs(value - true) / true <= (8 + 2 * gamma * abs(logit)) * 2**-24


def dense(logits, labels, alpha, gamma, ignored=None):
    """Sum in float64 by the elementwise form and one-hot targets."""
    targets = torch.nn.functional.one_hot(labels, logits.shape[-1] + 1)[..., :-1].double()
    loss = focal_loss(logits.double(), targets, gamma=gamma)
    if alpha is not None:
        loss = loss * torch.where(targets > 0, alpha, 1 - alpha)
    return loss.sum() if ignored is None else loss[~ignored].sum()


def case(dtype, seed=0, rows=3000, classes=7):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, classes, generator=generator) * 4 - 3).to(dtype)
    labels = torch.randint(0, classes + 1, (rows,), generator=generator)
    return logits, labels, torch.rand(rows, generator=generator) < 0.2


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.25, None])
def test_fused_sum_and_gradient_equal_the_elementwise_form(alpha, gamma):
    logits, labels, ignored = case(torch.float32)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    total = focal_loss_sum(ours, labels, alpha=alpha, gamma=gamma, ignored=ignored)
    expected = dense(theirs, labels, alpha, gamma, ignored)
    total.backward()
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_lose_nothing_in_the_sum(dtype):
    logits, labels, _ = case(dtype, seed=1)
    ours = logits.clone().requires_grad_()
    total = focal_loss_sum(ours, labels)
    assert total.dtype == torch.float32
    exact = logits.double().requires_grad_()
    expected = dense(exact, labels, 0.25, 2.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    (expected.backward(), total.backward())
    torch.testing.assert_close(ours.grad, exact.grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_gradcheck_in_double():
    logits, labels, ignored = case(torch.float64, rows=9, classes=3)
    for gamma in (0.0, 0.5, 2.0):
        assert torch.autograd.gradcheck(
            lambda x, g=gamma: focal_loss_sum(x, labels, gamma=g, ignored=ignored), (logits.clone().requires_grad_(),)
        )
        targets = (torch.rand(9, 3) > 0.5).double()
        x = logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, t=targets, g=gamma: focal_loss(x, t, gamma=g), (x,))
        assert torch.autograd.gradgradcheck(lambda x, t=targets, g=gamma: focal_loss(x, t, gamma=g), (x,))


def test_second_derivative_of_the_fused_form_is_refused():
    logits = torch.randn(4, 3, requires_grad=True)
    total = focal_loss_sum(logits, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="use balanced_focal_loss"):
        torch.autograd.grad(total, logits, create_graph=True)


def test_equals_torchvision_where_that_is_finite():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(500, 4, generator=generator)
    targets = (torch.rand(500, 4, generator=generator) > 0.7).float()
    theirs = torchvision.ops.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    ours = balanced_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_batches_and_blocks_do_not_change_the_sum(monkeypatch):
    logits, labels, ignored = case(torch.float32, rows=2000)
    whole = focal_loss_sum(logits, labels, ignored=ignored)
    shaped = focal_loss_sum(logits.view(4, 500, 7), labels.view(4, 500), ignored=ignored.view(4, 500))
    monkeypatch.setattr("focaldet.ops.losses.focal._BLOCK_ELEMENTS", 100)
    blocked = focal_loss_sum(logits, labels, ignored=ignored)
    assert whole.item() == pytest.approx(shaped.item(), rel=1e-7) == pytest.approx(blocked.item(), rel=1e-6)


def test_no_anchors_and_all_ignored_cost_nothing():
    assert focal_loss_sum(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).item() == 0.0
    logits = torch.randn(5, 3, requires_grad=True)
    total = focal_loss_sum(logits, torch.zeros(5, dtype=torch.int64), ignored=torch.ones(5, dtype=torch.bool))
    total.backward()
    assert total.item() == 0.0 and not logits.grad.any()
