"""Detections in tensors of fixed shapes are those of the functions that work image by image."""

import torch
from torch import Tensor

from focaldet.ops.nms import class_nms
from focaldet.ops.padded import (
    NMSLimits,
    best_pairs,
    mark_survivors,
    nms_labeled,
    nms_mask,
    propose_padded,
    select_best,
    topk_padded,
)
from focaldet.ops.proposals import ProposalLimits, propose


def crowd(*shape: int, seed: int = 0) -> Tensor:
    """Boxes of 8 to 40 px that overlap often."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 60 - 10
    return torch.cat([corner, corner + 8 + torch.rand(*shape, 2, generator=generator) * 32], -1)


def test_survivors_are_those_of_class_nms():
    boxes, generator = crowd(2, 50), torch.Generator().manual_seed(1)
    scores, labels = torch.rand(2, 50, generator=generator), torch.randint(0, 3, (2, 50), generator=generator)
    kept = nms_labeled(boxes, scores, labels, NMSLimits(0.4, 0.2, 50), num_classes=3)
    for image in range(2):
        chosen = (scores[image] > 0.2).nonzero().squeeze(1)
        each = chosen[class_nms(boxes[image, chosen], scores[image, chosen], labels[image, chosen], iou=0.4)]
        assert set(kept[image].nonzero().squeeze(1).tolist()) == set(each.tolist())
        best = select_best(boxes, scores[:, None], kept[:, None], most=5, labels=labels)
        assert torch.equal(best.boxes[image], boxes[image, each[:5]])
        assert torch.equal(best.labels[image], labels[image, each[:5]])


def test_groups_do_not_suppress_each_other():
    boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 9]]]).repeat(2, 1, 1)
    scores = torch.tensor([[[0.9, 0.8], [0.1, 0.8]]]).repeat(2, 1, 1)
    assert mark_survivors(boxes, scores, 0.5, 0.2, 9).tolist() == [[[True, False], [False, True]]] * 2


def test_nothing_above_the_threshold_marks_nothing():
    assert not mark_survivors(crowd(1, 4), torch.zeros(1, 2, 4), 0.5, 0.0, 9).any()


def test_the_operation_has_the_shapes_that_a_trace_sees():
    arguments = (crowd(2, 6), torch.rand(2, 3, 6), 0.5, 0.1, 4)
    torch.library.opcheck(nms_mask, arguments)


def test_fewer_than_asked_for_are_filled_up():
    values, index = topk_padded(torch.tensor([[0.1, 0.5]]), 4, fill=-torch.inf)
    assert values.tolist() == [[0.5, torch.tensor(0.1).item(), -torch.inf, -torch.inf]]
    assert index.tolist() == [[1, 0, 0, 0]]


def test_pairs_name_anchor_and_class():
    scores = torch.tensor([[[0.1, 0.9], [0.8, 0.2]]])
    values, anchor, label = best_pairs(scores, 3, fill=0.0)
    assert [anchor.tolist(), label.tolist()] == [[[0, 1, 1]], [[1, 0, 1]]]
    assert torch.allclose(values, torch.tensor([[0.9, 0.8, 0.2]]))


def test_rows_behind_the_count_are_zero():
    kept = torch.tensor([[[True, False, True]]])
    best = select_best(crowd(1, 3), torch.tensor([[[0.3, 0.9, 0.6]]]), kept, most=4)
    assert best.counts.tolist() == [2]
    assert best.boxes[0, 2:].abs().sum() == 0
    assert best.labels.tolist() == [[0, 0, 0, 0]]
    assert best.scores[0, 0] > best.scores[0, 1] > best.scores[0, 2] == 0


def test_proposals_are_those_of_each_image():
    """Levels of 40 and 6 anchors, of which 12 and all take part; the second image is smaller."""
    generator = torch.Generator().manual_seed(2)
    anchors = crowd(46, seed=3)
    objectness = torch.randn(2, 46, generator=generator) * 20
    deltas = torch.randn(2, 46, 4, generator=generator) * 0.3
    frames, limits = torch.tensor([[64.0, 64.0], [30.0, 50.0]]), ProposalLimits(top_k=12, keep=10)
    regions, is_region = propose_padded(
        objectness, deltas, anchors, level_sizes=(40, 6), frames=frames, limits=limits, nms_iou=0.5
    )
    assert regions.shape == (2, 10, 4)
    for image in range(2):
        each = propose(
            objectness[image],
            deltas[image],
            anchors,
            level_sizes=(40, 6),
            frame=frames[image],
            limits=limits,
            nms_iou=0.5,
        )
        assert torch.allclose(regions[image, is_region[image]], each)


def test_all_anchors_of_one_map_may_be_proposed():
    anchors, frames = crowd(30, seed=4), torch.tensor([[64.0, 64.0]])
    objectness, deltas = torch.linspace(-3, 3, 30)[None], torch.zeros(1, 30, 4)
    limits = ProposalLimits(top_k=1_000_000, keep=7)
    regions, is_region = propose_padded(
        objectness, deltas, anchors, level_sizes=(30,), frames=frames, limits=limits, nms_iou=0.5
    )
    each = propose(objectness[0], deltas[0], anchors, level_sizes=(30,), frame=frames[0], limits=limits, nms_iou=0.5)
    assert torch.allclose(regions[0, is_region[0]], each)
