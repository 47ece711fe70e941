"""Flags made from the settings of the library: a parsed command holds exactly what was typed.

For a dataclass of settings `flags_of` gives a `TypedDict` with a flag for each field. cyclopts fills in only the typed
ones, so that they can be laid over a file of settings, and shows the defaults of the dataclass in the help.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypedDict, get_args, get_type_hints

import docstring_parser
from cyclopts import Group, Parameter, Token

from focaldet import config as configs
from focaldet.cli import flag_name
from focaldet.data.config import DataConfig
from focaldet.errors import ConfigError
from focaldet.evaluation.inference import InferenceOptions
from focaldet.training.config import AUTO, AUTO_DEFAULTS, AUTO_SETTINGS, RunConfig

# The panels of the help of `focaldet train`: each field of RunConfig in one of them, in the order of the help.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Data": ("data",),
    "Input size": ("size", "short_side", "max_side", "multi_scale", "multi_scale_end"),
    "Model": ("model", "weights", "weights_input", "architecture", "frozen_stages"),
    "Optimization": (
        *("epochs", "minutes", "phases", "batch_size", "accumulate", "optimizer", "learning_rate", "backbone_factor"),
        *("weight_decay", "momentum", "schedule", "step_at", "warmup_epochs", "warmup_power", "clip_norm", "ema"),
        *("sampling", "overfit", "patience", "average_best"),
    ),
    "Augmentation": ("augment",),
    "Run": (
        *("out", "resume", "overwrite", "seed", "deterministic", "device", "workers", "threads", "precision"),
        *("channels_last", "compile", "evaluate_every", "profile", "log_every", "loggers"),
        *("save_minutes", "save_steps"),
    ),
}
PANELS = {name: Group(name, sort_key=number) for number, name in enumerate(GROUPS, start=1)}
RUN_GROUPS = {field: PANELS[name] for name, fields in GROUPS.items() for field in fields}

SPLIT_HELP = "Which split: train, val, test, or its name in the data."


def read_value(text: str) -> Any:
    """What YAML reads in `text`: a number, list, true, null; all else stays text."""
    try:
        return configs.parse_yaml(text)
    except configs.NOT_YAML:
        return text


def read_architecture(kind: Any, tokens: Mapping[str, Any] | Sequence[Token]) -> dict[str, Any]:
    """The nested settings of `--architecture.<name> VALUE`, values read as YAML; which names exist the model knows.

    Raises:
        ConfigError: a value without the name of a setting.
    """
    if not isinstance(tokens, Mapping):
        if isinstance(value := read_value(tokens[0].value), dict):
            return value
        raise ConfigError(f"--architecture: name the setting, as in --architecture.loss.gamma {tokens[0].value}")
    values = {}
    for name, part in tokens.items():
        nested = isinstance(part, Mapping)
        values[name.replace("-", "_")] = read_architecture(kind, part) if nested else read_value(part[-1].value)
    return values


def refuse_phases(kind: Any, tokens: Sequence[Token]) -> NoReturn:
    """Phases cannot be typed.

    Raises:
        ConfigError: always.
    """
    del kind, tokens
    raise ConfigError("--phases: phases are given in a file of settings, with --config")


CONVERTERS = {"architecture": read_architecture, "phases": refuse_phases}


def flags_of(
    cls: Any,
    *,
    prefix: str = "",
    group: Group | None = None,
    groups: Mapping[str, Group] | None = None,
    auto: Sequence[str] = (),
    auto_defaults: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Any:
    """A `TypedDict` with a flag for each field of the dataclass `cls`, explained as the dataclass explains it.

    Args:
        cls: the dataclass; fields that are dataclasses become nested flags such as `--augment.hue`.
        prefix: what the flags begin with, such as `data.`.
        group: the panel of the help.
        groups: panels by field, where they are not all in one.
        auto: the fields, with the prefix, that may also be `auto`, and of these `auto_defaults` those that are.
        skip: fields without a flag.
    """
    hints = get_type_hints(cls, include_extras=True)
    texts = {row.arg_name: row.description or "" for row in docstring_parser.parse_from_object(cls).params}
    flags = {}
    for field in [field for field in dataclasses.fields(cls) if field.name not in skip]:
        kind, panel, name = hints[field.name], (groups or {}).get(field.name, group), f"{prefix}{field.name}"
        text = _flag_text(texts.get(field.name, ""), names=[*hints], prefix=prefix)
        parameter = Parameter(
            group=panel,
            help=f"{text} auto: decided from the data." if name in auto else text,
            show_default=AUTO if name in auto_defaults else default_text(field.default),
            converter=CONVERTERS.get(field.name),
            negative_iterable="empty-" if get_args(kind)[-1:] == (...,) else "",
        )
        if dataclasses.is_dataclass(kind):
            kind = flags_of(kind, prefix=f"{name}.", group=panel, auto=auto)
        if name in auto:
            kind = kind | Literal[AUTO]
        flags[field.name] = Annotated[kind, parameter]
    make: Any = TypedDict
    typed = make(f"{cls.__name__}Fields", flags, total=False)
    typed.__module__ = __name__  # cyclopts takes the fields of no class of the standard library
    return typed


def _flag_text(text: str, *, names: Sequence[str], prefix: str) -> str:
    """The text of a field as that of its flag: names of other fields in it are written as flags."""
    for name in names:
        text = text.replace(f"`{name}`", f"--{prefix}{flag_name(name)}")
    return text[:1].upper() + text[1:]


def default_text(value: Any) -> str | bool:
    """How the help shows a default; False where it shows none."""
    if value is dataclasses.MISSING or value in (None, False, ()):
        return False
    if isinstance(value, tuple):
        return " ".join(f"{part:.3g}" if isinstance(part, float) else str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


if TYPE_CHECKING:  # what was typed, by field
    DataFields = dict[str, Any]
    OptionFields = dict[str, Any]
    RunFields = dict[str, Any]
    TrainFields = dict[str, Any]
else:
    DataFields = flags_of(DataConfig, prefix="data.", group=PANELS["Data"])
    OptionFields = flags_of(InferenceOptions, group=Group("Inference", sort_key=len(PANELS) + 1))
    RunFields = flags_of(RunConfig, groups=RUN_GROUPS, auto=AUTO_SETTINGS)
    TrainFields = flags_of(RunConfig, groups=RUN_GROUPS, auto=AUTO_SETTINGS, auto_defaults=AUTO_DEFAULTS)

DATA_HELP = "Folder, or json, yaml or csv file; --data.train and so on name parts of it."
Data = Annotated[Path | None, Parameter(help=DATA_HELP)]
DataParts = Annotated[DataFields | None, Parameter(name="--data")]
Options = Annotated[OptionFields | None, Parameter(name="*")]
RunFlags = Annotated[RunFields | None, Parameter(name="*")]
TrainFlags = Annotated[TrainFields | None, Parameter(name="*")]
ARCHITECTURE_HELP = "Settings of the detector to override, such as --architecture.p6-from P5."
Architecture = Annotated[dict[str, Any] | None, Parameter(converter=read_architecture, help=ARCHITECTURE_HELP)]


def data_config(path: Path | None, parts: Mapping[str, Any] | None) -> DataConfig:
    """The data that a path and the flags `--data.…` name together.

    Raises:
        ConfigError: no data was named.
    """
    values = dict(parts or {}) | ({} if path is None else {"path": path})
    if not values:
        raise ConfigError("data: say which data: a folder, or a json, yaml or csv file")
    return DataConfig(**values)


def optional_data_config(path: Path | None, parts: Mapping[str, Any] | None) -> DataConfig | None:
    """As `data_config`; None where no data was named, so that those of the run are taken."""
    return data_config(path, parts) if parts or path is not None else None
