"""The fused sum against the elementwise form in float64: value, gradient, types, blocks, and what is refused."""

import pytest
import torch

from focaldet.ops.losses.focal import focal_loss
from focaldet.ops.losses.fused import focal_loss_sum

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


def dense(logits, labels, alpha, gamma, ignore=None):
    """Sum in float64 by the elementwise form and one-hot targets."""
    targets = torch.nn.functional.one_hot(labels, logits.shape[-1] + 1)[..., :-1].double()
    loss = focal_loss(logits.double(), targets, gamma=gamma)
    if alpha is not None:
        loss = loss * torch.where(targets > 0, alpha, 1 - alpha)
    return loss.sum() if ignore is None else loss[~ignore].sum()


def case(dtype, seed=0, rows=3000, classes=7):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, classes, generator=generator) * 4 - 3).to(dtype)
    labels = torch.randint(0, classes + 1, (rows,), generator=generator)
    return logits, labels, torch.rand(rows, generator=generator) < 0.2


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.25, None])
def test_fused_sum_and_gradient_equal_the_elementwise_form(alpha, gamma):
    logits, labels, ignore = case(torch.float32)
    inputs, exact_inputs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    total = focal_loss_sum(inputs, labels, alpha=alpha, gamma=gamma, ignore=ignore)
    expected = dense(exact_inputs, labels, alpha, gamma, ignore)
    total.backward()
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(inputs.grad.double(), exact_inputs.grad, rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_lose_nothing_in_the_sum(dtype):
    logits, labels, _ = case(dtype, seed=1)
    inputs = logits.clone().requires_grad_()
    total = focal_loss_sum(inputs, labels)
    assert total.dtype == torch.float32
    exact = logits.double().requires_grad_()
    expected = dense(exact, labels, 0.25, 2.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    (expected.backward(), total.backward())
    torch.testing.assert_close(inputs.grad, exact.grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_sum_of_a_detectors_logits_is_right_to_a_millionth(gamma):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(20_000, 8, generator=generator) * 3 - 4
    labels = torch.randint(0, 9, (20_000,), generator=generator)
    expected = dense(logits, labels, 0.25, gamma).item()
    assert focal_loss_sum(logits, labels, gamma=gamma).item() == pytest.approx(expected, rel=1e-6)


def test_gradcheck_in_double():
    logits, labels, ignore = case(torch.float64, rows=9, classes=3)
    for gamma in (0.0, 0.5, 2.0):
        assert torch.autograd.gradcheck(
            lambda x, g=gamma: focal_loss_sum(x, labels, gamma=g, ignore=ignore), (logits.clone().requires_grad_(),)
        )


@pytest.mark.parametrize("gamma", GAMMAS)
def test_finite_gradient_at_extreme_logits(gamma):
    rows = torch.linspace(-120, 120, 961).reshape(-1, 1).requires_grad_()
    for label in (0, 1):
        (grad,) = torch.autograd.grad(focal_loss_sum(rows, torch.full((961,), label), alpha=0.25, gamma=gamma), rows)
        assert torch.isfinite(grad).all()


def test_second_derivative_of_the_fused_form_is_refused():
    logits = torch.randn(4, 3, requires_grad=True)
    total = focal_loss_sum(logits, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="use balanced_focal_loss"):
        torch.autograd.grad(total, logits, create_graph=True)


def test_batches_and_blocks_do_not_change_the_sum(monkeypatch):
    logits, labels, ignore = case(torch.float32, rows=2000)
    whole = focal_loss_sum(logits, labels, ignore=ignore)
    shaped = focal_loss_sum(logits.view(4, 500, 7), labels.view(4, 500), ignore=ignore.view(4, 500))
    monkeypatch.setattr("focaldet.ops.losses.fused._BLOCK_ELEMENTS", 100)
    blocked = focal_loss_sum(logits, labels, ignore=ignore)
    assert whole.item() == pytest.approx(shaped.item(), rel=1e-7) == pytest.approx(blocked.item(), rel=1e-6)


def test_no_anchors_and_all_ignore_cost_nothing():
    assert focal_loss_sum(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).item() == 0.0
    logits = torch.randn(5, 3, requires_grad=True)
    total = focal_loss_sum(logits, torch.zeros(5, dtype=torch.int64), ignore=torch.ones(5, dtype=torch.bool))
    total.backward()
    assert total.item() == 0.0 and not logits.grad.any()


def test_ignored_rows_may_hold_anything():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 3, -1, 99])
    ignore = torch.tensor([False, False, True, True])
    expected = focal_loss_sum(logits[:2], labels[:2])
    logits[2:] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    logits.requires_grad_()
    total = focal_loss_sum(logits, labels, ignore=ignore)
    total.backward()
    assert total.item() == pytest.approx(expected.item())
    assert not logits.grad[2:].any() and logits.grad[:2].all()


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_outside_are_refused(label):
    with pytest.raises(ValueError, match=rf"in \[0, 3\], 3 for background, got {label}"):
        focal_loss_sum(torch.zeros(2, 3), torch.tensor([0, label]))


def test_a_retained_graph_gives_the_same_gradient_again():
    logits, labels, ignore = case(torch.float32, rows=50)
    logits.requires_grad_()
    total = focal_loss_sum(logits, labels, ignore=ignore)
    gradients = [torch.autograd.grad(3 * total, logits, retain_graph=True)[0].clone() for _ in range(3)]
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("with_gradient", [False, True])
def test_nothing_of_the_size_of_the_logits_but_the_gradient_is_allocated(with_gradient):
    """Every allocation of the forward and backward pass is counted by a mode that sees each operation's result."""
    from torch.utils._python_dispatch import TorchDispatchMode

    logits = torch.randn(40_000, 20, requires_grad=with_gradient)
    labels = torch.randint(0, 21, (40_000,))
    large = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple | list) else [result]:
                if isinstance(one, torch.Tensor) and one.numel() >= logits.numel() // 2:
                    large.append(one.untyped_storage().data_ptr())
            return result

    with Sizes():
        total = focal_loss_sum(logits, labels)
        if with_gradient:
            (total / 7).backward()
    assert len({*large} - {logits.untyped_storage().data_ptr()}) == int(with_gradient)
