"""Cross entropy, binary and softmax, against the paper's steps, many digits and torch."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from focaldet.ops.losses.cross_entropy import (
    balanced_cross_entropy,
    binary_cross_entropy,
    cross_entropy,
    log_softmax,
    p_t,
)

POINTS = torch.tensor([0.2, 0.7, 0.1]).log()


@pytest.mark.parametrize("target", [torch.tensor(1), torch.tensor([0.0, 1.0, 0.0])])
def test_the_cross_entropy_of_seven_tenths(target):
    assert cross_entropy(POINTS, target).item() == pytest.approx(0.357, abs=5e-4)


def test_p_t_is_the_probability_of_what_is_true():
    logits = torch.tensor([math.log(3), math.log(3), 0.0])
    torch.testing.assert_close(p_t(logits, torch.tensor([1, 0, 1])), torch.tensor([0.75, 0.25, 0.5]))
    targets = torch.tensor([1, 0, 1])
    torch.testing.assert_close(binary_cross_entropy(logits, targets), -p_t(logits, targets).log())


def test_the_balance_weighs_positives_and_negatives():
    logits, targets = torch.randn(40), torch.arange(40) % 2
    plain = binary_cross_entropy(logits, targets)
    actual = balanced_cross_entropy(logits, targets, alpha=0.75)
    torch.testing.assert_close(actual, plain * torch.where(targets > 0, 0.75, 0.25))
    per_class = balanced_cross_entropy(logits.view(20, 2), targets.view(20, 2), alpha=torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(per_class, plain.view(20, 2) * 0.75)  # even columns are negatives, odd ones positives


def test_equals_torch_where_that_has_digits():
    logits, targets = torch.randn(200) * 5, (torch.arange(200) % 2).float()
    reference = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, targets), reference, rtol=1e-5, atol=1e-6)
    rows, classes = torch.randn(50, 6) * 4, torch.arange(50) % 6
    torch.testing.assert_close(
        cross_entropy(rows, classes), F.cross_entropy(rows, classes, reduction="none"), rtol=1e-5, atol=1e-6
    )
    mixed = torch.rand(50, 6).softmax(-1)
    torch.testing.assert_close(cross_entropy(rows, mixed), F.cross_entropy(rows, mixed, reduction="none"))


@pytest.mark.parametrize("margin", [0.0, 1.0, 10.0, 17.0, 40.0, 60.0, -10.0, -60.0])
def test_softmax_keeps_its_digits_where_a_class_is_sure(margin):
    """torch's log-softmax gives 0 for a loss below 6e-8."""
    logits = torch.tensor([margin, 0.0, -1.5, -3.0])
    log_p, log_rest = log_softmax(logits)
    with mpmath.workdps(50):
        powers = [mpmath.exp(mpmath.mpf(x)) for x in logits.tolist()]
        for k, power in enumerate(powers):
            rest = sum(powers) - power
            for actual, true in (
                (log_p[k], mpmath.log(power / sum(powers))),
                (log_rest[k], mpmath.log(rest / sum(powers))),
            ):
                assert abs(actual.item() - true) <= abs(true) * (8 + abs(margin)) * 2**-24


def test_gradcheck_in_double():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    classes, mixed = torch.tensor([0, 1, 2, 1]), torch.rand(4, 3, dtype=torch.float64).softmax(-1)
    for loss in (
        lambda x: cross_entropy(x, classes),
        lambda x: cross_entropy(x, mixed),
        lambda x: balanced_cross_entropy(x, mixed > 0.3, alpha=0.2),
        lambda x: p_t(x, mixed > 0.3),
    ):
        assert torch.autograd.gradcheck(loss, (logits,))
        assert torch.autograd.gradgradcheck(loss, (logits,))


def test_equal_classes_have_equal_slopes():
    """The largest is treated apart: a tie must not show."""
    logits = torch.zeros(3, requires_grad=True)
    cross_entropy(logits, torch.tensor(0)).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([-2 / 3, 1 / 3, 1 / 3]))


def test_ignored_rows_may_hold_anything_and_any_target():
    logits = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 99]), ignore=torch.tensor([False, True]))
    loss.sum().backward()
    assert loss[1] == 0 and not logits.grad[1].any() and logits.grad[0].all()


def test_no_rows_and_single_logits():
    assert cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert binary_cross_entropy(torch.tensor(0.0), torch.tensor(1)).item() == pytest.approx(math.log(2))
