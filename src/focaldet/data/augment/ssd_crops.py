"""SSD's expansion and crops, as random windows of the image and of the canvas around it.

Axes: G boxes of an image, N windows tried.
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
    size: ImageSize, boxes: Float[Tensor, "G 4"], *, augmentation: AugmentConfig, rng: random.Random
) -> Window:
    """The window of an image of `size` that is seen: all of it, or a larger canvas around it, or a crop of either.

    Steps that are off draw no random numbers.
    """
    window = Window(0, 0, size)
    if augmentation.expand and rng.random() < augmentation.expand:
        window = _canvas(size, rng.uniform(*augmentation.expand_ratio), rng)
    return draw_crop(window, boxes, augmentation=augmentation, rng=rng) if augmentation.crop_overlaps else window


def draw_crop(
    canvas: Window, boxes: Float[Tensor, "G 4"], *, augmentation: AugmentConfig, rng: random.Random
) -> Window:
    """One of these at random: the whole canvas, and for each number of `crop_overlaps` the first of 50 random windows
    that has at least this IoU with some box, if there is one. Without boxes it is the whole canvas.

    Windows are drawn as the released SSD draws them: the scale and then the aspect uniformly, the aspect only as far as
    the window fits the canvas, then the position; here in whole pixels, so that the IoU is that of what is shown.
    """
    if len(boxes) == 0:
        return canvas
    # Shuffled together with the whole canvas, the first that gives a window is an even draw of all that do. What comes
    # before the canvas in such an order is a random sample of random size.
    overlaps = augmentation.crop_overlaps
    for least_iou in rng.sample(overlaps, rng.randint(0, len(overlaps))):
        window = _find_window(canvas, boxes, least_iou, augmentation, rng)
        if window is not None:
            return window
    return canvas


def _find_window(
    canvas: Window, boxes: Float[Tensor, "G 4"], least_iou: float, augmentation: AugmentConfig, rng: random.Random
) -> Window | None:
    """The first of 50 random windows with at least this IoU with some box; None where none has it."""
    windows = _draw_windows(canvas, augmentation=augmentation, rng=rng)
    fitting = (pairwise_iou(windows.to(boxes.dtype), boxes).amax(1) >= least_iou).nonzero().flatten()
    if len(fitting) == 0:
        return None
    left, top, right, bottom = windows[fitting[0]].tolist()
    return Window(top, left, ImageSize(bottom - top, right - left))


def _canvas(size: ImageSize, ratio: float, rng: random.Random) -> Window:
    """A canvas `ratio` times as high and wide as the image, which lies at a random position of it."""
    height, width = (max(side, int(side * ratio)) for side in size)
    top, left = -rng.randint(0, height - size.height), -rng.randint(0, width - size.width)
    return Window(top, left, ImageSize(height, width))


def _draw_windows(canvas: Window, *, augmentation: AugmentConfig, rng: random.Random) -> Int64[Tensor, "N 4"]:
    """Random windows (xyxy) of the canvas, in the coordinates of the image."""
    uniform = torch.tensor([rng.random() for _ in range(4 * TRIALS)], dtype=torch.float64).view(4, TRIALS)
    smallest, largest = augmentation.crop_scale
    scale = smallest + uniform[0] * (largest - smallest)
    least, greatest = (torch.clamp(scale.new_tensor(limit), scale**2, scale**-2) for limit in augmentation.crop_aspect)
    stretch = (least + uniform[1] * (greatest - least)).sqrt()
    (height, width), limits = canvas.size, (canvas.size.width, canvas.size.height)
    sides = torch.stack([width * scale * stretch, height * scale / stretch], 1).round()
    sides = torch.minimum(sides.clamp(min=1), sides.new_tensor(limits))
    corners = (uniform[2:].T * (sides.new_tensor(limits) - sides + 1)).floor()
    corners = corners + corners.new_tensor([canvas.left, canvas.top])
    return torch.cat([corners, corners + sides], 1).long()
