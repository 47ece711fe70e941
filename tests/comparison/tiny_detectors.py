"""Detectors of a few filters under names of their own, and a comparison of them on the demo's scenes."""

import contextlib
from dataclasses import replace

import pytest

from focaldet.comparison.config import CompareConfig
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.config import DataConfig
from focaldet.models import PRESETS, find_preset, named_config
from focaldet.models.base import Preset
from focaldet.training.config import RunConfig
from tests.training.squares import ARCHITECTURE

ONE, TWO, BROKEN = "retinanet_tiny", "retinanet_tiny_wide", "retinanet_tiny_broken"


@contextlib.contextmanager
def tiny_presets():
    """The three names inside; the last one has a backbone that nobody knows."""
    base = find_preset("retinanet_mobilenet_v2_fpn").preprocessing
    tiny = named_config(
        "retinanet_mobilenet_v2_fpn", architecture={**ARCHITECTURE, "detect": {"score_threshold": 0.01}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, ONE, Preset(tiny, base))
        patch.setitem(PRESETS, TWO, Preset(replace(tiny, width=24), base))
        patch.setitem(PRESETS, BROKEN, Preset(replace(tiny, backbone="resnet_unheard_of"), base))
        patch.setattr("focaldet.comparison.timing.measure_peak_memory", lambda *_, **__: 123.0)
        yield


def tiny_settings(data, out, **changes):
    """Settings of trainings of three steps."""
    settings = {
        "data": DataConfig(path=data, val=data / "instances_test.json"),
        "size": 64,
        "epochs": 1,
        "batch_size": 4,
        "weights": None,
        "precision": "fp32",
        "device": "cpu",
        "augment": AugmentConfig(preset="none"),
        "save_steps": 1,
    }
    return RunConfig(out=out, **{**settings, **changes})


def tiny_comparison(**changes):
    """Two detectors with one seed each, timed in two rounds on two images."""
    settings = {"models": (ONE, TWO), "seeds": 1, "rounds": 2, "timed_images": 2, "resamples": 100}
    return CompareConfig(**{**settings, **changes})
