import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from focaldet.config import from_dict
from focaldet.errors import ConfigError
from focaldet.ops import matching
from focaldet.ops.anchors import AnchorConfig, pyramid_anchors
from focaldet.ops.boxes import iou_of_columns, pairwise_iou
from focaldet.ops.matching import NO_OVERLAP, MatchConfig, match

NONE = torch.zeros(0, dtype=torch.bool)


def regular(count):
    return torch.zeros(count, dtype=torch.bool)


def naive(anchors, boxes, ignored, config):
    """The rule in words, one anchor at a time."""

    def area(b):
        return max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])

    def shared(a, b):
        return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))

    def iou(a, b):
        union = area(a) + area(b) - shared(a, b)
        return shared(a, b) / union if union else 0.0

    def assigned(chosen):
        table = [[iou(a, boxes[g]) for g in chosen] for a in anchors]
        for row in table:
            best = max(row, default=0.0)
            foreground = best >= config.foreground_iou and bool(row)
            for position in range(len(chosen)):
                top = max(other[position] for other in table)
                lifted = config.low_quality == "any" or (
                    config.low_quality == "above_background" and best >= config.background_iou
                )
                foreground |= lifted and top > 0 and row[position] == top
            between = bool(row) and best >= config.background_iou and not foreground
            yield chosen[row.index(best)] if row else 0, foreground, between

    anchors, boxes = anchors.tolist(), boxes.tolist()
    objects = assigned([g for g in range(len(boxes)) if not ignored[g]])
    others = assigned([g for g in range(len(boxes)) if ignored[g]])
    answers = []
    for a, (index, foreground, left_out), (_, *as_object) in zip(anchors, objects, others, strict=True):
        covered = any(
            ignored[g] and area(a) and shared(a, boxes[g]) / area(a) >= config.ignore_coverage
            for g in range(len(boxes))
        )
        answers.append((index, foreground, left_out or (not foreground and (covered or any(as_object)))))
    return answers


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 6), st.sampled_from(["none", "above_background", "any"]))
def test_equals_the_rule_in_words(seed, count, low_quality):
    generator = torch.Generator().manual_seed(seed)

    def draw(n):  # small whole numbers: every IoU is exact enough for ties to be ties in both computations
        corner = torch.randint(0, 12, (n, 2), generator=generator).double()
        return torch.cat([corner, corner + torch.randint(1, 9, (n, 2), generator=generator)], dim=1)

    anchors, boxes = draw(30), draw(count)
    ignored = torch.rand(count, generator=generator) < 0.25
    config = MatchConfig(low_quality=low_quality)
    actual = match(anchors, boxes, ignored, config)
    got = list(zip(actual.box_index.tolist(), actual.foreground.tolist(), actual.ignored.tolist(), strict=True))
    for (index, foreground, left_out), (their_index, their_foreground, their_left_out) in zip(
        got, naive(anchors, boxes, ignored, config), strict=True
    ):
        assert (foreground, left_out) == (their_foreground, their_left_out)
        if foreground:
            assert index == their_index


def test_between_the_thresholds_an_anchor_is_left_out():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    anchors = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.5], [0.0, 0.0, 10.0, 3.9]])
    actual = match(anchors, box, regular(1), MatchConfig())
    assert actual.foreground.tolist() == [True, False, False]
    assert actual.ignored.tolist() == [False, True, False]


def test_low_quality_policies():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    poor, fair = torch.tensor([[0.0, 0.0, 10.0, 2.0]]), torch.tensor([[0.0, 0.0, 10.0, 4.5]])
    answers = {
        policy: [match(a, box, regular(1), MatchConfig(low_quality=policy)).foreground.item() for a in (poor, fair)]
        for policy in ("none", "above_background", "any")
    }
    assert answers == {"none": [False, False], "above_background": [False, True], "any": [True, True]}


def test_an_object_that_touches_no_anchor_forces_none():
    actual = match(
        torch.tensor([[0.0, 0.0, 4.0, 4.0]]),
        torch.tensor([[50.0, 50.0, 60.0, 60.0]]),
        regular(1),
        MatchConfig(low_quality="any"),
    )
    assert not actual.foreground.any()


