"""Top-down modulation: its equation, its sizes, and the parameters it adds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from focaldet.nets.inception_resnet import (
    INCEPTION_RESNETS,
    InceptionResNetShape,
    InceptionResNetTail,
    InceptionResNetTrunk,
)
from focaldet.nets.regions import PooledTail
from focaldet.nets.tdm import WIDTHS_TO_STRIDE_4, WIDTHS_TO_STRIDE_8, TopDownModule, TopDownNetwork

CHANNELS = (192, 320, 1088)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(
    ("widths", "channels", "total"),
    [(None, 1088, 59_943_481), (WIDTHS_TO_STRIDE_8, 512, 61_354_617), (WIDTHS_TO_STRIDE_4, 256, 60_773_497)],
)
def test_the_parameters_of_whole_detectors(widths, channels: int, total: int) -> None:
    """G-RMI's with 80 classes and 12 anchors, of which TDM changes the map that proposals and crops come from."""
    shape = INCEPTION_RESNETS["inception_resnet_v2"]
    with torch.device("meta"):
        trunk, tail = InceptionResNetTrunk(shape, norm="batch"), InceptionResNetTail(shape, norm="batch")
        parts = [trunk, tail]
        if widths is not None:
            top_down = TopDownNetwork(trunk.channels, widths)
            assert top_down.channels == channels
            parts = [trunk, top_down, PooledTail(channels, tail, tail_channels=tail.in_channels, width=1536)]
        proposals = [nn.Conv2d(channels, 512, 3), nn.Conv2d(512, 24, 1), nn.Conv2d(512, 48, 1)]
        heads = [nn.Linear(1536, 81), nn.Linear(1536, 320)]
    assert count(*parts, *proposals, *heads) == total


@torch.no_grad()
def test_a_module_is_its_equation() -> None:
    """ReLU(W · [ReLU(L ∗ fine), up(ReLU(T ∗ coarse))]), every cell of the coarse map four times."""
    module = TopDownModule(5, 4, 3)
    coarse, fine = torch.randn(2, 5, 3, 4), torch.randn(2, 4, 6, 8)
    top = F.relu(F.conv2d(coarse, module.top_down.weight, module.top_down.bias, padding=1))
    raised = torch.zeros(2, 3, 6, 8)
    for row in range(6):
        for column in range(8):
            raised[..., row, column] = top[..., row // 2, column // 2]
    side = F.relu(F.conv2d(fine, module.lateral.weight, module.lateral.bias, padding=1))
    both = torch.cat([side, raised], 1)
    mixed = torch.einsum("de,behw->bdhw", module.output.weight[..., 0, 0], both) + module.output.bias[:, None, None]
    torch.testing.assert_close(module(coarse, fine), F.relu(mixed), rtol=1e-4, atol=1e-5)


def passing_top_down() -> TopDownModule:
    """A module whose second channel is the coarse map, raised and nothing else."""
    module = TopDownModule(1, 1, 1)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        module.top_down.weight[0, 0, 1, 1] = 1
        module.output.weight[1, 1] = 1
    return module


@pytest.mark.parametrize(
    ("cells", "columns", "expected"),
    [
        (3, 6, [1, 1, 2, 2, 3, 3]),
        (3, 5, [1, 1, 2, 2, 3]),  # halved with padding 1: coarse cell i stands over column 2i
        (3, 3, [1, 2, 3]),  # an output stride of 8: nothing is raised
        (3, 7, [1, 1, 2, 2, 3, 3, 3]),  # halved without padding
        (1, 1, [1]),
    ],
)
def test_the_top_down_map_takes_the_size_of_the_lateral(cells: int, columns: int, expected: list[int]) -> None:
    coarse = torch.arange(1.0, cells + 1).view(1, 1, 1, cells)
    rows = 1 if cells == columns else 2
    actual = passing_top_down()(coarse, torch.randn(1, 1, rows, columns))
    assert actual[0, 1].tolist() == [expected] * rows


@pytest.mark.parametrize("columns", [*range(1, 12), 511, 512, 1023])
def test_in_an_export_the_map_is_raised_to_the_same(monkeypatch, columns: int) -> None:
    """Of a number of cells that is open: half of it, rounded up, and itself where the coarse map is as large."""
    module, fine = passing_top_down(), torch.zeros(1, 1, 3, columns)
    maps = [torch.randn(1, 1, rows, cells) for rows, cells in ((2, (columns + 1) // 2), (3, columns))]
    expected = [module(coarse, fine) for coarse in maps]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for coarse, right in zip(maps, expected, strict=True):
        assert torch.equal(module(coarse, fine), right)


@pytest.mark.parametrize("size_px", [(64, 96), (70, 41)])
@pytest.mark.parametrize(("widths", "level"), [((16,), 1), ((16, 8), 0)])
def test_on_the_trunks_maps_gradients_reach_every_part(widths, level: int, size_px) -> None:
    shape = InceptionResNetShape(factor=0.25, repeats=(1, 1, 1))
    trunk, tail = InceptionResNetTrunk(shape), InceptionResNetTail(shape)
    top_down = TopDownNetwork(trunk.channels, widths)
    adapted = PooledTail(top_down.channels, tail, tail_channels=tail.in_channels, width=tail.channels)
    maps = trunk(torch.randn(1, 3, *size_px))
    (finest,) = top_down(maps)
    assert tuple(finest.shape) == (1, 2 * widths[-1], *maps[level].shape[-2:])
    features = adapted(finest[..., :5, :5])
    features.sum().backward()
    parts = (*trunk.parameters(), *top_down.parameters(), *adapted.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parts)


@torch.no_grad()
def test_the_second_half_gets_what_it_knows() -> None:
    """As many channels as PreAuxLogits, none below 0."""
    seen = []

    class Witness(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    adapted = PooledTail(6, Witness(), tail_channels=9, width=9)
    crops = torch.randn(4, 6, 5, 5)
    expected = F.relu(torch.einsum("de,rehw->rdhw", adapted.adapter.weight[..., 0, 0], crops))
    torch.testing.assert_close(adapted(crops), expected.mean((2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-6)
    assert adapted(crops[:0]).shape == (0, 9)
    plain = PooledTail(9, Witness(), tail_channels=9, width=9)
    assert plain.adapter is None
