"""A detector on pictures: resize, pad, network, detections back in the pixels of the picture.

Training's evaluation, `focaldet eval` and `focaldet predict` all come through here, so that they see the same thing.

Axes: B images, H W pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from focaldet.models import Detector
from focaldet.runtime import Precision, autocast
from focaldet.types import Detections, ImageSize, Resize


def detect_batch(
    detector: Detector,
    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"],
    *,
    sizes: Sequence[ImageSize],
    original_sizes: Sequence[ImageSize],
    device: torch.device,
    precision: Precision,
) -> list[Detections]:
    """What the detector finds, in pixels of the original pictures, clipped to them, in the memory of the processor.

    `sizes` are those of the resized pictures without padding. Both sides of a box are scaled by the true ratio of the
    sizes, which rounding makes differ a little between width and height; the bars of a letterbox are taken off before.
    """
    resize = detector.preprocessing.resize
    with torch.no_grad():
        moved = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            outputs = detector(moved, sizes)
        found = detector.detect(outputs, sizes)
    return [
        _in_picture(one.cpu(), resize, size=size, original=original)
        for one, size, original in zip(found, sizes, original_sizes, strict=True)
    ]


def _in_picture(found: Detections, resize: Resize, *, size: ImageSize, original: ImageSize) -> Detections:
    """Detections in a picture of `size`, made by `resize`, in pixels of the original and clipped to it."""
    if resize.mode == "letterbox":
        x, y = resize.corner(original)
        found, size = found.moved(float(-x), float(-y)), resize.content(original)
    return found.scaled(original.width / size.width, original.height / size.height).clipped(original)
