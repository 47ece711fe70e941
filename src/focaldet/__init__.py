"""Train, compare and ship object detectors: the focal loss, RetinaNet, and what its paper compares it with.

    predictor = focaldet.load("runs/cells")
    detections = predictor.predict(image)

The names below are the public ones. Each is imported when it is first used, so that `import focaldet` is quick and
loads no torch. `focaldet.train`, `evaluate` and `compare` are functions; the packages are `training`, `evaluation`,
`comparison`.
"""

import importlib
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

from focaldet.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FocaldetError,
    NonFiniteLossError,
    OutOfMemoryError,
)

if TYPE_CHECKING:  # the same names as in MODULES, for mypy and editors; a test compares the two
    from focaldet import draw, losses
    from focaldet.check.check import check_data
    from focaldet.comparison.compare import compare
    from focaldet.comparison.config import CompareConfig
    from focaldet.comparison.rows import Comparison
    from focaldet.data.augment.config import AugmentConfig
    from focaldet.data.config import DataConfig
    from focaldet.data.convert.convert_data import convert_data
    from focaldet.evaluation.coco import Metrics
    from focaldet.evaluation.evaluate import evaluate
    from focaldet.evaluation.inference import InferenceOptions
    from focaldet.evaluation.result_files import evaluate_files
    from focaldet.export.export import ExportResult, export_detector
    from focaldet.models import Detector, DetectorConfig, Preset, build, register
    from focaldet.prediction import Predictor, load
    from focaldet.report.report_runs import report_runs
    from focaldet.training.config import RunConfig
    from focaldet.training.trainer import TrainResult, train
    from focaldet.types import Batch, Detection, Detections, ImageSize, Preprocessing, Resize, Target
    from focaldet.weights.convert import Conversion, convert

    __version__: str

# The public names of each module, which is imported when one of them is first used.
MODULES = {
    "check.check": ("check_data",),
    "comparison.compare": ("compare",),
    "comparison.config": ("CompareConfig",),
    "comparison.rows": ("Comparison",),
    "data.augment.config": ("AugmentConfig",),
    "data.config": ("DataConfig",),
    "data.convert.convert_data": ("convert_data",),
    "evaluation.coco": ("Metrics",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.inference": ("InferenceOptions",),
    "evaluation.result_files": ("evaluate_files",),
    "export.export": ("ExportResult", "export_detector"),
    "models": ("Detector", "DetectorConfig", "Preset", "build", "register"),
    "prediction": ("Predictor", "load"),
    "report.report_runs": ("report_runs",),
    "training.config": ("RunConfig",),
    "training.trainer": ("TrainResult", "train"),
    "types": ("Batch", "Detection", "Detections", "ImageSize", "Preprocessing", "Resize", "Target"),
    "weights.convert": ("Conversion", "convert"),
}

# Public names of version 0.1 and what they are called now.
RENAMED = {"MemoryShortError": "OutOfMemoryError"}

__all__ = [
    "AugmentConfig",
    "Batch",
    "CheckpointError",
    "CompareConfig",
    "Comparison",
    "ConfigError",
    "Conversion",
    "DataConfig",
    "DataError",
    "Detection",
    "Detections",
    "Detector",
    "DetectorConfig",
    "ExportResult",
    "FocaldetError",
    "ImageSize",
    "InferenceOptions",
    "Metrics",
    "NonFiniteLossError",
    "OutOfMemoryError",
    "Predictor",
    "Preprocessing",
    "Preset",
    "Resize",
    "RunConfig",
    "Target",
    "TrainResult",
    "__version__",
    "build",
    "check_data",
    "compare",
    "convert",
    "convert_data",
    "draw",
    "evaluate",
    "evaluate_files",
    "export_detector",
    "load",
    "losses",
    "register",
    "report_runs",
    "train",
]


def __getattr__(name: str) -> Any:
    """The public name or submodule `name`, imported at its first use (PEP 562)."""
    if name in RENAMED:
        new = RENAMED[name]
        warnings.warn(f"focaldet.{name} is now called focaldet.{new}", DeprecationWarning, stacklevel=2)
        return globals()[new]
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("focaldet")
    elif modules := [module for module, names in MODULES.items() if name in names]:
        value = getattr(importlib.import_module(f"focaldet.{modules[0]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"focaldet.{name}") is not None:
        value = importlib.import_module(f"focaldet.{name}")
    else:
        raise AttributeError(f"module 'focaldet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, imported or not, beside what the module holds already."""
    return sorted({*globals(), *__all__})
