"""What the losses take and refuse: drawn shapes, types and values give the value in float64, or name the argument."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config

from focaldet import losses as L
from focaldet.ops.losses.cross_entropy import log_softmax

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MARKS = [-100, 255, -1, 2]
DRAWN = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True, scope="module")
def as_users_have_it():
    """Without the annotations' own checks, which users do not have."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


def signed(x, t):
    return x * (2 * t - 1)


def exact_focal(x, t, gamma):
    z = signed(x, t)
    return torch.sigmoid(-z) ** gamma * F.softplus(-z)


def exact_quality(x, y):
    return (y - torch.sigmoid(x)).abs() ** 2 * F.binary_cross_entropy_with_logits(x, y, reduction="none")


BINARY = {
    "p_t": (lambda x, t, i: L.p_t(x, t), lambda x, t: torch.sigmoid(signed(x, t))),
    "binary": (
        lambda x, t, i: L.binary_cross_entropy(x, t, ignore=i),
        lambda x, t: F.softplus(-signed(x, t)),
    ),
    "balanced": (
        lambda x, t, i: L.balanced_cross_entropy(x, t, alpha=0.3, ignore=i),
        lambda x, t: torch.where(t > 0, 0.3, 0.7) * F.softplus(-signed(x, t)),
    ),
    "focal": (lambda x, t, i: L.focal_loss(x, t, gamma=2.0, ignore=i), lambda x, t: exact_focal(x, t, 2)),
    "balanced focal": (
        lambda x, t, i: L.balanced_focal_loss(x, t, alpha=[0.25] * x.shape[-1], gamma=0.5, ignore=i),
        lambda x, t: torch.where(t > 0, 0.25, 0.75) * exact_focal(x, t, 0.5),
    ),
    "star": (
        lambda x, t, i: L.focal_star_loss(x, t, gamma=2.0, beta=1.0, ignore=i),
        lambda x, t: F.softplus(-(2 * signed(x, t) + 1)) / 2,
    ),
}


