import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focaldet.ops import boxes as ops

SQUARE = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


def random_boxes(count, *, generator, low=1.0, high=4000.0):
    size = torch.empty(count, 2).uniform_(math.log(low), math.log(high), generator=generator).exp()
    corner = torch.empty(count, 2).uniform_(-500, 4000, generator=generator)
    return torch.cat([corner, corner + size], dim=1)


def test_area_counts_no_extra_pixel():
    assert ops.areas(torch.tensor([[1.0, 2.0, 4.0, 6.0], [5.0, 5.0, 3.0, 9.0]])).tolist() == [12.0, 0.0]


def test_iou_by_hand():
    others = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [10.0, 0.0, 20.0, 10.0], [2.0, 2.0, 4.0, 4.0]]
    )
    torch.testing.assert_close(ops.pairwise_iou(SQUARE, others), torch.tensor([[1.0, 1 / 3, 0.0, 0.04]]))


def test_iou_of_nothing_is_zero_not_nan():
    point = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert ops.pairwise_iou(point, point).item() == 0.0
    assert ops.pairwise_iou(torch.zeros(0, 4), SQUARE).shape == (0, 1)


def test_coverage_is_the_fraction_of_the_first():
    crowd = torch.tensor([[0.0, 0.0, 100.0, 5.0]])
    assert ops.pairwise_coverage(SQUARE, crowd).item() == pytest.approx(0.5)
    assert ops.pairwise_coverage(crowd, SQUARE).item() == pytest.approx(0.1)


def test_elementwise_iou_is_the_diagonal_of_the_pairwise_one():
    generator = torch.Generator().manual_seed(0)
    first, second = random_boxes(50, generator=generator), random_boxes(50, generator=generator)
    torch.testing.assert_close(ops.elementwise_iou(first, second), ops.pairwise_iou(first, second).diagonal())


def test_giou_by_hand():
    # Two unit squares with a gap of one: no overlap, hull 3, so 0 - (3 - 2) / 3.
    first, second = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]])
    assert ops.elementwise_giou(first, second).item() == pytest.approx(-1 / 3)
    assert ops.elementwise_giou(first, first).item() == pytest.approx(1.0)


def test_giou_gradient():
    generator = torch.Generator().manual_seed(1)
    first = random_boxes(6, generator=generator, low=50, high=500).double().requires_grad_()
    second = random_boxes(6, generator=generator, low=50, high=500).double()
    assert torch.autograd.gradcheck(lambda b: ops.elementwise_giou(b, second), (first,))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_decode_inverts_encode(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = random_boxes(32, generator=generator, low=4, high=800)
    scale = torch.empty(32, 1).uniform_(0.1, 10, generator=generator)
    size = ((anchors[:, 2:] - anchors[:, :2]) * scale).clamp(1, 4000)
    truth = torch.cat([anchors[:, :2], anchors[:, :2] + size], dim=1)
    decoded = ops.decode(ops.encode(truth.double(), anchors.double()), anchors.double())
    assert (decoded - truth.double()).abs().max() <= 1e-3
    decoded = ops.decode(ops.encode(truth, anchors), anchors)
    assert (decoded - truth).abs().max() <= 2e-2


def test_encode_by_hand():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[5.0, 0.0, 15.0, 40.0]])
    torch.testing.assert_close(ops.encode(box, anchor), torch.tensor([[0.5, 0.5, 0.0, math.log(2)]]))


def test_decode_bounds_growth():
    decoded = ops.decode(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), SQUARE)
    torch.testing.assert_close(decoded[:, 2:] - decoded[:, :2], torch.full((1, 2), 625.0))


def test_decode_gradient():
    generator = torch.Generator().manual_seed(2)
    deltas = torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    anchors = random_boxes(5, generator=generator, low=10, high=100).double()
    assert torch.autograd.gradcheck(lambda d: ops.decode(d, anchors), (deltas,))


def test_clip_keeps_inside():
    box = torch.tensor([[-5.0, -1.0, 50.0, 8.0]])
    assert ops.clip(box, height=10, width=20).tolist() == [[0.0, 0.0, 20.0, 8.0]]
