"""Dimension clusters: by hand, by law, against a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focaldet.errors import ConfigError
from focaldet.ops.clusters import average_iou, centered_iou, cluster_sizes


def shapes(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def drawn(seed, count=200):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 2, generator=generator, dtype=torch.float64).pow(2) * 100 + 1


def test_overlap_of_shapes_by_hand():
    actual = centered_iou(shapes((10, 20), (4, 4)), shapes((10, 10), (20, 20), (10, 20)))
    assert actual[0].tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert actual[1].tolist() == pytest.approx([0.16, 0.04, 0.08])


def test_clusters_by_hand():
    """Two kinds of boxes far apart; a cluster is the mean of its boxes, small ones first."""
    rows = ((100, 50), (8, 10), (12, 10), (100, 70), (100, 60), (10, 10))
    actual = cluster_sizes(shapes(*rows), num_clusters=2, seed=0)
    assert actual.sizes.tolist() == [[10, 10], [100, 60]]
    assert actual.average_iou == pytest.approx((8 / 10 + 10 / 12 + 5 / 6 + 6 / 7 + 1 + 1) / 6)


def test_the_best_round_counts_even_where_the_mean_is_worse():
    """(8, 10) has the IoU 1 and 2/3 with the two boxes, their mean 4/5 and 5/6."""
    actual = cluster_sizes(shapes((8, 10), (12, 10)), num_clusters=1, seed=0)
    assert actual.average_iou == pytest.approx(5 / 6)


def test_as_many_clusters_as_shapes_fit_perfectly():
    sizes = shapes((3, 4), (5, 6), (3, 4), (7, 2))
    actual = cluster_sizes(sizes, num_clusters=3, seed=1)
    assert actual.average_iou == pytest.approx(1)
    assert sorted(actual.sizes.tolist()) == [[3, 4], [5, 6], [7, 2]]


def test_one_cluster_is_not_a_worse_than_the_mean():
    sizes = drawn(0)
    actual = cluster_sizes(sizes, num_clusters=1, seed=0)
    assert actual.average_iou >= average_iou(sizes, sizes.mean(0, keepdim=True)) - 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_more_clusters_fit_no_worse(seed):
    sizes = drawn(seed)
    actual = [cluster_sizes(sizes, num_clusters=count, seed=seed).average_iou for count in range(1, 10)]
    assert actual == sorted(actual)
    assert actual[-1] > actual[0] + 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_average_is_that_of_the_clusters_and_the_seed_decides(seed, count):
    sizes = drawn(seed, 40)
    actual, again = (cluster_sizes(sizes, num_clusters=count, seed=seed) for _ in range(2))
    assert torch.equal(actual.sizes, again.sizes) and actual.average_iou == again.average_iou
    best = [
        max(min(w, a) * min(h, b) / (w * h + a * b - min(w, a) * min(h, b)) for a, b in actual.sizes.tolist())
        for w, h in sizes.tolist()
    ]
    assert actual.average_iou == pytest.approx(sum(best) / len(best))
    areas = actual.sizes.prod(1).tolist()
    assert areas == sorted(areas)


@pytest.mark.parametrize("count", [0, 3])
def test_a_number_out_of_range_is_reported(count):
    with pytest.raises(ConfigError, match="must be in 1…2, the number of different shapes"):
        cluster_sizes(shapes((1, 2), (1, 2), (2, 2)), num_clusters=count, seed=0)
