"""Which images make up each batch of an epoch: order, class balance, grouping by aspect ratio."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from focaldet.data.dataset import Dataset
from focaldet.data.loading.rng import generator
from focaldet.errors import ConfigError
from focaldet.types import ImageSize

# YOLO9000, section 2: the size of the input changes every 10 batches, in steps of the network's stride.
SIZE_BATCHES, SIZE_STEP_PX = 10, 32


class Pick(NamedTuple):
    """One image of a batch; `repeat` counts how often it came before in the same epoch.

    `size_px` is used instead of `Resize.size` for this image.
    """

    epoch: int
    image: int
    repeat: int
    size_px: int | None = None


def repeat_factors(dataset: Dataset) -> Float64[Tensor, " N"]:
    """How often each image is drawn under class balance, relative to an image with the most frequent class only.

    A class in the fraction f of the images has the factor sqrt(1/f), an image the largest factor of its classes (Gupta
    et al. 2019, section 4, with every class below the threshold: t = 1). Ignored boxes do not count; an image
    without objects has factor 1.
    """
    images, labels = pair_images_with_classes(dataset)
    num_images = torch.bincount(labels, minlength=len(dataset.classes.names)).double()
    factors = torch.ones(len(dataset), dtype=torch.float64)
    return factors.scatter_reduce(0, images, (len(dataset) / num_images[labels]).sqrt(), "amax")


def pair_images_with_classes(dataset: Dataset) -> Int64[Tensor, "2 P"]:
    """Each image with each class that it has an object of, once: the indices of the images, and the labels."""
    image = torch.repeat_interleave(torch.arange(len(dataset)), dataset.offsets.diff())[dataset.flags == 0]
    pairs: Tensor = torch.unique(torch.stack([image, dataset.labels[dataset.flags == 0].long()]), dim=1)
    return pairs


def uniform_order(num_images: int, *, rng: random.Random) -> list[int]:
    """Every image once, shuffled."""
    return rng.sample(range(num_images), num_images)


def balanced_order(factors: Float64[Tensor, " N"], *, rng: random.Random) -> list[int]:
    """N images, shuffled, each in proportion to its factor, rounded up or down at random.

    Systematic sampling: N equal steps along the cumulative factors of the shuffled images. Over the epochs every image
    comes in proportion to its factor, and within an epoch the class counts vary as little as they can.
    """
    shuffled = uniform_order(len(factors), rng=rng)
    ends = factors[shuffled].cumsum(0)
    steps = (torch.arange(len(factors), dtype=torch.float64) + rng.random()) * (ends[-1] / len(factors))
    hits = torch.searchsorted(ends, steps, right=True).clamp(max=len(factors) - 1)
    order = [shuffled[hit] for hit in hits.tolist()]
    rng.shuffle(order)
    return order


def training_batches(
    order: Sequence[int], portrait: Sequence[bool], *, epoch: int, batch_size: int, rng: random.Random
) -> list[list[Pick]]:
    """`len(order) // batch_size` full batches of landscape or of portrait images, in random order.

    The rest of both groups fills mixed batches, so that grouping costs no image; less than a batch at the end is
    dropped, unless no batch is full.
    """
    picks = _picks(order, epoch=epoch)
    groups = [[pick for pick in picks if portrait[pick.image] == tall] for tall in (False, True)]
    full = [len(group) // batch_size * batch_size for group in groups]
    rest = [pick for group, end in zip(groups, full, strict=True) for pick in group[end:]]
    batches = [batch for group, end in zip(groups, full, strict=True) for batch in _chunks(group[:end], batch_size)]
    batches += _chunks(rest[: len(rest) // batch_size * batch_size], batch_size)
    rng.shuffle(batches)
    return batches or [rest]


def group_by_size(sizes: Sequence[ImageSize], *, batch_size: int) -> list[list[int]]:
    """The indices of images of these padded sizes, each once, in batches of images of one size.

    More padding moves what a network detects at the border: so no image is padded because of another one, and
    detections are the same for every batch size.
    """
    order = sorted(range(len(sizes)), key=lambda image: (sizes[image], image))
    groups = [list(group) for _, group in itertools.groupby(order, key=sizes.__getitem__)]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]


def evaluation_batches(sizes: Sequence[ImageSize], *, batch_size: int) -> list[list[Pick]]:
    """Every image once, in batches of images of one padded size."""
    return [[Pick(0, image, 0) for image in batch] for batch in group_by_size(sizes, batch_size=batch_size)]


def draw_sizes(
    batches: Sequence[Sequence[Pick]],
    bounds: tuple[int, int],
    *,
    seed: int,
    epoch: int,
    num_epochs: int,
    end_fraction: float,
    first_epoch: int = 0,
) -> list[list[Pick]]:
    """The batches of an epoch, each with a size for all its images: one for every `SIZE_BATCHES` of them.

    Sizes are the multiples of `SIZE_STEP_PX` within `bounds`; which one is drawn depends on (seed, epoch, batch) alone.
    The last batches, a fraction `end_fraction` of those of all `num_epochs` epochs from `first_epoch` on, have the
    largest size.

    Raises:
        ConfigError: no such multiple.
    """
    low, high = bounds
    sizes = range(-(-low // SIZE_STEP_PX) * SIZE_STEP_PX, high + 1, SIZE_STEP_PX)
    if low < 1 or not sizes:
        raise ConfigError(f"multi_scale: no multiple of {SIZE_STEP_PX} px in {low}…{high}")
    drawn = [generator("size", seed, epoch, number // SIZE_BATCHES).choice(sizes) for number in range(len(batches))]
    total = num_epochs * len(batches)
    for number in range(len(batches)):
        batches_left = total - (epoch - first_epoch) * len(batches) - number
        if 0 < batches_left <= end_fraction * total:
            drawn[number] = sizes[-1]
    return [[pick._replace(size_px=size) for pick in batch] for batch, size in zip(batches, drawn, strict=True)]


def rank_slice(batch: Sequence[Pick], *, rank: int, num_ranks: int) -> list[Pick]:
    """The contiguous part of a global batch that belongs to `rank`; the parts differ by at most one image."""
    start, end = (len(batch) * index // num_ranks for index in (rank, rank + 1))
    return list(batch[start:end])


def _picks(order: Sequence[int], *, epoch: int) -> list[Pick]:
    seen: Counter[int] = Counter()
    picks = []
    for image in order:
        picks.append(Pick(epoch, image, seen[image]))
        seen[image] += 1
    return picks


def _chunks(picks: Sequence[Pick], batch_size: int) -> list[list[Pick]]:
    return [list(picks[start : start + batch_size]) for start in range(0, len(picks), batch_size)]
