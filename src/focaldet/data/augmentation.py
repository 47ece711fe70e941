"""How strongly training samples are changed: every part as a number, and presets of them."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from focaldet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Every part of the augmentation as a number; the default does nothing.

    Attributes:
        flip_horizontal: probability of a flip left to right.
        flip_vertical: probability of a flip top to bottom.
        scale_jitter: range of the factor, drawn uniformly, on the size of the picture; above 1 a part of it is shown.
        crop: probability of a further enlargement of up to 2, its window placed so that an object is in it.
        zoom_out: probability of a further reduction of up to 2; `crop` and `zoom_out` exclude each other.
        hue: greatest turn of the hue, in turns, either way.
        saturation: greatest relative change of the saturation, either way.
        value: greatest relative change of the brightness, either way.
        mosaic: probability that a sample is put together from four pictures.
        mosaic_off_last: the last share of the epochs, which sees no mosaic.
    """

    flip_horizontal: float = 0.0
    flip_vertical: float = 0.0
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    crop: float = 0.0
    zoom_out: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    value: float = 0.0
    mosaic: float = 0.0
    mosaic_off_last: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale_jitter
        if not 0.05 <= low <= high <= 20:
            raise ConfigError(f"augment.scale_jitter: must be 0.05 ≤ low ≤ high ≤ 20, found {low, high}")
        for field in fields(self):
            share = getattr(self, field.name)
            if field.name != "scale_jitter" and not 0 <= share <= 1:
                raise ConfigError(f"augment.{field.name}: must be in 0…1, found {share}")
        if self.crop + self.zoom_out > 1:
            raise ConfigError(f"augment.crop + augment.zoom_out: must be ≤ 1, found {self.crop} + {self.zoom_out}")

    def mosaic_share(self, *, epoch: int, num_epochs: int) -> float:
        """The probability of a mosaic in `epoch` (counted from 0) of `num_epochs`."""
        return self.mosaic if epoch < num_epochs * (1 - self.mosaic_off_last) else 0.0


PRESETS = {
    "none": Augmentation(),
    "light": Augmentation(flip_horizontal=0.5, scale_jitter=(0.8, 1.25), hue=0.015, saturation=0.3, value=0.2),
    "strong": Augmentation(
        flip_horizontal=0.5,
        scale_jitter=(0.5, 1.5),
        crop=0.25,
        hue=0.015,
        saturation=0.6,
        value=0.4,
        mosaic=0.5,
        mosaic_off_last=0.3,
    ),
}


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """A preset, and single parts of it set otherwise; `None` leaves the preset's value (see `Augmentation`)."""

    preset: Literal["none", "light", "strong"] = "light"
    flip_horizontal: float | None = None
    flip_vertical: float | None = None
    scale_jitter: tuple[float, float] | None = None
    crop: float | None = None
    zoom_out: float | None = None
    hue: float | None = None
    saturation: float | None = None
    value: float | None = None
    mosaic: float | None = None
    mosaic_off_last: float | None = None

    def __post_init__(self) -> None:
        self.resolved()

    def resolved(self) -> Augmentation:
        """The numbers that hold.

        Raises:
            ConfigError: an unknown preset or a number out of range.
        """
        if self.preset not in PRESETS:
            raise ConfigError(f"augment.preset: must be one of {', '.join(PRESETS)}, found {self.preset!r}")
        parts = {field.name: getattr(self, field.name) for field in fields(Augmentation)}
        return replace(PRESETS[self.preset], **{name: part for name, part in parts.items() if part is not None})
