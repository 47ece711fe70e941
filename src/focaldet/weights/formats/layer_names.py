"""focaldet's names of the tensors of other programs, by the tables of `layer_names.yaml`."""

import re
from importlib.resources import files

import yaml

_TABLES: dict[str, dict[str, str]] = yaml.safe_load(files(__package__).joinpath("layer_names.yaml").read_text("utf-8"))


def rename_by_table(name: str, table: str) -> str:
    """focaldet's name of a tensor by one of the tables; a name that is not in it stays as it is."""
    matches = ((re.fullmatch(pattern, name), new) for pattern, new in _TABLES[table].items())
    return next((match.expand(new) for match, new in matches if match), name)
