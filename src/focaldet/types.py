"""The values that flow through the program: sizes, targets, batches, detections and how an image is prepared.

Axes: B images, H W pixels, G ground-truth boxes of one image, D detections of one image.
Boxes are xyxy float32 pixels with the origin at the top left corner, everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from focaldet.errors import ConfigError


class ImageSize(NamedTuple):
    """Height and width of an image in pixels."""

    height: int
    width: int


ImageSizes = Sequence[ImageSize] | Int64[Tensor, "B 2"]
"""The sizes of B images; as a tensor of (height, width) where the network is traced or compiled."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one image contains.

    `labels` are contiguous class indices in [0, K). Boxes marked `ignored` (crowds, "difficult" objects) are neither
    object nor background: matching leaves anchors that lie on them out of the loss.
    """

    boxes: Float[Tensor, "G 4"]
    labels: Int64[Tensor, " G"]
    ignored: Bool[Tensor, " G"]

    @staticmethod
    def empty() -> "Target":
        """The target of a background image: no boxes."""
        return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))

    def to(self, device: torch.device | str) -> "Target":
        return Target(*(t.to(device, non_blocking=True) for t in (self.boxes, self.labels, self.ignored)))


@dataclass(frozen=True, slots=True)
class Batch:
    """B images padded at the bottom and right to a common size, with what they contain.

    `images` is RGB in 0…255. `sizes` are the sizes before padding (the frame of the targets' boxes), `original_sizes`
    those of the stored pictures after EXIF rotation; `indices` point into the dataset, `image_names` are for
    messages.
    """

    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]
    sizes: tuple[ImageSize, ...]
    targets: tuple[Target, ...]
    indices: tuple[int, ...]
    original_sizes: tuple[ImageSize, ...]
    image_names: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Batch":
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, targets=tuple(target.to(device) for target in self.targets))

    def pin_memory(self) -> "Batch":
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects found in one image, best first.

    `boxes` are pixels of the image they were asked for, `scores` probabilities in [0, 1], `labels` indices into
    `class_names`. Three parallel tensors of length D; D may be 0.
    """

    boxes: Float[Tensor, "D 4"]
    scores: Float[Tensor, " D"]
    labels: Int64[Tensor, " D"]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The class name of every detection; the index itself where the detector has no names."""
        known = self.class_names
        return tuple(known[label] if label < len(known) else str(label) for label in self.labels.tolist())

    def above(self, score: float) -> "Detections":
        """The detections with at least this score."""
        keep = self.scores >= score
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])

    def scaled(self, x: float, y: float) -> "Detections":
        """The same detections with their boxes multiplied by `x` and `y`."""
        return replace(self, boxes=self.boxes * self.boxes.new_tensor([x, y, x, y]))

    def moved(self, x: float, y: float) -> "Detections":
        """The same detections with their boxes shifted by `x` and `y`."""
        return replace(self, boxes=self.boxes + self.boxes.new_tensor([x, y, x, y]))

    def clipped(self, size: ImageSize) -> "Detections":
        """The same detections with their boxes clipped to an image of this size."""
        limit = self.boxes.new_tensor([size.width, size.height, size.width, size.height])
        return replace(self, boxes=torch.minimum(self.boxes.clamp(min=0), limit))

    def cpu(self) -> "Detections":
        return replace(self, boxes=self.boxes.cpu(), scores=self.scores.cpu(), labels=self.labels.cpu())

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


LETTERBOX_GREY = 127.5  # one half, as darknet fills; 128 where pixels are bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """How large an image enters the network.

    `short`: the short side becomes `size`, unless the long side would pass `max_size`, then that one rules.
    `long`: the long side becomes `size`. `warp`: exactly `size` × `size`, the aspect ratio is not kept. `letterbox`: as
    `long`, and the image lies in the middle of a grey square of `size` × `size`, as in darknet (its sides are rounded
    down, whatever `rounding` says).

    Without `antialias` pixels are squares, or with `align_corners` points, the first and the last of which stay where
    they are, as in darknet.
    """

    mode: Literal["short", "long", "warp", "letterbox"] = "short"
    size: int = 800
    max_size: int | None = 1333
    rounding: Literal["nearest", "down"] = "nearest"
    antialias: bool = True
    align_corners: bool = False

    def __str__(self) -> str:
        """In words, such as "short side 800, long ≤ 1333 px"."""
        if self.mode in ("warp", "letterbox"):
            return f"{self.size} × {self.size} px{', letterbox' if self.mode == 'letterbox' else ''}"
        limit = f", long ≤ {self.max_size}" if self.mode == "short" and self.max_size is not None else ""
        return f"{self.mode} side {self.size}{limit} px"

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
        if self.mode in ("warp", "letterbox"):
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
    """What happens to a picture before the first convolution; part of every checkpoint.

    `mean` and `std` are per channel on the scale 0…255, in the order of `channels`. Padding (bottom and right, to
    multiples of `size_divisor`) takes the value of `mean`, so that it is 0 after normalisation; with a letterbox it is
    grey like the bars.
    """

    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    resize: Resize = field(default_factory=Resize)
    size_divisor: int = 32

    @property
    def rgb_mean(self) -> tuple[float, float, float]:
        """`mean` in RGB order."""
        return self.mean if self.channels == "RGB" else (self.mean[2], self.mean[1], self.mean[0])

    @property
    def rgb_padding(self) -> tuple[float, float, float]:
        """What lies beside an image, in RGB order on the scale 0…255."""
        return (LETTERBOX_GREY,) * 3 if self.resize.mode == "letterbox" else self.rgb_mean

    def padded(self, size: ImageSize) -> ImageSize:
        """The smallest size that holds `size` and divides by `size_divisor`."""
        step = self.size_divisor
        return ImageSize(*(-(-side // step) * step for side in size))
