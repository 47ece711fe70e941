"""The law of the moving average."""

import pytest
import torch

from focaldet.models import build
from focaldet.training.ema import Ema
from focaldet.types import ImageSize
from tests.training.squares import ARCHITECTURE
from tests.training.tiny import TinyDetector


def test_decay_grows_to_its_limit():
    ema = Ema(TinyDetector(), decay=0.9)
    assert [ema.decay_at(t) for t in (0, 1, 10, 80, 81, 10_000)] == pytest.approx([0.1, 2 / 11, 0.55, 0.9, 0.9, 0.9])


def test_law_by_hand():
    detector = TinyDetector()
    ema = Ema(detector, decay=0.5)
    expected = detector.head.weight.detach().clone()
    for update in range(12):
        with torch.no_grad():
            detector.head.weight.add_(1.0)
        ema.update(update=update)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * detector.head.weight.detach()
    torch.testing.assert_close(ema.detector.head.weight, expected)


def test_source_is_not_touched():
    detector = TinyDetector()
    before = detector.head.weight.detach().clone()
    ema = Ema(detector, decay=0.5)
    with torch.no_grad():
        ema.detector.head.weight.zero_()
    ema.update(update=3)
    assert torch.equal(detector.head.weight, before)
    assert not any(parameter.requires_grad for parameter in ema.detector.parameters())
    assert not ema.detector.training and detector.training


def test_batch_statistics_follow_too():
    detector = build("retinanet_mobilenet_v2_fpn", num_classes=2, architecture=ARCHITECTURE).train()
    ema = Ema(detector, decay=0.5)
    detector(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), [ImageSize(64, 64)] * 2)
    ema.update(update=0)
    sources, floats = detector.state_dict(), 0
    for name, value in ema.detector.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == sources[name] == 1
        elif name.endswith("running_var"):
            torch.testing.assert_close(value, 0.1 + 0.9 * sources[name])
            floats += 1
    assert floats > 10
