import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_negative_coordinates_do_not_mix_classes():
    # Where classes are set apart by label × largest coordinate, these two land on each other.
    boxes = torch.tensor([[-100.0, -100.0, -50.0, -50.0], [-100.0, -100.0, -50.0, -50.0]])
    kept = class_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), iou=0.5)
    assert kept.tolist() == [0, 1]


def test_no_boxes():
    assert class_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), iou=0.5).tolist() == []
