"""What the subnets of a detector start from, and which settings they refuse."""

import pytest
import torch
from torch import nn

from focaldet.errors import ConfigError
from focaldet.nets.heads import Subnet


@pytest.mark.parametrize("width", [97, 16])
def test_group_norm_wants_a_multiple_of_its_groups(width: int) -> None:
    with pytest.raises(ConfigError, match=f"width: .* multiple of its 32 groups, found {width}"):
        Subnet(width, depth=1, per_cell=1, values=4, norm=True)


def test_any_width_does_without_norm() -> None:
    values = Subnet(97, depth=1, per_cell=3, values=4)([torch.zeros(2, 97, 2, 5), torch.zeros(2, 97, 1, 1)])
    assert values.shape == (2, 3 * (2 * 5 + 1), 4)


def test_norm_has_32_groups_and_makes_the_bias_needless() -> None:
    subnet = Subnet(64, depth=2, per_cell=1, values=1, norm=True)
    assert [norm.num_groups for norm in subnet.norms if isinstance(norm, nn.GroupNorm)] == [32, 32]
    assert all(conv.bias is None for conv in subnet.tower)
