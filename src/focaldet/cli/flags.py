"""Flags: which of them were typed, how they are named, and how they lie over a file of settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import App, ArgumentCollection, Parameter

from focaldet import config as configs
from focaldet.data.dataset import DataConfig
from focaldet.errors import ConfigError
from focaldet.evaluation.inference import InferenceOptions
from focaldet.models import AnyConfig, named_config
from focaldet.training.config import RunConfig, phase_settings
from focaldet.training.phases import shared_out

Data = Annotated[Path | None, Parameter(help="Folder, or json, yaml or csv file; --data.train … name parts of it.")]
DataParts = Annotated[DataConfig, Parameter(name="--data")]


Options = Annotated[InferenceOptions, Parameter(name="*")]


@dataclass(frozen=True)
class ModelFlags:
    """A detector by its name, and settings laid over those of that name."""

    model: str = RunConfig.model
    """Detector whose anchors are measured against the boxes."""

    architecture: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the detector to override, nested as in its config."""

    def config(self) -> AnyConfig:
        """What they say together.

        Raises:
            ConfigError: the name or a setting is unknown or out of range.
        """
        return named_config(self.model, architecture=TYPED.architecture)


ModelParts = Annotated[ModelFlags, Parameter(name="*")]


class TypedFlags:
    """The flags of the present call that were typed: only these overrule a `--config` file.

    `paths` are the names of the fields. `architecture` holds what `--architecture.<name>` gave: which names there are
    is known only when the model is, so cyclopts cannot read it.
    """

    def __init__(self) -> None:
        self.paths: list[tuple[str, ...]] = []
        self.architecture: dict[str, Any] = {}

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Take note; cyclopts calls this between reading the flags and using them."""
        del app, commands
        self.paths, self.architecture = [], {}
        for argument in arguments:
            if argument.keys == ("architecture",):
                for token in argument.tokens:
                    names = [name.replace("-", "_") for name in token.keys]
                    self.architecture = configs.merge(self.architecture, nested(names, read_value(token.value)))
                argument.tokens = []
            elif argument.keys == ("phases",) and any(token.value for token in argument.tokens):
                raise ConfigError("--phases: phases are told in a file of settings, given with --config")
            elif argument.keys and argument.tokens:
                self.paths.append(argument.keys)


TYPED = TypedFlags()


def flag_name(field: str) -> str:
    """The flag of a field: `bad_boxes` is `bad-boxes`; the input of weights reads as a part of them."""
    return {"weights_input": "weights.input"}.get(field, field.replace("_", "-"))


def typed_options(options: InferenceOptions) -> InferenceOptions:
    """The options with the settings of --architecture that were typed."""
    return dataclasses.replace(options, architecture=TYPED.architecture)


def named_data(path: Path | None, parts: DataConfig) -> DataConfig | None:
    """As `joined`; None where nothing was said of the data, so that a run's own are taken."""
    config = joined(path, parts)
    return None if config == DataConfig() else config


def joined(path: Path | None, parts: DataConfig) -> DataConfig:
    """`parts` with the path that stands by itself on the command line."""
    return parts if path is None else dataclasses.replace(parts, path=path)


def settings(run: RunConfig, *, file: Path | None, data: Path | None) -> RunConfig:
    """The settings of `file` with the flags laid over them that were typed.

    Typed epochs are those of all phases of the file together, shared out in its proportions.

    Raises:
        ConfigError: the file is unreadable or has an unknown or bad setting (names the file and the nearest valid one),
            or a flag would have no effect because the file's phases have that setting for themselves.
    """
    typed: dict[str, Any] = {"architecture": TYPED.architecture} if TYPED.architecture else {}
    for path in TYPED.paths:
        value: Any = run
        for name in path:
            value = getattr(value, name)
        typed = configs.merge(typed, nested(path, value))
    if data is not None:
        typed = configs.merge(typed, nested(("data", "path"), data))
    values = configs.read_mapping(file) if file is not None else {}
    # Two steps, so that a mistake in the file is told as one of the file.
    if file is not None:
        phase_settings(configs.from_dict(RunConfig, values, source=str(file)), source=str(file))
    if "phases" not in typed:
        values = {**values, **_phases(values.get("phases") or [], typed, source=str(file))}
    return configs.from_dict(RunConfig, configs.merge(values, typed), source="settings")


def _phases(phases: Sequence[dict[str, Any]], typed: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The setting `phases` under what was typed, if there is one."""
    for name in configs.flatten(typed):
        having = [str(number) for number, phase in enumerate(phases, start=1) if name in configs.flatten(phase)]
        if having and name != "epochs":
            raise ConfigError(
                f"--{name.replace('_', '-')}: has no effect in {source}: set in phase {', '.join(having)}"
            )
    if not phases or "epochs" not in typed:
        return {"phases": phases} if phases else {}
    shares = shared_out([phase["epochs"] for phase in phases], total=typed["epochs"])
    return {"phases": [{**phase, "epochs": share} for phase, share in zip(phases, shares, strict=True)]}


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """`value` inside one mapping per name of `path`; without a name it is itself a mapping."""
    for name in reversed(path):
        value = {name: value}
    if not isinstance(value, dict):
        raise ConfigError(f"--architecture: name the setting, as in --architecture.loss.gamma {value}")
    return value


def read_value(text: str) -> Any:
    """What YAML reads in `text`: a number, list, true, null; all else stays text."""
    try:
        return yaml.safe_load(text)
    except configs.NOT_YAML:
        return text
