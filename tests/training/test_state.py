"""The moving average of the weights."""

import pytest
import torch

from focaldet.models import LossContext, build
from focaldet.training.config import RunConfig
from focaldet.training.optim import ema_decay
from focaldet.training.state import start_state
from focaldet.types import ImageSize
from tests.training.squares import ARCHITECTURE
from tests.training.tiny import TinyDetector


def start(detector):
    return start_state(detector, RunConfig(ema=0.5), context=LossContext(), device=torch.device("cpu"))


def test_decay_grows_to_its_limit():
    decays = [ema_decay(t, limit=0.9) for t in (0, 1, 10, 80, 81, 10_000)]
    assert decays == pytest.approx([0.1, 2 / 11, 0.55, 0.9, 0.9, 0.9])


def test_law_by_hand():
    detector = TinyDetector()
    state = start(detector)
    expected = detector.head.weight.detach().clone()
    for update in range(12):
        with torch.no_grad():
            detector.head.weight.add_(1.0)
        state.update_ema(decay=ema_decay(update, limit=0.5))
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * detector.head.weight.detach()
    torch.testing.assert_close(state.ema.head.weight, expected)


def test_source_is_not_touched():
    detector = TinyDetector()
    before = detector.head.weight.detach().clone()
    state = start(detector)
    with torch.no_grad():
        state.ema.head.weight.zero_()
    state.update_ema(decay=0.25)
    assert torch.equal(detector.head.weight, before)
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())
    assert not state.ema.training and detector.training


def test_batch_statistics_follow_too():
    detector = build("retinanet_mobilenet_v2_fpn", num_classes=2, architecture=ARCHITECTURE).train()
    state = start(detector)
    detector(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), [ImageSize(64, 64)] * 2)
    state.update_ema(decay=0.1)
    sources, floats = detector.state_dict(), 0
    for name, value in state.ema.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == sources[name] == 1
        elif name.endswith("running_var"):
            torch.testing.assert_close(value, 0.1 + 0.9 * sources[name])
            floats += 1
    assert floats > 10
