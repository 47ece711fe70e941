import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from focaldet.ops import nms
from focaldet.ops.boxes import pairwise_iou
from focaldet.ops.nms import class_nms


def naive(boxes, scores, labels, iou):
    kept = []
    overlap = pairwise_iou(boxes.double(), boxes.double())
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(labels[i] != labels[j] or overlap[i, j] <= iou for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 80), st.sampled_from([1, 3, 80]), st.sampled_from([-5000.0, -50.0, 0.0]))
def test_equals_brute_force_wherever_the_boxes_lie(seed, count, classes, shift):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60 + shift
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], dim=1)
    scores = torch.rand(count, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    assert class_nms(boxes, scores, labels, iou=0.5).tolist() == naive(boxes, scores, labels, 0.5)


@pytest.mark.parametrize("calls", [0, 10**9])
@pytest.mark.parametrize("classes", [1, 5, 80])
def test_class_by_class_and_in_one_call_the_survivors_are_those_of_brute_force(monkeypatch, classes, calls):
    """`calls` makes the split free or too dear; scores tie, and coordinates are negative."""
    monkeypatch.setattr(nms, "CALL_COMPARISONS", calls)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        corner = (torch.rand(120, 2, generator=generator) * 60 - 90).round()
        boxes = torch.cat([corner, corner + 5 + (torch.rand(120, 2, generator=generator) * 40).round()], dim=1)
        scores = torch.randint(0, 40, (120,), generator=generator) / 40
        labels = torch.randint(0, classes, (120,), generator=generator) * 3
        assert class_nms(boxes, scores, labels, iou=0.43).tolist() == naive(boxes, scores, labels, 0.43)


def test_many_classes_are_not_compared_with_each_other(monkeypatch):
    sizes = []
    monkeypatch.setattr(nms, "nms", lambda boxes, *rest: sizes.append(len(boxes)) or torchvision.ops.nms(boxes, *rest))
    boxes = torch.arange(4000.0)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    labels = torch.arange(4000) % 8
    assert class_nms(boxes, torch.arange(4000.0), labels, iou=0.5).tolist() == [*range(3999, -1, -1)]
    assert sizes == [500] * 8


def test_negative_coordinates_do_not_mix_classes():
    # Where classes are set apart by label × largest coordinate, these two land on each other.
    boxes = torch.tensor([[-100.0, -100.0, -50.0, -50.0], [-100.0, -100.0, -50.0, -50.0]])
    kept = class_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), iou=0.5)
    assert kept.tolist() == [0, 1]


def test_no_boxes():
    assert class_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), iou=0.5).tolist() == []


@pytest.mark.parametrize("case", range(12))
def test_the_first_survivors_are_those_of_all(case):
    generator = torch.Generator().manual_seed(case)
    corner = torch.rand(2000, 2, generator=generator) * 120
    boxes = torch.cat([corner, corner + 5 + torch.rand(2000, 2, generator=generator) * 60], 1)
    scores = torch.randint(0, 900, (2000,), generator=generator) / 900  # some are equal
    labels = torch.randint(0, 3, (2000,), generator=generator)
    every = class_nms(boxes, scores, labels, iou=0.3)
    assert 60 < len(every) < 1900
    for most in (1, 7, 60, 199, 250, 2000):
        assert torch.equal(class_nms(boxes, scores, labels, iou=0.3, most=most), every[:most])


def test_where_the_best_are_all_in_one_place_lesser_ones_are_looked_at(monkeypatch):
    looks = []
    monkeypatch.setattr(nms, "nms", lambda boxes, *rest: looks.append(len(boxes)) or torchvision.ops.nms(boxes, *rest))
    boxes = torch.tensor([[0.0, 0, 9, 9]] * 100 + [[20.0, 20, 29, 29], [40, 40, 49, 49]])
    scores, labels = torch.arange(102, 0, -1.0), torch.zeros(102, dtype=torch.int64)
    for in_graph, sizes in ((False, [16, 64, 102]), (True, [102])):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda answer=in_graph: answer)
        assert class_nms(boxes, scores, labels, iou=0.5, most=2).tolist() == [0, 100]
        assert looks == sizes
        looks.clear()
