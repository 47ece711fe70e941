"""`DataConfig`: which images and annotations to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from focaldet.config import validate_fields
from focaldet.data.formats.assemble import BadBoxes
from focaldet.data.formats.registry import FORMATS

if TYPE_CHECKING:
    DataFormat = str
else:
    DataFormat = Literal[tuple(FORMATS)]


@validate_fields
@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which images and annotations to use.

    Attributes:
        path: a folder, or one json, yaml or csv file. Layout and format are recognized.
        train: what to train on instead of the split in `path`: an annotation file, list file or image folder.
        val: the same for validation.
        test: the same for testing.
        images: the folder of the images, where they are not beside the annotations.
        format: the format, where it should not be recognized.
        bad_boxes: what to do with boxes that extend beyond the image. A box that is empty after clipping is always
            dropped.
    """

    path: Path | None = None
    train: Path | None = None
    val: Path | None = None
    test: Path | None = None
    images: Path | None = None
    format: DataFormat | None = None
    bad_boxes: BadBoxes = "clip"
