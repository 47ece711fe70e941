"""What an exported file says about itself: everything that a reader needs to use it, and where it comes from."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from focaldet import config as configs
from focaldet import files
from focaldet.export.graph import fixed_size
from focaldet.models import Detector
from focaldet.weights import Metadata, Trained
from focaldet.weights.checkpoint import describe_detector
from focaldet.weights.exported.graphs import STATEMENT
from focaldet.weights.thresholds import THRESHOLDS_KEY

ENVIRONMENT, EVENTS = "environment.json", "events.jsonl"
MOST_EVENT_BYTES = 200_000_000
CHANGED = ", with another input size or other settings"
"""Behind the name of the images that thresholds were measured on, of a detector that was changed since."""


def describe_export(
    trained: Trained,
    detector: Detector,
    run: str | Path,
    *,
    format: str,  # noqa: A002  as the flag
    precision: str,
    is_changed: bool = False,
) -> Metadata:
    """Classes, preprocessing and license of the detector; beside them, as texts by name, how and of what it was made.

    What the weights file says beyond that, such as thresholds by class, is handed on. Where the detector `is_changed`,
    has another input size or other settings than those it was evaluated with, the thresholds say so, and the AP of its
    training is left out.
    """
    stated = trained.metadata
    size = fixed_size(detector.preprocessing)
    extra = dict(stated.extra) if stated is not None else {}
    if is_changed and (thresholds := trained.thresholds) is not None:
        extra[THRESHOLDS_KEY] = replace(thresholds, data=f"{thresholds.data or 'its images'}{CHANGED}").to_text()
    extra |= {
        "format": format,
        "precision": precision,
        "input_size": f"{size.height}x{size.width}" if size else "",
        "resize": str(detector.preprocessing.resize),
        "focaldet": importlib.metadata.version("focaldet"),
        "torch": torch.__version__,
        "source": Path(trained.source).name,
    }
    extra |= {name: f"{value:g}" for name, value in read_limits(detector).items()}
    if (training := read_training(run)) is not None:
        if is_changed:
            training.pop("ap", None)
        extra["training"] = files.to_json_text(training)
    described = describe_detector(detector, license=stated.license if stated else None, extra=extra)
    return replace(described, category_ids=trained.category_ids)


def read_limits(detector: Detector) -> dict[str, float]:
    """The thresholds of a detector's post-processing by name, those that it has."""
    config, names = detector.config, ("score_threshold", "nms_iou", "max_detections")
    limits = {name: getattr(config.detect, name) for name in names if hasattr(config.detect, name)}
    # Boxes that are refined go through NMS behind the refinement alone.
    refine = getattr(getattr(config, "plus", None), "refine", None)
    return limits if refine is None else limits | {"nms_iou": refine.nms_iou}


def read_training(run: str | Path) -> dict[str, Any] | None:
    """Commit, seed and fingerprints of the data that the detector of a run folder was trained with, and its AP.

    The AP, in [0, 1], is that of the evaluation whose weights are its best; it is missing where there was none.
    """
    path = Path(run) / ENVIRONMENT
    if not path.is_file():
        return None
    try:
        values = json.loads(files.read_utf8(path))
    except (OSError, ValueError):
        return None
    ap = read_best_ap(Path(run) / EVENTS)
    return {name: values[name] for name in ("commit", "seed", "data") if name in values} | (
        {} if ap is None else {"ap": ap}
    )


def read_best_ap(events: Path) -> float | None:
    """The AP of the last evaluation of a training that was its best; None where nothing says so."""
    try:
        lines = files.read_utf8(events, most=MOST_EVENT_BYTES).splitlines()
    except (OSError, ValueError):
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # the last line of a run that was killed
            continue
        if isinstance(event, dict) and event.get("event") in ("evaluation", "average") and event.get("best") is True:
            ap = event.get("ap")
            return float(ap) if isinstance(ap, int | float) else None
    return None


def write_statements(
    metadata: Metadata, results: Mapping[str, Any] | None = None, *, size_divisor: int
) -> dict[str, str]:
    """The metadata as the texts that an exported file holds; `results` of the comparison are put among them.

    `size_divisor` is what the graph takes, which may be more than the detector pads to.
    """
    extra = dict(metadata.extra)
    if results is not None:
        extra["check"] = files.to_json_text(results)
    preprocessing = replace(metadata.preprocessing, size_divisor=size_divisor)
    return {STATEMENT: configs.to_json(replace(metadata, extra=extra, preprocessing=preprocessing))}
