"""Weights files: focaldet's own and those of other programs, and how they become detectors.

`read_tensors` reads the tensors of a file, `load_detector` builds the detector of a file, run folder or name, and
`load_into` fills a detector that you built yourself; `save_detector` writes one.
"""

from focaldet.weights.checkpoint import Metadata, read_metadata, save_detector
from focaldet.weights.compatibility import override_postprocess
from focaldet.weights.formats.files import TensorFile, read_tensors
from focaldet.weights.load import LoadReport, Trained, load_detector, load_into
from focaldet.weights.sources import WeightsSource, find_weights

__all__ = [
    "LoadReport",
    "Metadata",
    "TensorFile",
    "Trained",
    "WeightsSource",
    "find_weights",
    "load_detector",
    "load_into",
    "override_postprocess",
    "read_metadata",
    "read_tensors",
    "save_detector",
]