def test_without_boxes_everything_is_background():
    actual = match(torch.rand(7, 4), torch.zeros(0, 4), NONE, MatchConfig(low_quality="any"))
    assert not actual.foreground.any() and not actual.ignored.any()


def test_a_crowd_is_neither_object_nor_background():
    crowd = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    anchors = torch.tensor([[10.0, 10.0, 20.0, 20.0], [95.0, 0.0, 105.0, 10.0], [200.0, 200.0, 210.0, 210.0]])
    actual = match(anchors, crowd, torch.tensor([True]), MatchConfig(low_quality="any"))
    assert actual.ignored.tolist() == [True, True, False]
    assert not actual.foreground.any()


SMALL_ANCHORS = AnchorConfig(base_scale=2.0), MatchConfig(low_quality="any")
PAPER_ANCHORS = AnchorConfig(), MatchConfig()


@pytest.mark.parametrize(
    ("anchors_and_matching", "side_px", "count"), [(SMALL_ANCHORS, 8.0, 2), (PAPER_ANCHORS, 24.0, 11)]
)
def test_an_ignored_box_smaller_than_half_an_anchor_is_not_background(anchors_and_matching, side_px, count):
    """All anchors that an object of this position and size would take from the background, it takes when ignored."""
    shape, config = anchors_and_matching
    maps = tuple((256 // stride, 256 // stride) for stride in (8, 16, 32, 64, 128))
    anchors = pyramid_anchors(shape, strides_px=(8, 16, 32, 64, 128), shapes=maps, image=(256, 256))
    box = torch.tensor([[100.0, 100.0, 100.0 + side_px, 100.0 + side_px]])
    as_object = match(anchors, box, regular(1), config)
    actual = match(anchors, box, torch.tensor([True]), config)
    assert not actual.foreground.any()
    assert int(actual.ignored.sum()) >= count
    assert not ((as_object.foreground | as_object.ignored) & ~actual.ignored).any()


def test_an_object_keeps_the_anchors_that_an_ignored_box_would_take():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 4.5], [30.0, 30.0, 40.0, 40.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [30.0, 30.0, 36.0, 37.0]])
    actual = match(anchors, boxes, torch.tensor([False, True, True]), MatchConfig())
    assert actual.foreground.tolist() == [True, False, False]
    assert actual.ignored.tolist() == [False, True, True], "IoU .42 with a box that covers .42 of the last anchor"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"foreground_iou": 5}, "foreground_iou: Input should be less than or equal to 1"),
        ({"foreground_iou": 0}, "foreground_iou: Input should be greater than 0"),
        ({"background_iou": -0.1}, "background_iou: Input should be greater than or equal to 0"),
        ({"ignore_coverage": 1.5}, "ignore_coverage: Input should be less than or equal to 1"),
        ({"ignore_coverage": 0}, "ignore_coverage: Input should be greater than 0"),
        ({"foreground_iou": 0.3, "background_iou": 0.6}, "at most foreground_iou, which is 0.3, got 0.6"),
    ],
)
def test_settings_out_of_range_are_named(values, problem):
    with pytest.raises(ConfigError, match=problem):
        from_dict(MatchConfig, values)


def test_thresholds_may_meet():
    config = MatchConfig(foreground_iou=0.5, background_iou=0.5)
    actual = match(torch.tensor([[0.0, 0.0, 10.0, 4.9]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]]), regular(1), config)
    assert not actual.foreground.any() and not actual.ignored.any()


