import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focaldet.ops import adaptive
from focaldet.ops.adaptive import match_adaptively
from focaldet.ops.anchors import AnchorConfig, pyramid_anchors
from focaldet.ops.matching import MatchConfig, match

ONE_PER_CELL = AnchorConfig(base_scale=8.0, scales=(1.0,), ratios=(1.0,))
SHAPES = ((20, 20), (10, 10), (5, 5), (3, 3), (2, 2))
SIZES = tuple(height * width for height, width in SHAPES)


def pyramid():
    return pyramid_anchors(ONE_PER_CELL, strides_px=(8, 16, 32, 64, 128), shapes=SHAPES, image=(160, 160)).double()


def iou(a, b):
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def algorithm_1(anchors, boxes, level_sizes, k):
    """ATSS as the paper writes it, one object at a time; an object that gets no anchor takes its best candidate."""
    owners = {}
    for g, box in enumerate(boxes):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, start = [], 0
        for size in level_sizes:
            level = range(start, start + size)
            centers = {i: ((anchors[i][0] + anchors[i][2]) / 2, (anchors[i][1] + anchors[i][3]) / 2) for i in level}
            far = {i: (x - middle[0]) ** 2 + (y - middle[1]) ** 2 for i, (x, y) in centers.items()}
            candidates += sorted(level, key=far.__getitem__)[:k]
            start += size
        overlaps = torch.tensor([iou(anchors[i], box) for i in candidates], dtype=torch.float64)
        threshold = float(overlaps.mean() + overlaps.std())
        positives = {}
        for i, overlap in zip(candidates, overlaps.tolist(), strict=True):
            x, y = (anchors[i][0] + anchors[i][2]) / 2, (anchors[i][1] + anchors[i][3]) / 2
            if overlap >= threshold and box[0] < x < box[2] and box[1] < y < box[3]:
                positives[i] = overlap
        if not positives:
            best = max(overlaps.tolist())
            positives = {i: 1 + o for i, o in zip(candidates, overlaps.tolist(), strict=True) if o == best}
        for i, overlap in positives.items():
            if overlap > owners.get(i, (-1.0, 0))[0]:
                owners[i] = (overlap, g)
    return {i: g for i, (_, g) in owners.items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.sampled_from([1.0, 12.0, 70.0]))
def test_it_is_the_papers_algorithm(seed, count, side):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (150 - side)
    boxes = torch.cat([corner, corner + side * (0.5 + torch.rand(count, 2, generator=generator).double())], dim=1)
    anchors = pyramid()
    box_index, foreground = match_adaptively(anchors, boxes, level_sizes=SIZES, candidates=4)
    actual = {i: int(box_index[i]) for i in foreground.nonzero().squeeze(1).tolist()}
    assert actual == algorithm_1(anchors.tolist(), boxes.tolist(), SIZES, 4)
    assert not box_index[~foreground].any()


def test_an_object_between_the_centers_and_one_beyond_the_anchors_get_one():
    anchors = pyramid()
    boxes = torch.tensor([[42.0, 42.0, 46.0, 46.0], [0.0, 0.0, 160.0, 160.0]], dtype=torch.float64)
    box_index, foreground = match_adaptively(anchors, boxes, level_sizes=SIZES, candidates=9)
    assert set(box_index[foreground].tolist()) == {0, 1}


def test_the_rule_of_a_config_leaves_crowds_out():
    anchors, config = pyramid(), MatchConfig(rule="adaptive")
    boxes = torch.tensor([[10.0, 10.0, 60.0, 60.0], [80.0, 80.0, 150.0, 150.0]], dtype=torch.float64)
    matches = match(anchors, boxes, torch.tensor([False, True]), config, level_sizes=SIZES)
    assert set(matches.box_index[matches.foreground].tolist()) == {0}
    inside = (anchors[:, :2] >= 80).all(1) & (anchors[:, 2:] <= 150).all(1)
    assert matches.ignored[inside].all() and not matches.ignored[matches.foreground].any()
    nothing = match(anchors, boxes[:0], torch.zeros(0, dtype=torch.bool), config, level_sizes=SIZES)
    assert not nothing.foreground.any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_without_levels_all_anchors_are_of_one(shape):
    anchors = pyramid_anchors(ONE_PER_CELL, strides_px=(8,), shapes=(shape,), image=(40, 40))
    box = torch.tensor([[2.0, 2.0, 20.0, 20.0]])
    assert match(anchors, box, torch.tensor([False]), MatchConfig(rule="adaptive")).foreground.any()


def test_in_blocks_of_boxes_the_answers_are_the_same(monkeypatch):
    anchors, boxes = random_boxes(200, 0), random_boxes(12, 1)
    whole = match_adaptively(anchors, boxes, level_sizes=(150, 50), candidates=9)
    monkeypatch.setattr(adaptive, "TABLE_ELEMENTS", 450)
    assert all(map(torch.equal, whole, match_adaptively(anchors, boxes, level_sizes=(150, 50), candidates=9)))


def random_boxes(number, seed):
    corner = torch.rand(number, 2, generator=torch.Generator().manual_seed(seed)) * 90
    return torch.cat([corner, corner + 10], 1)
