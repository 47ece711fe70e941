"""The losses of boxes, by hand and against float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focaldet.ops.losses.regression import ciou_loss, diou_loss, giou_loss, iou_loss, l1_loss, smooth_l1_loss


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


def exact(predicted, target, kind):
    """Each loss of one pair of boxes, written out in Python's own numbers."""
    (a1, b1, a2, b2), (c1, d1, c2, d2) = predicted, target
    width, height = max(0.0, min(a2, c2) - max(a1, c1)), max(0.0, min(b2, d2) - max(b1, d1))
    shared = width * height
    union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - shared
    hull_width, hull_height = max(a2, c2) - min(a1, c1), max(b2, d2) - min(b1, d1)
    iou = shared / union
    if kind == "iou":
        return 1 - iou
    if kind == "giou":
        return 1 - iou + (hull_width * hull_height - union) / (hull_width * hull_height)
    distance = ((a1 + a2 - c1 - c2) ** 2 + (b1 + b2 - d1 - d2) ** 2) / 4 / (hull_width**2 + hull_height**2)
    v = 4 / math.pi**2 * (math.atan((c2 - c1) / (d2 - d1)) - math.atan((a2 - a1) / (b2 - b1))) ** 2
    weight = v / max(1 - iou + v, 1e-300)
    return 1 - iou + distance + (weight * v if kind == "ciou" else 0.0)


@st.composite
def pairs(draw):
    """Two boxes with sides of 1 to 2000 px up to 4096 px from the origin, in fp16, bf16, fp32 or fp64."""
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    boxes = []
    for _ in range(2):
        x, y = draw(st.floats(0, 4096)), draw(st.floats(0, 4096))
        side = st.floats(32, 2000)  # at 4096 px bf16 has steps of 16 px
        boxes.append([x, y, x + draw(side), y + draw(side)])
    return torch.tensor(boxes, dtype=torch.float64).to(dtype)


@given(pairs())
@settings(max_examples=80, deadline=None)
def test_losses_of_boxes_in_half_precision_are_those_of_float64(boxes):
    """Products of coordinates leave fp16 from 256 px on."""
    predicted, target = boxes[:1].clone().requires_grad_(), boxes[1:]
    for kind, loss in {"iou": iou_loss, "giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}.items():
        value = loss(predicted, target)
        wanted = exact(*boxes.double().tolist(), kind)
        assert value.item() == pytest.approx(wanted, rel=1e-4, abs=2e-5)
        (slope,) = torch.autograd.grad(value.sum(), predicted)
        wide = boxes[:1].double().requires_grad_()
        (expected,) = torch.autograd.grad(loss(wide, target.double()).sum(), wide)
        tolerance = max(1e-4, torch.finfo(boxes.dtype).eps)
        torch.testing.assert_close(slope.double(), expected, rtol=tolerance, atol=1e-6)
    distance = (boxes[0].double() - boxes[1].double()).abs()
    for beta in (0.0, 1.0, 0.11):
        smooth = torch.where(distance < beta, distance**2 / 2 / max(beta, 1e-9), distance - beta / 2)
        torch.testing.assert_close(smooth_l1_loss(*boxes, beta=beta).double(), smooth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(l1_loss(*boxes).double(), distance, rtol=1e-6, atol=1e-6)
