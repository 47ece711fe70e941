"""The settings of a training from the command line: typed flags over a file over presets over defaults."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.cli import flag_name
from focaldet.errors import ConfigError
from focaldet.training.auto import DecidedRun, decide_settings, without_auto
from focaldet.training.config import AUTO, RunConfig
from focaldet.training.phases import split_epochs


def run_settings(
    typed: Mapping[str, Any] | None, *, file: Path | None, data: Path | None, auto: bool = False
) -> DecidedRun:
    """The settings of `file` with the flags laid over them that were typed, and what was decided of those.

    Typed epochs are those of all phases of the file together, split in its proportions. With `auto` some settings are
    decided from the data unless they are typed; a file that does not name them means what it always did.

    Raises:
        ConfigError: the file is unreadable or has an unknown or bad setting (names the file and the nearest valid one),
            or a flag would have no effect because the file's phases have that setting for themselves.
        DataError: settings are to be decided from data that cannot be read.
    """
    typed = with_data(typed, data)
    values = read_settings(file)
    if "minutes" in typed and "epochs" in typed:
        raise ConfigError("settings: give either minutes or epochs, not both")
    # Two steps, so that a mistake in the file is reported as one of the file.
    if file is not None:
        read = configs.from_dict(RunConfig, without_auto(values), source=str(file))
        preset = AUTO if (values.get("augment") or {}).get("preset") == AUTO else read.augment.preset
        # Only what differs from the preset, so that another one can be typed.
        values = {**values, "augment": {**read.augment.overrides(), "preset": preset}}
    if "minutes" in typed:
        values.pop("epochs", None)
    if "phases" not in typed:
        values = {**values, **_phases(values.get("phases") or [], typed, source=str(file))}
    return decide_settings(configs.merge(values, typed), defaults=auto and file is None)


def read_settings(file: Path | None) -> dict[str, Any]:
    """What `file` says; nothing without a file.

    Raises:
        ConfigError: the file is missing, unreadable or not a mapping.
    """
    return {} if file is None else configs.read_mapping(file)


def with_data(typed: Mapping[str, Any] | None, data: Path | None) -> dict[str, Any]:
    """What was typed, the path of the data included."""
    return configs.merge(typed or {}, {} if data is None else {"data": {"path": data}})


def _phases(phases: Sequence[dict[str, Any]], typed: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The setting `phases` under what was typed, if there is one."""
    for name in configs.flatten(typed):
        having = [str(number) for number, phase in enumerate(phases, start=1) if name in configs.flatten(phase)]
        if having and name != "epochs":
            raise ConfigError(f"--{flag_name(name)}: has no effect in {source}: set in phase {', '.join(having)}")
    if not phases or "epochs" not in typed:
        return {"phases": phases} if phases else {}
    epochs = split_epochs([phase["epochs"] for phase in phases], total=typed["epochs"])
    return {"phases": [{**phase, "epochs": count} for phase, count in zip(phases, epochs, strict=True)]}
