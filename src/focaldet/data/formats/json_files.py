"""Reading json files, and telling which tool wrote one from the keys at its top, which stand in the first kilobytes."""

import gc
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from focaldet.data.formats.text import brief, unreadable
from focaldet.errors import DataError
from focaldet.files import open_plain, read_bytes

JsonKind = Literal["coco", "coco results", "coco images", "labelme", "vott", "vott asset", "fiftyone", "label studio"]

_HEAD_BYTES = 1 << 16
MOST_JSON_BYTES = 4_000_000_000
"""Of one file; the annotations of COCO's 118 000 images have 450 million."""
_KEYS: tuple[tuple[frozenset[str], JsonKind], ...] = (
    (frozenset({"shapes", "imagePath"}), "labelme"),
    (frozenset({"assets", "tags"}), "vott"),
    (frozenset({"asset", "regions"}), "vott asset"),
    (frozenset({"images", "annotations"}), "coco"),
    (frozenset({"classes", "labels"}), "fiftyone"),
)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]')


def json_kind(file: Path) -> JsonKind | None:
    """What a json file holds, or None where it is not recognized or read."""
    try:
        with open_plain(file) as stream:
            head = stream.read(_HEAD_BYTES + 1)
    except (OSError, ValueError):
        return None
    text = head.decode("utf-8-sig", errors="replace")
    opening, keys = _top_keys(text)
    if opening == "[":
        if {"image_id", "category_id"} <= keys:
            return "coco results"
        return "label studio" if {"data", "annotations"} <= keys or {"data", "result"} <= keys else None
    for needed, kind in _KEYS:
        if needed <= keys:
            return kind
    whole = len(head) <= _HEAD_BYTES
    if not whole and keys & {"images", "annotations"}:
        return "coco"
    if not whole and keys & {"shapes", "assets"}:
        return "labelme" if "shapes" in keys else "vott"
    return "coco images" if {"images", "categories"} <= keys else None


def _top_keys(text: str) -> tuple[str, set[str]]:
    """The bracket that a text begins with, and the keys of its top object, or of the first object of its list."""
    opening = text.lstrip()[:1]
    if opening not in ("{", "["):
        return "", set()
    wanted = 1 if opening == "{" else 2
    keys: set[str] = set()
    depth, last = 0, ""
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "{[":
            depth += 1
        elif token in "}]":
            depth -= 1
            if depth < wanted and opening == "[":
                break
        elif token == ":" and depth == wanted and last.startswith('"'):
            keys.add(last[1:-1])
        last = token
    return opening, keys


def read_json(file: Path, slim: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Any:
    """The value in a json file; `slim` may take from every object what is not needed, as soon as it is read.

    Raises:
        DataError: it cannot be read, is not JSON, has more than `MOST_JSON_BYTES`, or says something twice.
    """

    def take(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            raise DataError(f"has the key {brief(_first_twice(pairs))} twice in one object", file=file)
        return slim(record) if slim is not None else record

    try:
        with pause_collecting():
            content = read_bytes(file, most=MOST_JSON_BYTES)
            if content[:1] == b"\0":  # a file of zeros may have any size
                raise DataError("is not valid JSON: it begins with zeros", file=file)
            return json.loads(content, object_pairs_hook=take)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"is not valid JSON: {error.msg}", file=file, record=where) from None
    except RecursionError:
        raise DataError("is not a valid data set: nested too deeply", file=file) from None
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise DataError(f"is not valid JSON: {error}", file=file) from None


@contextmanager
def pause_collecting() -> Iterator[None]:
    """Inside, Python does not look for garbage: of millions of new containers that would take a fifth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def parse_json(text: str) -> Any:
    """The value that a line or a field of a table has in JSON.

    Raises:
        ValueError: not JSON, nested too deeply, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"the key {brief(_first_twice(pairs))} is there twice")
    return record


def _first_twice(pairs: list[tuple[str, Any]]) -> str:
    keys: set[str] = set()
    return next(key for key, _ in pairs if key in keys or keys.add(key))  # type: ignore[func-returns-value]
