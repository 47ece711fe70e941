"""How many objects of an image a detector answers with, and letting it answer with more."""

import math
from typing import Any

from focaldet.errors import ConfigError
from focaldet.evaluation.evaluator import MAX_DETECTIONS
from focaldet.models import Detector, DetectorConfig
from focaldet.weights import override_postprocess
from focaldet.weights.exported.detector import ExportedDetector

REGIONS_PER_DETECTION = 4
"""Regions of a second stage for each detection of an image: at least so many, as one object gets several."""
MOST_BOXES = 10_000_000  # a setting may be no larger, and no image has so many anchors


def answer_limit(detector: Detector) -> int | None:
    """The most objects of an image that a detector answers with; None where it does not say."""
    limits = detector if isinstance(detector, ExportedDetector) else detector.config.detect
    limit: int | None = getattr(limits, "max_detections", None)
    return limit


def raise_limit(detector: Detector, max_detections: int) -> None:
    """Let a detector answer with at least so many objects an image, where more than COCO's limit are asked for.

    What goes into its suppression and what its second stage sees is raised with that, and nothing is lowered.

    Raises:
        ConfigError: it is an exported file, whose graph answers with fewer.
    """
    limit = answer_limit(detector)
    if limit is None or limit >= max_detections or max_detections == MAX_DETECTIONS:
        return
    if isinstance(detector, ExportedDetector):
        raise ConfigError(
            f"max_detections: the file answers with at most {limit} objects an image; export the run folder again with "
            f"--architecture.detect.max-detections {max_detections}, or take that"
        )
    changes = _raise_settings(detector.config, limit, max_detections)
    detector.config = override_postprocess(detector.config, changes)


def _raise_settings(config: DetectorConfig, limit: int, max_detections: int) -> dict[str, Any]:
    """The settings with which a detector that answers with `limit` objects an image answers with `max_detections`.

    `detect.top_k`, which goes into the suppression, grows as the limit does: several boxes of each object are among
    them. The regions of a second stage cost a pass through its head each, so they only become
    `REGIONS_PER_DETECTION` times as many as the detections, and what their own suppression is given grows as they do.
    """
    changes: dict[str, Any] = {"detect": {"max_detections": max_detections}}
    if (top_k := getattr(config.detect, "top_k", None)) is not None:
        changes["detect"]["top_k"] = min(math.ceil(top_k * max_detections / limit), MOST_BOXES)
    if (proposals := getattr(config, "proposals", None)) is not None:
        regions = proposals.detect
        keep = min(max(regions.keep, REGIONS_PER_DETECTION * max_detections), MOST_BOXES)
        top_k = min(math.ceil(regions.top_k * keep / regions.keep), MOST_BOXES)
        changes["proposals"] = {"detect": {"keep": keep, "top_k": top_k}}
    return changes
