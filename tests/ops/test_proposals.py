"""Region proposals, who is an object for the first stage, and the noise: against plain loops, 300 cases each."""

import pytest
import torch

from focaldet.ops.boxes import decode, pairwise_iou
from focaldet.ops.matching import MatchConfig, match
from focaldet.ops.proposals import ProposalLimits, clip_to_frame, has_sides, match_inside, propose
from focaldet.ops.sampling import SampleConfig, sample_balanced

CASES = 300
RPN = MatchConfig(foreground_iou=0.7, background_iou=0.3, low_quality="any")
REGION = MatchConfig(foreground_iou=0.5, background_iou=0.5)
FRAME = torch.tensor([60.0, 90.0])


def drawn_boxes(count, generator, *, grid=6.0):
    """Boxes on a coarse grid, so that equal overlaps happen; some cross the frame."""
    corner = torch.randint(-1, 13, (count, 2), generator=generator) * grid
    size = (torch.randint(1, 6, (count, 2), generator=generator)) * grid
    return torch.cat([corner, corner + size], 1)


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (area[0] + area[1] - shared)


def covered(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0) / ((one[2] - one[0]) * (one[3] - one[1]))


def roles(anchors, boxes, config):
    """For each anchor "object", "background" or "between" by plain loops, and the box it overlaps most."""
    actual = []
    best_of_box = [max((iou(anchor, box) for anchor in anchors), default=0.0) for box in boxes]
    for anchor in anchors:
        overlaps = [iou(anchor, box) for box in boxes]
        best = max(overlaps)
        role = "background" if best < config.background_iou - 1e-6 else "between"
        if best >= config.foreground_iou - 1e-6:
            role = "object"
        if config.low_quality == "any" and any(
            value > 0 and abs(value - top) < 1e-6 for value, top in zip(overlaps, best_of_box, strict=True)
        ):
            role = "object"
        actual.append((role, overlaps.index(best)))
    return actual


def oracle(anchors, boxes, ignored, config, *, straddle):
    """What `match_inside` promises, anchor by anchor: (role, box), with "out" for those left out."""
    inside = [
        straddle is None
        or (a[0] >= -straddle and a[1] >= -straddle and a[2] <= 90 + straddle and a[3] <= 60 + straddle)
        for a in anchors
    ]
    members = [anchor for anchor, is_in in zip(anchors, inside, strict=True) if is_in]
    regular = [position for position, hidden in enumerate(ignored) if not hidden]
    crowd = [boxes[position] for position, hidden in enumerate(ignored) if hidden]
    own = (
        roles(members, [boxes[position] for position in regular], config)
        if regular
        else [("background", 0)] * len(members)
    )
    other = roles(members, crowd, config) if crowd else [("background", 0)] * len(members)
    answers = []
    for anchor, (role, position), (as_object, _) in zip(members, own, other, strict=True):
        hidden = as_object != "background" or any(covered(anchor, box) >= 0.5 - 1e-6 for box in crowd)
        left_out = role == "between" or (role == "background" and hidden)
        answers.append(("out" if left_out else role, regular[position] if regular else 0))
    left = iter(answers)
    return [next(left) if is_in else ("out", 0) for is_in in inside]


@pytest.mark.parametrize("config", [RPN, REGION], ids=["first stage", "second stage"])
@pytest.mark.parametrize("straddle", [None, 0.0, 6.0])
def test_assignment_equals_a_plain_loop(config, straddle):
    generator = torch.Generator().manual_seed(3)
    seen = set()
    for case in range(CASES):
        anchors = drawn_boxes(12, generator)
        boxes = drawn_boxes(case % 4, generator)
        ignored = torch.rand(case % 4, generator=generator) < 0.3
        actual = match_inside(anchors, boxes, ignored, frame=FRAME, straddle_px=straddle, config=config)
        expected = oracle(anchors.tolist(), boxes.tolist(), ignored.tolist(), config, straddle=straddle)
        for position, (role, box) in enumerate(expected):
            assert bool(actual.foreground[position]) == (role == "object"), (case, position, role)
            assert bool(actual.ignored[position]) == (role == "out"), (case, position, role)
            if role == "object":
                overlap = pairwise_iou(anchors[position : position + 1], boxes)[0]
                assert float(overlap[actual.box_index[position]]) == pytest.approx(float(overlap[box]))
                assert not ignored[actual.box_index[position]]
        seen |= {role for role, _ in expected}
    assert seen == {"object", "background", "out"}


def test_no_anchor_inside_leaves_all_out():
    anchors = torch.tensor([[-5.0, 0.0, 200.0, 50.0]])
    boxes, nothing = torch.tensor([[0.0, 0.0, 80.0, 50.0]]), torch.zeros(1, dtype=torch.bool)
    actual = match_inside(anchors, boxes, nothing, frame=FRAME, straddle_px=0.0, config=RPN)
    assert (actual.foreground.tolist(), actual.ignored.tolist()) == ([False], [True])
    assert match_inside(anchors, boxes, nothing, frame=FRAME, straddle_px=None, config=RPN).foreground.all()


@pytest.mark.parametrize("low_quality", ["none", "above_background", "any", "bipartite"])
def test_no_anchors_match_nothing(low_quality):
    config = MatchConfig(low_quality=low_quality)
    actual = match(torch.zeros(0, 4), drawn_boxes(2, torch.Generator()), torch.tensor([False, True]), config)
    assert [len(part) for part in actual] == [0, 0, 0]


