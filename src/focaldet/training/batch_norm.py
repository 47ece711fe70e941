"""The statistics of trained BatchNorm at the beginning of a run, measured anew for the weights that are evaluated.

Running statistics follow the last ten steps or so, and of the moving average of the weights they follow more slowly
still. While the weights change fast, neither fits them: the network that is evaluated then detects nothing, though its
weights are good. (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3.)
"""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from focaldet.models import Detector
from focaldet.runtime import Autocast
from focaldet.types import Batch

# Updates of a run or phase after which running statistics are trusted, and the batches that replace them before.
EARLY_UPDATES, NUM_BATCHES = 500, 8


def has_trained_norm(detector: Detector) -> bool:
    """Whether some layer of BatchNorm keeps running statistics; a frozen one does not."""
    was_training = detector.training
    has_norm = bool(_follow_batches(detector.train()))
    detector.train(was_training)
    return has_norm


def images_to_measure(detector: Detector, batch_size: int) -> int:
    """The images that are passed through to measure; 0 where nothing is to be measured."""
    return NUM_BATCHES * batch_size if has_trained_norm(detector) else 0


def _follow_batches(detector: Detector) -> list[nn.BatchNorm2d]:
    """The layers of a detector in training whose statistics are those of the batches: frozen ones evaluate."""
    return [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d) and module.training]


def share_buffers(detector: Detector, *, num_ranks: int) -> None:
    """Give the detector of every process the buffers of the first one's: each has measured other images."""
    for value in detector.buffers() if num_ranks > 1 else ():
        torch.distributed.broadcast(value, src=0)


@torch.no_grad()
def measure_norm(detector: Detector, batches: Iterable[Batch], *, autocast: Autocast) -> Detector:
    """A copy of `detector` whose BatchNorm has the mean statistics of `batches` under its weights."""
    measured = copy.deepcopy(detector)
    norms = _follow_batches(measured.train())
    measured.eval()
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        norm.reset_running_stats()
        norm.momentum = None  # for torch: the mean of all batches, each with the same weight
        norm.train()
    for batch in batches:
        on_device = batch.to(autocast.device)
        with autocast():
            measured(on_device.images, on_device.sizes)
    for norm, (momentum, counter) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = momentum, counter
        norm.eval()
    return measured
