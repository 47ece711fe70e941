"""Do the settings of a file and of a network agree? Those decide what a tensor means, even where its shape stays."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from focaldet import config as configs
from focaldet.errors import CheckpointError
from focaldet.models import DETECTORS

FREE = {
    *("num_classes", "norm", "norm_eps", "norm_momentum", "frozen_stages"),
    *("prior", "classifier", "matching", "loss", "detect"),
    *("extra_norm", "decoder.norm", "decoder.frozen_encoder"),
    *("rpn", "proposals", "region", "straddle_px"),
}
"""Settings that may differ between a file and the detector it goes into: they concern training and answers, or the
class layer, which then starts afresh. All others decide what a tensor means, even where its shape stays (anchors)."""
BEHIND_ENCODER = {"decoder", "module_widths", "kernels", "variances", "priors", "tower_init"}
"""What a detector may have otherwise than the one whose encoder it starts from: all that comes behind the encoder."""


def require_same_settings(theirs: Any, ours: Any, *, source: str, free: AbstractSet[str] = frozenset(FREE)) -> None:
    """Compare the config a file was made with and a detector's own, but for the settings in `free`.

    Raises:
        CheckpointError: a setting that gives tensors their meaning differs, whether or not a shape does; names
            `source` and the settings.
    """
    if type(theirs) is not type(ours):
        raise CheckpointError(f"{source}: made for another network: {type(theirs).__name__}, not {type(ours).__name__}")
    left, right = (_flat(configs.to_dict(config)) for config in (theirs, ours))
    differing = [name for name in left if not _is_free(name, free) and left[name] != right.get(name)]
    if differing:
        pairs = (f"{name} is {left[name]!r} in the file, {right.get(name)!r} here" for name in differing)
        raise CheckpointError(f"{source}: made for another network: {'; '.join(pairs)}{_hint(theirs)}")


def _hint(config: Any) -> str:
    names = (name for name, known in DETECTORS.items() if _flat_fixed(known) == _flat_fixed(config))
    return f" (it fits {name})" if (name := next(names, None)) else ""


def _flat_fixed(config: Any) -> dict[str, Any]:
    flat = _flat(configs.to_dict(config))
    return {name: value for name, value in flat.items() if not _is_free(name, FREE)}


def _is_free(name: str, free: AbstractSet[str]) -> bool:
    """Whether a setting (dotted name) is one of `free` or part of one."""
    return name in free or name.split(".", maxsplit=1)[0] in free


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
