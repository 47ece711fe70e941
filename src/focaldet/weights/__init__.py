"""Weights: our own files, those of torchvision, and the way from a path or name into a detector."""

from focaldet.weights.checkpoint import Metadata, load_detector, metadata, save_detector
from focaldet.weights.compatibility import with_answers
from focaldet.weights.load import LoadReport, Trained, load_into, open_detector
from focaldet.weights.sources import Source, resolve

__all__ = [
    "LoadReport",
    "Metadata",
    "Source",
    "Trained",
    "load_detector",
    "load_into",
    "metadata",
    "open_detector",
    "resolve",
    "save_detector",
    "with_answers",
]
