"""`DataConfig`: which images and annotations to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from focaldet.config import validate_fields
from focaldet.data.formats.reading import BadBoxes, MissingImages, Reading
from focaldet.data.formats.registry import FORMATS
from focaldet.ranges import Seed

if TYPE_CHECKING:
    DataFormat = str
else:
    DataFormat = Literal[tuple(FORMATS)]

OtherClasses = Literal["background", "ignore", "error"]


@validate_fields
@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which images and annotations to use.

    Attributes:
        path: a folder, or one json, yaml or csv file. Layout and format are recognized.
        train: what to train on instead of the split in `path`: an annotation file, list file or image folder, or the
            name of another split in `path`.
        val: the same for validation.
        test: the same for testing.
        images: the folder of the images, where they are not beside the annotations.
        format: the format, where it should not be recognized.
        bad_boxes: what to do with boxes that extend beyond the image. A box that is empty after clipping is always
            dropped.
        missing: what to do with images that a list or record names and that are not there.
        classes: the classes to use; all of the data where empty.
        other_classes: what boxes of classes that are not among `classes` are: background, neither object nor background
            (ignore), or an error.
        follow_links: follow links that lead out of the data's folder.
        strict: refuse loose values (texts for numbers, boxes that are fractions …), which are taken with a warning.
        split_seed: which images are held out for validation where no split is for it; by default the seed of the
            training decides.
    """

    path: Path | None = None
    train: Path | None = None
    val: Path | None = None
    test: Path | None = None
    images: Path | None = None
    format: DataFormat | None = None
    bad_boxes: BadBoxes = "clip"
    missing: MissingImages = "error"
    classes: tuple[str, ...] = ()
    other_classes: OtherClasses = "background"
    follow_links: bool = False
    strict: bool = False
    split_seed: Seed | None = None

    def reading(self, *, lenient: bool = False) -> Reading:
        """How the readers are to take the files; for `lenient` see `Reading`."""
        return Reading(
            images=self.images,
            bad_boxes=self.bad_boxes,
            missing=self.missing,
            strict=self.strict,
            lenient=lenient,
            follow_links=self.follow_links,
        )
