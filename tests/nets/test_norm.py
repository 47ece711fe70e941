import torch

from focaldet.nets.norm import GroupNorm


def test_a_group_of_one_value_becomes_the_bias():
    layer = GroupNorm(4, 4)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(4.0))
    torch.testing.assert_close(layer(torch.rand(1, 4, 1, 1)).flatten(), torch.arange(4.0), atol=1e-4, rtol=0)
    x = torch.rand(2, 4, 3, 5)
    assert layer(x).equal(torch.nn.functional.group_norm(x, 4, layer.weight, layer.bias))
