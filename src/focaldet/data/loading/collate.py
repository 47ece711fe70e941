"""Samples of several sizes made into one batch, packed for the way between two processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from focaldet.data.augment.geometry import Sample, joined
from focaldet.types import Batch, ImageSize, Preprocessing, Target


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A `Batch` whose targets lie in one tensor each.

    A tensor that comes from a worker holds a file descriptor until it is freed, and systems allow 1024: three per image
    would end a training with large batches.
    """

    batch: Batch
    boxes: Float[Tensor, "M 4"]
    labels: Int64[Tensor, " M"]
    ignored: Bool[Tensor, " M"]
    counts: tuple[int, ...]

    def pin_memory(self) -> "PackedBatch":
        """The same with the images in page-locked memory, from which a GPU copies while it computes."""
        return replace(self, batch=self.batch.pin_memory())

    def unpacked(self) -> Batch:
        """The batch with its targets image by image."""
        parts = (torch.split(tensor, list(self.counts)) for tensor in (self.boxes, self.labels, self.ignored))
        return replace(self.batch, targets=tuple(Target(*part) for part in zip(*parts, strict=True)))


def pack(
    samples: Sequence[Sample],
    *,
    preprocessing: Preprocessing,
    indices: tuple[int, ...],
    original_sizes: tuple[ImageSize, ...],
    image_names: tuple[str, ...],
) -> PackedBatch:
    """One batch of all samples, padded at the bottom and right."""
    targets = [sample.target for sample in samples]
    every = joined(targets)
    batch = Batch(
        images=padded([sample.image for sample in samples], preprocessing=preprocessing),
        sizes=tuple(sample.size for sample in samples),
        targets=(),
        indices=indices,
        original_sizes=original_sizes,
        image_names=image_names,
    )
    return PackedBatch(batch, every.boxes, every.labels, every.ignored, tuple(len(target.boxes) for target in targets))


def padded(
    images: Sequence[UInt8[Tensor, "3 _h _w"] | Float[Tensor, "3 _h _w"]], *, preprocessing: Preprocessing
) -> UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]:
    """All images, of one type, at the top left of equal frames: the smallest that hold every one and that
    `preprocessing` allows.

    The padding is the mean colour, which is 0 after normalisation, or the grey of a letterbox; in bytes it is rounded.
    """
    heights, widths = zip(*(image.shape[-2:] for image in images), strict=True)
    frame = preprocessing.padded_size(ImageSize(max(heights), max(widths)))
    colour = padding_colour(preprocessing, dtype=images[0].dtype)
    batch = colour.repeat(len(images), 1, *frame)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch


def blank(size: ImageSize, *, preprocessing: Preprocessing) -> UInt8[Tensor, "3 H W"]:
    """A picture of nothing but padding."""
    return padding_colour(preprocessing, dtype=torch.uint8).repeat(1, *size)


def padding_colour(
    preprocessing: Preprocessing, *, dtype: torch.dtype
) -> UInt8[Tensor, "3 1 1"] | Float[Tensor, "3 1 1"]:
    """One RGB pixel of what lies beside an image, rounded in a type of whole numbers."""
    colour = torch.tensor(preprocessing.rgb_padding)[:, None, None]
    return colour.to(dtype) if dtype.is_floating_point else colour.round().to(dtype)
