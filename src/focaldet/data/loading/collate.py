"""Samples of several sizes as one batch, packed so that it can be passed between processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from focaldet.types import Batch, ImageSize, Preprocessing, Target


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A `Batch` without targets, and those of all its images as one.

    A tensor that comes from a worker holds a file descriptor until it is freed, and systems allow 1024: three per image
    would stop a training with large batches.
    """

    batch: Batch
    target: Target
    counts: tuple[int, ...]

    def pin_memory(self) -> "PackedBatch":
        """The batch with its images in page-locked memory, from which a GPU copies while it computes."""
        return replace(self, batch=self.batch.pin_memory())

    def unpack(self) -> Batch:
        """The batch with its targets image by image."""
        columns = (self.target.boxes, self.target.labels, self.target.ignored)
        parts = zip(*(torch.split(column, list(self.counts)) for column in columns), strict=True)
        return replace(self.batch, targets=tuple(Target(*part) for part in parts))


def pad_images(
    images: Sequence[UInt8[Tensor, "3 _h _w"] | Float[Tensor, "3 _h _w"]], *, preprocessing: Preprocessing
) -> UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]:
    """All images, of one type, as one tensor: each at the top left of the smallest frame that has room for all of them
    and that `preprocessing` allows.

    The padding is the mean color, which is 0 after normalization, or the gray of a letterbox; in bytes it is rounded.
    The channels of a pixel lie together in memory, as decoders write them and convolutions take them.
    """
    heights, widths = zip(*(image.shape[-2:] for image in images), strict=True)
    frame = preprocessing.padded_size(ImageSize(max(heights), max(widths)))
    color = padding_color(preprocessing, dtype=images[0].dtype)
    rows = _fill_frame(color, len(images) * frame.height, frame.width)
    batch = rows.view(len(images), *frame, 3).permute(0, 3, 1, 2)
    for frame_pixels, image in zip(batch, images, strict=True):
        frame_pixels[:, : image.shape[1], : image.shape[2]] = image
    return batch


def blank_image(size: ImageSize, *, preprocessing: Preprocessing) -> UInt8[Tensor, "3 H W"]:
    """An image of nothing but padding, the channels of a pixel together in memory."""
    return _fill_frame(padding_color(preprocessing, dtype=torch.uint8), *size).permute(2, 0, 1)


def padding_color(preprocessing: Preprocessing, *, dtype: torch.dtype) -> UInt8[Tensor, "3"] | Float[Tensor, "3"]:
    """One RGB pixel of the padding beside an image, rounded where `dtype` has whole numbers only."""
    color = torch.tensor(preprocessing.rgb_padding)
    return color.to(dtype) if dtype.is_floating_point else color.round().to(dtype)


def _fill_frame(
    color: UInt8[Tensor, "3"] | Float[Tensor, "3"], height: int, width: int
) -> UInt8[Tensor, "H W 3"] | Float[Tensor, "H W 3"]:
    """Pixels of one color; row by row, which takes a twentieth of the time that pixel by pixel does."""
    return color.repeat(width).repeat(height, 1).view(height, width, 3)
