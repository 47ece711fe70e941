"""Drawn cases against many digits: value and slope of the focal loss over shapes, types, γ, α, masks and labels."""

import mpmath
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focaldet.ops.losses.focal import balanced_focal_loss, focal_loss
from focaldet.ops.losses.fused import focal_loss_sum

UNIT = 2.0**-24  # half the distance from 1 to the next fp32 number
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@st.composite
def cases(draw):
    """Logits of rows × classes, a label for each row (K is background), α, γ and a mask."""
    rows, classes = draw(st.integers(0, 5)), draw(st.integers(1, 4))
    numbers = st.one_of(st.floats(-120, 120), st.floats(-3, 3), st.sampled_from([0.0, -0.0, 17.0, -17.0, 88.0, -104.0]))
    logits = draw(st.lists(st.lists(numbers, min_size=classes, max_size=classes), min_size=rows, max_size=rows))
    dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]
    return (
        torch.tensor(logits, dtype=torch.float64).reshape(rows, classes).to(dtype),
        torch.tensor(draw(st.lists(st.integers(0, classes), min_size=rows, max_size=rows)), dtype=torch.int64),
        draw(st.one_of(st.none(), st.floats(0, 1))),
        draw(st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]), st.floats(0, 5))),
        draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=rows, max_size=rows))),
    )


def exact(x, positive, alpha, gamma):
    """Loss and slope of one logit to 60 digits (eq. 5 and its derivative in appendix B)."""
    sign = 1 if positive else -1
    weight = mpmath.mpf(1) if alpha is None else mpmath.mpf(alpha) if positive else 1 - mpmath.mpf(alpha)
    z = sign * mpmath.mpf(x)
    log_pt, rest = -mpmath.log1p(mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
    power = mpmath.power(rest, gamma)
    slope = sign * power * (gamma * (1 - rest) * log_pt - rest)
    return -weight * power * log_pt, weight * slope


def check(case):
    logits, labels, alpha, gamma, mask = case
    ignore = None if mask is None else torch.tensor(mask, dtype=torch.bool)
    rows, classes = logits.shape
    x = logits.clone().requires_grad_()
    total = focal_loss_sum(x, labels, alpha=alpha, gamma=gamma, ignore=ignore)
    total.backward()
    targets = labels[:, None] == torch.arange(classes)
    y = logits.clone().requires_grad_()
    wide = None if ignore is None else ignore[:, None].expand(rows, classes)
    # Without a balance both sides weigh 1: twice the loss that is balanced by a half.
    scale, share = (2, 0.5) if alpha is None else (1, alpha)
    loss = scale * balanced_focal_loss(y, targets, alpha=share, gamma=gamma, ignore=wide)
    loss.sum().backward()
    plain = focal_loss(logits, targets, gamma=gamma, ignore=wide)

    unit = UNIT if logits.dtype != torch.float64 else 2.0**-53
    rounding = torch.finfo(logits.dtype).eps
    with mpmath.workdps(60):
        expected = mpmath.mpf(0)
        for row in range(rows):
            for k in range(classes):
                if ignore is not None and ignore[row]:
                    assert loss[row, k] == 0 and y.grad[row, k] == 0 and x.grad[row, k] == 0
                    continue
                value, slope = exact(logits[row, k].item(), bool(targets[row, k]), alpha, gamma)
                expected += value
                limit = (8 + 2 * gamma * abs(logits[row, k].item())) * unit
                unweighted, _ = exact(logits[row, k].item(), bool(targets[row, k]), None, gamma)
                if unweighted > 1e-30:
                    assert abs(plain[row, k].item() - unweighted) <= limit * unweighted
                if value > 1e-30:  # α, 1 - α and their product are three roundings more
                    assert abs(loss[row, k].item() - value) <= (limit + 3 * unit) * value
                for actual in (x.grad[row, k].item(), y.grad[row, k].item()):
                    assert abs(actual - slope) <= (limit * 4 + rounding) * abs(slope) + max(1e-30, tiny(logits.dtype))
        # A power magnifies the rounding of its base; of a single element that can be more than of a detector's sum.
        assert abs(total.item() - expected) <= max(1e-6, (8 + 5 * gamma) * UNIT) * expected + 1e-30


def tiny(dtype):
    """Below it half types have no digits left."""
    return 0.0 if dtype in (torch.float32, torch.float64, torch.bfloat16) else 6e-8


@given(cases())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_value_and_slope_are_those_of_many_digits(case):
    check(case)


@pytest.mark.prove
@given(cases())
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_value_and_slope_of_ten_thousand_cases(case):
    check(case)
