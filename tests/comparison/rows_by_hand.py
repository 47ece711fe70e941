"""Rows of a comparison written by hand."""

from pathlib import Path

import torch

from focaldet.comparison.jobs import JobResult
from focaldet.comparison.rows import ComparedDetector
from focaldet.comparison.systems import system_of
from focaldet.comparison.timing import DetectorTiming, Spread
from focaldet.evaluation.bootstrap import ApDifference, ApSample
from focaldet.evaluation.coco import Metrics
from focaldet.models import FasterRCNNConfig, find_preset

RUN = Path("run")


def metrics_of(ap):
    """Metrics whose other numbers follow from AP."""
    values = {"ap50": 1.5 * ap, "ap75": ap, "ap_small": None, "ap_medium": 0.9 * ap, "ap_large": 1.1 * ap}
    return Metrics(ap=ap, **values, ar1=ap, ar10=ap, ar100=ap, ar_small=None, ar_medium=ap, ar_large=ap)


def make_row(name, aps, ms=None, *, model=None, error=None, width=0.02):
    """A row with an AP for each seed and a time; of a detector of the table, or of another program."""
    config = None if model is None else find_preset(model).config
    results = tuple(JobResult(f"{name}-seed{k}", name, model or "", k, RUN, None, 40, 20, 1.0) for k in range(len(aps)))
    if error is not None:
        results = (JobResult(f"{name}-seed0", name, model or "", 0, RUN, None, 0, 20, 0.0, error),)
    sample = (
        ApSample(name, tuple(aps), sum(aps) / len(aps) + width * torch.linspace(-1, 1, 101).double()) if aps else None
    )
    timing = None if ms is None else DetectorTiming(Spread(ms, 0.9 * ms, 1.3 * ms, 40, 0.8 * ms), {}, gflop=2.0)
    return ComparedDetector(
        name,
        backbone=None if config is None else config.backbone,
        two_stage=None if config is None else isinstance(config, FasterRCNNConfig),
        system=None if config is None else system_of(config),
        results=results if model is not None else (),
        metrics=tuple(map(metrics_of, aps)),
        sample=sample,
        timing=timing,
    )


def make_difference(first, second, mean, low, high, adjusted):
    return ApDifference(first, second, mean, low, high, 0.9, adjusted, adjusted)
