"""How a trained detector is run on images: its options, and one batch through it.

Training's evaluation, `focaldet eval`, `focaldet predict` and the studies all come through here, so that they agree.

Axes: B images, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from focaldet.config import validate_fields
from focaldet.models import Detector
from focaldet.ranges import BatchSize, ProcessCount, SidePx
from focaldet.runtime import Precision, autocast
from focaldet.types import Detections, ImageSize, Resize
from focaldet.weights import override_postprocess
from focaldet.weights.exported.detector import ExportedDetector


@validate_fields
@dataclass(frozen=True)
class InferenceOptions:
    """How a trained detector is run: its input size, where and how it computes, and settings of its post-processing.

    Whatever takes `options` also takes these fields by keyword, which are laid over `options`.
    """

    size: SidePx | None = None
    """Long side of the resized image in pixels, instead of what the detector was trained with."""

    short_side: SidePx | None = None
    """Short side of the resized image in pixels (the paper's form), instead of what the detector was trained with."""

    max_side: SidePx | None = None
    """Limit of the long side in pixels where the short side is given."""

    batch_size: BatchSize = 8
    """Images per batch of one process."""

    device: str | None = None
    """Device to compute on, such as cpu, cuda:1 or mps; by default the best one of the machine."""

    precision: Precision | None = None
    """Type of the network's products; by default bf16 where the hardware has it, else fp32."""

    workers: ProcessCount = 0
    """Processes that load images, 0 for none; predict reads files with as many threads, 0 for four."""

    allow_nonfinite: bool = False
    """Take weights that hold NaN, infinite numbers or negative variances, to look at them."""

    architecture: dict[str, Any] = field(default_factory=dict)
    """Settings under detect, proposals, plus.refine and plus.scales to override, such as a detect.nms_iou of 0.4."""


class InferenceFields(TypedDict, total=False):
    """The fields of `InferenceOptions` as keyword arguments."""

    size: int | None
    short_side: int | None
    max_side: int | None
    batch_size: int
    device: str | None
    precision: Precision | None
    workers: int
    allow_nonfinite: bool
    architecture: dict[str, Any]


def apply_options(detector: Detector, options: InferenceOptions) -> Detector:
    """The same detector, changed in place: with the input size and the architecture overrides of `options`.

    Raises:
        ConfigError: contradicting sides, or an override that is unknown, out of range or part of what was trained.
    """
    resize = detector.preprocessing.resize
    if isinstance(detector, ExportedDetector):
        detector.refuse_options(_fixed_options(detector, options))
    resize = resize.with_sides(size=options.size, short_side=options.short_side, max_side=options.max_side)
    if options.architecture:
        detector.config = override_postprocess(detector.config, options.architecture)
    detector.preprocessing = replace(detector.preprocessing, resize=resize)
    return detector


def _fixed_options(detector: ExportedDetector, options: InferenceOptions) -> list[str]:
    """The names of the options that an exported file does not take."""
    sides = ("size", "short_side", "max_side") if detector.input_size is not None else ()
    names = [name for name in ("architecture", "precision", *sides) if getattr(options, name)]
    return names if options.device in (None, "cpu") else ["device", *names]


def detect_batch(
    detector: Detector,
    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"],
    *,
    sizes: Sequence[ImageSize],
    original_sizes: Sequence[ImageSize],
    precision: Precision,
) -> list[Detections]:
    """The detections of a batch of resized images, in pixels of the original images, clipped to them, on the CPU.

    `sizes` are those of the resized images without padding. Both sides of a box are scaled by the exact ratio of the
    sizes, which rounding makes differ a little between width and height; the bars of a letterbox are taken off before.
    """
    resize, device = detector.preprocessing.resize, detector.device
    with torch.no_grad():
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            outputs = detector(images, sizes)
        detections = detector.detect(outputs, sizes)
    return [
        to_original(each.cpu(), resize, size=size, original=original)
        for each, size, original in zip(detections, sizes, original_sizes, strict=True)
    ]


def to_original(detections: Detections, resize: Resize, *, size: ImageSize, original: ImageSize) -> Detections:
    """Detections of an image that `resize` brought to `size`, in pixels of the original and clipped to it."""
    if resize.mode == "letterbox":
        x, y = resize.corner(original)
        detections, size = detections.shift(float(-x), float(-y)), resize.content(original)
    return detections.scale(original.width / size.width, original.height / size.height).clip(original)
