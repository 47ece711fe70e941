"""Boxes with names and scores on a picture, legible on any background.

Axes: H W pixels of the picture.
"""

import colorsys
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from focaldet.errors import ConfigError
from focaldet.types import Detections, ImageSize

Color = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Picture = Image.Image | UInt8[numpy.ndarray, "H W 3"] | UInt8[Tensor, "3 H W"] | Float[Tensor, "3 H W"]

GOLDEN_ANGLE = 0.381966  # of a full turn: successive hues stay far apart however many classes there are
LONGEST_NAME = 40  # letters
SMALL_PX = 160  # a picture with a shorter side has no room for lines of two pixels
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NanumGothic.ttf",
    "malgun.ttf",
    "AppleGothic.ttf",
    "msgothic.ttc",
    "DejaVuSans.ttf",
)


class Label(NamedTuple):
    """A line of text and the rectangle it fills: left, top, right, bottom in pixels."""

    text: str
    rectangle: tuple[int, int, int, int]


def boxes(image: Picture, detections: Detections, *, min_score: float = 0.0, show_scores: bool = True) -> Image.Image:
    """A copy of `image` with every detection of at least `min_score` drawn on it.

    A class has the same colour in every picture. Lines and text grow with the picture; the best detections lie on top,
    and a label moves below or into its box rather than cover another or leave the picture.

    Args:
        image: a PIL image, an RGB array of H × W × 3, or an RGB tensor of 3 × H × W in 0…255.
        detections: boxes in pixels of `image`.
        min_score: detections below it are left out.
        show_scores: whether the score stands behind the name (ground truth has none worth showing).

    Raises:
        ConfigError: `image` is none of these.
    """
    picture = to_image(image)
    shown = detections.above(min_score).clip(ImageSize(picture.height, picture.width)).cpu()
    pen, font_px = line_width(picture.size), font_size(picture.size)
    drawing = ImageDraw.Draw(picture)
    rectangles = [_corners(box) for box in shown.boxes.tolist()]
    texts = [
        f"{name}  {score:.2f}" if show_scores else name  # one space is next to nothing in small letters
        for name, score in zip(_drawable_names(shown, font_px), shown.scores.tolist(), strict=True)
    ]
    colours = [class_color(label) for label in shown.labels.tolist()]
    for rectangle, colour in reversed(list(zip(rectangles, colours, strict=True))):
        _frame(drawing, rectangle, colour, pen)
    labels = place_labels(texts, rectangles, picture.size, font_px)
    for label, colour in reversed(list(zip(labels, colours, strict=True))):
        drawing.rectangle(label.rectangle, fill=colour)
        drawing.text(label.rectangle[:2], label.text, fill=text_color(colour), font=font_for(label.text, font_px))
    return picture


