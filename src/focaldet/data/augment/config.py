"""How training images are augmented: every setting as a number, and presets of them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import ArgsKwargs

from focaldet.config import Fraction, read_mapping, to_dict, validate_fields
from focaldet.errors import ConfigError

AugmentPreset = Literal["none", "light", "strong", "ssd", "yolo"]
KeepBoxes = Literal["visible", "center", "any"]
Interpolation = Literal["bilinear", "random"]

ChangeFactor = Annotated[float, Field(ge=1, le=10)]
Scale = Annotated[float, Field(ge=0.05, le=20)]
CropScale = Annotated[float, Field(ge=0.01, le=1)]

MOST_OVERLAPS = 64
RANGES = ("expand_ratio", "crop_scale", "crop_aspect", "scale_jitter")

AUGMENT_PRESETS: Mapping[str, Mapping[str, Any]] = read_mapping(Path(__file__).with_name("presets.yaml"))
"""What each preset sets otherwise than the defaults of `AugmentConfig`."""


@validate_fields
@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """How training images are changed at random. `preset` gives the value of every setting that is not named.

    `AugmentConfig("strong", hue=0.1)` is the preset `strong` with another hue; None for a setting also means the
    preset's value. The steps are applied in the order of the settings: which window of the image is seen (`expand`,
    `crop_overlaps`), how large it is shown (`aspect_jitter`, `scale_jitter`, `crop`, `zoom_out`), colors, flips.

    Raises:
        ConfigError: a range whose first number is larger than its last, or `crop` and `zoom_out` above 1 together.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"recolour": "recolor"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"keep_boxes": {"centre": "center"}}

    preset: AugmentPreset = "light"
    """Starting values of all settings below: none, light, strong, or the published ones of ssd and yolo."""

    flip_horizontal: Fraction = 0.5
    """Probability of a flip left to right."""

    flip_vertical: Fraction = 0.0
    """Probability of a flip top to bottom."""

    expand: Fraction = 0.0
    """Probability that the image lies at a random position of a larger canvas in the color of the padding."""

    expand_ratio: tuple[ChangeFactor, ChangeFactor] = (1.0, 4.0)
    """Range, in 1…10, of the canvas's sides divided by the image's; drawn uniformly."""

    crop_overlaps: tuple[Fraction, ...] = ()
    """SSD's crops, one drawn of: a window with at least this IoU with some box, for each number; the whole image."""

    crop_scale: tuple[CropScale, CropScale] = (0.3, 1.0)
    """Range, in 0.01…1, of the size of such a window: the root of its fraction of the area."""

    crop_aspect: tuple[Scale, Scale] = (0.5, 2.0)
    """Range, in 0.05…20, of the width / height of such a window, divided by the image's."""

    aspect_jitter: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Largest relative change, in 0…0.9, of width and height, each by itself; the result is fitted into the frame."""

    scale_jitter: tuple[Scale, Scale] = (0.8, 1.25)
    """Range, in 0.05…20, of the factor on the size of the image; above 1 a part of it is shown."""

    crop: Fraction = 0.0
    """Probability of a further enlargement by up to 2, its window chosen so that it shows an object."""

    zoom_out: Fraction = 0.0
    """Probability of a further reduction by up to 2; `crop` and `zoom_out` exclude each other."""

    keep_boxes: KeepBoxes = "visible"
    """Boxes that stay: a quarter visible and 1 px wide and high; center visible; any of 1/1000 of the frame's sides."""

    interpolation: Interpolation = "bilinear"
    """How images are resized; random draws one of five kinds for each."""

    recolor: Fraction = 1.0
    """Probability of each of the changes of color below, each drawn independently."""

    brightness: Annotated[float, Field(ge=0, le=255)] = 0.0
    """Largest number, in 0…255, added to or taken from red, green and blue."""

    contrast: Fraction = 0.0
    """Largest relative change of red, green and blue, before or after hue, saturation and value at random."""

    hue: Fraction = 0.015
    """Largest turn of the hue, either way; 1 is a full turn."""

    saturation: Fraction = 0.3
    """Largest relative change of the saturation, either way."""

    saturation_factor: ChangeFactor = 1.0
    """Largest factor, in 1…10, on the saturation; drawn uniformly from 1 on and inverted half of the time."""

    value: Fraction = 0.2
    """Largest relative change of the brightness of the colors, either way."""

    value_factor: ChangeFactor = 1.0
    """Largest factor, in 1…10, on the brightness of the colors (darknet's exposure), as `saturation_factor`."""

    mosaic: Fraction = 0.0
    """Probability that a sample is put together from four images."""

    mosaic_off_last: Fraction = 0.0
    """Fraction of the epochs, the last ones, without mosaics."""

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, given: Any) -> Any:
        """The settings that were given, over those of their preset."""
        if isinstance(given, ArgsKwargs):
            by_position = dict(zip((field.name for field in fields(cls)), given.args, strict=False))
            named = dict(given.kwargs or {})
            if len(by_position) < len(given.args) or by_position.keys() & named.keys():
                return given  # Python says it best what is wrong with such a call.
            given = by_position | named
        if not isinstance(given, Mapping):
            return given
        # Version 0.1 wrote null for the value of the preset.
        named = {name: value for name, value in given.items() if value is not None}
        return {**AUGMENT_PRESETS.get(str(named.get("preset")), {}), **named}

    def __post_init__(self) -> None:
        for name in RANGES:
            first, last = getattr(self, name)
            if first > last:
                raise ConfigError(f"augment.{name}: the first number must be at most the second, got {first}, {last}")
        if len(self.crop_overlaps) > MOST_OVERLAPS:
            raise ConfigError(f"augment.crop_overlaps: must have at most {MOST_OVERLAPS} members")
        if self.crop + self.zoom_out > 1:
            raise ConfigError(f"augment.crop + augment.zoom_out: must be ≤ 1, got {self.crop} + {self.zoom_out}")

    def overrides(self) -> dict[str, Any]:
        """The preset and, as plain values, what differs from it: settings over which another preset can be laid."""
        start, values = to_dict(AugmentConfig(self.preset)), to_dict(self)
        return {name: value for name, value in values.items() if name == "preset" or value != start[name]}

    def describe(self) -> str:
        """The preset and every setting that changes images, in one line: "light: flip_horizontal 0.5, hue 0.015 …"."""
        still, values = to_dict(AugmentConfig("none")), to_dict(self)
        changes = [name for name, value in values.items() if name != "preset" and value != still[name]]
        words = [f"{name} {_words(values[name])}" for name in changes]
        return f"{self.preset}: {', '.join(words) or 'images stay as they are'}"

    def mosaic_probability(self, *, epoch: int, num_epochs: int) -> float:
        """The probability of a mosaic in `epoch` (counted from 0) of `num_epochs`."""
        return self.mosaic if epoch < num_epochs * (1 - self.mosaic_off_last) else 0.0


def _words(value: Any) -> str:
    """A number or word as it is, a range or list with spaces between."""
    return " ".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)
