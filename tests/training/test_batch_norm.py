"""BatchNorm measured anew: the statistics of the images under the weights, and nothing else changed."""

import torch
from torch import nn

from focaldet.runtime import build_autocast
from focaldet.training.batch_norm import has_trained_norm, measure_norm
from tests.training.tiny import TinyDetector, batch_of, same_weights, weights_of


class NormedDetector(TinyDetector):
    """With BatchNorm over the colors of the images."""

    def __init__(self):
        super().__init__()
        self.input_norm = nn.BatchNorm2d(3)

    def forward(self, images, sizes, targets=None):
        return self.input_norm(images.float()).mean((1, 2, 3))


class FrozenForGood(nn.Module):
    """A layer that evaluates while the rest of the detector is trained."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


def test_the_statistics_are_the_mean_over_all_batches():
    detector = NormedDetector()
    before = weights_of(detector)
    batches = [batch_of([1, 2], seed=seed) for seed in range(3)]
    autocast = build_autocast("fp32", device=torch.device("cpu"))
    measured = measure_norm(detector, batches, autocast=autocast)
    means = torch.stack([batch.images.float().mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(measured.input_norm.running_mean, means)
    assert measured.input_norm.momentum == 0.1 and not measured.training
    assert same_weights(weights_of(detector), before) and detector.training
    assert has_trained_norm(detector) and not has_trained_norm(TinyDetector())


def test_frozen_statistics_stay_as_they_were_trained_with():
    normed = NormedDetector()
    normed.input_norm.running_mean += 3.0
    frozen = TinyDetector()
    frozen.backbone_norm = FrozenForGood(normed.input_norm)
    before = frozen.backbone_norm.norm.running_mean.clone()
    autocast = build_autocast("fp32", device=torch.device("cpu"))
    measured = measure_norm(frozen, [batch_of([1, 2], seed=0)], autocast=autocast)
    assert torch.equal(measured.backbone_norm.norm.running_mean, before)
    assert not has_trained_norm(frozen) and frozen.training
