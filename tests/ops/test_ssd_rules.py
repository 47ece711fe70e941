"""SSD's matching and mining against the rules in words, one pair at a time: ties, empty images, ignored regions."""

import random
from fractions import Fraction

import pytest
import torch

from focaldet.ops.matching import MatchConfig, match
from focaldet.ops.sampling import hardest_negatives

BIPARTITE = MatchConfig(foreground_iou=0.5, background_iou=0.5, low_quality="bipartite")
COUNTS = [300, pytest.param(1000, marks=pytest.mark.prove)]


def area(box):
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def shared(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def iou(a, b):
    union = area(a) + area(b) - shared(a, b)
    return Fraction(shared(a, b), union) if union else Fraction(0)


def caffes_matching(anchors, boxes):
    """MatchBBox of Caffe's bbox_util.cpp: for each anchor the object that it answers for, or None."""
    answers = [None] * len(anchors)
    free = list(range(len(boxes)))
    while free:
        best = (Fraction(0), None, None)
        for position, anchor in enumerate(anchors):
            for g in free:
                if answers[position] is None and iou(anchor, boxes[g]) > best[0]:
                    best = (iou(anchor, boxes[g]), position, g)
        if best[1] is None:
            break
        answers[best[1]] = best[2]
        free.remove(best[2])
    for position, anchor in enumerate(anchors):
        if answers[position] is None and boxes:
            overlaps = [iou(anchor, box) for box in boxes]
            if max(overlaps) >= Fraction(1, 2):
                answers[position] = overlaps.index(max(overlaps))
    return answers


def left_out(anchors, boxes, answers):
    """Anchors without an object that lie half in an ignored box, or would be objects if those boxes were objects."""
    as_objects = caffes_matching(anchors, boxes)
    return [
        answers[position] is None
        and (as_objects[position] is not None or any(2 * shared(a, b) >= area(a) > 0 for b in boxes))
        for position, a in enumerate(anchors)
    ]


def random_boxes(draw, count):
    """Boxes on a coarse grid, so that overlaps are often equal."""
    actual = []
    for _ in range(count):
        x, y = draw.randrange(10), draw.randrange(10)
        actual.append([x, y, x + draw.randrange(1, 8), y + draw.randrange(1, 8)])
    return actual


@pytest.mark.parametrize("cases", COUNTS)
def test_matching_equals_caffes_rule(cases):
    pairs = forced = 0
    for seed in range(cases):
        draw = random.Random(seed)
        anchors, boxes = random_boxes(draw, draw.randrange(1, 20)), random_boxes(draw, draw.randrange(0, 6))
        ignored = [draw.random() < 0.25 for _ in boxes]
        indices = [g for g, out in enumerate(ignored) if not out]
        answers = caffes_matching(anchors, [boxes[g] for g in indices])
        actual = match(
            torch.tensor(anchors).float(),
            torch.tensor(boxes).float().reshape(-1, 4),
            torch.tensor(ignored, dtype=torch.bool),
            BIPARTITE,
        )
        assert actual.foreground.tolist() == [answer is not None for answer in answers], seed
        expected = [indices[answer] for answer in answers if answer is not None]
        assert actual.box_index[actual.foreground].tolist() == expected, seed
        apart = [box for box, out in zip(boxes, ignored, strict=True) if out]
        assert actual.ignored.tolist() == left_out(anchors, apart, answers), seed
        pairs += len(expected)
        forced += sum(
            iou(anchor, boxes[indices[answer]]) < Fraction(1, 2)
            for anchor, answer in zip(anchors, answers, strict=True)
            if answer is not None
        )
    assert pairs > cases and forced > cases / 2, "the cases hold both kinds of match"


def test_the_globally_best_pair_comes_first():
    """Both objects like the first anchor best; the one that fits it better gets it, the other the second anchor."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [8, 0, 18, 10]])
    boxes = torch.tensor([[3.0, 0, 13, 10], [1.0, 0, 11, 10]])
    actual = match(anchors, boxes, torch.zeros(2, dtype=torch.bool), BIPARTITE)
    assert actual.foreground.tolist() == [True, True]
    assert actual.box_index.tolist() == [1, 0]


def test_more_objects_than_anchors():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0.0, 0, 5, 5], [1.0, 1, 5, 5]])
    actual = match(torch.tensor([[0.0, 0, 5, 5]]), boxes, torch.zeros(3, dtype=torch.bool), BIPARTITE)
    assert (actual.box_index.tolist(), actual.foreground.tolist()) == ([1], [True])


def hardest_by_hand(losses, foreground, ignored, ratio):
    chosen = []
    for row, positive, out in zip(losses, foreground, ignored, strict=True):
        negatives = [position for position in range(len(row)) if not positive[position] and not out[position]]
        negatives.sort(key=lambda position: (-row[position], position))
        chosen.append(set(negatives[: int(sum(positive) * ratio)]))
    return [[position in kept for position in range(len(losses[0]))] for kept in chosen]


@pytest.mark.parametrize("cases", COUNTS)
def test_mining_equals_the_rule(cases):
    some = 0
    for seed in range(cases):
        draw = random.Random(seed)
        images, count, ratio = draw.randrange(1, 4), draw.randrange(1, 30), draw.choice([3.0, 3.0, 1.0, 2.5])
        share = draw.choice([0.0, 0.1, 0.6])
        losses = [[draw.randrange(6) / 4 for _ in range(count)] for _ in range(images)]
        foreground = [[draw.random() < share for _ in range(count)] for _ in range(images)]
        ignored = [
            [not positive and draw.random() < 0.2 for positive in row]  # a matched prior is never left out
            for row in foreground
        ]
        actual = hardest_negatives(
            torch.tensor(losses), torch.tensor(foreground), torch.tensor(ignored), ratio=ratio
        ).tolist()
        assert actual == hardest_by_hand(losses, foreground, ignored, ratio), seed
        some += any(map(any, actual))
    assert some > cases / 3


def test_an_image_without_objects_gives_no_negatives():
    losses = torch.tensor([[3.0, 2.0, 1.0], [0.1, 0.2, 0.3]])
    foreground = torch.tensor([[False, False, False], [True, False, False]])
    actual = hardest_negatives(losses, foreground, torch.zeros_like(foreground), ratio=3.0)
    assert actual.tolist() == [[False, False, False], [False, True, True]]
