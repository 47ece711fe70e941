from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focaldet.data.loading.rng import generator
from focaldet.data.loading.sampler import (
    Pick,
    balanced_order,
    draw_sizes,
    evaluation_batches,
    rank_slice,
    repeat_factors,
    training_batches,
    uniform_order,
)
from focaldet.types import ImageSize
from tests.data.painted import index_of, painted


def draws(key=0):
    return generator("test", key)


def test_repeat_factors_by_hand():
    box = (0, 0, 5, 5)
    samples = [
        *(painted((10, 10), [box, box], [0, 0]) for _ in range(4)),
        painted((10, 10), [box, box], [0, 1]),
        painted((10, 10), [], []),
        painted((10, 10), [box, box], [0, 2], ignored=[False, True]),
        painted((10, 10), [box], [2], ignored=[True]),
    ]
    factors = repeat_factors(index_of([s.target for s in samples], [s.size for s in samples]))
    common, rare = (8 / 6) ** 0.5, 8**0.5
    assert factors.tolist() == pytest.approx([*[common] * 4, rare, 1, common, 1])


def test_repeat_factors_without_any_box():
    samples = [painted((10, 10), [], []) for _ in range(3)]
    assert repeat_factors(index_of([s.target for s in samples], [s.size for s in samples])).tolist() == [1, 1, 1]


def test_uniform_order_is_a_shuffle_that_the_generator_decides():
    order = uniform_order(50, rng=draws(1))
    assert sorted(order) == list(range(50)) != order
    assert order == uniform_order(50, rng=draws(1)) != uniform_order(50, rng=draws(2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1, 30), min_size=1, max_size=60), st.integers(0, 1000))
def test_balanced_order_rounds_every_fraction_up_or_down(factors, key):
    factors = torch.tensor(factors, dtype=torch.float64)
    order = balanced_order(factors, rng=draws(key))
    assert len(order) == len(factors)
    times = torch.tensor([order.count(i) for i in range(len(factors))])
    wanted = factors / factors.sum() * len(factors)
    assert ((times >= (wanted - 1e-9).floor()) & (times <= (wanted + 1e-9).ceil())).all()


def test_balanced_order_meets_the_shares_over_many_epochs():
    factors = torch.tensor([1.0, 1.0, 1.0, 2.5, 0.5], dtype=torch.float64)
    times = Counter(i for epoch in range(2000) for i in balanced_order(factors, rng=draws(epoch)))
    fractions = [times[i] / 2000 for i in range(5)]
    assert fractions == pytest.approx((factors / factors.sum() * 5).tolist(), abs=0.05)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 100))
def test_training_batches_are_full_grouped_and_lose_less_than_one_batch(num_images, batch_size, key):
    portrait = [(i * 7 + key) % 3 == 0 for i in range(num_images)]
    order = uniform_order(num_images, rng=draws(key))
    batches = training_batches(order, portrait, epoch=4, batch_size=batch_size, rng=draws(key))
    assert len(batches) == max(1, num_images // batch_size)
    assert all(len(batch) == min(batch_size, num_images) for batch in batches)
    images = [pick.image for batch in batches for pick in batch]
    assert len(set(images)) == len(images) <= num_images
    mixed = [batch for batch in batches if len({portrait[pick.image] for pick in batch}) > 1]
    assert len(mixed) <= 1
    assert all(pick.epoch == 4 and pick.repeat == 0 for batch in batches for pick in batch)


def test_an_image_that_comes_again_is_told_apart():
    (batch,) = training_batches([3, 1, 3, 3], [False] * 4, epoch=0, batch_size=4, rng=draws())
    assert batch == [Pick(0, 3, 0), Pick(0, 1, 0), Pick(0, 3, 1), Pick(0, 3, 2)]


def test_evaluation_takes_every_image_once_in_batches_of_one_frame():
    frames = [ImageSize(*size) for size in ((64, 96), (96, 64), (64, 96), (32, 96), (64, 96), (96, 64))]
    batches = evaluation_batches(frames, batch_size=2)
    assert [[pick.image for pick in batch] for batch in batches] == [[3], [0, 2], [4], [1, 5]]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=40), st.integers(1, 9))
def test_no_evaluation_batch_mixes_frames_and_none_could_be_joined(sizes, batch_size):
    batches = evaluation_batches([ImageSize(*size) for size in sizes], batch_size=batch_size)
    assert sorted(pick.image for batch in batches for pick in batch) == list(range(len(sizes)))
    assert all(len({sizes[pick.image] for pick in batch}) == 1 for batch in batches)
    assert len(batches) == sum(-(-number // batch_size) for number in Counter(sizes).values())


@given(st.integers(0, 40), st.integers(1, 7))
def test_rank_slices_make_up_the_batch(length, num_ranks):
    batch = [Pick(0, i, 0) for i in range(length)]
    parts = [rank_slice(batch, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    assert [pick for part in parts for pick in part] == batch
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_darknets_last_200_batches():
    """detector.c: the largest size while batch + 200 > max_batches, of 500 200; before them sizes are drawn as ever."""
    batches = [[Pick(272, 0, 0)]] * 1833

    def sizes(num_epochs=273, **law):
        sized = draw_sizes(batches, (320, 608), seed=0, epoch=272, num_epochs=num_epochs, **law)
        return [pick.size_px for (pick,) in sized]

    drawn = sizes(end_fraction=0.0)
    assert set(drawn) == set(range(320, 609, 32)) and set(drawn[-200:]) != {608}
    assert sizes(end_fraction=0.0004) == [*drawn[:-200], *[608] * 200]
    of_a_phase = sizes(num_epochs=3, first_epoch=270, end_fraction=0.04)
    assert of_a_phase == [*drawn[:-219], *[608] * 219], "4 % of its 5499 batches"
