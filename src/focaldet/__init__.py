"""Train, compare and ship object detectors: the focal loss, RetinaNet, and what its paper compares it with.

    predictor = focaldet.load("runs/cells")
    detections = predictor.predict(image)

The names below are the public ones. `focaldet.train` and `focaldet.evaluate` are the functions; what else lies in the
folders of these names is imported from its file (`from focaldet.training.step import Update`).
"""

from importlib.metadata import version

from focaldet import draw, losses
from focaldet.check.check import check
from focaldet.data.augment.augmenter import AugmentConfig
from focaldet.data.dataset import DataConfig
from focaldet.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FocaldetError,
    NonFiniteLossError,
    OutOfMemoryError,
)
from focaldet.evaluation.coco import Metrics, evaluate_files
from focaldet.evaluation.evaluate import evaluate
from focaldet.models import Detector, build
from focaldet.prediction import Predictor, load
from focaldet.training.config import RunConfig
from focaldet.training.trainer import TrainResult, train
from focaldet.types import Batch, Detections, ImageSize, Preprocessing, Resize, Target
from focaldet.weights.convert import Conversion, convert

__version__ = version("focaldet")

__all__ = [
    "AugmentConfig",
    "Batch",
    "CheckpointError",
    "ConfigError",
    "Conversion",
    "DataConfig",
    "DataError",
    "Detections",
    "Detector",
    "FocaldetError",
    "ImageSize",
    "Metrics",
    "NonFiniteLossError",
    "OutOfMemoryError",
    "Predictor",
    "Preprocessing",
    "Resize",
    "RunConfig",
    "Target",
    "TrainResult",
    "__version__",
    "build",
    "check",
    "convert",
    "draw",
    "evaluate",
    "evaluate_files",
    "load",
    "losses",
    "train",
]
