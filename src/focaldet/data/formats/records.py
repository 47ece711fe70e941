"""What readers share: where the splits of a data set lie, what one holds before it is checked, and safe paths."""

import math
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from focaldet.data.dataset import Classes, DataFormat
from focaldet.data.formats.text import brief
from focaldet.data.images import SUFFIXES
from focaldet.data.problems import Place, Problems
from focaldet.types import ImageSize


@dataclass(frozen=True, slots=True)
class DatasetLayout:
    """Where the splits of a data set lie.

    `splits` maps the names that the folder itself uses to what has to be read for them: annotation files, list files or
    image folders. `description` is the file that names the classes, for formats that have one.
    """

    format: DataFormat
    root: Path
    splits: Mapping[str, tuple[Path, ...]]
    description: Path | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """One split as its annotation files tell it: well-formed, but not yet held against the pictures.

    `source` is the file or folder that was read, `root` the folder that `paths` start from.
    `boxes` are xyxy pixels, or shares of the picture's width and height if `fractions`. `owners` gives the image of
    each box. `areas` are NaN where the file states none. `image_place` and `box_place` say where a record stands.
    `sides` are the widths and heights where the file states these instead of x2 and y2: x2 − x1 is no longer the same
    to the last digit. None for other files.
    """

    name: str
    source: Path
    root: Path
    classes: Classes
    image_ids: Sequence[int]
    paths: Sequence[str]
    declared: Sequence[ImageSize | None]
    owners: Int64[Tensor, " M"]
    boxes: Float64[Tensor, "M 4"]
    labels: Int64[Tensor, " M"]
    flags: UInt8[Tensor, " M"]
    areas: Float64[Tensor, " M"]
    image_place: Callable[[int], Place]
    box_place: Callable[[int], Place]
    fractions: bool = False
    sides: Float64[Tensor, "M 2"] | None = None
    problems: Problems = field(default_factory=Problems)


class BoxRows:
    """Boxes of text formats, gathered one by one with their places."""

    def __init__(self) -> None:
        self._owners: list[int] = []
        self._boxes: list[Sequence[float]] = []
        self._labels: list[int] = []
        self._flags: list[int] = []
        self._places: list[Place] = []

    def add(self, owner: int, box: Sequence[float], label: int, place: Place, *, flag: int = 0) -> None:
        self._owners.append(owner)
        self._boxes.append(box)
        self._labels.append(label)
        self._flags.append(flag)
        self._places.append(place)

    def columns(self) -> dict[str, Any]:
        """The arguments of `Records` that describe boxes."""
        return {
            "owners": torch.tensor(self._owners, dtype=torch.int64),
            "boxes": torch.tensor(self._boxes, dtype=torch.float64).reshape(-1, 4),
            "labels": torch.tensor(self._labels, dtype=torch.int64),
            "flags": torch.tensor(self._flags, dtype=torch.uint8),
            "areas": torch.full((len(self._boxes),), math.nan, dtype=torch.float64),
            "box_place": self._places.__getitem__,
        }


def path_inside(root: Path, name: Any, place: Place, *, absolute: bool = False) -> str:
    """`name` as a path below `root` with "/" between its parts.

    Absolute names are refused unless `absolute` is set and they lie below `root`. Links are looked at later, where the
    picture is opened.

    Raises:
        DataError: no usable file name, or one that leads out of `root`.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise place.error(f"found {brief(name)}; must be the name of a picture file")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise place.error(f"found {brief(name)}, which is no valid text; must be the name of a picture file") from None
    plain = posixpath.normpath(name.replace("\\", "/"))
    if absolute and PurePosixPath(plain).is_relative_to(root.as_posix()):
        plain = PurePosixPath(plain).relative_to(root.as_posix()).as_posix()
    if plain.startswith("/") or plain.split("/", 1)[0] == ".." or PureWindowsPath(plain).drive:
        _refuse_outside(root, name, place)
    return plain


def _refuse_outside(root: Path, name: str, place: Place) -> NoReturn:
    raise place.error(f"{brief(name)} leads out of the image folder {root}; must be a path inside it")


def pictures_below(folder: Path) -> list[str]:
    """All picture files below a folder but hidden ones, as sorted paths relative to it with "/" between their parts."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(parent).relative_to(folder)
        pictures = (name for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."))
        found += [(base / name).as_posix() for name in pictures]
    return sorted(found)
