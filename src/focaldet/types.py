"""The values that flow through the program: sizes, targets, batches, detections and how an image is prepared.

Axes: B images, H W pixels, G ground-truth boxes of one image, D detections of one image.
Boxes are xyxy float32 pixels with the origin at the top left corner, everywhere.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsIndex, overload

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from focaldet.errors import ConfigError
from focaldet.ranges import LARGEST, MOST_DIVISOR, MOST_SIDE_PX, SMALLEST


class ImageSize(NamedTuple):
    """Height and width of an image in pixels."""

    height: int
    width: int


Images = UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]
"""B RGB images in 0…255, padded to one size."""

ImageSizes = Sequence[ImageSize] | Int64[Tensor, "B 2"]
"""The sizes of B images; as a tensor of (height, width) where the network is traced or compiled."""

BoxCorners = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels."""

Rows = slice | Sequence[int] | Tensor
"""Several rows of parallel tensors: a slice, a list or tensor of indices, or a Boolean mask."""

# Methods of version 0.1 and what they are called now.
RENAMED_METHODS = {
    "Detections.scaled": "scale",
    "Detections.moved": "shift",
    "Detections.clipped": "clip",
    "Preprocessing.padded": "padded_size",
}


def _require_in_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ConfigError(f"{name}: must be at {'least 1' if value < 1 else f'most {most}'}, got {value}")


def _read_renamed(value: Any, name: str) -> Any:
    """The method that `name` was called until version 0.1."""
    old = f"{type(value).__name__}.{name}"
    if old not in RENAMED_METHODS:
        raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
    warnings.warn(f"{old} is now called {RENAMED_METHODS[old]}", DeprecationWarning, stacklevel=2)
    return getattr(value, RENAMED_METHODS[old])


