"""`focaldet train --dry-run`: every setting that would hold, and where it comes from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from focaldet import config as configs
from focaldet.check.advice import Choice
from focaldet.cli.output import print_table, say
from focaldet.files import to_json_text
from focaldet.models import effective_config, find_preset
from focaldet.training.config import RunConfig
from focaldet.training.phases import check_phases, describe_phase
from focaldet.training.state import asked_architecture, initial_architecture, initial_weights
from focaldet.weights.tensor_names import build_on_meta


class SettingRow(NamedTuple):
    """One setting of a run by its dotted name; `source` is auto with the reason, typed, file, preset or default."""

    name: str
    value: Any
    source: str


def list_settings(
    run: RunConfig, *, typed: Mapping[str, Any], file: Mapping[str, Any], choices: Sequence[Choice] = ()
) -> list[SettingRow]:
    """All settings of `run`, those of its detector and of its augmentation included.

    Args:
        run: the settings that hold.
        typed: what was typed, nested as in a file.
        file: what the file of settings says.
        choices: what was decided from the data.

    Raises:
        ConfigError: the detector cannot be built as it is asked for.
    """
    if not run.resume:
        effective_config(run.model, architecture=run.architecture)
    values = {**configs.to_dict(run), "architecture": configs.to_dict(asked_architecture(run))}
    given = configs.current_names(RunConfig, file, source="file", warn=False)
    provenance = [
        *((f"auto: {choice.reason}", {choice.setting: choice.value}) for choice in choices),
        ("typed", configs.flatten(typed)),
        ("file", configs.flatten(given)),
        ("random weights", configs.flatten({"architecture": initial_architecture(run)})),
    ]
    values["architecture"].pop("num_classes")  # that of the data holds
    settings = []
    for name, value in configs.flatten(values).items():
        base = "preset" if name.startswith(("architecture.", "augment.")) and name != "augment.preset" else "default"
        names = {name, "frozen_stages"} if name == "architecture.frozen_stages" else {name}
        sources = [source for source, flat in provenance if names & flat.keys()]
        settings.append(SettingRow(name, value, sources[0] if sources else base))
    return settings


def print_settings(run: RunConfig, settings: list[SettingRow]) -> None:
    """A table of the settings, then what would be trained.

    Raises:
        ConfigError: a phase cannot be trained.
    """
    check_phases(run)
    rows = [[setting.name, _setting_text(setting), setting.source] for setting in settings]
    print_table([["SETTING", "VALUE", "FROM"], *rows], left={0, 1, 2})
    say()
    if run.phases:
        say(*(describe_phase(run, number) for number in range(1, len(run.phases) + 1)))
    parameters = sum(parameter.numel() for parameter in build_on_meta(asked_architecture(run)).parameters())
    resize = run.resize(find_preset(run.model).preprocessing.resize)
    say(f"initial weights: {initial_weights(run) or 'random'}")
    say(f"{run.model}: {parameters / 1e6:.1f} M parameters with the classes of the preset, {resize}")
    say(f"augmentation {run.augment.describe()}")
    say(f"presets: {run.model} of the architecture, {run.augment.preset} of the augmentation; nothing was written")


def _setting_text(setting: SettingRow) -> str:
    """The value as it is typed: nothing is `none`, and YAML's null in the architecture."""
    if setting.value is None and not setting.name.startswith("architecture."):
        return "none"
    return setting.value if isinstance(setting.value, str) else to_json_text(setting.value)
