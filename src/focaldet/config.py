"""Typed configurations: frozen dataclasses that check themselves, to and from YAML and JSON."""

import dataclasses
import difflib
import errno
import functools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import pydantic
import yaml
from pydantic_core import ArgsKwargs

from focaldet import files
from focaldet.errors import ConfigError
from focaldet.text import printable

Config = TypeVar("Config")

write_json, write_csv = files.write_json, files.write_csv

Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
"""The type of a setting in 0…1."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a full disk."""

WRONG_CALLS = ("missing", "unexpected_keyword_argument", "unexpected_positional_argument", "multiple_argument_values")
"""pydantic's names for arguments that do not fit the signature."""

MOST_YAML_BYTES, MOST_YAML_VALUES, DEEPEST_YAML = 4_000_000, 500_000, 50
"""What a file of settings or of class names may have: bytes, values (an alias counts as what it stands for), levels."""

NOT_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError)
"""What PyYAML raises: more than its own errors, for dates such as `2020-99-99` or tags such as `!!bool x`."""


LEAST_FAST, MOST_YAML_ERROR = 100_000, 1000
FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML was built with it

_adapter: Callable[[Any], Any] = functools.cache(pydantic.TypeAdapter)
"""pydantic's checks of a dataclass, built when the class is first used."""


def validate_fields(cls: type[Config]) -> type[Config]:
    """Make a frozen dataclass check and convert its arguments where it is constructed; goes above `@dataclass`.

    Lists become tuples, text becomes paths, whole numbers become floats; NaN and infinity are refused. Configs that are
    already built are taken as they are. The class may rename its settings: `renamed_keys` maps old to new names,
    `renamed_values` the name of a setting to its old and new values; `from_dict` reads the old ones, and the
    constructor takes the old names.

    Raises:
        ConfigError: when constructed with a wrong type or a value out of range; names class, field, value and range.
    """
    assign = cls.__init__

    @functools.wraps(assign)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        for old, new in getattr(cls, "renamed_keys", {}).items():
            if old in kwargs:
                warnings.warn(f"{cls.__name__}: {old} is now called {new}", FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
        try:
            _adapter(cls).validator.validate_python(ArgsKwargs(args, kwargs), self_instance=self)
        except pydantic.ValidationError as error:
            if error.errors(include_url=False)[0]["type"] in WRONG_CALLS:
                assign(self, *args, **kwargs)  # Python's own TypeError says it best
            raise ConfigError(_problem(error, cls, cls.__name__)) from None

    cls.__init__ = construct  # type: ignore[method-assign]
    cls.__pydantic_config__ = pydantic.ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", allow_inf_nan=False
    )
    return cls


def _problem(error: pydantic.ValidationError, cls: Any, source: str) -> str:
    """The first problem in one line: which field, what is allowed, and the value."""
    first = error.errors(include_url=False)[0]
    field, *inner = first["loc"]  # of a positional argument its number
    field = dataclasses.fields(cls)[field].name if isinstance(field, int) else field
    where = ".".join(str(part) for part in (field, *inner))
    return f"{source}: {where}: {first['msg'].replace('a valid tuple', 'a list such as [1,2]')}, got {first['input']!r}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as ` (did you mean "epochs"?)`, or the valid names where none is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else f" (valid: {', '.join(names)})"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; the members of a list of mappings are counted from 1."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(member, Mapping) for member in value):
            value = {str(number): member for number, member in enumerate(value, start=1)}  # noqa: PLW2901
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def from_dict(
    cls: type[Config], values: Mapping[str, Any], *, source: str = "settings", warn_renamed: bool = True
) -> Config:
    """A `cls` made from plain values; the inverse of `to_dict`.

    Old names of settings (see `validate_fields`) are read, with a `FutureWarning` unless `warn_renamed` is false, as
    it is for files that focaldet wrote.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a wrong type or a value out of range; names `source`.
    """
    known = current_names(cls, values, source=source, warn=warn_renamed)
    try:
        config: Config = _adapter(cls).validate_python(known)
    except pydantic.ValidationError as error:
        raise ConfigError(_problem(error, cls, source)) from None
    except ConfigError as error:  # from the `__post_init__` of a config, which does not know where its values are from
        raise ConfigError(f"{source}: {error}") from None
    return config


