"""Batches of images for tests of detectors."""

from torch import Tensor

from focaldet.types import ImageSize


def full_sizes(images: Tensor) -> list[ImageSize]:
    """The sizes of B images that fill their batch: no padding."""
    return [ImageSize(*images.shape[-2:])] * len(images)
