"""Boxes with names and scores drawn on an image, legible on any background.

Axes: H W pixels of the image.
"""

import colorsys
import functools
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from focaldet.errors import ConfigError
from focaldet.types import Detections, ImageSize

Color = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
AnyImage = Image.Image | UInt8[numpy.ndarray, "H W 3"] | UInt8[Tensor, "3 H W"] | Float[Tensor, "3 H W"]

GOLDEN_ANGLE = 0.381966  # of a full turn: successive hues stay far apart however many classes there are
LONGEST_NAME = 40  # letters
SMALL_PX = 160  # an image with a shorter side has no room for lines of two pixels
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


def boxes(
    image: AnyImage,
    detections: Detections,
    *,
    min_score: float = 0.0,
    show_scores: bool = True,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """A copy of `image` with every detection of at least `min_score` drawn on it.

    A class has the same color in every image. Lines and text grow with the image; the best detections lie on top, and a
    label moves below or into its box rather than cover another or leave the image.

    Args:
        image: a PIL image, an RGB array of H × W × 3, or an RGB tensor of 3 × H × W in 0…255.
        detections: boxes in pixels of `image`.
        min_score: detections below it are not drawn.
        show_scores: whether the score follows the name (ground truth has no scores).
        names: a text for each detection instead of the name of its class.

    Raises:
        ConfigError: `image` is none of these.
    """
    canvas = to_image(image)
    shown = (detections.scores >= min_score).nonzero()[:, 0].tolist()
    names = [(detections.names if names is None else names)[row] for row in shown]
    detections = detections[shown].clip(ImageSize(canvas.height, canvas.width)).cpu()
    line_px, font_px = line_width(canvas.size), font_size(canvas.size)
    drawing = ImageDraw.Draw(canvas)
    rectangles = [_to_corners(box) for box in detections.boxes.tolist()]
    drawable = _drawable_names(names, detections.labels.tolist(), font_px)
    texts = [
        f"{name}  {score:.2f}" if show_scores else name  # one space is next to nothing in small letters
        for name, score in zip(drawable, detections.scores.tolist(), strict=True)
    ]
    colors = [class_color(label) for label in detections.labels.tolist()]
    for rectangle, color in reversed(list(zip(rectangles, colors, strict=True))):
        _draw_box(drawing, rectangle, color, line_px)
    labels = place_labels(texts, rectangles, canvas.size, font_px)
    for label, color in reversed(list(zip(labels, colors, strict=True))):
        drawing.rectangle(label.rectangle, fill=color)
        drawing.text(label.rectangle[:2], label.text, fill=text_color(color), font=font_for(label.text, font_px))
    return canvas


def frames(image: Image.Image, detections: Detections) -> Image.Image:
    """A copy of `image` with the boxes of `detections` alone, in the color of their class."""
    canvas = image.copy()
    drawing, line_px = ImageDraw.Draw(canvas), line_width(canvas.size)
    for box, label in zip(detections.boxes.tolist(), detections.labels.tolist(), strict=True):
        _draw_box(drawing, _to_corners(box), class_color(label), line_px)
    return canvas


def to_image(image: object) -> Image.Image:
    """An RGB copy of `image` as a PIL image.

    Raises:
        ConfigError: another type, shape or kind of number.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    array = image.detach().cpu().permute(1, 2, 0).numpy() if isinstance(image, Tensor) and image.ndim == 3 else image
    if not isinstance(array, numpy.ndarray) or array.ndim != 3 or array.shape[2] != 3:
        raise ConfigError(
            "an image is a PIL image, an RGB array of height × width × 3 or an RGB tensor of 3 × height × width, "
            f"got {type(image).__name__} of shape {tuple(getattr(image, 'shape', ()))}"
        )
    return Image.fromarray(numpy.ascontiguousarray(array.clip(0, 255).round().astype(numpy.uint8)))


def class_color(label: int) -> Color:
    """The RGB color of a class: always the same, and far from those of the labels next to it."""
    hue = (0.58 + label * GOLDEN_ANGLE) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 1.0)[label % 3], (0.95, 1.0, 0.8)[label // 3 % 3])
    return round(red * 255), round(green * 255), round(blue * 255)


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher WCAG contrast (at least 4.58) on `background`."""
    linear = [(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4) for v in (c / 255 for c in background)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def line_width(size: tuple[int, int]) -> int:
    """Width in pixels of the boxes' lines on an image of this size: about 0.4 % of its shorter side."""
    return max(1 if min(size) < SMALL_PX else 2, round(min(size) * 0.004))


def font_size(size: tuple[int, int]) -> int:
    """Height in pixels of the text on an image of this size: about 2.8 % of its shorter side, at least 10."""
    return max(10, round(min(size) * 0.028))


def place_labels(
    texts: Sequence[str], rectangles: Sequence[tuple[int, int, int, int]], size: tuple[int, int], font_px: int
) -> list[Label]:
    """Where each text goes: above its box, inside it at the top, below it, or inside at the bottom.

    The first position that no earlier label covers is taken; where all are covered, the first one. No label leaves the
    image, whose `size` is width and height.
    """
    labels: list[Label] = []
    for text, (left, top, right, bottom) in zip(texts, rectangles, strict=True):
        width, height = text_size(text, font_px)
        x = max(0, min(left, size[0] - width))
        corners = [(x, top - height), (x, top), (x, bottom), (max(0, min(right, size[0]) - width), bottom - height)]
        inside = [(cx, cy) for cx, cy in corners if cy >= 0 and cy + height <= size[1]] or [(x, max(0, top))]
        spots = [(cx, cy, cx + width, cy + height) for cx, cy in inside]
        free = (s for s in spots if not any(rectangles_overlap(s, other.rectangle) for other in labels))
        labels.append(Label(text, next(free, spots[0])))
    return labels


def text_size(text: str, font_px: int) -> tuple[int, int]:
    """Width and height in pixels of `text` with a margin for descenders."""
    return round(font_for(text, font_px).getlength(text)) + 2, round(font_px * 1.25)


def font_for(text: str, font_px: int) -> Font:
    """Pillow's scalable font or, for letters it lacks, a font of the system that has them, if there is one."""
    return _font_with("".join(sorted(set(text))), font_px) or _default_font(font_px)


def _drawable_names(names: Sequence[str], labels: Sequence[int], font_px: int) -> list[str]:
    """The names, one line of at most 40 letters each; `#label` where no font has the letters."""
    lines = [" ".join(name.split()) for name in names]
    short = [line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…" for line in lines]
    rows = zip(short, labels, strict=True)
    return [name if _font_with("".join(sorted(set(name))), font_px) else f"#{label}" for name, label in rows]


@functools.lru_cache(maxsize=4096)
def _font_with(letters: str, font_px: int) -> Font | None:
    names = chain(WIDE_FONTS, _font_files())
    candidates = chain([_default_font(font_px)], (_system_font(name, font_px) for name in names))
    return next((font for font in candidates if font is not None and _has_letters(font, letters)), None)


def _font_files() -> Iterator[str]:
    """All fonts of the system, plain ones first; they are looked for when no other has the letters."""
    from matplotlib.font_manager import findSystemFonts

    yield from sorted(findSystemFonts(), key=lambda path: ("Regular" not in path, path))


def undrawable_names(names: Sequence[str]) -> dict[int, str]:
    """The class names, by label, whose letters no font of this system has; they are drawn as `#label`."""
    return {label: name for label, name in enumerate(names) if _font_with("".join(sorted({*name})), 12) is None}


def _has_letters(font: Font, letters: str) -> bool:
    """Whether `font` draws each letter otherwise than a letter that it lacks."""
    missing = bytes(font.getmask("\uffff"))
    return all(letter.isascii() or bytes(font.getmask(letter)) != missing for letter in letters)


@functools.cache
def _default_font(font_px: int) -> Font:
    return ImageFont.load_default(size=font_px)


@functools.cache
def _system_font(name: str, font_px: int) -> Font | None:
    try:
        return ImageFont.truetype(name, font_px)
    except OSError:
        return None


def _to_corners(box: list[float]) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(side) for side in box)
    return left, top, max(left, right), max(top, bottom)


def _draw_box(drawing: ImageDraw.ImageDraw, rectangle: tuple[int, int, int, int], color: Color, line_px: int) -> None:
    """A colored frame between two thin lines of the opposite brightness, so that it shows on its own color too."""
    left, top, right, bottom = rectangle
    drawing.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=text_color(color), width=line_px + 2)
    drawing.rectangle(rectangle, outline=color, width=line_px)


def rectangles_overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two rectangles (left, top, right, bottom) have pixels in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# Names of version 0.1 and what they are called now.
RENAMED_FUNCTIONS = {"to_picture": to_image, "class_colour": class_color, "text_colour": text_color}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The function that version 0.1 called `name`, with a warning (PEP 562)."""
        if name not in RENAMED_FUNCTIONS:
            raise AttributeError(f"module 'focaldet.draw' has no attribute {name!r}")
        new = RENAMED_FUNCTIONS[name]
        warnings.warn(f"draw.{name} is now called draw.{new.__name__}", DeprecationWarning, stacklevel=2)
        return new