def override(config: Config, changes: Mapping[str, Any], *, source: str) -> Config:
    """`config` with the settings in `changes` (nested, as in a YAML file) laid over it; old names give a warning.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; names `source`.
    """
    current = current_names(type(config), changes, source=source)
    return from_dict(type(config), merge(to_dict(config), current), source=source)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values (JSON types only) that `from_dict` turns back into an equal config."""
    values: dict[str, Any] = _adapter(type(config)).dump_python(config, mode="json")
    return values


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        ConfigError: the file is missing, unreadable or not a mapping.
    """
    try:
        values = _parse_settings(files.read_utf8(path, most=MOST_YAML_BYTES), is_json=path.suffix == ".json")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except NOT_YAML as error:
        raise ConfigError(
            f"{path}: is not valid YAML: {printable(' '.join(str(error).split()), most=MOST_YAML_ERROR)}"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: must be a mapping of settings, got {type(values).__name__}")
    return values


def _parse_settings(text: str, *, is_json: bool) -> Any:
    """The value of a file's text. YAML takes some JSON for something else: there `1e-05` is a word."""
    if is_json:
        try:
            return json.loads(text)
        except ValueError:  # written by hand, with a comment or a comma too many, which YAML allows
            pass
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """The value that YAML has in `text`: plain values alone, and no more of them than `MOST_YAML_VALUES`.

    Raises:
        yaml.YAMLError: not YAML, nested more than `DEEPEST_YAML` levels, or with aliases that stand for too much.
        ValueError, LookupError, AttributeError, TypeError: see `NOT_YAML`.
    """
    _judge_yaml(text)
    return yaml.load(text, Loader=FAST_LOADER if len(text) > LEAST_FAST else yaml.SafeLoader)


def _judge_yaml(text: str) -> None:
    """Refuse what would take long or much memory, from the events of the parser alone: nothing is built.

    Raises:
        yaml.YAMLError: too deep, or too many values once every alias is counted as what it stands for.
    """
    values, sizes = 0, dict[str, int]()
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=FAST_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, before = None, values
            values += sizes.get(str(event.anchor), MOST_YAML_VALUES + 1)  # one that is still open contains itself
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, values))
            values += 1
            if len(opened) > DEEPEST_YAML:
                raise yaml.YAMLError(f"nested more than {DEEPEST_YAML} levels deep")
            continue
        elif isinstance(event, yaml.ScalarEvent):
            anchor, before, values = event.anchor, values, values + 1
        else:
            continue
        if anchor is not None:
            sizes[anchor] = values - before
        if values > MOST_YAML_VALUES:
            raise yaml.YAMLError(f"more than {MOST_YAML_VALUES:,} values, aliases counted as what they stand for")


def save(config: Any, path: Path) -> None:
    """Write `config`, which may be a mapping of plain values, as YAML, keys in their declared order."""
    values = dict(config) if isinstance(config, Mapping) else to_dict(config)
    files.write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def make_folder(path: Path, *, setting: str = "out") -> Path:
    """Create `path` and its parents where they are missing, and return it; it can be written to.

    A full disk is not a mistake of the setting and stays the `OSError` that it is.

    Raises:
        ConfigError: a file is in the way, permission is missing, or no disk can have such a name; names `setting`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{setting}: {path}: no folder can be made there: {reason}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting}: {path}: no permission to write into this folder")
    return path


def to_json(config: Any) -> str:
    """`config` as one line of JSON, for the metadata of a checkpoint."""
    return files.to_json_text(to_dict(config))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with the values of `changes`; mappings inside mappings are merged, not replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def current_names(
    cls: Any, values: Mapping[str, Any], *, source: str, path: tuple[str, ...] = (), warn: bool = True
) -> dict[str, Any]:
    """`values` with the present names of its settings, at any depth of nested dataclasses.

    Raises:
        ConfigError: a key that no field has.
    """
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    renamed_keys, renamed_values = getattr(cls, "renamed_keys", {}), getattr(cls, "renamed_values", {})
    current: dict[str, Any] = {}
    for old, given in values.items():
        key = renamed_keys.get(old, old)
        value = renamed_values.get(key, {}).get(given, given) if isinstance(given, str) else given
        where = ".".join((*path, str(old)))
        if key not in fields:
            raise ConfigError(f"{source}: unknown setting {where!r}{nearest(str(key), fields)}")
        if key in current:
            raise ConfigError(f"{source}: {where}: is the old name of {key}; give only one of them")
        if warn and (key, value) != (old, given):
            was, now = (where, key) if key != old else (f"{where}: {given}", value)
            warnings.warn(f"{source}: {was} is now called {now}", FutureWarning, stacklevel=2)
        for kind in (fields[key], *get_args(fields[key])):  # a setting may be a dataclass or None
            if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
                value = current_names(kind, value, source=source, path=(*path, key), warn=warn)
        current[key] = value
    return current