def literal_sample(noise, foreground, ignored, *, count, share):
    drawn = sorted(range(len(noise)), key=lambda position: (noise[position], position))
    positives = [position for position in drawn if foreground[position] and not ignored[position]][: int(count * share)]
    negatives = [position for position in drawn if not foreground[position] and not ignored[position]]
    return sorted(positives + negatives[: count - len(positives)])


def test_sampling_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(5)
    full = small = 0
    for case in range(CASES):
        num = case % 40
        noise = torch.rand(num, generator=generator).mul(20).round()
        foreground = torch.rand(num, generator=generator) < (case % 5) / 4
        ignored = torch.rand(num, generator=generator) < 0.2
        count, share = 1 + case % 17, (case % 3) / 4
        chosen = sample_balanced(noise, foreground, ignored, config=SampleConfig(count=count, positives=share))
        expected = literal_sample(noise.tolist(), foreground.tolist(), ignored.tolist(), count=count, share=share)
        assert chosen.nonzero().flatten().tolist() == expected
        full, small = full + (len(expected) == count), small + (len(expected) < count)
    assert full and small


def test_images_draw_each_their_own():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(4, 50, generator=generator)
    foreground, ignored = torch.rand(4, 50, generator=generator) < 0.5, torch.rand(4, 50, generator=generator) < 0.1
    config = SampleConfig(count=10, positives=0.25)
    together = sample_balanced(noise, foreground, ignored, config=config)
    assert together.sum(1).tolist() == [10] * 4
    assert (together & foreground).sum(1).tolist() == [2] * 4
    for index in range(4):
        alone = sample_balanced(noise[index], foreground[index], ignored[index], config=config)
        assert torch.equal(together[index], alone)


def test_every_negative_is_as_likely():
    torch.manual_seed(0)
    nothing = torch.zeros(3000, 8, dtype=torch.bool)
    drawn = sample_balanced(torch.rand(3000, 8), nothing, nothing, config=SampleConfig(count=2))
    shares = drawn.float().mean(0)
    assert (shares - 0.25).abs().max() < 0.04  # five standard deviations


def literal_proposals(objectness, boxes, level_sizes, frame, *, top_k, keep, nms_iou):
    """Top of each level, clip, drop the empty, suppress within the level, best of all."""
    candidates, start = [], 0
    for number, size in enumerate(level_sizes):
        indices = sorted(range(start, start + size), key=lambda position: -objectness[position])[:top_k]
        candidates += [(objectness[position], number, boxes[position]) for position in indices]
        start += size
    clipped = []
    for score, number, box in candidates:
        cut = [min(max(value, 0.0), limit) for value, limit in zip(box, [frame[1], frame[0]] * 2, strict=True)]
        if cut[2] - cut[0] >= 1e-3 and cut[3] - cut[1] >= 1e-3:
            clipped.append((score, number, cut))
    kept = []
    for score, number, box in sorted(clipped, key=lambda candidate: -candidate[0]):
        if all(other[1] != number or iou(box, other[2]) <= nms_iou for other in kept):
            kept.append((score, number, box))
    return [box for _, _, box in kept[:keep]]


def test_proposals_equal_a_plain_loop():
    generator = torch.Generator().manual_seed(11)
    counts = []
    for case in range(CASES):
        sizes = (20, 9, 4 + case % 3)
        anchors = drawn_boxes(sum(sizes), generator)
        deltas = torch.randn(sum(sizes), 4, generator=generator) * 0.4
        objectness = torch.randn(sum(sizes), generator=generator)
        limits = ProposalLimits(top_k=3 + case % 12, keep=2 + case % 15)
        frame = torch.tensor([30.0 + case % 31, 90.0])
        arguments = {"level_sizes": sizes, "frame": frame, "limits": limits, "nms_iou": 0.4}
        actual = propose(objectness, deltas, anchors, **arguments)
        expected = literal_proposals(
            objectness.tolist(),
            decode(deltas, anchors).tolist(),
            sizes,
            frame.tolist(),
            top_k=limits.top_k,
            keep=limits.keep,
            nms_iou=0.4,
        )
        torch.testing.assert_close(actual, torch.tensor(expected).reshape(-1, 4), rtol=1e-5, atol=1e-4)
        counts.append(len(actual))
    assert min(counts) >= 1 and len(set(counts)) > 5


def test_an_image_may_give_no_region():
    outside = torch.tensor([[200.0, 0.0, 220.0, 10.0], [0.0, 300.0, 10.0, 320.0]])
    limits = ProposalLimits()
    actual = propose(
        torch.ones(2), torch.zeros(2, 4), outside, level_sizes=(1, 1), frame=FRAME, limits=limits, nms_iou=0.7
    )
    assert actual.shape == (0, 4)


def test_no_gradient_through_coordinates():
    deltas = torch.zeros(2, 4, requires_grad=True)
    anchors = torch.tensor([[0.0, 0.0, 20.0, 20.0], [40.0, 10.0, 60.0, 30.0]])
    actual = propose(
        torch.ones(2, requires_grad=True),
        deltas,
        anchors,
        level_sizes=(2,),
        frame=FRAME,
        limits=ProposalLimits(),
        nms_iou=0.7,
    )
    assert len(actual) == 2 and not actual.requires_grad


def test_clipping_and_sides():
    boxes = torch.tensor([[-5.0, 10.0, 100.0, 70.0], [95.0, 5.0, 99.0, 8.0]])
    clipped = clip_to_frame(boxes, FRAME)
    assert clipped.tolist() == [[0.0, 10.0, 90.0, 60.0], [90.0, 5.0, 90.0, 8.0]]
    assert has_sides(clipped, least_px=1e-3).tolist() == [True, False]
