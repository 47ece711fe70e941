"""`Dataset`: one split of a data set as flat tensors, which readers make and loaders and evaluators take.

Axes: N images, M boxes of all images, P bytes of all paths. The boxes of image i are rows offsets[i]:offsets[i + 1].
A set of the size of COCO's training split takes 52 MB, once for all worker processes: a list of Python objects would be
copied into each of them as soon as it is read.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8
from torch import Tensor

from focaldet.data.images import read_reduced
from focaldet.data.problems import Problems
from focaldet.errors import DataError
from focaldet.types import ImageSize, Target

CROWD = 1
DIFFICULT = 2
OTHER_CLASS = 4


@dataclass(frozen=True, slots=True)
class Classes:
    """The names of the classes by label, and the (possibly sparse) ids that files use for them.

    Attributes:
        names: by label.
        category_ids: the ids in the file that the labels come from.
        file_ids: the ids in the split's own file where it numbers the classes otherwise; None for a class not in it.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    file_ids: tuple[int | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def own_ids(self) -> tuple[int | None, ...]:
        """By label the ids of the split's own file, which result files for it use; None for a class not in it."""
        return self.category_ids if self.file_ids is None else self.file_ids


@dataclass(frozen=True, slots=True)
class Dataset:
    """The images of one split and their boxes.

    Attributes:
        name: the split as people call it, such as `train2017` or `10 % of train`.
        root: the folder below which all paths lie.
        classes: names and file ids by label.
        image_ids: the ids of the files; 1, 2, 3 … where a format has none.
        sizes: height and width of the images, pixels, after EXIF rotation.
        offsets: first box of each image; the last entry is M.
        boxes: xyxy pixels inside the image, at full precision for the evaluator.
        labels: contiguous class indices in [0, K).
        flags: sums of `CROWD`, `DIFFICULT` and `OTHER_CLASS` (of a class that is not trained on, whose label says
            nothing); any flag makes a box `ignored`.
        areas: COCO's `area` of the mask where a file states it, else that of the box; square pixels.
        path_bytes: all paths below `root`, UTF-8, one after the other.
        path_offsets: first byte of each path; the last entry is P.
        problems: what was wrong or unusual in the files.
        side_remainders: the rounding errors of x2 − x1 and y2 − y1 against the width and height that the file states;
            None where it states corners.
    """

    name: str
    root: Path
    classes: Classes
    image_ids: Int64[Tensor, " N"]
    sizes: Int32[Tensor, "N 2"]
    offsets: Int64[Tensor, " N+1"]
    boxes: Float64[Tensor, "M 4"]
    labels: Int32[Tensor, " M"]
    flags: UInt8[Tensor, " M"]
    areas: Float64[Tensor, " M"]
    path_bytes: UInt8[Tensor, " P"]
    path_offsets: Int64[Tensor, " N+1"]
    problems: Problems
    side_remainders: Float32[Tensor, "M 2"] | None = None

    def __len__(self) -> int:
        return self.image_ids.shape[0]

    def path(self, i: int) -> Path:
        """The file of image i."""
        start, end = self.path_offsets[i : i + 2].tolist()
        return self.root / os.fsdecode(bytes(self.path_bytes[start:end].tolist()))

    def size(self, i: int) -> ImageSize:
        """Height and width of image i in pixels, after EXIF rotation."""
        return ImageSize(*self.sizes[i].tolist())

    def target(self, i: int) -> Target:
        """The boxes of image i in its own pixels."""
        rows = slice(*self.offsets[i : i + 2].tolist())
        return Target(self.boxes[rows].float(), self.labels[rows].long(), self.flags[rows] != 0)

    def subset(self, indices: Sequence[int], name: str) -> "Dataset":
        """The images at these indices, in this order, as a dataset called `name`."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        rows, offsets = _gather(self.offsets, chosen)
        letters, path_offsets = _gather(self.path_offsets, chosen)
        return replace(
            self,
            name=name,
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            offsets=offsets,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            flags=self.flags[rows],
            areas=self.areas[rows],
            path_bytes=self.path_bytes[letters],
            path_offsets=path_offsets,
            side_remainders=None if self.side_remainders is None else self.side_remainders[rows],
        )

    def select_boxes(self, keep: Bool[Tensor, " M"]) -> "Dataset":
        """The same images with the marked boxes alone."""
        if bool(keep.all()):
            return self
        owners = torch.arange(len(self)).repeat_interleave(self.offsets.diff())[keep]
        return replace(
            self,
            offsets=starts(owners.bincount(minlength=len(self))),
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            flags=self.flags[keep],
            areas=self.areas[keep],
            side_remainders=None if self.side_remainders is None else self.side_remainders[keep],
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their name."""
        names = ("image_ids", "sizes", "offsets", "boxes", "labels", "flags", "areas", "path_bytes", "path_offsets")
        optional = {} if self.side_remainders is None else {"side_remainders": self.side_remainders}
        return {name: getattr(self, name) for name in names} | optional

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def fingerprint(self) -> str:
        """SHA-256 of classes, boxes, sizes and names; the same wherever the data lies. Pixels are not part of it."""
        digest = hashlib.sha256(json.dumps([self.classes.names, self.classes.category_ids]).encode())
        for name, tensor in self.tensors.items():
            if name != "side_remainders":  # which training does not see
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def pack_paths(paths: Sequence[str]) -> tuple[UInt8[Tensor, " P"], Int64[Tensor, " N1"]]:
    """All paths in one buffer, and where each begins; the last entry is the length of the buffer."""
    encoded = [os.fsencode(path) for path in paths]
    # torch refuses an empty buffer, hence the extra byte.
    buffer = torch.frombuffer(bytearray(b"".join(encoded) + b"\0"), dtype=torch.uint8)[:-1]
    return buffer, starts(torch.tensor([len(path) for path in encoded], dtype=torch.int64))


