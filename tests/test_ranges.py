"""Every field of every config, with what a hostile file may say: it is refused where it is made, or can be used."""

import dataclasses
import importlib
import math
import pkgutil
import types
import typing
from typing import Any

import pytest

import focaldet
from focaldet import config as configs
from focaldet.errors import ConfigError
from focaldet.models.base import DetectorConfig
from focaldet.models.faster_rcnn.losses import StageConfig
from focaldet.types import Preprocessing, Resize
from focaldet.weights.tensor_names import build_on_meta

VALUES = (0, -1, 10**9, 10**30, 1e300, float("nan"), float("inf"), -float("inf"))
# Settings for which a large number is meant: it is only compared or multiplied once.
ANY_SIZE = {"RunConfig.seed", "DataConfig.split_seed"}


def all_configs() -> list[type]:
    """The frozen dataclasses that check themselves, and the two that the types define."""
    found_in = [importlib.import_module(info.name) for info in pkgutil.walk_packages(focaldet.__path__, "focaldet.")]
    classes = {
        value
        for module in found_in
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and "__pydantic_config__" in vars(value)
    }
    return sorted({*classes, Preprocessing, Resize}, key=lambda cls: cls.__name__)


CONFIGS = all_configs()


def numbers_in(kind: Any) -> bool:
    """Whether a type has a number somewhere."""
    if kind in (int, float):
        return True
    return any(numbers_in(part) for part in typing.get_args(kind))


def is_in_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple or any(is_in_tuple(part) for part in typing.get_args(kind))


def start(cls: type) -> dict[str, Any]:
    """Values of a config that can be made."""
    if cls is StageConfig:
        return {"matching": {}, "sampling": {}, "beta": 0.1}
    return {}


def fields() -> list[tuple[type, str, Any]]:
    return [
        (cls, field.name, hint)
        for cls in CONFIGS
        for field in dataclasses.fields(cls)
        if numbers_in(hint := typing.get_type_hints(cls, include_extras=True)[field.name])
    ]


FIELDS = fields()


def candidates(cls: type, name: str, hint: Any, value: Any) -> list[Any]:
    """`value` as the setting, and where that is a list, as each member of its default."""
    if not is_in_tuple(hint):
        return [value]
    default = configs.to_dict(configs.from_dict(cls, start(cls)))[name] or [1.0, 1.0]
    return [[*default[:i], value, *default[i + 1 :]] for i in range(len(default))] + [value]


def test_the_walk_meets_every_config():
    names = {cls.__name__ for cls in CONFIGS}
    assert {
        "RunConfig",
        "RetinaNetConfig",
        "SSDConfig",
        "TensorFlowSSDConfig",
        "YOLOv2Config",
        "FasterRCNNConfig",
    } <= names
    assert {"InferenceOptions", "AugmentConfig", "PriorConfig", "Preprocessing", "Resize"} <= names
    assert len(FIELDS) > 100


@pytest.mark.parametrize(("cls", "name", "hint"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name, _ in FIELDS])
def test_a_field_takes_no_number_beyond_its_range(cls, name, hint):
    for value in VALUES:
        for candidate in candidates(cls, name, hint, value):
            try:
                config = configs.from_dict(cls, {**start(cls), name: candidate})
            except ConfigError as error:
                assert name.split("_")[0] in str(error) or "must" in str(error) or "multi_scale" in str(error)
                continue
            assert isinstance(value, int) or math.isfinite(value)
            assert abs(value) <= 1 or f"{cls.__name__}.{name}" in ANY_SIZE, f"{value} is taken"
            if isinstance(config, DetectorConfig):
                build_on_meta(config)


@pytest.mark.parametrize(("cls", "name", "hint"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name, _ in FIELDS])
def test_a_constructor_refuses_the_same(cls, name, hint):
    if is_in_tuple(hint) or f"{cls.__name__}.{name}" in ANY_SIZE or cls in (StageConfig, Preprocessing, Resize):
        return
    for value in (10**9, float("nan"), float("inf"), -1):
        if value == -1 and _takes_negative(cls, name):
            continue
        with pytest.raises(ConfigError):
            cls(**{name: value})


def _takes_negative(cls: type, name: str) -> bool:
    try:
        configs.from_dict(cls, {**start(cls), name: -1})
    except ConfigError:
        return False
    return True


def test_lists_have_a_length():
    """A list of settings is no longer than a network has maps, or cells have boxes."""
    for cls, name, hint in FIELDS:
        if is_in_tuple(hint) and not isinstance(hint, types.GenericAlias):
            default = configs.to_dict(configs.from_dict(cls, start(cls)))[name] or [1.0]
            with pytest.raises(ConfigError):
                configs.from_dict(cls, {**start(cls), name: [default[-1]] * 100_000})
