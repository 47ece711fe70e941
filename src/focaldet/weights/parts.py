"""What two different detectors share: the backbone, and the feature pyramid behind it."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from focaldet.models import Detector, DetectorConfig
from focaldet.weights.tensor_names import shapes_of, tensor_shapes

# The settings that give a backbone's tensors their meaning, and what they are in a detector without them.
_OF_BACKBONE: Mapping[str, Any] = {
    **{"backbone": None, "stride_in_1x1": False, "ceil_pool": False, "dilated_c5": False},
    **{"trunk": "pyramid", "output_stride": 16, "top_down": ()},
}
_OF_COARSE_LEVELS: Mapping[str, Any] = {"p6_from": None, "p7_relu": None}
_COARSE_LEVELS = ("pyramid.p6.", "pyramid.p7.")
_LEVEL = re.compile(r"(pyramid\.[a-z_]+\.)(\d+)(\..+)")


def shared_names(detector: Detector, file_config: DetectorConfig, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The backbone and as much of the pyramid as both have: of each tensor of `detector` the name in the file.

    Empty where the backbones differ. A level of the pyramid is known by its map: one detector may begin with P2, the
    other with P3.
    """
    config, expected, shapes = detector.config, shapes_of(detector, counters=False), tensor_shapes(tensors)
    backbone = [name for name in expected if name.startswith("backbone.")]
    same_norm = (config.norm == "group") == (file_config.norm == "group")
    same_shapes = all(shapes.get(name) == expected[name] for name in backbone)
    if not (backbone and same_norm and same_shapes and _equal(config, file_config, _OF_BACKBONE)):
        return {}
    offset = _num_levels(expected) - _num_levels(tensors)
    same_coarse, same_neck = _equal(config, file_config, _OF_COARSE_LEVELS), _have_same_neck(config, file_config)
    pyramid = {
        _shift_level(name, offset): name
        for name in tensors
        if same_neck and name.startswith("pyramid.") and (same_coarse or not name.startswith(_COARSE_LEVELS))
    }
    fitting = {name: old for name, old in pyramid.items() if expected.get(name) == shapes[old]}
    return {name: name for name in backbone} | fitting


def _have_same_neck(config: DetectorConfig, other: DetectorConfig) -> bool:
    """Whether neither pyramid is normalized, or both in the same way: RetinaNet's norms are of another kind."""
    has_norm, other_has_norm = (getattr(each, "neck_norm", False) for each in (config, other))
    return bool(has_norm == other_has_norm and (not has_norm or type(config) is type(other)))


def _equal(config: DetectorConfig, other: DetectorConfig, settings: Mapping[str, Any]) -> bool:
    return all(getattr(config, name, value) == getattr(other, name, value) for name, value in settings.items())


def _num_levels(names: Mapping[str, Any]) -> int:
    """How many maps of the backbone a pyramid takes."""
    return len({match[2] for name in names if (match := _LEVEL.fullmatch(name))})


def _shift_level(name: str, offset: int) -> str:
    match = _LEVEL.fullmatch(name)
    return f"{match[1]}{int(match[2]) + offset}{match[3]}" if match else name