class _ComparedByValue:
    """Dataclasses that are equal where all fields are, tensors in type, shape and every number, on whichever device."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # their values can be written into

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        for column in fields(self):  # type: ignore[arg-type]  # every class that inherits this is a dataclass
            value, another = getattr(self, column.name), getattr(other, column.name)
            if isinstance(value, Tensor):
                if value.dtype != another.dtype or not torch.equal(value.cpu(), another.cpu()):
                    return False
            elif value != another:
                return False
        return True


class GroundTruth(NamedTuple):
    """One object of a `Target`: box, class index, and whether it is to be ignored."""

    box: BoxCorners
    label: int
    ignored: bool


@dataclass(frozen=True, slots=True, eq=False)
class Target(_ComparedByValue):
    """What one image contains.

    `labels` are contiguous class indices in [0, K). Boxes marked `ignored` (crowds, "difficult" objects) are neither
    object nor background: matching leaves anchors that lie on them out of the loss.

    `target[0]` is a `GroundTruth` and so is every item of an iteration; a slice, a mask or indices give a `Target`.
    """

    boxes: Float[Tensor, "G 4"]
    labels: Int64[Tensor, " G"]
    ignored: Bool[Tensor, " G"]

    @staticmethod
    def empty() -> "Target":
        """The target of a background image: no boxes."""
        return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __iter__(self) -> Iterator[GroundTruth]:
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.ignored.tolist(), strict=True)
        return (GroundTruth(tuple(box), label, ignored) for box, label, ignored in rows)

    @overload
    def __getitem__(self, rows: Rows) -> "Target": ...  # type: ignore[overload-overlap]  # a tensor has __index__
    @overload
    def __getitem__(self, rows: SupportsIndex) -> GroundTruth: ...
    def __getitem__(self, rows: Rows | SupportsIndex) -> "GroundTruth | Target":
        if (row := _single_row(rows, count=len(self))) is not None:
            return next(iter(self[row : row + 1]))
        return Target(self.boxes[rows], self.labels[rows], self.ignored[rows])

    def __repr__(self) -> str:
        return f"Target({_number_of_boxes(len(self))})"

    def to(self, device: torch.device | str) -> "Target":
        """The same target in the memory of `device`."""
        return Target(*(t.to(device, non_blocking=True) for t in (self.boxes, self.labels, self.ignored)))


@dataclass(frozen=True, slots=True, eq=False)
class Batch(_ComparedByValue):
    """B images padded at the bottom and right to a common size, with what they contain.

    `images` is RGB in 0…255. `sizes` are the sizes before padding (the frame of the targets' boxes), `original_sizes`
    those of the stored images after EXIF rotation; `indices` are the images' indices in the dataset, `image_names` are
    for messages.

    `batch[0]` and every item of an iteration are a batch of one image, padded as before; a slice gives a batch too.
    """

    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]
    sizes: tuple[ImageSize, ...]
    targets: tuple[Target, ...]
    indices: tuple[int, ...]
    original_sizes: tuple[ImageSize, ...]
    image_names: tuple[str, ...]

    def __len__(self) -> int:
        return self.images.shape[0]

    def __iter__(self) -> "Iterator[Batch]":
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: slice | SupportsIndex) -> "Batch":
        row = _single_row(rows, count=len(self))
        chosen = rows if row is None else slice(row, row + 1)
        return Batch(*(getattr(self, column.name)[chosen] for column in fields(self)))

    def __repr__(self) -> str:
        height, width = self.images.shape[-2:]
        boxes = _number_of_boxes(sum(map(len, self.targets)))
        return f"Batch({len(self)} × {height} × {width} px, {boxes})"

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with images and targets in the memory of `device`."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, targets=tuple(target.to(device) for target in self.targets))

    def pin_memory(self) -> "Batch":
        """The same batch with its images in page-locked memory, from which a GPU copies while it computes."""
        return replace(self, images=self.images.pin_memory())


class Detection(NamedTuple):
    """One row of `Detections`: box, score in [0, 1], class index and class name, as plain Python values."""

    box: BoxCorners
    score: float
    label: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Detections(_ComparedByValue):
    """The objects that a detector sees in one image, best first.

    `boxes` are pixels of the image that was given, `scores` probabilities in [0, 1], `labels` indices into
    `class_names`: three parallel tensors of length D; D may be 0.

    `detections[0]` is a `Detection` and so is every item of an iteration (`for box, score, label, name in detections`);
    a slice, a mask or indices give `Detections`. Two are equal where all their values and names are.
    """

    boxes: Float[Tensor, "D 4"]
    scores: Float[Tensor, " D"]
    labels: Int64[Tensor, " D"]
    class_names: tuple[str, ...] = ()

    @staticmethod
    def empty(class_names: tuple[str, ...] = ()) -> "Detections":
        """The detections of an image in which nothing was detected."""
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), class_names)

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names, strict=True)
        return (Detection(tuple(box), score, label, name) for box, score, label, name in rows)

    @overload
    def __getitem__(self, rows: Rows) -> "Detections": ...  # type: ignore[overload-overlap]  # a tensor has __index__
    @overload
    def __getitem__(self, rows: SupportsIndex) -> Detection: ...
    def __getitem__(self, rows: Rows | SupportsIndex) -> "Detection | Detections":
        if (row := _single_row(rows, count=len(self))) is not None:
            return next(iter(self[row : row + 1]))
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], self.class_names)

    def __repr__(self) -> str:
        if not len(self) or self.scores.is_meta:
            return f"Detections({_number_of_boxes(len(self))})"
        best = self[int(self.scores.argmax())]
        return f"Detections({_number_of_boxes(len(self))}, best {best.score:.2f} {best.name!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """The class name of every detection; the index itself where the detector has no names."""
        known = self.class_names
        return tuple(known[label] if label < len(known) else str(label) for label in self.labels.tolist())

    def above(self, score: float) -> "Detections":
        """The detections with at least this score."""
        return self[self.scores >= score]

    def scale(self, x: float, y: float) -> "Detections":
        """The same detections with their boxes multiplied by `x` and `y`."""
        return replace(self, boxes=self.boxes * self.boxes.new_tensor([x, y, x, y]))

    def shift(self, x: float, y: float) -> "Detections":
        """The same detections with their boxes moved by `x` and `y` pixels."""
        return replace(self, boxes=self.boxes + self.boxes.new_tensor([x, y, x, y]))

    def clip(self, size: ImageSize) -> "Detections":
        """The same detections with their boxes clipped to an image of this size."""
        limit = self.boxes.new_tensor([size.width, size.height, size.width, size.height])
        return replace(self, boxes=torch.minimum(self.boxes.clamp(min=0), limit))

    def to(self, device: torch.device | str) -> "Detections":
        """The same detections in the memory of `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("boxes", "scores", "labels")})

    def cpu(self) -> "Detections":
        """The same detections in the memory of the processor."""
        return self.to("cpu")

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists: `boxes` (xyxy pixels), `scores`, `labels`, `names`."""
        return {
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": self.labels.tolist(),
            "names": list(self.names),
        }

    def to_coco(self, *, image_id: int | str, category_ids: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """Records of a COCO result file (`bbox` is xywh pixels). Without `category_ids`, category id = label + 1."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[label] if category_ids else label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in rows
        ]

    def to_supervision(self) -> Any:
        """A `supervision.Detections` (that package must be installed) with the class names in `data["class_name"]`."""
        import numpy
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.detach().cpu().numpy().reshape(-1, 4),
            confidence=self.scores.detach().cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={"class_name": numpy.array(self.names, dtype=str)},
        )

    if not TYPE_CHECKING:
        __getattr__ = _read_renamed


def _single_row(rows: Rows | SupportsIndex, *, count: int) -> int | None:
    """The row from 0 that a number of any integer type, negative or not, stands for; None for several rows.

    Raises:
        IndexError: it is not a number of `count` rows.
    """
    if isinstance(rows, slice | Sequence) or getattr(rows, "ndim", 0) > 0:
        return None
    return range(count)[rows]


def _number_of_boxes(count: int) -> str:
    return f"{count} box{'' if count == 1 else 'es'}"


LETTERBOX_GRAY = 127.5  # one half, as darknet fills; 128 where pixels are bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """How large an image enters the network.

    `short`: the short side becomes `size`, unless the long side would pass `max_size`, then that one rules.
    `long`: the long side becomes `size`. `warp`: exactly `size` × `size`, the aspect ratio is not kept. `letterbox`: as
    `long`, and the image lies in the middle of a gray square of `size` × `size`, as in darknet (its sides are rounded
    down, whatever `rounding` says).

    Without `antialias` pixels are squares, or with `align_corners` points, the first and the last of which stay where
    they are, as in darknet.

    Raises:
        ConfigError: `size` or `max_size` is below 1 or above `ranges.MOST_SIDE_PX`.
    """

    mode: Literal["short", "long", "warp", "letterbox"] = "short"
    size: int = 800
    max_size: int | None = 1333
    rounding: Literal["nearest", "down"] = "nearest"
    antialias: bool = True
    align_corners: bool = False

    def __post_init__(self) -> None:
        for name, side in (("size", self.size), ("max_size", self.max_size)):
            _require_in_range(name, 1 if side is None else side, MOST_SIDE_PX)

    def __str__(self) -> str:
        """In words, such as "short side 800, long ≤ 1333 px"."""
        if self.is_square:
            return f"{self.size} × {self.size} px{', letterbox' if self.mode == 'letterbox' else ''}"
        limit = f", long ≤ {self.max_size}" if self.mode == "short" and self.max_size is not None else ""
        return f"{self.mode} side {self.size}{limit} px"

    @property
    def is_square(self) -> bool:
        """Whether every image enters the network as a square of one size."""
        return self.mode in ("warp", "letterbox")

    def with_sides(
        self, *, size: int | None = None, short_side: int | None = None, max_side: int | None = None
    ) -> "Resize":
        """The same rule with other sides: the long side alone (`size`), or the short side and its limit.

        A detector that puts every image into a square keeps doing so: `size` is then the side of the square.

        Raises:
            ConfigError: both forms at once, a limit without a short side, a side below 1, or a short side for a square.
        """
        if size is not None and short_side is not None:
            raise ConfigError("size: give either the long side (size) or short_side, not both")
        if max_side is not None and short_side is None:
            raise ConfigError("max_side: needs short_side")
        if min(side for side in (size, short_side, max_side, 1) if side is not None) < 1:
            raise ConfigError("size, short_side and max_side must be at least 1")
        if self.is_square:
            if short_side is not None:
                raise ConfigError("short_side: this detector resizes images to a square; give its side as size")
            return self if size is None else replace(self, size=size)
        if size is not None:
            return replace(self, mode="long", size=size, max_size=None)
        return replace(self, mode="short", size=short_side, max_size=max_side) if short_side is not None else self

    def target(self, original: ImageSize) -> ImageSize:
        """The size, at least 1 × 1, of what an image of size `original` becomes, the bars of a letterbox included."""
        return ImageSize(self.size, self.size) if self.mode == "letterbox" else self.content(original)

    def corner(self, original: ImageSize) -> tuple[int, int]:
        """Where (x, y) in its target the image begins: (0, 0) but in a letterbox."""
        frame, content = self.target(original), self.content(original)
        return (frame.width - content.width) // 2, (frame.height - content.height) // 2

    def content(self, original: ImageSize) -> ImageSize:
        """The size, at least 1 × 1, to which an image of size `original` is resized, without a letterbox's bars."""
        if self.mode == "warp":
            return ImageSize(self.size, self.size)
        if self.mode == "letterbox":
            return ImageSize(*(max(1, side * self.size // max(original)) for side in original))
        short, long = min(original), max(original)
        scale = self.size / (long if self.mode == "long" else short)
        if self.mode == "short" and self.max_size is not None:
            scale = min(scale, self.max_size / long)
        # Down as torchvision does it: in double precision and cut, so that 1297 · (1333 / 1297) is 1332.
        shift = 0.5 if self.rounding == "nearest" else 0.0
        return ImageSize(*(max(1, int(side * scale + shift)) for side in original))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image is prepared for the first convolution; part of every checkpoint.

    `mean` and `std` are per channel on the scale 0…255, in the order of `channels`. Padding (bottom and right, to
    multiples of `size_divisor`) takes the value of `mean`, so that it is 0 after normalization; with a letterbox it is
    gray like the bars.

    Raises:
        ConfigError: `mean` is not finite, `std` not above 0 and finite, or `size_divisor` is out of range.
    """

    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    resize: Resize = field(default_factory=Resize)
    size_divisor: int = 32

    def __post_init__(self) -> None:
        if not all(-LARGEST <= mean <= LARGEST for mean in self.mean):
            raise ConfigError(f"mean: must be finite and within ±{LARGEST:g}, got {self.mean}")
        if not all(SMALLEST <= deviation <= LARGEST for deviation in self.std):
            raise ConfigError(f"std: must be above 0 and finite, in {SMALLEST:g}…{LARGEST:g}, got {self.std}")
        _require_in_range("size_divisor", self.size_divisor, MOST_DIVISOR)

    @property
    def rgb_mean(self) -> tuple[float, float, float]:
        """`mean` in RGB order."""
        return self.mean if self.channels == "RGB" else (self.mean[2], self.mean[1], self.mean[0])

    @property
    def rgb_padding(self) -> tuple[float, float, float]:
        """What lies beside an image, in RGB order on the scale 0…255."""
        return (LETTERBOX_GRAY,) * 3 if self.resize.mode == "letterbox" else self.rgb_mean

    def padded_size(self, size: ImageSize) -> ImageSize:
        """The smallest size that holds `size` and divides by `size_divisor`."""
        step = self.size_divisor
        return ImageSize(*(-(-side // step) * step for side in size))

    if not TYPE_CHECKING:
        __getattr__ = _read_renamed