def match_at_once(anchors, boxes, config):
    """The matching with the whole table in memory, each step of it in one line."""
    iou = pairwise_iou(boxes, anchors)
    best, box_index = iou.max(0)
    foreground = best >= config.foreground_iou
    if config.low_quality == "bipartite":
        left = iou.clone()
        for _ in range(min(left.shape)):
            if left.max() <= NO_OVERLAP:
                break
            rows, columns = (left == left.max()).nonzero().unbind(1)
            order = (columns * len(boxes) + rows).argmin()
            row, column = int(rows[order]), int(columns[order])
            box_index[column], foreground[column] = row, True
            left[row], left[:, column] = -1, -1
    elif config.low_quality != "none":
        forced = ((iou == iou.amax(1, keepdim=True)) & (iou > 0)).any(0)
        foreground |= forced & (best >= (config.background_iou if config.low_quality == "above_background" else 0))
    return box_index, foreground, (best >= config.background_iou) & ~foreground


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 9),
    st.sampled_from(["none", "above_background", "any", "bipartite"]),
    st.sampled_from([1, 7, 40, 1000]),
    st.sampled_from([1, 3, 1024]),
    st.booleans(),
)
def test_in_blocks_the_answers_are_the_same_to_the_bit(seed, count, low_quality, elements, near, whole_numbers):
    """Ties included: whole numbers make many."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        corner, side = (torch.rand(n, 2, generator=generator) * size for size in (12, 8))
        boxes = torch.cat([corner, corner + side + 1], 1)
        return boxes.round() if whole_numbers else boxes

    anchors, boxes, config = draw(37), draw(count), MatchConfig(low_quality=low_quality)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "BLOCK_ELEMENTS", elements)
        patch.setattr(matching, "BLOCK_ANCHORS", near)
        actual = match(anchors, boxes, regular(count), config)
        hidden = match(anchors, boxes, ~regular(count), config)
    assert all(map(torch.equal, actual, match_at_once(anchors, boxes, config)))
    assert all(map(torch.equal, hidden, match(anchors, boxes, ~regular(count), config)))


@pytest.mark.parametrize("low_quality", ["none", "above_background", "any", "bipartite"])
def test_on_the_grid_of_a_pyramid_only_near_boxes_are_compared(monkeypatch, low_quality):
    """The answers of the whole table, from less than a third of it; some boxes meet no anchor."""
    maps = tuple((-(-320 // stride), -(-448 // stride)) for stride in (8, 16, 32, 64, 128))
    anchors = pyramid_anchors(AnchorConfig(), strides_px=(8, 16, 32, 64, 128), shapes=maps, image=(320, 448))
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([420.0, 290.0])
    boxes = torch.cat([corner, corner + 4 + torch.rand(60, 2, generator=generator).pow(3) * 150], 1)
    boxes[:3] += 5000
    config, pairs = MatchConfig(low_quality=low_quality), []
    monkeypatch.setattr(matching, "BLOCK_ANCHORS", 128)

    def count_pairs(first, second):
        iou = iou_of_columns(first, second)
        pairs.append(iou.numel())
        return iou

    monkeypatch.setattr(matching, "iou_of_columns", count_pairs)
    actual = match(anchors, boxes, regular(60), config)
    assert all(map(torch.equal, actual, match_at_once(anchors, boxes, config)))
    assert 0 < sum(pairs) < len(anchors) * len(boxes) / 3
    assert actual.foreground.any()


@pytest.mark.parametrize("low_quality", ["none", "any", "bipartite"])
def test_a_thousand_boxes_need_no_table_of_all_overlaps(low_quality):
    """Counted over every tensor that is made: none is of the size of the table."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(30_000, 2, generator=generator) * 1000
    anchors = torch.cat([corner, corner + 40], 1)
    boxes = anchors[::30] + torch.rand(1000, 1, generator=generator)
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple | list) else [result]:
                largest = max(largest, one.numel() if isinstance(one, torch.Tensor) else 0)
            return result

    with Sizes():
        assert match(anchors, boxes, regular(1000), MatchConfig(low_quality=low_quality)).foreground.any()
    assert largest <= matching.BLOCK_ELEMENTS < len(anchors) * len(boxes)


def test_a_thousand_boxes_take_less_than_20_megabytes():
    """In a process of its own, whose memory at its largest is that of the machine, not of torch's own count."""
    program = """
import resource, torch
from focaldet.ops.matching import MatchConfig, match
def boxes(number, side):
    corner = torch.rand(number, 2, generator=torch.Generator().manual_seed(number)) * 1000
    return torch.cat([corner, corner + 4 + side * torch.rand(number, 2)], 1)
torch.set_num_threads(1)
anchors, objects = boxes(100_000, 200), boxes(1000, 30)
match(anchors[:10], objects[:2], torch.zeros(2, dtype=torch.bool), MatchConfig())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
match(anchors, objects, torch.zeros(1000, dtype=torch.bool), MatchConfig(low_quality="any"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    taken = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert int(taken) < 20_000  # kilobytes; the whole table has 400 000
