"""The images that a run trains and is evaluated on, and the loader of those that it trains on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.dataset import Dataset, FileSource, ImageSource
from focaldet.data.formats.text import quantity
from focaldet.data.loading.loader import Loader
from focaldet.data.splits import first_with_boxes, open_splits
from focaldet.runtime import Ranks
from focaldet.training.config import RunConfig
from focaldet.types import Preprocessing, Target

# An epoch of `overfit` shows its few images again and again, up to this many updates.
OVERFIT_UPDATES = 16


@dataclass(frozen=True, slots=True)
class ChosenImages:
    """Some images of a source by their positions, which may repeat; always as the source shows them in epoch 0."""

    dataset: Dataset
    source: ImageSource
    positions: tuple[int, ...]

    def load(self, i: int, *, epoch: int) -> tuple[UInt8[Tensor, "3 H W"], Target]:
        """Image i of the choice and its boxes."""
        del epoch
        return self.source.load(self.positions[i], epoch=0)


def open_sources(
    config: RunConfig, sources: tuple[ImageSource, ImageSource] | None
) -> tuple[ImageSource, ImageSource, list[str]]:
    """The images to train on, those to evaluate on, and notes on them; with `overfit` both are a few training images.

    Args:
        config: the settings of the run.
        sources: the two, instead of those in `config.data`.
    """
    notes = []
    if sources is None:
        splits = open_splits(config.data, seed=config.seed)
        sources = FileSource(splits.train), FileSource(splits.val)
        notes = [splits.chosen]
        notes += [
            f"{dataset.name}: {line}" for dataset in (splits.train, splits.val) for line in dataset.problems.lines()
        ]
    if config.overfit is None:
        return *sources, notes
    dataset = sources[0].dataset
    few = first_with_boxes(dataset, config.overfit)
    repeats = math.ceil(OVERFIT_UPDATES * config.batch_size / len(few))
    notes.append(
        f"overfit: training and scoring on the same {quantity(len(few), 'image')}, {quantity(repeats, 'time')} an epoch"
    )
    chosen = [choose_images(sources[0], positions, name="overfit") for positions in (few * repeats, few)]
    return chosen[0], chosen[1], notes


def choose_images(source: ImageSource, positions: Sequence[int], *, name: str) -> ChosenImages:
    """The images of a source at these positions, as a source called `name`."""
    return ChosenImages(source.dataset.subset(positions, name), source, tuple(positions))


def build_loader(
    config: RunConfig, number: int, source: ImageSource, *, preprocessing: Preprocessing, ranks: Ranks
) -> Loader:
    """The batches of phase `number` (from 0) of a run, for one of its processes.

    With `overfit` they are the images as they are: neither augmented, nor balanced, nor of several sizes.
    """
    phases = config.phase_configs
    phase, overfit = phases[number], phases[number].overfit is not None
    return Loader(
        source,
        preprocessing=preprocessing,
        batch_size=phase.batch_size // (ranks.world_size * phase.accumulate),
        seed=phase.seed,
        augment=AugmentConfig(preset="none") if overfit else phase.augment,
        num_epochs=phase.epochs,
        first_epoch=sum(earlier.epochs for earlier in phases[:number]),
        workers=phase.workers,
        rank=ranks.global_rank,
        num_ranks=ranks.world_size,
        sampling="uniform" if overfit else phase.sampling,
        multi_scale=None if overfit else phase.multi_scale,
        multi_scale_end=phase.multi_scale_end,
    )
