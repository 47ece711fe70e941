"""How strongly training samples are changed: every part as a number, and presets of them."""

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from focaldet.config import validated
from focaldet.errors import ConfigError

KeepBoxes = Literal["visible", "centre", "any"]
Interpolation = Literal["bilinear", "random"]

SHARE = (0, 1)
NUMBERS: dict[str, tuple[float, float]] = {
    "flip_horizontal": SHARE,
    "flip_vertical": SHARE,
    "expand": SHARE,
    "aspect_jitter": (0, 0.9),
    "crop": SHARE,
    "zoom_out": SHARE,
    "recolour": SHARE,
    "brightness": (0, 255),
    "contrast": SHARE,
    "hue": SHARE,
    "saturation": SHARE,
    "saturation_factor": (1, 10),
    "value": SHARE,
    "value_factor": (1, 10),
    "mosaic": SHARE,
    "mosaic_off_last": SHARE,
}
SPANS: dict[str, tuple[float, float]] = {
    "expand_ratio": (1, 10),
    "crop_scale": (0.01, 1),
    "crop_aspect": (0.05, 20),
    "scale_jitter": (0.05, 20),
}
WORDS = {"keep_boxes": get_args(KeepBoxes), "interpolation": get_args(Interpolation)}


@validated
@dataclass(frozen=True, slots=True)
class Augmentation:
    """Every part of the augmentation as a number; the default does nothing.

    A sample's parts follow each other as they stand here: which window of the picture is seen (`expand`,
    `crop_overlaps`), how large it is shown (`aspect_jitter`, `scale_jitter`, `crop`, `zoom_out`), its colours, flips.

    Attributes:
        flip_horizontal: probability of a flip left to right.
        flip_vertical: probability of a flip top to bottom.
        expand: probability that the picture lies at a random place of a larger canvas in the colour of the padding.
        expand_ratio: range, in 1…10, of the canvas's sides over the picture's, drawn uniformly.
        crop_overlaps: SSD's crops. Each number is the least IoU, in 0…1, that the window has with some box (ignored
            ones count too); 0 asks for a box anywhere. Of the windows found, one for each number that one was found
            for, and the whole picture, one is drawn and fills the frame. None: no such crops.
        crop_scale: range, in 0.01…1, of such a window's size: the root of its share of the area.
        crop_aspect: range, in 0.05…20, of its width / height over the picture's.
        aspect_jitter: greatest relative change, in 0…0.9, of the picture's width, and by itself of its height; what
            comes of it is fitted into the frame, as in darknet.
        scale_jitter: range of the factor, drawn uniformly, on the size of the picture; above 1 a part of it is shown.
        crop: probability of a further enlargement of up to 2, its window placed so that an object is in it.
        zoom_out: probability of a further reduction of up to 2; `crop` and `zoom_out` exclude each other.
        keep_boxes: which boxes stay, ignored ones too, each cut to what is visible. "visible": at least a quarter of
            the area and both visible sides at least 1 px. "centre": the centre is visible (SSD). "any": what is visible
            has at least a thousandth of the frame's width and height (darknet).
        interpolation: "random" draws one of five kinds for every picture (`geometry.INTERPOLATIONS`).
        recolour: probability of each change of the colours below, each drawn by itself.
        brightness: greatest number, in 0…255, added to red, green and blue, either way.
        contrast: greatest relative change of red, green and blue, either way; a coin decides whether it comes before
            hue, saturation and value or after them.
        hue: greatest turn of the hue, in turns, either way.
        saturation: greatest relative change of the saturation, either way.
        saturation_factor: greatest factor, in 1…10, on the saturation, drawn uniformly from 1 on; a coin inverts it.
        value: greatest relative change of the brightness, either way.
        value_factor: greatest factor, in 1…10, on the brightness (darknet's exposure); a coin inverts it.
        mosaic: probability that a sample is put together from four pictures.
        mosaic_off_last: the last share of the epochs, which sees no mosaic.
    """

    flip_horizontal: float = 0.0
    flip_vertical: float = 0.0
    expand: float = 0.0
    expand_ratio: tuple[float, float] = (1.0, 4.0)
    crop_overlaps: tuple[float, ...] = ()
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.5, 2.0)
    aspect_jitter: float = 0.0
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    crop: float = 0.0
    zoom_out: float = 0.0
    keep_boxes: KeepBoxes = "visible"
    interpolation: Interpolation = "bilinear"
    recolour: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    hue: float = 0.0
    saturation: float = 0.0
    saturation_factor: float = 1.0
    value: float = 0.0
    value_factor: float = 1.0
    mosaic: float = 0.0
    mosaic_off_last: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in NUMBERS.items():
            found = getattr(self, name)
            if not low <= found <= high:
                raise ConfigError(f"augment.{name}: must be in {low}…{high}, found {found}")
        for name, (low, high) in SPANS.items():
            first, last = getattr(self, name)
            if not low <= first <= last <= high:
                raise ConfigError(f"augment.{name}: must be {low} ≤ low ≤ high ≤ {high}, found {first, last}")
        for name, known in WORDS.items():
            word = getattr(self, name)
            if word not in known:
                raise ConfigError(f"augment.{name}: must be one of {', '.join(known)}, found {word!r}")
        if not all(0 <= overlap <= 1 for overlap in self.crop_overlaps):
            raise ConfigError(f"augment.crop_overlaps: every number must be in 0…1, found {self.crop_overlaps}")
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
    # Liu et al. 2016, section 2.2, in the numbers of the released SSD513. It draws up to 18 of the 180 steps in which
    # OpenCV counts the hue of bytes: a tenth of a turn.
    "ssd": Augmentation(
        flip_horizontal=0.5,
        expand=0.5,
        expand_ratio=(1.0, 4.0),
        crop_overlaps=(0.1, 0.3, 0.5, 0.7, 0.9, 0.0),
        crop_scale=(0.3, 1.0),
        crop_aspect=(0.5, 2.0),
        keep_boxes="centre",
        interpolation="random",
        recolour=0.5,
        brightness=32.0,
        contrast=0.5,
        hue=0.1,
        saturation=0.5,
    ),
    # darknet's data.c with the numbers of yolov2.cfg.
    "yolo": Augmentation(
        flip_horizontal=0.5,
        aspect_jitter=0.3,
        keep_boxes="any",
        hue=0.1,
        saturation_factor=1.5,
        value_factor=1.5,
    ),
}


@validated
@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """A preset, and single parts of it set otherwise; `None` leaves the preset's value (see `Augmentation`)."""

    preset: Literal["none", "light", "strong", "ssd", "yolo"] = "light"
    flip_horizontal: float | None = None
    flip_vertical: float | None = None
    expand: float | None = None
    expand_ratio: tuple[float, float] | None = None
    crop_overlaps: tuple[float, ...] | None = None
    crop_scale: tuple[float, float] | None = None
    crop_aspect: tuple[float, float] | None = None
    aspect_jitter: float | None = None
    scale_jitter: tuple[float, float] | None = None
    crop: float | None = None
    zoom_out: float | None = None
    keep_boxes: KeepBoxes | None = None
    interpolation: Interpolation | None = None
    recolour: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    hue: float | None = None
    saturation: float | None = None
    saturation_factor: float | None = None
    value: float | None = None
    value_factor: float | None = None
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
