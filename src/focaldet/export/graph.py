"""A detector as one graph: RGB bytes in, detections in padded tensors out.

Axes: B images, H W pixels, D detections of an image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from focaldet.errors import ConfigError, FocaldetError
from focaldet.models import Detector
from focaldet.runtime import eval_mode, is_out_of_memory
from focaldet.types import ImageSize, Preprocessing
from focaldet.weights.exported.graphs import LEAST_PROGRAM_PX, summarize_error

STEP_PX = 32  # sides of images whose size is left open are multiples of it
LEAST_SIDE, MOST_SIDE = LEAST_PROGRAM_PX // STEP_PX, 256  # in steps
TRACED_BATCH = 2  # one image would be taken for a constant


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


def trace(detector: Detector) -> ExportedProgram:
    """The graph of a detector that is on the CPU, with the number of images open and, where it resizes to no fixed
    square, height and width in steps of 32 px.

    Raises:
        ConfigError: this kind of detector, or one with these settings, is not traceable; says why.
    """
    size = fixed_size(detector.preprocessing)
    height, width = size or (5 * STEP_PX, 6 * STEP_PX)
    batch = Dim("batch", min=1, max=4096)
    rows, columns = (Dim(name, min=LEAST_SIDE, max=MOST_SIDE) for name in ("rows", "columns"))
    open_sides: dict[int, Any] = {} if size else {2: STEP_PX * rows, 3: STEP_PX * columns}
    shapes = {"images": {0: batch, **open_sides}, "sizes": {0: batch}}
    images = torch.zeros(TRACED_BATCH, 3, height, width, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * TRACED_BATCH)
    name = type(detector).__name__
    with eval_mode(detector), torch.no_grad(), explain_failure(f"torch.export cannot trace {name}.detect_padded"):
        return torch.export.export(Pipeline(detector), (images, sizes), dynamic_shapes=shapes, strict=False)


@contextmanager
def explain_failure(what: str) -> Iterator[None]:
    """Inside, an error of a library becomes one line: `what` failed, and the first line of its message.

    What it cannot do with a detector is no fault of focaldet: the detector may be the user's own.

    Raises:
        ConfigError: in the place of the library's error, which is its cause.
    """
    try:
        yield
    except (FocaldetError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"export: {what}: {summarize_error(error)}") from error
