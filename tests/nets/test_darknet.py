"""DarkNet-19: the published widths, its thin forms, and darknet's order of the reorganisation."""

import pytest
import torch
from torch import nn

from focaldet.nets import build_backbone
from focaldet.nets.darknet import ConvLeaky, DarkNet19, reorganize


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        ("darknet19", (128, 256, 512, 1024), 19_817_376),
        ("darknet19_half", (64, 128, 256, 512), None),
        ("darknet19_quarter", (32, 64, 128, 256), None),
    ],
)
def test_widths_and_parameters(name, channels, parameters):
    with torch.device("meta"):
        backbone = build_backbone(name, norm="batch", eps=1e-5, stride_in_1x1=False)
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert backbone.channels == channels
    assert [tuple(one.shape) for one in maps] == [
        (1, width, 64 // stride, 96 // stride) for width, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]
    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == 18
    if parameters is not None:
        assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters


def test_the_leak_is_a_tenth():
    layer = ConvLeaky(1, 1, 1, norm="batch", eps=0.0).eval()
    nn.init.ones_(layer.conv.weight)
    values = torch.tensor([-2.0, 0.0, 3.0]).view(1, 1, 1, 3)
    assert layer(values).flatten().tolist() == pytest.approx([-0.2, 0.0, 3.0])


def test_stages_cover_every_layer_once():
    backbone = DarkNet19(0.25)
    stages = [module for stage in backbone.stages() for module in stage]
    assert stages == list(backbone.blocks) and [len(stage) for stage in backbone.stages()] == [2, 1, 1, 1, 1]


def test_reorganize_by_hand():
    """4 × 2 × 2 numbers, read as 1 × 4 × 4: every other row and column of that, grid by grid."""
    x = torch.arange(16.0).view(1, 4, 2, 2)
    assert reorganize(x).flatten().tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
