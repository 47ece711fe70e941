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
from focaldet.files import read_bytes
from focaldet.models import Detector
from focaldet.models.yolov2 import YOLOv2
from focaldet.nets.darknet import ConvLeaky, DarkNet19
from focaldet.weights.formats.detector_weights import DetectorWeights, coco_classes
from focaldet.weights.formats.files import is_safetensors, write_atomically
from focaldet.weights.normalization import with_input
from focaldet.weights.sources import WeightsSource
from focaldet.weights.tensor_names import shapes_of

DARKNET_VERSIONS = ((0, 1), (0, 2))
MOST_CLASSIFIER_CLASSES = 25_000
"""More than any classifier has: a file that would need more is not a classifier's."""
DARKNET_NOTE = "a darknet file states neither anchors nor classes: the anchors are those of the settings"

TensorLayout = list[tuple[str, tuple[int, ...]]]
"""Names and shapes of tensors in the order of a file."""


@dataclass(frozen=True, slots=True)
class DarknetFile:
    """A `.weights` file: its version (major, minor, revision), the images seen in training, the numbers."""

    version: tuple[int, int, int]
    images_seen: int
    numbers: Float32[Tensor, " N"]


def is_darknet(path: Path) -> bool:
    """True for names that darknet gives: `yolov2.weights`, and `darknet19_448.conv.23`, the first 23 layers."""
    has_name = path.suffix == ".weights" or re.search(r"\.conv\.\d+$", path.name) is not None
    return has_name and not is_safetensors(path)


def read_darknet(path: Path) -> DarknetFile:
    """Read a `.weights` file, which does not state its network.

    Raises:
        CheckpointError: missing, of an unknown version, or not a whole number of float32.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) < 12:
        raise CheckpointError(f"{path}: damaged, or not a darknet file: {len(content)} bytes are less than its header")
    major, minor, revision = struct.unpack_from("<3i", content)
    if (major, minor) not in DARKNET_VERSIONS:
        known = " and ".join(f"{first}.{second}" for first, second in DARKNET_VERSIONS)
        raise CheckpointError(
            f"{path}: not a darknet file, or of an unknown version: its header says {major}.{minor}, known are {known}"
        )
    count_format = "<q" if (major, minor) == (0, 2) else "<i"
    start = 12 + struct.calcsize(count_format)
    if len(content) < start or (len(content) - start) % 4:
        raise CheckpointError(
            f"{path}: damaged: {len(content)} bytes are not a header of {start} and a whole number of float32"
        )
    (seen,) = struct.unpack_from(count_format, content, 12)
    numbers = torch.from_numpy(numpy.frombuffer(content, "<f4", offset=start).astype(numpy.float32))
    return DarknetFile((major, minor, revision), seen, numbers)


def write_darknet(
    path: Path, detector: Detector, *, images_seen: int = 0, version: Literal["0.1", "0.2"] = "0.2"
) -> None:
    """Write a YOLOv2 as darknet does (0.2) or did for the released files (0.1).

    Anchors and classes are not part of such a file, but of darknet's cfg.

    Raises:
        CheckpointError: not a YOLOv2 with DarkNet-19 and BatchNorm, or the file cannot be written.
    """
    state = detector.state_dict()
    arrays = [state[name].detach().cpu().float().contiguous().numpy() for name, _ in _yolov2_layout(detector, path)]
    old = version == "0.1"
    header = struct.pack("<3i", 0, 1 if old else 2, 0) + struct.pack("<i" if old else "<q", images_seen)
    write_atomically(path, header + b"".join(array.astype("<f4").tobytes() for array in arrays))


def read_yolov2(
    file: DarknetFile, source: WeightsSource, stated: str | None, detector: Detector
) -> DetectorWeights | None:
    """The network of a file with the settings of `detector`; None where it is a classifier's.

    Raises:
        CheckpointError: the detector is not such a YOLOv2, or no number of classes fits the file's length.
    """
    fits_classifier = _num_classifier_classes(detector, file) is not None
    if fits_classifier and not isinstance(detector, YOLOv2):
        return None
    layout = _yolov2_layout(detector, source.label)
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
            f"{source.label}: made for another network: {len(file.numbers):,} numbers are too {amount}: this one has "
            f"{expected:,} with {anchors} anchors, {detector.config.num_classes} classes, and {per_class:,} for each "
            "class more or less"
        )
    num_classes, outputs = channels - 5, channels * anchors
    return DetectorWeights(
        config=detector.config.replace(num_classes=num_classes),
        tensors=_cut(file, [*rest, (bias, (outputs,)), (weight, (outputs, width, 1, 1))]),
        preprocessing=with_input(detector.preprocessing, stated or "unit", source=source.label),
        classes=coco_classes(num_classes),
        notes=(DARKNET_NOTE,),
    )


def read_darknet_backbone(detector: Detector, file: DarknetFile) -> tuple[int, dict[str, Tensor]]:
    """The number of classes of a classifier (0 where its last layer was cut off) and the tensors of the backbone.

    Call it where `read_yolov2` gives None.
    """
    classes = _num_classifier_classes(detector, file)
    assert classes is not None
    layout = _convolution_layout(detector.get_submodule("backbone"), "the backbone")
    return classes, _cut(file, [(f"backbone.{name}", shape) for name, shape in layout])


def _num_classifier_classes(detector: Detector, file: DarknetFile) -> int | None:
    """How many classes the classifier has whose backbone is first in the file; None where it cannot be one."""
    backbone = dict(detector.named_children()).get("backbone")
    if not isinstance(backbone, DarkNet19):
        return None
    body = sum(math.prod(shape) for _, shape in _convolution_layout(backbone, "the backbone"))
    classes, odd = divmod(len(file.numbers) - body, backbone.channels[-1] + 1)
    return classes if not odd and 0 <= classes <= MOST_CLASSIFIER_CLASSES else None


def _yolov2_layout(detector: Detector, source: object) -> TensorLayout:
    """The names and shapes of a YOLOv2's tensors in the order of darknet's file."""
    if not isinstance(detector, YOLOv2) or not isinstance(detector.backbone, DarkNet19):
        raise CheckpointError(
            f"{source}: darknet's files are of YOLOv2 with DarkNet-19, not {type(detector.config).__name__} "
            f"with {detector.config.backbone}"
        )
    shapes = shapes_of(detector)
    return [
        *_convolution_layout(detector, source),
        *((f"predict.{name}", shapes[f"predict.{name}"]) for name in ("bias", "weight")),
    ]


def _convolution_layout(module: torch.nn.Module, source: object) -> TensorLayout:
    """The same of all convolutions with BatchNorm in `module`, which registers them in the order of the cfg."""
    shapes = shapes_of(module)
    layers = [name for name, part in module.named_modules() if isinstance(part, ConvLeaky)]
    parts = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var", "conv.weight")
    names = [f"{layer}.{part}" for layer in layers for part in parts]
    if any(name not in shapes for name in names):
        raise CheckpointError(f"{source}: darknet's networks have BatchNorm; norm must be batch or frozen")
    return [(name, shapes[name]) for name in names]


def _cut(file: DarknetFile, layout: TensorLayout) -> dict[str, Tensor]:
    """The tensors of a layout, which begins at the first number."""
    sizes = [math.prod(shape) for _, shape in layout]
    parts = torch.split(file.numbers[: sum(sizes)], sizes)
    return {name: part.reshape(shape) for (name, shape), part in zip(layout, parts, strict=True)}
