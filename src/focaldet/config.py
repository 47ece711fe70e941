"""Typed configurations: frozen dataclasses to and from YAML and JSON; errors name the nearest valid setting."""

import dataclasses
import difflib
import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import pydantic
import yaml

from focaldet.errors import ConfigError

Config = TypeVar("Config")

Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
"""The type of a setting in 0…1."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a full disk."""

NOT_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError)
"""What PyYAML raises: more than its own errors, for dates such as `2020-99-99` or tags such as `!!bool x`."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as ` (did you mean "epochs"?)`, or the valid names where none is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else f" (valid: {', '.join(names)})"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def from_dict(cls: type[Config], values: Mapping[str, Any], *, source: str = "settings") -> Config:
    """A `cls` made from plain values; the inverse of `to_dict`.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a wrong type or a value out of range; names `source`.
    """
    _refuse_unknown(cls, values, source=source, path=())
    try:
        config: Config = pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].replace("a valid tuple", "a list such as [1,2]")
        raise ConfigError(f"{source}: {where}: {problem}, found {first['input']!r}") from None
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values (JSON types only) that `from_dict` turns back into an equal config."""
    values: dict[str, Any] = pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")
    return values


def load(cls: type[Config], path: Path, *, overrides: Mapping[str, Any] | None = None) -> Config:
    """A `cls` read from a YAML or JSON file, with `overrides` laid over it (nested mappings are merged).

    Raises:
        ConfigError: the file is missing, no mapping, or holds a bad setting.
    """
    values = read_mapping(path)
    return from_dict(cls, merged(values, overrides or {}), source=str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds.

    Raises:
        ConfigError: the file is missing, unreadable or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except NOT_YAML as error:
        raise ConfigError(f"{path}: is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must hold a mapping of settings, found {type(values).__name__}")
    return values


def save(config: Any, path: Path) -> None:
    """Write `config` as YAML, keys in their declared order."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def made_folder(path: Path, *, setting: str = "out") -> Path:
    """`path`, which is a folder that can be written to; it and its parents are made where they are missing.

    A full disk is no mistake of the setting and stays the `OSError` that it is.

    Raises:
        ConfigError: a file is in the way, there is no permission, or no disk can have such a name; names `setting`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{setting}: {path}: no folder can be made there: {reason}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting}: {path}: there is no permission to write into this folder")
    return path


def to_json(config: Any) -> str:
    """`config` as one line of JSON, for the metadata of a checkpoint."""
    return json.dumps(to_dict(config), ensure_ascii=False)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in their place; mappings inside mappings are merged, not replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _refuse_unknown(cls: Any, values: Mapping[str, Any], *, source: str, path: tuple[str, ...]) -> None:
    """Raise for a key that no field has, at any depth of nested dataclasses."""
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{source}: unknown setting {'.'.join((*path, str(key)))!r}{nearest(str(key), fields)}")
        for kind in (fields[key], *get_args(fields[key])):  # a setting may be a dataclass or None
            if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
                _refuse_unknown(kind, value, source=source, path=(*path, key))