def starts(counts: Int64[Tensor, " N"]) -> Int64[Tensor, " N1"]:
    """The offsets of consecutive runs of these lengths: N + 1 numbers, the last of which is the total."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _gather(
    offsets: Int64[Tensor, " N1"], chosen: Int64[Tensor, " C"]
) -> tuple[Int64[Tensor, " R"], Int64[Tensor, " C1"]]:
    """Indices of all elements of the chosen runs, and the offsets of the runs in their new order."""
    counts = (offsets[1:] - offsets[:-1])[chosen]
    begins = starts(counts)
    shift = (offsets[:-1][chosen] - begins[:-1]).repeat_interleave(counts)
    return torch.arange(int(begins[-1])) + shift, begins


@runtime_checkable
class ImageSource(Protocol):
    """Anything that gives images with their boxes: files, or scenes generated on the fly."""

    @property
    def dataset(self) -> Dataset:
        """The images and their boxes."""
        ...

    def load(self, i: int, *, epoch: int) -> tuple[UInt8[Tensor, "3 H W"], Target]:
        """Image i at full size and its boxes in its pixels; only generated images depend on the epoch."""
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """The images of a dataset, read from their files."""

    dataset: Dataset

    def load(self, i: int, *, epoch: int) -> tuple[UInt8[Tensor, "3 H W"], Target]:
        """Image i and its boxes in its pixels, the same in every epoch; at full size unless it is very large.

        Raises:
            DataError: the file is damaged, or no longer has the size that it had when the dataset was read.
        """
        del epoch
        path, size = self.dataset.path(i), self.dataset.size(i)
        pixels, now = read_reduced(path)
        if now != size:
            problem = (
                f"has changed to {now.width} × {now.height} pixels since it was read as {size.width} × {size.height}"
            )
            raise DataError(problem, file=path)
        target, (height, width) = self.dataset.target(i), pixels.shape[1:]
        if (height, width) != size:
            scale = target.boxes.new_tensor([width / size.width, height / size.height]).repeat(2)
            target = replace(target, boxes=target.boxes * scale)
        return pixels, target
