"""Online hard example mining: by hand, and against the plain rule on every anchor."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focaldet.ops.boxes import pairwise_iou
from focaldet.ops.sampling import MiningConfig, hardest

# Two anchors at the same position, three elsewhere.
BOXES = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],
        [1.0, 0.0, 11.0, 10.0],
        [50.0, 0.0, 60.0, 10.0],
        [80.0, 0.0, 90.0, 10.0],
        [0.0, 50.0, 9.0, 60.0],
    ]
)
LOSSES = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
NONE = torch.zeros(5, dtype=torch.bool)


def marked(*indices, count=5):
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, torch.tensor(indices, dtype=torch.int64), value=True)


def chosen(*, foreground=NONE, ignored=NONE, losses=LOSSES, **config):
    return hardest(losses, BOXES, foreground, ignored, config=MiningConfig(**config)).nonzero().flatten().tolist()


def test_the_hardest_after_suppression():
    assert chosen(batch=2) == [0, 2], "anchor 1 lies on the harder anchor 0"
    assert chosen(batch=2, nms_iou=0.9) == [0, 1]
    assert chosen(batch=3, losses=LOSSES.flip(0)) == [2, 3, 4]
    assert chosen(batch=100) == [0, 2, 3, 4]


def test_an_ignored_anchor_neither_counts_nor_suppresses():
    assert chosen(batch=2, ignored=marked(0)) == [1, 2]
    assert chosen(ignored=~NONE) == []


def test_at_most_so_many_negatives_beside_every_positive():
    assert chosen(batch=100, ratio=1.0, foreground=marked(3)) == [0, 3]
    assert chosen(batch=100, ratio=2.0, foreground=marked(3)) == [0, 2, 3]
    assert chosen(batch=2, ratio=1.0, foreground=marked(3, 4)) == [0, 3], "a positive's share is kept for positives"
    assert chosen(batch=100, ratio=3.0, foreground=marked(1)) == [0, 2, 3], "the only positive was suppressed"
    assert chosen(batch=100, ratio=0.5, foreground=marked(0, 2)) == [0, 2, 3]


def test_without_objects():
    assert chosen(batch=2) == [0, 2]
    assert chosen(batch=100, ratio=2.0) == [0, 2], "as with one positive"
    nothing = torch.zeros(0, dtype=torch.bool)
    assert hardest(torch.zeros(0), torch.zeros(0, 4), nothing, nothing, config=MiningConfig()).shape == (0,)


def test_equal_losses_are_taken_in_order():
    assert chosen(batch=2, losses=torch.ones(5)) == [0, 2]


def plainly(losses, boxes, foreground, ignored, config):
    """The rule without haste: all anchors in order, each compared with all survivors before it."""
    overlap = pairwise_iou(boxes, boxes)
    survivors = []
    for i in losses.argsort(descending=True, stable=True).tolist():
        if not ignored[i] and all(overlap[i, j] <= config.nms_iou for j in survivors):
            survivors.append(i)
    if config.ratio is None:
        return set(survivors[: config.batch])
    positives = [i for i in survivors if foreground[i]][: max(1, int(config.batch / (1 + config.ratio)))]
    limit = min(config.batch - len(positives), int(config.ratio * max(1, len(positives))))
    return {*positives, *[i for i in survivors if not foreground[i]][:limit]}


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 150),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    st.sampled_from([None, 0.5, 1.0, 3.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_looking_at_few_anchors_first_changes_nothing(seed, count, batch, iou, ratio, share):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], dim=1)
    losses = torch.rand(count, generator=generator)
    kind = torch.rand(count, generator=generator)
    foreground, ignored = kind < share, kind > 0.9
    config = MiningConfig(batch=batch, nms_iou=iou, ratio=ratio)
    actual = hardest(losses, boxes, foreground, ignored, config=config)
    assert set(actual.nonzero().flatten().tolist()) == plainly(losses, boxes, foreground, ignored, config)


def test_no_gradient_flows_through_the_choice():
    assert not hardest(LOSSES.clone().requires_grad_(), BOXES, NONE, NONE, config=MiningConfig()).requires_grad
