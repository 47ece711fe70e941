"""Do the settings of a file and of a network agree? Those decide what a tensor means, even where its shape stays."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from focaldet import config as configs
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import DETECTORS

FREE = {
    *("num_classes", "norm", "norm_eps", "norm_momentum", "frozen_stages"),
    *("prior", "classifier", "matching", "loss", "detect"),
    *("extra_norm", "decoder.norm", "decoder.frozen_encoder"),
    *("rpn", "proposals", "region", "straddle_px"),
    *("plus.refine", "plus.scales"),
}
"""Settings that may differ between a file and the detector it goes into: they concern training and answers, or the
class layer, which then starts afresh. All others decide what a tensor means, even where its shape stays (anchors)."""
NORMS = {"norm", "extra_norm", "decoder.norm"}
"""BatchNorm may be frozen on one side and learn on the other; GroupNorm has other tensors."""
BEHIND_ENCODER = {
    "decoder",
    "module_widths",
    "kernels",
    "variances",
    "priors",
    "tower_init",
    "top_down",
    "proposal_head",
}
"""What a detector may have otherwise than the one whose encoder it starts from: all that comes behind the encoder."""


CONVENTIONS = {"anchors.order", "anchors.flavour", "stride_in_1x1", "background_box", "pooling", "p7_relu"}
"""Where programs differ on one and the same network; a file keeps its own, and says so."""
ANSWERS = {"detect", "proposals", "plus.refine", "plus.scales"}
"""Settings that only say how a trained detector answers."""


def require_same_settings(theirs: Any, ours: Any, *, source: str, free: AbstractSet[str] = frozenset(FREE)) -> None:
    """Compare the config a file was made with and a detector's own, but for the settings in `free`.

    Raises:
        CheckpointError: a setting that gives tensors their meaning differs, whether or not a shape does; names
            `source` and the settings.
    """
    if type(theirs) is not type(ours):
        raise CheckpointError(f"{source}: made for another network: {type(theirs).__name__}, not {type(ours).__name__}")
    left, right = (configs.flatten(configs.to_dict(config)) for config in (theirs, ours))
    differing = [
        name
        for name in left
        if left[name] != (value := right.get(name))
        and (not _is_free(name, free) or (name in NORMS and "group" in (left[name], value)))
    ]
    if differing:
        pairs = (f"{name} is {left[name]!r} in the file, {right.get(name)!r} here" for name in differing)
        hint = f" (it fits {name})" if (name := fitting(theirs)) else ""
        raise CheckpointError(f"{source}: made for another network: {'; '.join(pairs)}{hint}")


def fitting(config: Any, *, free: AbstractSet[str] = frozenset(FREE)) -> str | None:
    """The entry of the table of detectors that differs from `config` in `free` settings at most, or None."""
    fixed = _flat_fixed(config, free)
    same_kind = ((name, known) for name, known in DETECTORS.items() if type(known) is type(config))
    return next((name for name, known in same_kind if _flat_fixed(known, free) == fixed), None)


def conventions(theirs: Any, name: str) -> tuple[str, ...]:
    """The conventions of a config that are other than those of the entry `name`, as settings in words."""
    left, right = (configs.flatten(configs.to_dict(config)) for config in (theirs, DETECTORS[name]))
    return tuple(
        f"{key} {value}" for key, value in left.items() if _is_free(key, CONVENTIONS) and value != right.get(key)
    )


def override_postprocess(trained: Any, architecture: Mapping[str, Any]) -> Any:
    """The config of a trained detector with the settings of `architecture` (nested) laid over it.

    Raises:
        ConfigError: a setting is unknown, out of range, or gives the weights their meaning; names it.
    """
    values = configs.merge(configs.to_dict(trained), architecture)
    changed = configs.from_dict(type(trained), values, source="architecture")
    left, right = (configs.flatten(configs.to_dict(config)) for config in (trained, changed))
    fixed = [name for name in {**left, **right} if left.get(name) != right.get(name) and not _is_free(name, ANSWERS)]
    if fixed:
        raise ConfigError(
            f"architecture.{fixed[0]}: is part of what the weights were trained as; a trained detector takes other "
            f"settings of {', '.join(sorted(ANSWERS))} alone"
        )
    return changed


def _flat_fixed(config: Any, free: AbstractSet[str]) -> dict[str, Any]:
    flat = configs.flatten(configs.to_dict(config))
    return {name: value for name, value in flat.items() if not _is_free(name, free)}


def _is_free(name: str, free: AbstractSet[str]) -> bool:
    """Whether a setting (dotted name) is one of `free` or part of one."""
    parts = name.split(".")
    return any(".".join(parts[: place + 1]) in free for place in range(len(parts)))