def to_image(image: object) -> Image.Image:
    """An RGB copy of `image` as a PIL picture.

    Raises:
        ConfigError: another type, shape or kind of number.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    array = image.detach().cpu().permute(1, 2, 0).numpy() if isinstance(image, Tensor) and image.ndim == 3 else image
    if not isinstance(array, numpy.ndarray) or array.ndim != 3 or array.shape[2] != 3:
        raise ConfigError(
            "a picture is a PIL image, an RGB array of height × width × 3 or an RGB tensor of 3 × height × width, "
            f"found {type(image).__name__} of shape {tuple(getattr(image, 'shape', ()))}"
        )
    return Image.fromarray(numpy.ascontiguousarray(array.clip(0, 255).round().astype(numpy.uint8)))


def class_color(label: int) -> Color:
    """The colour of a class: the same for ever, and far from those of its neighbours."""
    hue = (0.58 + label * GOLDEN_ANGLE) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 1.0)[label % 3], (0.95, 1.0, 0.8)[label // 3 % 3])
    return round(red * 255), round(green * 255), round(blue * 255)


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher WCAG contrast (at least 4.58) on `background`."""
    linear = [(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4) for v in (c / 255 for c in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def line_width(size: tuple[int, int]) -> int:
    """Width in pixels of the boxes' lines on a picture of this size: about 0.4 % of its shorter side."""
    return max(1 if min(size) < SMALL_PX else 2, round(min(size) * 0.004))


def font_size(size: tuple[int, int]) -> int:
    """Height in pixels of the text on a picture of this size: about 2.8 % of its shorter side, at least 10."""
    return max(10, round(min(size) * 0.028))


def place_labels(
    texts: Sequence[str], rectangles: Sequence[tuple[int, int, int, int]], size: tuple[int, int], font_px: int
) -> list[Label]:
    """Where each text goes: above its box, inside it at the top, below it, or inside at the bottom.

    The first place that no earlier label covers; where all are taken, the first. No label leaves the picture, whose
    `size` is width and height.
    """
    placed: list[Label] = []
    for text, (left, top, right, bottom) in zip(texts, rectangles, strict=True):
        width, height = text_size(text, font_px)
        x = max(0, min(left, size[0] - width))
        corners = [(x, top - height), (x, top), (x, bottom), (max(0, min(right, size[0]) - width), bottom - height)]
        inside = [(cx, cy) for cx, cy in corners if cy >= 0 and cy + height <= size[1]] or [(x, max(0, top))]
        spots = [(cx, cy, cx + width, cy + height) for cx, cy in inside]
        free = (s for s in spots if not any(_overlap(s, other.rectangle) for other in placed))
        placed.append(Label(text, next(free, spots[0])))
    return placed


def text_size(text: str, font_px: int) -> tuple[int, int]:
    """Width and height in pixels of `text` with a margin for descenders."""
    return round(font_for(text, font_px).getlength(text)) + 2, round(font_px * 1.25)


def font_for(text: str, font_px: int) -> Font:
    """Pillow's own scalable font or, for letters it lacks, a font of the system that has them, if any."""
    return _font_with("".join(sorted(set(text))), font_px) or _plain_font(font_px)


def _drawable_names(detections: Detections, font_px: int) -> list[str]:
    """The class names, one line of at most 40 letters each; `#label` where no font has the letters."""
    lines = [" ".join(name.split()) for name in detections.names]
    short = [line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…" for line in lines]
    labels = zip(short, detections.labels.tolist(), strict=True)
    return [name if _font_with("".join(sorted(set(name))), font_px) else f"#{label}" for name, label in labels]


@functools.lru_cache(maxsize=4096)
def _font_with(letters: str, font_px: int) -> Font | None:
    candidates = (_plain_font(font_px), *(_system_font(name, font_px) for name in WIDE_FONTS))
    return next((font for font in candidates if font is not None and _has(font, letters)), None)


def _has(font: Font, letters: str) -> bool:
    """Whether `font` has a picture of its own for each letter, other than the one it shows for a letter it lacks."""
    lacking = bytes(font.getmask("\uffff"))
    return all(letter.isascii() or bytes(font.getmask(letter)) != lacking for letter in letters)


@functools.cache
def _plain_font(font_px: int) -> Font:
    return ImageFont.load_default(size=font_px)


@functools.cache
def _system_font(name: str, font_px: int) -> Font | None:
    try:
        return ImageFont.truetype(name, font_px)
    except OSError:
        return None


def _corners(box: list[float]) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(side) for side in box)
    return left, top, max(left, right), max(top, bottom)


def _frame(drawing: ImageDraw.ImageDraw, rectangle: tuple[int, int, int, int], colour: Color, pen: int) -> None:
    """A coloured frame between two thin lines of the opposite brightness, so that it shows on its own colour too."""
    left, top, right, bottom = rectangle
    halo = text_color(colour)
    drawing.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=halo, width=pen + 2)
    drawing.rectangle(rectangle, outline=colour, width=pen)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
