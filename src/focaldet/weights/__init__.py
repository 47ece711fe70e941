"""Weights: our own files, those of torchvision, and the way from a path or name into a detector."""

from focaldet.weights.checkpoint import Metadata, read_metadata, save_detector
from focaldet.weights.compatibility import override_postprocess
from focaldet.weights.load import LoadReport, Trained, load_detector, load_into
from focaldet.weights.sources import Source, resolve

__all__ = [
    "LoadReport",
    "Metadata",
    "Source",
    "Trained",
    "load_detector",
    "load_into",
    "override_postprocess",
    "read_metadata",
    "resolve",
    "save_detector",
]
