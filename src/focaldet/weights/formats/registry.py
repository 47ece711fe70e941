"""The programs whose whole detectors can be read, and how each is recognized."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from focaldet.models import Detector
from focaldet.weights.formats.caffe import is_caffe, read_caffe
from focaldet.weights.formats.detector_weights import DetectorWeights
from focaldet.weights.formats.detectron2 import is_detectron2, read_detectron2
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.formats.mmdetection import is_mmdetection, read_mmdetection
from focaldet.weights.formats.tensorflow import is_tensorflow, read_tensorflow
from focaldet.weights.formats.torchvision import is_torchvision, read_torchvision
from focaldet.weights.sources import WeightsSource


@dataclass(frozen=True, slots=True)
class FileFormat:
    """The files of one program: how they are recognized by the names of their tensors, and how they are read.

    `read` takes the file, its source, what the user or the file states as input, and the detector that the weights are
    for: its settings decide what the file leaves open. Without a detector those of the equivalent preset do.
    """

    program: str
    matches: Callable[[Mapping[str, Tensor]], bool]
    read: Callable[[TensorFile, WeightsSource, str | None, Detector | None], DetectorWeights]


# detectron2 before torchvision: some of their names are the same.
FILE_FORMATS = (
    FileFormat("detectron2", is_detectron2, read_detectron2),
    FileFormat("mmdetection", is_mmdetection, read_mmdetection),
    FileFormat("torchvision", is_torchvision, read_torchvision),
    FileFormat("caffe", is_caffe, read_caffe),
    FileFormat("tensorflow", is_tensorflow, read_tensorflow),
)


def recognize_format(tensors: Mapping[str, Tensor]) -> FileFormat | None:
    """The format of a file with these tensors; None for a backbone alone and for what nobody knows."""
    return next((known for known in FILE_FORMATS if known.matches(tensors)), None)
