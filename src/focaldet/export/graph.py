"""A detector as one graph: RGB bytes in, detections in padded tensors out.

Axes: B images, H W pixels, D detections of an image.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from focaldet.errors import ConfigError, FocaldetError
from focaldet.models import Detector
from focaldet.runtime import eval_mode, is_out_of_memory
from focaldet.types import ImageSize, Preprocessing
from focaldet.weights.exported.graphs import LEAST_PROGRAM_PX, summarize_error

STEP_PX = 32  # open sides are multiples of it where those that the detector pads to are not traceable
MOST_SIDE_PX = 8192
TRACED_BATCH = 2  # one image would be taken for a constant


class Traced(NamedTuple):
    """A detector as one graph, and the number of pixels that images are padded to multiples of for it."""

    program: ExportedProgram
    size_divisor: int


class Pipeline(nn.Module):
    """A detector with everything behind it, called on bytes."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, images: UInt8[Tensor, "B 3 H W"], sizes: Int64[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B D 4"], Float[Tensor, "B D"], Int64[Tensor, "B D"], Int64[Tensor, " B"]]:
        """Boxes, scores, labels and count; `sizes` are (height, width) of the images without padding."""
        return tuple(self.detector.detect_padded(images, sizes))  # type: ignore[return-value]


def fixed_size(preprocessing: Preprocessing) -> ImageSize | None:
    """The size that every image has when it enters the network; None where it depends on the image."""
    if not preprocessing.resize.is_square:
        return None
    return preprocessing.padded_size(preprocessing.resize.target(ImageSize(1, 1)))


def trace(detector: Detector) -> Traced:
    """The graph of a detector that is on the CPU, with the number of images open and, where it resizes to no fixed
    square, height and width too.

    These are multiples of what the detector itself pads to, so that both see the same pixels; where the network cannot
    be traced with them, of 32 px as well.

    Raises:
        ConfigError: this kind of detector, or one with these settings, is not traceable; says why.
    """
    divisor = detector.preprocessing.size_divisor
    if (size := fixed_size(detector.preprocessing)) is not None:
        return Traced(trace_steps(detector, size), divisor)
    if divisor % STEP_PX:
        try:
            return Traced(trace_steps(detector, step_px=divisor), divisor)
        except ConfigError:  # a rest of a division in the network, which only a number of pixels decides
            pass
    return Traced(trace_steps(detector, step_px=STEP_PX), math.lcm(divisor, STEP_PX))


def trace_steps(detector: Detector, size: ImageSize | None = None, *, step_px: int = STEP_PX) -> ExportedProgram:
    """The graph for images of this size, or else of sides that are any multiples of `step_px`.

    Raises:
        ConfigError: it is not traceable with them; says why.
    """
    height, width = size or (-(-side // step_px) * step_px for side in (5 * STEP_PX, 6 * STEP_PX))
    batch = Dim("batch", min=1, max=4096)
    least = -(-LEAST_PROGRAM_PX // step_px)
    most = max(least, MOST_SIDE_PX // step_px)
    rows, columns = (Dim(name, min=least, max=most) for name in ("rows", "columns"))
    open_sides: dict[int, Any] = {2: step_px * rows, 3: step_px * columns} if step_px > 1 else {2: rows, 3: columns}
    shapes = {"images": {0: batch, **({} if size else open_sides)}, "sizes": {0: batch}}
    images = torch.zeros(TRACED_BATCH, 3, height, width, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * TRACED_BATCH)
    name = type(detector).__name__
    with eval_mode(detector), torch.no_grad(), explain_failure(f"torch.export cannot trace {name}.detect_padded"):
        return torch.export.export(Pipeline(detector), (images, sizes), dynamic_shapes=shapes, strict=False)


@contextmanager
def pad_to(detector: Detector, size_divisor: int) -> Iterator[None]:
    """Inside, images of the detector are padded to multiples of `size_divisor`, as for its file."""
    before = detector.preprocessing
    detector.preprocessing = replace(before, size_divisor=size_divisor)
    try:
        yield
    finally:
        detector.preprocessing = before


def make_once(make: Callable[[], Any]) -> Callable[[], Any]:
    """`make` for several callers, called once: all get the same value, or the same ConfigError."""

    @functools.cache
    def attempt() -> Any:
        try:
            return make()
        except ConfigError as error:
            return error

    def take() -> Any:
        if isinstance(value := attempt(), ConfigError):
            raise value
        return value

    return take


@contextmanager
def explain_failure(what: str) -> Iterator[None]:
    """Inside, an error of a library becomes one line: `what` failed, and the first line of its message.

    What it cannot do with a detector is not a fault of focaldet: the detector may be the user's own.

    Raises:
        ConfigError: instead of the library's error, which is its cause.
    """
    try:
        yield
    except (FocaldetError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"export: {what}: {summarize_error(error)}") from error