@st.composite
def tensors(draw):
    """Logits of one to three axes, targets of 0 and 1 in any type."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = (torch.randn(shape, generator=generator) * 5).to(draw(st.sampled_from(DTYPES)))
    hard = torch.rand(shape, generator=generator) > 0.5
    kinds = [torch.bool, torch.int64, torch.int32, torch.uint8, *DTYPES]
    return logits, hard.to(draw(st.sampled_from(kinds))), generator


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@given(tensors(), st.sampled_from(list(BINARY)))
@DRAWN
def test_the_shape_of_the_logits_is_taken_and_every_other_refused(case, name):
    logits, targets, _ = case
    loss, exact = BINARY[name]
    close(loss(logits, targets, None), exact(logits.double(), targets.double()))
    others = [targets[..., None], targets[None], targets[..., :1].expand(*targets.shape[:-1], 7)]
    if targets.ndim > 1:
        others += [targets[0], targets[..., 0]]  # class numbers where one column per class is wanted
    for other in others:
        if other.shape != logits.shape:
            with pytest.raises(ValueError, match="targets must have the shape of logits"):
                loss(logits, other, None)
    if name != "p_t":
        ignore = torch.zeros(logits.shape, dtype=torch.bool)
        for mask in (ignore[..., None], ignore.float(), ignore[:1].expand(9, *ignore.shape[1:])):
            with pytest.raises(ValueError, match="ignore must be a bool tensor"):
                loss(logits, targets, mask)


@given(tensors(), st.sampled_from(list(BINARY)), st.sampled_from([*MARKS, 0.5, 0.999, 1.5, math.nan, math.inf]))
@DRAWN
def test_values_are_0_and_1_or_ignored(case, name, value):
    logits, targets, generator = case
    loss, exact = BINARY[name]
    kind = torch.float64 if isinstance(value, float) else torch.int64
    targets = targets.to(kind)
    index = tuple(int(torch.randint(n, (1,), generator=generator)) for n in targets.shape)
    expected = exact(logits.double(), targets.double())
    targets[index] = value
    with pytest.raises(ValueError, match=r"targets must be 0 or 1, got .*(ignore|quality_focal_loss|class numbers)"):
        loss(logits, targets, None)
    if name != "p_t":
        ignore = torch.zeros(logits.shape, dtype=torch.bool)
        ignore[index] = True
        close(loss(logits, targets, ignore), expected.masked_fill(ignore, 0.0))


@given(tensors(), st.floats(0, 1), st.sampled_from([-0.1, 1.1, math.nan, -100.0]))
@DRAWN
def test_qualities_are_in_0_1(case, quality, wrong):
    logits, targets, _ = case
    y = targets.double() * quality
    close(L.quality_focal_loss(logits, y), exact_quality(logits.double(), y))
    y.view(-1)[-1] = wrong
    with pytest.raises(ValueError, match=r"qualities must be in \[0, 1\], got"):
        L.quality_focal_loss(logits, y)
    ignore = torch.zeros(logits.shape, dtype=torch.bool)
    ignore.view(-1)[-1] = True
    x = logits.clone().requires_grad_()
    L.quality_focal_loss(x, y, ignore=ignore).sum().backward()
    assert torch.isfinite(x.grad).all()
    with pytest.raises(ValueError, match="qualities must have the shape"):
        L.quality_focal_loss(logits, y[..., None])


@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(2, 5),
    st.sampled_from(DTYPES),
    st.sampled_from([torch.int64, torch.int32, torch.uint8]),
    st.integers(0, 2**31),
)
@DRAWN
def test_class_numbers_and_distributions_of_a_softmax(rows, num_classes, dtype, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn([*rows, num_classes], generator=generator) * 4).to(dtype)
    classes = torch.randint(num_classes, rows, generator=generator).to(kind)
    alpha = torch.rand(num_classes, generator=generator) * 3
    p = logits.double().softmax(-1)
    each = (1 - p) ** 2 * -p.log() * alpha.double()
    taken = each.gather(-1, classes.long()[..., None]).squeeze(-1)
    close(L.softmax_focal_loss(logits, classes, gamma=2.0, alpha=alpha), taken)
    mixed = torch.rand([*rows, num_classes], generator=generator).softmax(-1)
    close(L.softmax_focal_loss(logits, mixed, gamma=2.0, alpha=alpha.tolist()), (mixed.double() * each).sum(-1))
    for mark in (255, num_classes):
        marked = torch.full_like(classes, mark)
        with pytest.raises(ValueError, match=rf"targets must be in \[0, {num_classes - 1}\], got {mark}: .*ignore="):
            L.cross_entropy(logits, marked)
        assert not L.cross_entropy(logits, marked, ignore=torch.ones(rows, dtype=torch.bool)).any()
    refused = {
        "class numbers must be whole numbers": classes.float(),
        "must be in \\[0, 1\\]": mixed - 1,
        "add up to 1": mixed * 3 if mixed.max() < 1 / 3 else mixed * 0.5,
        "of shape": torch.zeros(9, dtype=torch.int64),
    }
    for problem, targets in refused.items():
        with pytest.raises(ValueError, match=f"targets.*{problem}"):
            L.softmax_focal_loss(logits, targets, gamma=2.0)
    wrong = torch.full_like(mixed, torch.nan)
    x = logits.clone().requires_grad_()
    L.cross_entropy(x, wrong, ignore=torch.ones(rows, dtype=torch.bool)).sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize(
    "alpha",
    [2.0, -0.1, math.nan, None, "0.25", [0.2, 1.5], [0.5], [0.2] * 3, torch.tensor([2.0, 5.0]), torch.ones(2, 2), []],
)
def test_a_balance_is_a_number_or_one_per_class(alpha):
    x, y = torch.randn(6, 2), torch.ones(6, 2)
    calls = [
        lambda: L.balanced_focal_loss(x, y, alpha=alpha, gamma=2.0),
        lambda: L.balanced_cross_entropy(x, y, alpha=alpha),
        lambda: L.BalancedFocalLoss(alpha=alpha)(x, y),
        lambda: L.BalancedCrossEntropyLoss(alpha=alpha)(x, y),
    ]
    if alpha is not None and not isinstance(alpha, list | torch.Tensor):
        calls.append(lambda: L.focal_loss_sum(x, torch.zeros(6, dtype=torch.int64), alpha=alpha))
    for call in calls:
        with pytest.raises(ValueError, match=r"^alpha must "):
            call()


@pytest.mark.parametrize("alpha", [0.25, "x", [0.2], [-1.0, 1.0], [math.inf, 1.0], torch.ones(3), torch.tensor(1.0)])
def test_a_softmax_takes_one_weight_for_each_class(alpha):
    x, y = torch.randn(6, 2), torch.ones(6, dtype=torch.int64)
    for call in (
        lambda: L.softmax_focal_loss(x, y, gamma=2.0, alpha=alpha),
        lambda: L.SoftmaxFocalLoss(alpha=alpha)(x, y),
    ):
        with pytest.raises(ValueError, match=r"^alpha must "):
            call()
    weights = [0.5, 3.0]
    expected = L.softmax_focal_loss(x, y, gamma=2.0) * 3
    torch.testing.assert_close(L.softmax_focal_loss(x, y, gamma=2.0, alpha=weights), expected)
    torch.testing.assert_close(L.SoftmaxFocalLoss(alpha=weights)(x, y), expected.mean())


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: L.FocalLoss(gamma="2"), "gamma must be a number ≥ 0, got '2'"),
        (lambda: L.FocalLoss(gamma=math.inf), "gamma must be ≥ 0, got inf"),
        (lambda: L.FocalStarLoss(gamma=0.0), "gamma must be > 0"),
        (lambda: L.QualityFocalLoss(beta=0.5), "beta must be 0 or ≥ 1"),
        (lambda: L.focal_loss([0.1], torch.ones(1), gamma=1), "logits must be a tensor, got list"),
        (lambda: L.focal_loss(torch.ones(1), [1], gamma=1), "targets must be a tensor, got list"),
        (lambda: L.focal_loss(torch.ones(2).long(), torch.ones(2), gamma=1), "logits must be floating point"),
        (lambda: L.SoftmaxFocalLoss(background=4)(torch.randn(3, 2), torch.zeros(3).long()), "background must be"),
        (lambda: L.cross_entropy(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4).long()), "movedim"),
        (lambda: L.focal_loss_sum(torch.randn(4, 4), torch.eye(4)), "labels must be class numbers"),
        (lambda: L.focal_loss_sum(torch.randn(4, 1), torch.ones(4, dtype=torch.bool)), "labels must be class numbers"),
        (lambda: L.focal_loss_sum(torch.randn(4, 3), torch.full((4,), 255)), "ignore=labels == 255 leaves it out"),
        (lambda: L.smooth_l1_loss(torch.ones(3, 1), torch.ones(3), beta=1.0), "target must have the shape of pred"),
        (lambda: L.smooth_l1_loss(torch.ones(3), torch.ones(3), beta=-1.0), "beta must be ≥ 0"),
        (lambda: L.giou_loss(torch.ones(4), torch.ones(2, 4)), "target must have the shape of predicted"),
        (lambda: L.iou_loss(torch.ones(2, 5), torch.ones(2, 5)), "the last axis must be x1, y1, x2, y2"),
    ],
)
def test_other_arguments_are_named(call, problem):
    with pytest.raises(ValueError, match=problem):
        call()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_masked_classes_of_a_softmax_leave_finite_gradients(gamma):
    """Where all other classes are −inf, and where only some are; by number and as a distribution."""
    rows = [[2.0, -math.inf, -math.inf], [-math.inf, 1.0, -1.0], [0.5, -0.5, 1.5]]
    for targets in (torch.tensor([0, 2, 1]), torch.eye(3)[[0, 2, 1]]):
        x = torch.tensor(rows, requires_grad=True)
        loss = L.softmax_focal_loss(x, targets, gamma=gamma)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(x.grad).all()
        assert loss[0] == 0 and not x.grad[0].any() and x.grad[1:].any(1).all()
        pair = x.detach()[1, 1:].clone().requires_grad_()  # the masked class might as well not be there
        alone = L.softmax_focal_loss(pair, torch.tensor(1), gamma=gamma)
        alone.backward()
        torch.testing.assert_close(loss[1], alone)
        torch.testing.assert_close(x.grad[1, 1:], pair.grad)
    assert log_softmax(torch.tensor([0.0, -math.inf]))[0].tolist() == [0.0, -math.inf]


def test_values_are_not_looked_at_under_compile_and_vmap():
    """They would break the graph, or wait for a GPU; shapes are refused there too."""
    x, y = torch.randn(6, 4), torch.full((6, 4), 255)
    explained = torch._dynamo.explain(lambda x, y: L.balanced_focal_loss(x, y, alpha=0.25, gamma=2.0))(x, y)
    assert explained.graph_break_count == 0
    classes = torch.zeros(6, dtype=torch.int64)
    for loss in (
        lambda x, c: L.softmax_focal_loss(x, c, gamma=2.0, alpha=torch.ones(4)),
        lambda x, c: L.softmax_focal_loss(x, torch.nn.functional.one_hot(c, 4).float(), gamma=2.0),
    ):
        assert torch._dynamo.explain(loss)(x, classes).graph_break_count == 0
    in_rows = torch.func.vmap(lambda x, y: L.focal_loss(x, y, gamma=2.0))(x, torch.ones(6, 4))
    assert in_rows.shape == (6, 4)
    with pytest.raises(ValueError, match="targets must have the shape"):
        torch.func.vmap(lambda x, y: L.focal_loss(x, y, gamma=2.0))(x, torch.ones(6))


def test_values_on_a_gpu_are_not_looked_at():
    """A meta tensor has no values: to look at one raises, as a look at a GPU waits."""
    x, y = torch.randn(6, 4, device="meta"), torch.ones(6, 4, device="meta")
    for loss in (
        L.focal_loss(x, y, gamma=2.0),
        L.balanced_focal_loss(x, y, alpha=torch.ones(4, device="meta"), gamma=2.0),
        L.quality_focal_loss(x, y),
        L.softmax_focal_loss(x, y.softmax(-1), gamma=2.0, alpha=torch.ones(4, device="meta")),
    ):
        assert loss.device.type == "meta"
