"""SSD's expansion and crops, as windows of the picture: which part of it, and how much beside it, is seen.

Axes: G boxes of a picture, N windows tried.
"""

import random

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.augment.geometry import Window
from focaldet.ops.boxes import pairwise_iou
from focaldet.types import ImageSize

# The released SSD scripts' `max_trials`.
TRIALS = 50


def draw_window(
    size: ImageSize, boxes: Float[Tensor, "G 4"], *, strength: AugmentConfig, stream: random.Random
) -> Window:
    """What is seen of a picture of `size`: all of it, or a larger canvas around it, or a crop of either.

    What is off draws nothing.
    """
    window = Window(0, 0, size)
    if strength.expand and stream.random() < strength.expand:
        window = _canvas(size, stream.uniform(*strength.expand_ratio), stream)
    return draw_crop(window, boxes, strength=strength, stream=stream) if strength.crop_overlaps else window


def draw_crop(canvas: Window, boxes: Float[Tensor, "G 4"], *, strength: AugmentConfig, stream: random.Random) -> Window:
    """One of: the whole canvas, and for each number of `crop_overlaps` the first of 50 windows that has at least this
    IoU with some box; numbers that no window satisfies give none. Without boxes it is the whole canvas.

    Windows are drawn as the released SSD draws them: the scale and then the aspect uniformly, the aspect only as far as
    the window fits the canvas, then the place; here in whole pixels, so that the IoU is that of what is shown.
    """
    if len(boxes) == 0:
        return canvas
    # Shuffled together with the whole canvas, the first that gives a window is an even draw of all that do. What comes
    # before the canvas in such an order is any number of them, and any ones.
    overlaps = strength.crop_overlaps
    for least_iou in stream.sample(overlaps, stream.randint(0, len(overlaps))):
        window = _find_window(canvas, boxes, least_iou, strength, stream)
        if window is not None:
            return window
    return canvas


def _find_window(
    canvas: Window, boxes: Float[Tensor, "G 4"], least_iou: float, strength: AugmentConfig, stream: random.Random
) -> Window | None:
    """The first of 50 windows with at least this IoU with some box; None where none has it."""
    windows = _draw_windows(canvas, strength=strength, stream=stream)
    fitting = (pairwise_iou(windows.to(boxes.dtype), boxes).amax(1) >= least_iou).nonzero().flatten()
    if len(fitting) == 0:
        return None
    left, top, right, bottom = windows[fitting[0]].tolist()
    return Window(top, left, ImageSize(bottom - top, right - left))


def _canvas(size: ImageSize, ratio: float, stream: random.Random) -> Window:
    """A canvas `ratio` times as high and wide as the picture, which lies at a random place of it."""
    height, width = (max(side, int(side * ratio)) for side in size)
    top, left = -stream.randint(0, height - size.height), -stream.randint(0, width - size.width)
    return Window(top, left, ImageSize(height, width))


def _draw_windows(canvas: Window, *, strength: AugmentConfig, stream: random.Random) -> Int64[Tensor, "N 4"]:
    """Windows (xyxy) in the canvas, in the frame of the picture."""
    uniform = torch.tensor([stream.random() for _ in range(4 * TRIALS)], dtype=torch.float64).view(4, TRIALS)
    smallest, largest = strength.crop_scale
    scale = smallest + uniform[0] * (largest - smallest)
    least, greatest = (torch.clamp(scale.new_tensor(limit), scale**2, scale**-2) for limit in strength.crop_aspect)
    stretch = (least + uniform[1] * (greatest - least)).sqrt()
    (height, width), limits = canvas.size, (canvas.size.width, canvas.size.height)
    sides = torch.stack([width * scale * stretch, height * scale / stretch], 1).round()
    sides = torch.minimum(sides.clamp(min=1), sides.new_tensor(limits))
    corners = (uniform[2:].T * (sides.new_tensor(limits) - sides + 1)).floor()
    corners = corners + corners.new_tensor([canvas.left, canvas.top])
    return torch.cat([corners, corners + sides], 1).long()
