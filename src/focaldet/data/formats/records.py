"""What all readers use: the layout of a data set, the unchecked records of a split, and safe paths below a folder."""

import math
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from focaldet.data.dataset import Classes
from focaldet.data.formats.listing import Listing
from focaldet.data.formats.text import brief
from focaldet.data.images import SUFFIXES
from focaldet.data.problems import Location, Problems
from focaldet.errors import DataError
from focaldet.text import is_whole
from focaldet.types import ImageSize


@dataclass(frozen=True, slots=True)
class DatasetLayout:
    """The splits of a data set and the files to read for them.

    `splits` maps the names that the folder itself uses to annotation files, list files or image folders. `description`
    is the file that names the classes, for formats that have one. `listing` are the files below `root`; where a reader
    did not need them to recognize the layout, they are listed when they are first asked for. `ignored` are annotation
    files that were passed over for others, `extra` is whatever else the reader of the format wants to remember.
    """

    format: str
    root: Path
    splits: Mapping[str, tuple[Path, ...]]
    description: Path | None = None
    listing: Listing | None = None
    ignored: tuple[Path, ...] = ()
    extra: Any = None

    @classmethod
    def of_files(
        cls,
        format_name: str,
        root: Path,
        files: Iterable[tuple[str, Path]],
        description: Path | None = None,
        listing: Listing | None = None,
    ) -> "DatasetLayout | None":
        """The layout of annotation files with the names of their splits; None where there are no files.

        Raises:
            DataError: there are two files for one split.
        """
        splits: dict[str, tuple[Path, ...]] = {}
        for name, file in files:
            if name in splits:
                raise DataError(f'two files for the split "{name}": {splits[name][0]} and {file}; name one', file=root)
            splits[name] = (file,)
        return cls(format_name, root, splits, description, listing) if splits else None


@dataclass(frozen=True, slots=True)
class Records:
    """One split as its annotation files describe it: well-formed, but not yet compared with the images.

    `source` is the file or folder that was read, `root` the folder of the image files, `paths` their paths below it;
    or, with `lookup`, the names that the file states, which are then looked for (see `formats.locate`).
    `annotation_files` are the files that were read, `bounds` is the folder that links may not leave (`root` where it is
    None).
    `stated_sizes` are the image sizes that the files state. `boxes` are xyxy pixels, or fractions of the image's width
    and height if `fractions`. `owners` is the image index of each box. `areas` are NaN where the file states none.
    `image_location` and `box_location` say where a record stands in the files. `sides` are the widths and heights where
    the file states these instead of x2 and y2, because x2 − x1 differs from them in the last digits; None for other
    files.
    """

    name: str
    source: Path
    root: Path
    classes: Classes
    image_ids: Sequence[int]
    paths: Sequence[str]
    stated_sizes: Sequence[ImageSize | None]
    owners: Int64[Tensor, " M"]
    boxes: Float64[Tensor, "M 4"]
    labels: Int64[Tensor, " M"]
    flags: UInt8[Tensor, " M"]
    areas: Float64[Tensor, " M"]
    image_location: Callable[[int], Location]
    box_location: Callable[[int], Location]
    fractions: bool = False
    sides: Float64[Tensor, "M 2"] | None = None
    problems: Problems = field(default_factory=Problems)
    lookup: "Lookup | None" = None
    annotation_files: Sequence[Path] = ()
    bounds: Path | None = None

    def __post_init__(self) -> None:
        if not is_whole("".join(self.classes.names)):
            name = next(name for name in self.classes.names if not is_whole(name))
            problem = (
                f"got the class name {brief(name)}; must be text of whole characters (a lone surrogate is half of one)"
            )
            raise DataError(problem, file=self.source)

    def select_images(self, images: Sequence[int]) -> "Records":
        """The records of the images at these indices, in this order, and of their boxes."""
        new_index = torch.full((len(self.paths),), -1, dtype=torch.int64)
        new_index[torch.tensor(images, dtype=torch.int64)] = torch.arange(len(images))
        rows = (new_index[self.owners] >= 0).nonzero()[:, 0] if len(self.owners) else self.owners
        chosen = replace(
            self,
            image_ids=[self.image_ids[i] for i in images],
            paths=[self.paths[i] for i in images],
            stated_sizes=[self.stated_sizes[i] for i in images],
            image_location=lambda i: self.image_location(images[i]),
        )
        return replace(chosen.select_boxes(rows), owners=new_index[self.owners[rows]])

    def select_boxes(self, rows: Int64[Tensor, " R"]) -> "Records":
        """The records with the boxes at these rows alone."""
        return replace(
            self,
            owners=self.owners[rows],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            flags=self.flags[rows],
            areas=self.areas[rows],
            sides=None if self.sides is None else self.sides[rows],
            box_location=lambda row: self.box_location(int(rows[row])),
        )


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where the names of images are looked for: below `listing`, first in `folders` of it, likeliest first.

    With `by_stem` names have no suffix. Files in a folder that is named after another split than `split` are not taken
    for a name that does not say so itself.
    """

    listing: Listing
    folders: Sequence[str] = ("",)
    by_stem: bool = False
    split: str = ""


class BoxRows:
    """Boxes of text formats, collected one by one with their locations in the files."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Sequence[float], int, int, Location]] = []

    def add(self, owner: int, box: Sequence[float], label: int, location: Location, *, flag: int = 0) -> None:
        self._rows.append((owner, box, label, flag, location))

    def columns(self) -> dict[str, Any]:
        """The arguments of `Records` that describe boxes."""
        owners, boxes, labels, flags, locations = zip(*self._rows, strict=True) if self._rows else ((),) * 5
        return {
            "owners": torch.tensor(owners, dtype=torch.int64),
            "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "flags": torch.tensor(flags, dtype=torch.uint8),
            "areas": torch.full((len(boxes),), math.nan, dtype=torch.float64),
            "box_location": locations.__getitem__,
        }


def path_inside(root: Path, name: Any, location: Location, *, absolute: bool = False) -> str:
    """`name` as a path below `root` with "/" between its parts.

    Absolute names are refused unless `absolute` is set and they lie below `root`. Links are looked at later, where the
    image is opened.

    Raises:
        DataError: the name cannot be that of a file, or it leads out of `root`.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise location.error(f"got {brief(name)}; must be the name of an image file")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise location.error(f"got {brief(name)}, which is not valid text; must be the name of an image file") from None
    plain = posixpath.normpath(name.replace("\\", "/"))
    if absolute and PurePosixPath(plain).is_relative_to(root.as_posix()):
        plain = PurePosixPath(plain).relative_to(root.as_posix()).as_posix()
    if plain.startswith("/") or plain.split("/", 1)[0] == ".." or PureWindowsPath(plain).drive:
        raise location.error(f"{brief(name)} leads out of the image folder {root}; must be a path inside it")
    return plain


def stated_size(height: Any, width: Any) -> ImageSize | None:
    """The size that two values of a file state; None where they are no numbers of pixels."""
    whole = all(type(side) is int and 0 < side < 2**31 for side in (height, width))
    return ImageSize(height, width) if whole else None


def list_images(folder: Path) -> list[str]:
    """The sorted paths of all image files below a folder except hidden ones, relative to it, with "/" between parts."""
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(parent).relative_to(folder)
        images = (name for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."))
        paths += [(base / name).as_posix() for name in images]
    return sorted(paths)
