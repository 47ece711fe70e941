"""Samples of several sizes as one batch, packed so that it can be passed between processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from focaldet.data.augment.geometry import Sample, join_targets
from focaldet.types import Batch, ImageSize, Preprocessing, Target


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A `Batch` with the targets of all images in one tensor each.

    A tensor that comes from a worker holds a file descriptor until it is freed, and systems allow 1024: three per image
    would stop a training with large batches.
    """

    batch: Batch
    boxes: Float[Tensor, "M 4"]
    labels: Int64[Tensor, " M"]
    ignored: Bool[Tensor, " M"]
    counts: tuple[int, ...]

    def pin_memory(self) -> "PackedBatch":
        """The batch with its images in page-locked memory, from which a GPU copies while it computes."""
        return replace(self, batch=self.batch.pin_memory())

    def unpack(self) -> Batch:
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
    every = join_targets(targets)
    batch = Batch(
        images=pad_images([sample.image for sample in samples], preprocessing=preprocessing),
        sizes=tuple(sample.size for sample in samples),
        targets=(),
        indices=indices,
        original_sizes=original_sizes,
        image_names=image_names,
    )
    return PackedBatch(batch, every.boxes, every.labels, every.ignored, tuple(len(target.boxes) for target in targets))


def pad_images(
    images: Sequence[UInt8[Tensor, "3 _h _w"] | Float[Tensor, "3 _h _w"]], *, preprocessing: Preprocessing
) -> UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]:
    """All images, of one type, as one tensor: each at the top left of the smallest frame that has room for all of them
    and that `preprocessing` allows.

    The padding is the mean color, which is 0 after normalization, or the gray of a letterbox; in bytes it is rounded.
    """
    heights, widths = zip(*(image.shape[-2:] for image in images), strict=True)
    frame = preprocessing.padded_size(ImageSize(max(heights), max(widths)))
    color = padding_color(preprocessing, dtype=images[0].dtype)
    batch = color.repeat(len(images), 1, *frame)
    for frame_pixels, image in zip(batch, images, strict=True):
        frame_pixels[:, : image.shape[1], : image.shape[2]] = image
    return batch


def blank_image(size: ImageSize, *, preprocessing: Preprocessing) -> UInt8[Tensor, "3 H W"]:
    """An image of nothing but padding."""
    return padding_color(preprocessing, dtype=torch.uint8).repeat(1, *size)


def padding_color(
    preprocessing: Preprocessing, *, dtype: torch.dtype
) -> UInt8[Tensor, "3 1 1"] | Float[Tensor, "3 1 1"]:
    """One RGB pixel of the padding beside an image, rounded where `dtype` has whole numbers only."""
    color = torch.tensor(preprocessing.rgb_padding)[:, None, None]
    return color.to(dtype) if dtype.is_floating_point else color.round().to(dtype)
