"""A detector on pictures: resize, pad, network, detections back in the pixels of the picture.

Training's evaluation, `focaldet eval` and `focaldet predict` all come through here, so that they see the same thing.

Axes: B images, H W pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.evaluate.processes import local_rank, num_processes
from focaldet.models import Detector
from focaldet.types import Detections, ImageSize, Resize

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
            outputs = detector(moved)
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


@contextmanager
def inference_mode(detector: Detector) -> Iterator[None]:
    """Statistics and dropout as at inference while inside; every module is in its own mode again afterwards."""
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    try:
        yield
    finally:
        _restore(modes)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context in which a network's products are taken in `precision`."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


def pick_device(name: str | None) -> torch.device:
    """The device called `name`, such as cpu, cuda, cuda:1 or mps; the best there is for None.

    Where several processes were started together, each has the GPU of its place unless a number names another.

    Raises:
        ConfigError: there is no such device.
    """
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    kind, _, number = (name or next(kind for kind, count in there.items() if count)).partition(":")
    if kind not in there or (number and not number.isdigit()):
        raise ConfigError(f"device: {name!r} is unknown; allowed: cpu, cuda, cuda:0, cuda:1, …, mps")
    if int(number or 0) >= there[kind]:
        raise ConfigError(f"device: {name!r} is not there; this machine has {there[kind]} of {kind!r}")
    if kind == "cuda" and not number and num_processes() > 1:
        return torch.device(kind, local_rank())
    return torch.device(name or kind)


def pick_precision(precision: Precision | None, *, device: torch.device) -> Precision:
    """The precision asked for; without one bf16 where `device` multiplies in it natively, else fp32."""
    return precision or ("bf16" if has_native_bf16(device) else "fp32")


def has_native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies in bf16 without emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def resize_asked(
    resize: Resize, *, size: int | None = None, short_side: int | None = None, max_side: int | None = None
) -> Resize:
    """`resize` with the sides that are given: the long side alone (`size`), or the short side and its limit.

    A detector that puts every picture into a square keeps doing so: `size` is then the side of the square.

    Raises:
        ConfigError: both forms at once, a limit without a short side, a side below 1, or a short side for a square.
    """
    if size is not None and short_side is not None:
        raise ConfigError("size: give either the long side (size) or short_side, not both")
    if max_side is not None and short_side is None:
        raise ConfigError("max_side: needs short_side")
    if min(side for side in (size, short_side, max_side, 1) if side is not None) < 1:
        raise ConfigError("size, short_side and max_side must be at least 1")
    if resize.mode in ("warp", "letterbox"):
        if short_side is not None:
            raise ConfigError("short_side: this detector puts pictures into a square; say its side with size")
        return resize if size is None else replace(resize, size=size)
    if size is not None:
        return replace(resize, mode="long", size=size, max_size=None)
    return replace(resize, mode="short", size=short_side, max_size=max_side) if short_side is not None else resize


def _restore(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
