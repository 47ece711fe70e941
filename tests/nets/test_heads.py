"""What the subnets of a detector start from, and which settings they refuse."""

import pytest
import torch
from torch import nn

from focaldet.errors import ConfigError
from focaldet.nets.heads import Subnet, prior_biases


@pytest.mark.parametrize(("width", "groups"), [(96, 32), (48, 4), (16, 4), (97, 1)])
def test_group_norm_has_32_groups_or_fewer_of_four_channels(width: int, groups: int) -> None:
    subnet = Subnet(width, depth=1, per_cell=1, values=1, norm=True)
    assert [norm.num_groups for norm in subnet.norms] == [groups]


def test_any_width_does_without_norm() -> None:
    values = Subnet(97, depth=1, per_cell=3, values=4)([torch.zeros(2, 97, 2, 5), torch.zeros(2, 97, 1, 1)])
    assert values.shape == (2, 3 * (2 * 5 + 1), 4)


def test_norm_has_32_groups_and_makes_the_bias_needless() -> None:
    subnet = Subnet(64, depth=2, per_cell=1, values=1, norm=True)
    assert [norm.num_groups for norm in subnet.norms if isinstance(norm, nn.GroupNorm)] == [32, 32]
    assert all(conv.bias is None for conv in subnet.tower)


@pytest.mark.parametrize(("num_classes", "prior"), [(1, 0.01), (1, 0.9), (3, 0.01), (80, 0.01), (80, 0.0124)])
def test_a_fresh_softmax_gives_every_class_the_prior(num_classes: int, prior: float) -> None:
    biases = prior_biases("softmax", num_classes=num_classes, prior=prior)
    expected = torch.tensor([prior] * num_classes + [1 - num_classes * prior])
    torch.testing.assert_close(torch.tensor(biases).softmax(0), expected)


def test_biases_of_sigmoids_are_the_papers() -> None:
    assert prior_biases("sigmoid", num_classes=2, prior=0.01) == pytest.approx((-4.59512,) * 2, abs=1e-5)


@pytest.mark.parametrize(("num_classes", "prior"), [(1, 1.0), (100, 0.01), (3, 0.5)])
def test_a_prior_that_leaves_nothing_to_background_is_refused(num_classes: int, prior: float) -> None:
    with pytest.raises(ConfigError, match=f"prior: must be below 1 / {num_classes} .* got {prior}"):
        prior_biases("softmax", num_classes=num_classes, prior=prior)


def test_biases_stand_in_the_order_of_the_values() -> None:
    values = Subnet(8, depth=0, per_cell=3, values=2, bias=(1.0, -2.0))([torch.zeros(1, 8, 2, 2)])
    assert values.reshape(-1, 2).tolist() == [[1.0, -2.0]] * 12
