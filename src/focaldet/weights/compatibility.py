"""Compare the settings of a file with those of a network: they decide what a tensor means, even if shapes agree."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from focaldet import config as configs
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import PRESETS, DetectorConfig, find_preset

FREE = {
    *("num_classes", "norm", "norm_eps", "norm_momentum", "frozen_stages"),
    *("prior", "classifier", "matching", "loss", "detect"),
    *("extra_norm", "decoder.norm", "decoder.frozen_encoder"),
    *("rpn", "proposals", "region", "straddle_px"),
    *("plus.refine", "plus.scales"),
}
"""Settings that may differ between a file and the detector it goes into: they concern training and postprocessing, or
the class layer, which then starts afresh. All others decide what a tensor means, even if shapes agree (anchors)."""
NORMS = {"norm", "extra_norm", "decoder.norm"}
"""BatchNorm may be frozen in one and trained in the other; GroupNorm has other tensors."""
BEHIND_ENCODER = {"decoder", "module_widths", "kernels", "variances", "priors", "tower_init", "top_down", "rpn_head"}
"""Settings that may differ between a detector and the one whose encoder it starts from: those behind the encoder."""


CONVENTIONS = {"anchors.order", "anchors.flavor", "stride_in_1x1", "background_box", "pooling", "p7_relu"}
"""Settings in which programs differ for one and the same network; a file keeps its own and states them."""
POSTPROCESS = {"detect", "proposals", "plus.refine", "plus.scales"}
"""Settings of a trained detector's postprocessing, which may change without training."""


def require_same_settings(
    file_config: DetectorConfig, config: DetectorConfig, *, source: str, free: AbstractSet[str] = frozenset(FREE)
) -> None:
    """Compare the config a file was made with and a detector's own, but for the settings in `free`.

    Raises:
        CheckpointError: a setting that gives tensors their meaning differs, whether or not a shape does; names
            `source` and the settings.
    """
    if differences := setting_differences(file_config, config, free=free):
        same_kind = type(file_config) is type(config)
        hint = f" (it fits {name})" if same_kind and (name := matching_preset(file_config)) else ""
        raise CheckpointError(f"{source}: made for another network: {differences}{hint}")


def setting_differences(
    file_config: DetectorConfig, config: DetectorConfig, *, free: AbstractSet[str] = frozenset(FREE)
) -> str:
    """The settings but for those in `free` in which a file's config differs from a detector's own, as text; or ""."""
    if type(file_config) is not type(config):
        return f"{type(file_config).__name__}, not {type(config).__name__}"
    left, right = _flatten_configs(file_config, config)
    differing = [
        name
        for name in left
        if left[name] != (value := right.get(name))
        and (not _is_among(name, free) or (name in NORMS and "group" in (left[name], value)))
    ]
    return "; ".join(f"{name} is {left[name]!r} in the file, {right.get(name)!r} here" for name in differing)


def matching_preset(config: DetectorConfig, *, free: AbstractSet[str] = frozenset(FREE)) -> str | None:
    """The preset that differs from `config` in `free` settings at most, or None."""
    fixed = _without(config, free)
    same_kind = ((name, preset.config) for name, preset in PRESETS.items() if type(preset.config) is type(config))
    return next((name for name, known in same_kind if _without(known, free) == fixed), None)


def differing_conventions(config: DetectorConfig, preset: str) -> tuple[str, ...]:
    """The conventions of a config that are not those of `preset`, such as "stride_in_1x1 True"."""
    left, right = _flatten_configs(config, find_preset(preset).config)
    return tuple(
        f"{key} {value}" for key, value in left.items() if _is_among(key, CONVENTIONS) and value != right.get(key)
    )


def override_postprocess(trained: DetectorConfig, architecture: Mapping[str, Any]) -> DetectorConfig:
    """The config of a trained detector with the settings of `architecture` (nested) laid over it.

    Raises:
        ConfigError: a setting is unknown, out of range, or gives the weights their meaning; names it.
    """
    changed = configs.override(trained, architecture, source="architecture")
    left, right = _flatten_configs(trained, changed)
    fixed = [
        name for name in {**left, **right} if left.get(name) != right.get(name) and not _is_among(name, POSTPROCESS)
    ]
    if fixed:
        raise ConfigError(
            f"architecture.{fixed[0]}: is part of what the weights were trained as; a trained detector takes other "
            f"settings of {', '.join(sorted(POSTPROCESS))} alone"
        )
    return changed


def _flatten_configs(*both: DetectorConfig) -> list[dict[str, Any]]:
    return [configs.flatten(configs.to_dict(config)) for config in both]


def _without(config: DetectorConfig, names: AbstractSet[str]) -> dict[str, Any]:
    (flat,) = _flatten_configs(config)
    return {name: value for name, value in flat.items() if not _is_among(name, names)}


def _is_among(name: str, names: AbstractSet[str]) -> bool:
    """Whether a setting (dotted name) is one of `names` or part of one."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in names for depth in range(1, len(parts) + 1))
