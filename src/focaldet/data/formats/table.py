"""JSON documents as tables whose columns are checked as a whole."""

import math
import sys
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Float64
from torch import Tensor

from focaldet.data.formats.text import brief
from focaldet.data.problems import Location
from focaldet.errors import DataError

_INT64 = 2**63


class Table:
    """A list of JSON objects that is checked column by column.

    The types of a whole column are checked at the speed of C; only where that fails are rows searched.
    """

    def __init__(self, document: Any, name: str, *, file: Path) -> None:
        self.file, self.name = file, name
        if not isinstance(document, dict):
            raise DataError(
                f"must be a JSON object with images, annotations and categories, got {brief(document)}", file=file
            )
        if name not in document:
            raise DataError(
                f"is missing (the file has: {', '.join(map(brief, list(document)[:8]))})", file=file, field=name
            )
        self.rows: list[Any] = document[name]
        if not isinstance(self.rows, list):
            raise DataError(f"must be a list, got {brief(self.rows)}", file=file, field=name)
        if not set(map(type, self.rows)) <= {dict}:
            self.require(self.rows, lambda row: type(row) is dict, None, "an object")

    def location(self, i: int, key: str | None = None) -> Location:
        """The location of row i or of a field of it."""
        row = self.rows[i]
        named = f" (id {brief(row['id'])})" if isinstance(row, dict) and "id" in row else ""
        return Location(self.file, f"{self.name}[{i}]{named}", key)

    def column(self, key: str, kinds: tuple[type, ...], allowed: str, *, default: Any = ...) -> list[Any]:
        """The values of one field, all exactly of these types (bool is not int). Without `default` it is required."""
        if default is ...:
            missing = next((i for i, row in enumerate(self.rows) if key not in row), None)
            if missing is not None:
                raise self.location(missing, key).error(f"is missing; must be {allowed}")
        values = [row.get(key, default) for row in self.rows]
        kinds = kinds if default is ... else (*kinds, type(default))
        if not set(map(type, values)) <= set(kinds):
            self.require(values, lambda value: type(value) in kinds, key, allowed)
        return values

    def integers(self, key: str, *, default: Any = ...) -> list[Any]:
        """A column of whole numbers that fit into 64 bits."""
        values = self.column(key, (int,), "a whole number", default=default)
        self.require(values, lambda v: v is None or -_INT64 <= v < _INT64, key, "a whole number of at most 64 bits")
        return values

    def identifiers(self, *, default: Any = ...) -> list[Any]:
        """The column `id`: whole numbers, each given once."""
        values = self.integers("id", default=default)
        seen: set[int] = set()
        if len(set(values)) < len(values):
            for i, value in enumerate(values):
                if value is not None and value in seen:
                    raise self.location(i, "id").error(f"{value} is used twice in {self.name}; ids must be unique")
                seen.add(value)
        return values

    def references(self, key: str, known: Mapping[int, int], what: str) -> list[int]:
        """A column of ids, as the indices that `known` gives them."""
        values = self.integers(key)
        positions = [known.get(value, -1) for value in values]
        if -1 in positions:
            self.require(values, known.__contains__, key, f"the id of one of the {len(known)} {what}")
        return positions

    def boxes(self, key: str) -> Float64[Tensor, "M 4"]:
        """A column of lists of four numbers."""
        allowed = "a list of four numbers [x, y, width, height]"
        values = self.column(key, (list,), allowed)
        if not set(map(len, values)) <= {4} or not set(map(type, chain.from_iterable(values))) <= {int, float}:
            self.require(values, _is_four_numbers, key, allowed)
        return self._floats(list(chain.from_iterable(values)), key, per_row=4).reshape(-1, 4)

    def numbers(self, key: str) -> Float64[Tensor, " M"]:
        """A column of numbers, at least 0; NaN where the field is absent or null."""
        values = self.column(key, (int, float), "a number, at least 0", default=None)
        numbers = self._floats([math.nan if value is None else value for value in values], key, per_row=1)
        self.require(values, lambda v: v is None or 0 <= v < math.inf, key, "a finite number, at least 0")
        return numbers

    def _floats(self, values: list[Any], key: str, *, per_row: int) -> Float64[Tensor, " X"]:
        try:
            return torch.from_numpy(numpy.array(values, dtype=numpy.float64))
        except OverflowError:
            largest = sys.float_info.max
            culprit = next(i for i, value in enumerate(values) if isinstance(value, int) and abs(value) > largest)
            raise self.location(culprit // per_row, key).error(
                f"{brief(values[culprit])} is too large a number"
            ) from None

    def require(self, values: list[Any], accepts: Callable[[Any], object], key: str | None, allowed: str) -> None:
        """Raise for the first of a column's values that is not accepted."""
        for i, value in enumerate(values):
            if not accepts(value):
                raise self.location(i, key).error(f"got {brief(value)}; must be {allowed}")


def _is_four_numbers(values: list[Any]) -> bool:
    return len(values) == 4 and all(type(value) in (int, float) for value in values)
