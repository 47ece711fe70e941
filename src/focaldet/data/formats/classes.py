"""Files that name the classes: lists with a name in each line, and yaml files with `names`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focaldet.config import read_mapping
from focaldet.data.dataset import Classes
from focaldet.data.formats.text import brief, read_lines
from focaldet.data.problems import Location
from focaldet.errors import ConfigError, DataError

YAML_SUFFIXES = (".yaml", ".yml")


def read_class_file(description: Path) -> tuple[Classes, bool]:
    """The classes of a list or yaml file, and whether rows have key points behind the box.

    Raises:
        DataError: the file is not as described.
    """
    if description.suffix.lower() not in YAML_SUFFIXES:
        listed = [line for _, line in read_lines(description)]
        if not listed:
            raise DataError("names no class", file=description)
        return Classes(tuple(listed), tuple(range(len(listed)))), False
    values = read_yaml(description)
    location = Location(description, field="names")
    names: Any = values.get("names")
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, Mapping) or not pairs:
        raise location.error(f"got {brief(names)}; must be a list of class names, or a mapping from number to name")
    known = sorted((_class_number(key, location), _class_name(name, location)) for key, name in pairs.items())
    if "nc" in values and values["nc"] != len(known):
        raise location._replace(field="nc").error(f"got {brief(values['nc'])}, but there are {len(known)} names")
    return Classes(tuple(name for _, name in known), tuple(key for key, _ in known)), "kpt_shape" in values


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a yaml file.

    Raises:
        DataError: it cannot be read or is not a mapping.
    """
    try:
        return read_mapping(file)
    except ConfigError as error:
        raise DataError(str(error).removeprefix(f"{file}: "), file=file) from None


def _class_number(key: Any, location: Location) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10:
        return int(key)
    if type(key) is not int or not 0 <= key < 2**31:
        raise location.error(f"got the class number {brief(key)}; must be a whole number from 0")
    return key


def _class_name(name: Any, location: Location) -> str:
    if type(name) not in (str, int, float) or not str(name).strip():
        raise location.error(f"got the class name {brief(name)}; must be a text (put yes, no, on, off in quotes)")
    return str(name)
