"""A detector of a few numbers that keeps the contract of models/base.py: it guesses how many boxes an image has."""

import math

import torch
from torch import nn

from focaldet.models import Detector, DetectorConfig, LossContext
from focaldet.training.state import start_state
from focaldet.training.step import train_step
from focaldet.types import Batch, Detections, ImageSize, Preprocessing, Target


class TinyDetector(Detector):
    """count = head(dropout(norm(backbone(mean color)))); `spoil` multiplies the loss."""

    def __init__(self, *, dropout=0.0):
        super().__init__(DetectorConfig(), class_names=("thing",), preprocessing=Preprocessing())
        self.backbone = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 1)
        self.spoil = 1.0

    def forward(self, images, sizes, targets=None):
        color = self.normalize(images).mean((2, 3))
        return self.head(self.dropout(self.norm(self.backbone(color).relu()))).squeeze(1)

    def losses(self, outputs, targets, context):
        counts = torch.tensor([float(len(target.labels)) for target in targets])
        error = (outputs.float() - counts).square().mean()
        return {"count": error * self.spoil, "size": outputs.float().square().mean() * 0.01}

    def detect(self, outputs, sizes):
        none = torch.zeros(0)
        return [Detections(torch.zeros(0, 4), none, none.long(), self.class_names) for _ in sizes]

    def backbone_parameters(self):
        return list(self.backbone.parameters())


def batch_of(counts, *, seed=0, names=None):
    """Images of noise with so many boxes each."""
    generator = torch.Generator().manual_seed(seed)
    size = ImageSize(8, 8)
    images = torch.randint(0, 256, (len(counts), 3, 8, 8), generator=generator, dtype=torch.uint8)
    targets = tuple(
        Target(torch.tensor([[1.0, 1.0, 5.0, 5.0]] * n).reshape(-1, 4), torch.zeros(n).long(), torch.zeros(n).bool())
        for n in counts
    )
    names = names or tuple(f"{i}.jpg" for i in range(len(counts)))
    return Batch(images, (size,) * len(counts), targets, tuple(range(len(counts))), (size,) * len(counts), names)


def stepper(detector, config, *, context=None, **more):
    """The state of training `detector` on one processor, and a function that makes one step of it."""
    state = start_state(detector, config, context=context or LossContext(), device=torch.device("cpu"))

    def make_step(batches, *, rate=0.1, step=None):
        state.step = state.step if step is None else step
        return train_step(state, batches, module=detector, config=config, rate=rate, **more)

    return state, make_step


def weights_of(detector):
    return {name: value.detach().clone() for name, value in detector.state_dict().items()}


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def all_finite(detector):
    return all(math.isfinite(float(value.detach().sum())) for value in detector.parameters())
