"""The compiled form of the losses' logarithms: right to rounding, every derivative too, in one graph."""

import shutil
import subprocess
import sys

import mpmath
import pytest
import torch
import torch.nn.functional as F

from focaldet.ops.losses.focal import balanced_focal_loss, focal_loss
from focaldet.ops.losses.log_sigmoid import log1p, log_sigmoid, log_sigmoids

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


@pytest.fixture
def as_compiled(monkeypatch):
    """The steps that torch.compile is given, one by one."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def test_log1p_is_right_to_three_half_units():
    y = torch.cat([torch.linspace(-80, 0, 20_001).exp(), torch.linspace(0, 1, 20_001), torch.tensor([0.0, 2**-24])])
    torch.testing.assert_close(log1p(y).double(), torch.log1p(y.double()), rtol=3 * 2**-24, atol=0)
    wide = y.double()[::40]
    for value, actual in zip(wide.tolist(), log1p(wide).tolist(), strict=True):
        assert abs(actual - mpmath.log1p(value)) <= 3 * 2**-53 * mpmath.log1p(value)


def test_both_logarithms_equal_those_of_many_digits(as_compiled):
    x = torch.cat([torch.linspace(-80, 80, 32_001), torch.tensor([0.0, -0.0, torch.inf, -torch.inf])])
    for actual, true in zip(log_sigmoids(x), (F.logsigmoid(x.double()), F.logsigmoid(-x.double())), strict=True):
        torch.testing.assert_close(actual.double(), true, rtol=2 * 2**-23, atol=1e-37)
    assert torch.equal(log_sigmoid(x), log_sigmoids(x)[0])
    assert log_sigmoids(torch.tensor([torch.nan]))[0].isnan()


def test_derivatives_hold_everywhere_zero_included(as_compiled):
    x = torch.tensor([-90.0, -3.0, -1e-9, -0.0, 0.0, 1e-9, 2.0, 90.0], dtype=torch.float64, requires_grad=True)
    p, rest = torch.sigmoid(x), torch.sigmoid(-x)
    log_p, log_rest = log_sigmoids(x)
    (slope,) = torch.autograd.grad(log_p.sum(), x, create_graph=True)
    (slope_of_rest,) = torch.autograd.grad(log_rest.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(slope, rest, rtol=1e-15, atol=0)
    torch.testing.assert_close(slope_of_rest, -p, rtol=1e-15, atol=0)
    torch.testing.assert_close(curvature, -p * rest, rtol=1e-14, atol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_compiled_steps_are_finite_and_differentiable_twice(as_compiled, gamma):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.rand(5, 3, generator=generator) > 0.5
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, targets, gamma=gamma), (x,))
    assert torch.autograd.gradgradcheck(lambda x: focal_loss(x, targets, gamma=gamma), (x,))
    extreme = torch.linspace(-120, 120, 961, requires_grad=True)
    for target in (0.0, 1.0):
        loss = focal_loss(extreme, torch.full_like(extreme, target), gamma=gamma)
        (slope,) = torch.autograd.grad(loss.sum(), extreme)
        assert torch.isfinite(loss).all() and torch.isfinite(slope).all()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_compiled_steps_err_as_little_as_those_of_eager(as_compiled, gamma):
    x = torch.linspace(-80, 80, 8001)
    for target in (0, 1):
        signed = x.double() * (2 * target - 1)
        true = -torch.exp(gamma * F.logsigmoid(-signed)) * F.logsigmoid(signed)
        error = (focal_loss(x, torch.full_like(x, target), gamma=gamma).double() - true).abs() / true
        limit = (4 if gamma == 0 else 8 + 2 * gamma * x.abs().double()) * 2**-24  # γ = 0: 2 ulp, as the cross entropy
        assert (error <= limit)[true > 1e-30].all()


def test_vmap_of_the_compiled_steps_gives_the_same(as_compiled):
    x, targets = torch.randn(6, 4), torch.rand(6, 4) > 0.5
    slope = torch.func.grad(lambda x, t: balanced_focal_loss(x, t, alpha=0.25, gamma=2.0).sum())
    torch.testing.assert_close(torch.func.vmap(slope)(x, targets), slope(x, targets), rtol=1e-6, atol=0)


COMPILED = """
import sys

import torch
from focaldet.losses import balanced_focal_loss

def summed(logits, labels, gamma):
    targets = labels[:, None] == torch.arange(logits.shape[1])
    loss = balanced_focal_loss(logits, targets, alpha=0.25, gamma=gamma)
    return loss.sum(), loss

compiled = torch.compile(summed, fullgraph=True, backend=sys.argv[1])
labels = torch.arange(-120, 121) % 4
for gamma in (0.0, 0.5, 2.0):
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.arange(-120.0, 121)[:, None] / 3 + torch.tensor([0.0, 0.3, 0.7])).to(dtype).requires_grad_()
        exact = x.detach().double().requires_grad_()
        (total, loss), (true_total, true) = compiled(x, labels, gamma), summed(exact, labels, gamma)
        assert loss.dtype == torch.float32
        limit = (8 + 2 * gamma * exact.abs()) * 2**-24
        assert ((loss.double() - true).abs() <= (limit + 3 * 2**-24) * true + 1e-30).all()
        (total.backward(), true_total.backward())
        error, slope = (x.grad.double() - exact.grad).abs(), exact.grad.abs()
        assert (error <= (4 * limit + torch.finfo(dtype).eps) * slope + 1e-30).all()
print("right")
"""


WITH_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.mark.prove
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=WITH_COMPILER)])
def test_torch_compile_keeps_to_the_rule_of_errors_in_one_graph(backend, tmp_path, monkeypatch):
    """In a process of its own, as users have it: here each call is checked, which is no part of the graph."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COMPILED, backend], capture_output=True, text=True, check=False)
    assert done.stdout == "right\n", done.stderr
