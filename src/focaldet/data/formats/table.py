"""JSON documents as tables whose columns are checked as a whole."""

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Float64
from torch import Tensor

from focaldet.data.formats.reading import Reading
from focaldet.data.formats.text import brief, loose_number
from focaldet.data.problems import LISTED_PER_KIND, Location
from focaldet.errors import DataError

_INT64 = 2**63


class Table:
    """A list of JSON objects that is checked column by column.

    The types of a whole column are checked at the speed of C; only where that fails are rows searched. With a lenient
    `reading` the faults of all rows are listed, and `bad` are the rows that have one; their values are stand-ins.
    """

    def __init__(self, document: Any, name: str, *, file: Path, reading: Reading) -> None:
        self.file, self.name, self.reading = file, name, reading
        self.bad: set[int] = set()
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
            self.require(self.rows, lambda row: type(row) is dict, None, "an object", stand_in={})

    def location(self, i: int, key: str | None = None) -> Location:
        """The location of row i or of a field of it."""
        row = self.rows[i]
        named = f" (id {brief(row['id'])})" if isinstance(row, dict) and "id" in row else ""
        return Location(self.file, f"{self.name}[{i}]{named}", key)

    @property
    def good(self) -> list[int]:
        """The rows without a fault so far."""
        return [i for i in range(len(self.rows)) if i not in self.bad]

    def column(
        self,
        key: str,
        kinds: tuple[type, ...],
        allowed: str,
        *,
        default: Any = ...,
        loosen: Callable[[Any], Any] | None = None,
        stand_in: Any = None,
    ) -> list[Any]:
        """The values of one field, all exactly of these types (bool is not int). Without `default` it is required.

        `loosen` gives the value that another value is taken for, with a warning; None where it can be none.
        """
        values = [row.get(key, default) for row in self.rows]
        kinds = kinds if default is ... else (*kinds, type(default))
        if not set(map(type, values)) <= set(kinds):
            self.require(values, lambda value: type(value) in kinds, key, allowed, loosen=loosen, stand_in=stand_in)
        return values

    def integers(self, key: str, *, default: Any = ..., stand_in: Any = None) -> list[Any]:
        """A column of whole numbers that fit into 64 bits; `3.0` and `"3"` are taken with a warning."""
        values = self.column(key, (int,), "a whole number", default=default, loosen=_whole_number, stand_in=stand_in)
        numbers = [value for value in values if value is not None]
        if numbers and not -_INT64 <= min(numbers) <= max(numbers) < _INT64:
            self.require(values, lambda v: v is None or -_INT64 <= v < _INT64, key, "a whole number of at most 64 bits")
        return values

    def identifiers(self, *, default: Any = ...) -> list[Any]:
        """The column `id`: whole numbers, each given once."""
        values = self.integers("id", default=default)
        seen: set[int] = set()
        if len(set(values)) < len(values):
            for i, value in enumerate(values):
                if value is not None and value in seen:
                    self._refuse(i, partial(self._used_twice, i, value))
                seen.add(value)
        return values

    def _too_large(self, i: int, key: str, value: Any) -> DataError:
        return self.location(i, key).error(f"{brief(value)} is too large a number")

    def _used_twice(self, i: int, value: int) -> DataError:
        return self.location(i, "id").error(f"{value} is used twice in {self.name}; ids must be unique")

    def references(self, key: str, known: Mapping[int, int], what: str, *, gone: str | None = None) -> list[int]:
        """A column of ids, as the indices that `known` gives them.

        With `gone`, rows whose id is unknown are left out and counted as this kind of warning; else they are refused.
        """
        values = self.integers(key)
        positions = [known.get(value, -1) for value in values]
        if -1 in positions:
            allowed = f"the id of one of the {len(known)} {what}"
            if gone is None:
                self.require(values, known.__contains__, key, allowed)
                return positions
            for i, position in enumerate(positions):
                if position == -1 and i not in self.bad:
                    message = f"got {brief(values[i])}; must be {allowed}; left out"
                    self.reading.accept_loosely(self.location(i, key), gone, message)
                    self.bad.add(i)
        return positions

    def boxes(self, key: str) -> Float64[Tensor, "M 4"]:
        """A column of lists of four numbers; texts of numbers are taken with a warning."""
        allowed = "a list of four numbers [x, y, width, height]"
        values = self.column(key, (list,), allowed, stand_in=[0, 0, 0, 0])
        if not set(map(len, values)) <= {4} or not set(map(type, chain.from_iterable(values))) <= {int, float}:
            self.require(values, _is_four_numbers, key, allowed, loosen=_four_numbers, stand_in=[0, 0, 0, 0])
        return self._floats(list(chain.from_iterable(values)), key, per_row=4).reshape(-1, 4)

    def numbers(self, key: str) -> Float64[Tensor, " M"]:
        """A column of numbers, at least 0; NaN where the field is absent or null."""
        allowed = "a finite number, at least 0"
        values = self.column(key, (int, float), allowed, default=None, loosen=loose_number)
        self.require(values, lambda v: v is None or 0 <= v < math.inf, key, allowed)
        return self._floats([math.nan if value is None else value for value in values], key, per_row=1)

    def flags(self, key: str) -> list[int]:
        """A column of 0 and 1; 0 where the field is absent. `null`, texts and whole floats are taken with a warning."""
        values = self.column(key, (int, bool), "0 or 1", default=0, loosen=_flag, stand_in=0)
        self.require(values, (0, 1).__contains__, key, "0 or 1", stand_in=0)
        return [int(value) for value in values]

    def _floats(self, values: list[Any], key: str, *, per_row: int) -> Float64[Tensor, " X"]:
        try:
            return torch.from_numpy(numpy.array(values, dtype=numpy.float64))
        except OverflowError:
            largest = sys.float_info.max
            for i, value in enumerate(values):
                if isinstance(value, int) and abs(value) > largest:
                    row = i // per_row
                    self._refuse(row, partial(self._too_large, row, key, value))
                    values[i] = 0
            return self._floats(values, key, per_row=per_row)

    def require(
        self,
        values: list[Any],
        accepts: Callable[[Any], object],
        key: str | None,
        allowed: str,
        *,
        loosen: Callable[[Any], Any] | None = None,
        stand_in: Any = None,
    ) -> None:
        """Refuse the values of a column that are not accepted, in place: a loose one becomes what it is taken for."""
        unlisted = 0
        for i, value in enumerate(values):
            if i in self.bad:
                values[i] = stand_in
                continue
            if accepts(value):
                continue
            loose = None if loosen is None or value is ... else loosen(value)
            if loose is not None and accepts(loose):
                message = f"got {brief(value)}; taken as {brief(loose)}"
                self.reading.accept_loosely(self.location(i, key), "loose value", message)
                values[i] = loose
                continue
            values[i] = stand_in
            if self.reading.lenient and len(self.bad) >= LISTED_PER_KIND:  # of millions only the first are described
                self.bad.add(i)
                unlisted += 1
            else:
                self._refuse(i, partial(self._describe_refusal, i, key, value, allowed))
        self.reading.count_unlisted(unlisted)

    def _describe_refusal(self, i: int, key: str | None, value: Any, allowed: str) -> DataError:
        got = "is missing" if value is ... else f"got {brief(value)}"
        return self.location(i, key).error(f"{got}; must be {allowed}")

    def _refuse(self, i: int, describe: Callable[[], DataError]) -> None:
        """Raise the error of a row, or list it and mark the row as bad; of many only the first are described."""
        if not self.reading.lenient:
            raise describe()
        if i in self.bad:
            return
        self.bad.add(i)
        if len(self.bad) <= LISTED_PER_KIND:
            self.reading.list_error(describe())
        else:
            self.reading.count_unlisted(1)


def _whole_number(value: Any) -> int | None:
    """The whole number that a float or a text stands for."""
    number = loose_number(value)
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else None


def _flag(value: Any) -> int | None:
    """What a flag of another type stands for: nothing and unspecified are 0."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "unspecified", "false", "no")):
        return 0
    return 1 if isinstance(value, str) and value.strip().lower() in ("true", "yes") else _whole_number(value)


def _is_four_numbers(values: list[Any]) -> bool:
    return len(values) == 4 and all(type(value) in (int, float) for value in values)


def _four_numbers(values: Any) -> list[float] | None:
    if not isinstance(values, list) or len(values) != 4:
        return None
    numbers = [loose_number(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]
