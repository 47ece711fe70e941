"""darknet's `.weights`: a header and the numbers of all convolutions, without names, shapes or classes.

After src/parser.c: three int32 (major, minor, revision), the images seen (size_t from version 0.2 on, before int32),
then of each convolution in the order of the cfg its biases, with BatchNorm its scales, means and variances, and its
weights (filters, channels, height, width), all float32. The byte order is taken as little-endian.
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy
import torch
from jaxtyping import Float32
from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import Detector
from focaldet.models.yolov2 import YOLOv2
from focaldet.nets.darknet import ConvLeaky, DarkNet19
from focaldet.weights.formats.files import write_atomically
from focaldet.weights.formats.torchvision import COCO_NAMES
from focaldet.weights.tensor_names import shapes_of

VERSIONS = ((0, 1), (0, 2))
MOST_CLASSES = 25_000
"""More than any classifier has: a file that would need more is no classifier's."""
COCO_CATEGORY_IDS = tuple(place for place, name in enumerate(COCO_NAMES) if name not in ("__background__", "N/A"))
COCO_CLASS_NAMES = tuple(COCO_NAMES[place] for place in COCO_CATEGORY_IDS)
"""darknet's 80 classes of COCO in its order, which is that of the category ids, in COCO's own words."""

Layout = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class DarknetFile:
    """What a `.weights` file holds: its version (major, minor, revision), the images seen in training, the numbers."""

    version: tuple[int, int, int]
    images_seen: int
    numbers: Float32[Tensor, " N"]


def is_darknet(path: Path) -> bool:
    """True for names that darknet gives: `yolov2.weights`, and `darknet19_448.conv.23`, the first 23 layers."""
    return path.suffix == ".weights" or re.search(r"\.conv\.\d+$", path.name) is not None


def read_darknet(path: Path) -> DarknetFile:
    """The content of a `.weights` file; which network it belongs to it does not say.

    Raises:
        CheckpointError: missing, of an unknown version, or no whole number of float32.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) < 12:
        raise CheckpointError(f"{path}: damaged, or no darknet file: {len(content)} bytes are less than its header")
    major, minor, revision = struct.unpack_from("<3i", content)
    if (major, minor) not in VERSIONS:
        known = " and ".join(f"{one}.{two}" for one, two in VERSIONS)
        raise CheckpointError(
            f"{path}: no darknet file, or of an unknown version: its header says {major}.{minor}, known are {known}"
        )
    count_format = "<q" if (major, minor) == (0, 2) else "<i"
    start = 12 + struct.calcsize(count_format)
    if len(content) < start or (len(content) - start) % 4:
        raise CheckpointError(
            f"{path}: damaged: {len(content)} bytes are no header of {start} and a whole number of float32"
        )
    (seen,) = struct.unpack_from(count_format, content, 12)
    numbers = torch.from_numpy(numpy.frombuffer(content, "<f4", offset=start).astype(numpy.float32))
    return DarknetFile((major, minor, revision), seen, numbers)


def write_darknet(
    path: Path, detector: Detector, *, images_seen: int = 0, version: Literal["0.1", "0.2"] = "0.2"
) -> None:
    """Write a YOLOv2 as darknet does (0.2) or did for the released files (0.1).

    Anchors and classes are not part of such a file: they stand in darknet's cfg.

    Raises:
        CheckpointError: not a YOLOv2 with DarkNet-19 and BatchNorm, or the file cannot be written.
    """
    state = detector.state_dict()
    arrays = [state[name].detach().cpu().float().contiguous().numpy() for name, _ in _detector_layout(detector, path)]
    old = version == "0.1"
    header = struct.pack("<3i", 0, 1 if old else 2, 0) + struct.pack("<i" if old else "<q", images_seen)
    write_atomically(path, header + b"".join(array.astype("<f4").tobytes() for array in arrays))


def detector_tensors(detector: Detector, file: DarknetFile, *, source: str) -> tuple[int, dict[str, Tensor]] | None:
    """The number of classes of the file and its tensors by our names; None where it is a classifier's.

    Raises:
        CheckpointError: the detector is no such YOLOv2, or the file's length fits it with no number of classes.
    """
    fits_classifier = _classifier_classes(detector, file) is not None
    if fits_classifier and not isinstance(detector, YOLOv2):
        return None
    layout = _detector_layout(detector, source)
    *rest, (bias, (outputs,)), (weight, (_, width, *_)) = layout
    anchors = outputs // (5 + detector.config.num_classes)
    body = sum(math.prod(shape) for _, shape in rest)
    per_class = anchors * (width + 1)
    channels, odd = divmod(len(file.numbers) - body, per_class)
    if odd or channels < 6:
        if fits_classifier:
            return None
        expected = body + outputs * (width + 1)
        amount = "short" if len(file.numbers) < expected else "long"
        raise CheckpointError(
            f"{source}: made for another network: {len(file.numbers):,} numbers are too {amount}: this one has "
            f"{expected:,} with {anchors} anchors, {detector.config.num_classes} classes, and {per_class:,} for each "
            "class more or less"
        )
    outputs = channels * anchors
    return channels - 5, _cut(file, [*rest, (bias, (outputs,)), (weight, (outputs, width, 1, 1))])


def backbone_tensors(detector: Detector, file: DarknetFile) -> tuple[int, dict[str, Tensor]]:
    """The number of classes of a classifier (0 where its last layer was cut off) and the tensors of the backbone.

    Call it where `detector_tensors` gives None.
    """
    classes = _classifier_classes(detector, file)
    assert classes is not None
    return classes, _cut(file, _layout(detector.get_submodule("backbone"), "the backbone"))


def _classifier_classes(detector: Detector, file: DarknetFile) -> int | None:
    """How many classes the classifier has whose backbone begins the file; None where it cannot be one."""
    backbone = detector.get_submodule("backbone")
    if not isinstance(backbone, DarkNet19):
        return None
    body = sum(math.prod(shape) for _, shape in _layout(backbone, "the backbone"))
    classes, odd = divmod(len(file.numbers) - body, backbone.channels[-1] + 1)
    return classes if not odd and 0 <= classes <= MOST_CLASSES else None


def _detector_layout(detector: Detector, source: object) -> Layout:
    """The names and shapes of a YOLOv2's tensors in the order of darknet's file."""
    if not isinstance(detector, YOLOv2) or not isinstance(detector.backbone, DarkNet19):
        raise CheckpointError(
            f"{source}: darknet's files hold YOLOv2 with DarkNet-19, not {type(detector.config).__name__} "
            f"with {getattr(detector.config, 'backbone', None)}"
        )
    shapes = shapes_of(detector)
    return [
        *_layout(detector, source),
        *((f"predict.{name}", shapes[f"predict.{name}"]) for name in ("bias", "weight")),
    ]


def _layout(module: torch.nn.Module, source: object) -> Layout:
    """The same of all convolutions with BatchNorm in `module`, which registers them in the order of the cfg."""
    shapes = shapes_of(module)
    layers = [name for name, part in module.named_modules() if isinstance(part, ConvLeaky)]
    parts = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var", "conv.weight")
    names = [f"{layer}.{part}" for layer in layers for part in parts]
    if any(name not in shapes for name in names):
        raise CheckpointError(f"{source}: darknet's networks have BatchNorm; norm must be batch or frozen")
    return [(name, shapes[name]) for name in names]


def _cut(file: DarknetFile, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a layout, which begins at the first number."""
    sizes = [math.prod(shape) for _, shape in layout]
    parts = torch.split(file.numbers[: sum(sizes)], sizes)
    return {name: part.reshape(shape) for (name, shape), part in zip(layout, parts, strict=True)}
