"""Detectors: how a name of the table (`presets`) becomes a network."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from focaldet import config as configs
from focaldet.errors import ConfigError
from focaldet.models.base import Detector, DetectorConfig, LossContext, Preset
from focaldet.models.faster_rcnn.model import FasterRCNNConfig
from focaldet.models.presets import PRESETS
from focaldet.models.retinanet import RetinaNetConfig
from focaldet.models.ssd import SSDConfig
from focaldet.models.yolov2 import YOLOv2Config
from focaldet.types import Preprocessing

__all__ = [
    "PRESETS",
    "Detector",
    "DetectorConfig",
    "FasterRCNNConfig",
    "LossContext",
    "Preset",
    "SSDConfig",
    "YOLOv2Config",
    "build",
    "effective_config",
    "find_preset",
    "from_config",
    "named_config",
    "register",
]

MOST_CLASSES = 100_000  # a file that claims more is damaged, or made to take all memory

DISABLED_BY: Mapping[str, tuple[str, frozenset[Any]]] = {
    "loss.alpha": ("loss.quality", frozenset({True})),
    "loss.beta": ("loss.box", frozenset({"l1", "giou"})),
    "matching.candidates": ("matching.rule", frozenset({"iou"})),
    "matching.foreground_iou": ("matching.rule", frozenset({"adaptive"})),
    "matching.background_iou": ("matching.rule", frozenset({"adaptive"})),
    "matching.low_quality": ("matching.rule", frozenset({"adaptive"})),
}
"""Settings of a RetinaNet, and for each another one with those of its values under which it has no effect."""


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        ConfigError: there is none; says which name is nearest.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown detector {name!r}{configs.nearest(name, PRESETS)}")
    return PRESETS[name]


def register(name: str, preset: Preset, *, replace: bool = False) -> None:
    """Give a detector of your own a name, under which everything takes it: check, train, eval, predict, convert.

    Weights files name the class of the config, so a program that reads them must have registered it before. A name that
    is taken is refused unless `replace` is true.

    Raises:
        ConfigError: the name is taken, or the config is not a dataclass derived from `DetectorConfig`.
    """
    if name in PRESETS and not replace:
        raise ConfigError(f"detector {name!r} is registered already; replace=True replaces it")
    kind = type(preset.config)
    if not isinstance(preset.config, DetectorConfig) or not is_dataclass(kind):
        raise ConfigError(f"detector {name!r}: {kind.__name__} must be a dataclass derived from DetectorConfig")
    PRESETS[name] = preset


def named_config(name: str, *, architecture: Mapping[str, Any] | None = None) -> DetectorConfig:
    """The config called `name`, with the settings of `architecture` (nested, as in a YAML file) laid over it.

    Raises:
        ConfigError: the name or a setting is unknown or out of range.
    """
    base = find_preset(name).config
    return configs.override(base, architecture, source=f"architecture of {name}") if architecture else base


def effective_config(name: str, *, architecture: Mapping[str, Any] | None = None) -> DetectorConfig:
    """As `named_config`, where every setting of `architecture` changes something.

    A config alone does not tell what was given from what has its default, so this is for `architecture` as somebody
    wrote it.

    Raises:
        ConfigError: a setting has no effect beside another one, which is named; else as `named_config`.
    """
    config, source = named_config(name, architecture=architecture), f"architecture of {name}"
    given = configs.current_names(type(config), architecture or {}, source=source, warn=False)
    held = configs.flatten(configs.to_dict(config)) if isinstance(config, RetinaNetConfig) else {}
    for setting in sorted(DISABLED_BY.keys() & configs.flatten(given).keys()):
        other, values = DISABLED_BY[setting]
        if held.get(other) in values:
            reason = f"{other}: {str(held[other]).lower()}"
            raise ConfigError(f"{source}: {setting}: has no effect with {reason}; change that, or leave it out")
    return config


def build(
    name: str,
    *,
    num_classes: int | None = None,
    class_names: tuple[str, ...] = (),
    preprocessing: Preprocessing | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> Detector:
    """The detector called `name` with random weights; `focaldet.load` gives a trained one.

    The number of classes is that of `class_names` unless `num_classes` says it; without both it is the config's own.

    Raises:
        ConfigError: the name or a setting is unknown, out of range or without effect, or the two numbers of classes
            differ.
    """
    if class_names and num_classes not in (None, len(class_names)):
        raise ConfigError(f"num_classes is {num_classes}, but {len(class_names)} class_names are given")
    count = len(class_names) or num_classes
    config = effective_config(name, architecture=architecture)
    if count is not None:
        config = config.replace(num_classes=count)
    return from_config(config, class_names=class_names, preprocessing=preprocessing or find_preset(name).preprocessing)


def from_config(config: DetectorConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> Detector:
    """The detector that `config` describes, with random weights.

    Raises:
        ConfigError: no detector has so many classes, or the settings describe no network.
    """
    if not 1 <= config.num_classes <= MOST_CLASSES:
        raise ConfigError(f"num_classes must be at least 1 and at most {MOST_CLASSES}, got {config.num_classes}")
    return config.build(class_names=class_names, preprocessing=preprocessing)
