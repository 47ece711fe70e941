"""COCO's two long lists, read a window of the file at a time: fast, and never with the whole file in memory.

Only what is plain is read this way: whole numbers as ids, boxes of four numbers, every id known, nothing twice. For a
file with anything else in it, however little, `read_plain` gives None; `json_files.read_json` and `Table` then read it
and say what it is.

Axes: N ids known, M annotations, R rows of a piece of the file.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from jaxtyping import Float64, Int64, Shaped, UInt8
from pydantic_core import from_json
from torch import Tensor

from focaldet.data.formats.json_files import MOST_JSON_BYTES, parse_json, pause_collecting
from focaldet.data.formats.text import brief
from focaldet.data.problems import Location
from focaldet.files import open_plain

WINDOW_BYTES = 1 << 22
_LONGEST_WINDOW = 1 << 26  # of one row that does not end
_MOST_OTHER_BYTES = 1 << 24  # of what is neither image nor annotation: the classes, licenses, where it comes from
_SPACE = b" \t\r\n"
_BEFORE_COLON = (b'"', b" ", b"\t", b"\r", b"\n")  # of a key
_BLANK = re.compile(rb"[ \t\r\n]*")
_LIST = re.compile(rb'"(images|annotations)"[ \t\r\n]*:[ \t\r\n]*\[')
_LONGEST_BEGIN = 64  # bytes of what `_LIST` matches
_END = re.compile(rb"\}[ \t\r\n]*\]")
_IMAGE_FIELDS = ("id", "file_name", "height", "width")

Columns = dict[str, Shaped[numpy.ndarray, "R ..."]]


@dataclass(frozen=True, slots=True)
class AnnotationRows:
    """The annotations of a COCO file as columns; `good` are the rows without a fault.

    `owners` are the indices of the images among those without a fault, `labels` the positions of the categories in the
    order of their ids. `areas` are NaN where the file states none. `location` says where a row or a field of it stands.
    """

    owners: Int64[Tensor, " M"]
    labels: Int64[Tensor, " M"]
    xywh: Float64[Tensor, "M 4"]
    areas: Float64[Tensor, " M"]
    crowds: UInt8[Tensor, " M"]
    ignored: UInt8[Tensor, " M"]
    good: Sequence[int]
    location: Callable[[int, str | None], Location]


class PlainCoco(NamedTuple):
    """A COCO file without faults.

    `document` is the file without its annotations; of the images it has the fields that count.
    """

    document: dict[str, Any]
    annotations: AnnotationRows


def read_plain(file: Path) -> PlainCoco | None:
    """The images, classes and annotations of a plain COCO file; None where it has anything that must be looked at."""
    try:
        with open_plain(file) as stream, pause_collecting():
            return _read_lists(file, stream)
    except (OSError, ValueError, TypeError, LookupError, OverflowError):
        return None


def _require(condition: object) -> None:
    if not condition:
        raise ValueError("not plain")


def _read_lists(file: Path, stream: BufferedReader) -> PlainCoco:
    windows, images, parts = Windows(stream), list[dict[str, Any]](), list[Columns]()
    for name, text in windows:
        rows = _decode_rows(text)
        if name == "images":
            images += [{key: row[key] for key in _IMAGE_FIELDS if key in row} for row in rows]
        else:
            parts.append(_columns(rows))
    _require(sorted(windows.names) == ["annotations", "images"] and images and parts)
    document = parse_json(b"".join(windows.rest).decode())
    _require(isinstance(document, dict) and document["images"] == document["annotations"] == [])
    document["images"] = images
    columns = {name: numpy.concatenate([part[name] for part in parts]) for name in parts[0]}
    image_ids, category_ids = _identifiers(images), _identifiers(document["categories"])
    _require(_is_unique(columns["id"]))
    _require(all(type(row["file_name"]) is str for row in images))
    _require(all(type(row["name"]) is str and row["name"].strip() for row in document["categories"]))
    ids = columns["id"]

    def location(i: int, key: str | None = None) -> Location:
        return Location(file, f"annotations[{i}] (id {brief(int(ids[i]))})", key)

    annotations = AnnotationRows(
        owners=torch.from_numpy(_indices(image_ids, columns["image_id"])),
        labels=torch.from_numpy(_indices(numpy.sort(category_ids), columns["category_id"])),
        xywh=torch.from_numpy(columns["bbox"]),
        areas=torch.from_numpy(columns["area"]),
        crowds=torch.from_numpy(columns["iscrowd"]),
        ignored=torch.from_numpy(columns["ignore"]),
        good=range(len(ids)),
        location=location,
    )
    return PlainCoco(document, annotations)


class Windows:
    """The long lists of a file in pieces of whole objects; `names` and `rest` are then complete.

    `names` are the keys of the lists in their order, `rest` is the text of the file without their rows. Where the file
    is cut says nothing of its validity: every piece, and the rest, must still be read as JSON.
    """

    def __init__(self, stream: BufferedReader) -> None:
        self.names: list[str] = []
        self.rest: list[bytes] = []
        self._stream, self._text, self._num_bytes = stream, b"", 0

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """The name of a list and some of its rows, with the commas between them."""
        while True:
            if match := _LIST.search(self._text):
                self.names.append(match[1].decode())
                self._put_aside(match.end())
                for rows in self._rows():
                    yield self.names[-1], rows
                continue
            self._put_aside(max(0, len(self._text) - _LONGEST_BEGIN))  # a list may begin at the end of what is read
            if not self._read_more():
                self._put_aside(len(self._text))
                return

    def _rows(self) -> Iterator[bytes]:
        """The rows of a list that has just begun; what is left then begins with its closing bracket."""
        while (begin := _end_of_blank(self._text)) == len(self._text):
            _require(self._read_more())
        if self._text[begin : begin + 1] == b"]":
            return
        while (end := _END.search(self._text)) is None:
            if (gap := _last_gap(self._text)) is not None:
                rows, self._text = self._text[: gap[0]], self._text[gap[1] :]
                yield rows
            _require(self._read_more())
        rows, self._text = self._text[: end.start() + 1], self._text[end.end() - 1 :]
        yield rows

    def _read_more(self) -> bool:
        """Whether there was more of the file to read."""
        window = self._stream.read(WINDOW_BYTES)
        self._text += window
        self._num_bytes += len(window)
        _require(len(self._text) <= _LONGEST_WINDOW + WINDOW_BYTES and self._num_bytes <= MOST_JSON_BYTES)
        return bool(window)

    def _put_aside(self, length: int) -> None:
        """Count so much of the text to the rest."""
        self.rest.append(self._text[:length])
        self._text = self._text[length:]
        _require(sum(map(len, self.rest)) <= _MOST_OTHER_BYTES)


def _end_of_blank(text: bytes) -> int:
    match = _BLANK.match(text)
    return match.end() if match else 0


def _last_gap(text: bytes) -> tuple[int, int] | None:
    """Where an object ends, and where behind a comma the next one begins: the last such position in `text`."""
    begin = text.rfind(b"{")
    while begin > 0:
        start = max(0, begin - _LONGEST_BEGIN)
        before = text[start:begin].rstrip(_SPACE)
        row = before.removesuffix(b",").rstrip(_SPACE)
        if before.endswith(b",") and row.endswith(b"}"):
            return start + len(row), begin
        begin = text.rfind(b"{", 0, begin)
    return None


def _decode_rows(rows: bytes) -> list[dict[str, Any]]:
    """The objects in a piece of a list, none of which has a key twice.

    Behind each key of the text is a colon, before it the key's quote or a space. Where there are no more such colons
    than keys were read, none was there twice; others are in dates and addresses, if not all colons are of keys.
    """
    values = from_json(b"[%b]" % rows, allow_inf_nan=False, cache_strings="keys")
    _require({*map(type, values)} == {dict})
    num_colons, num_keys = rows.count(b":"), sum(map(len, values))
    if num_colons != num_keys:
        inner = chain.from_iterable(map(dict.values, values))
        num_keys += sum(_count_keys(value) for value in inner if type(value) is dict)
        _require(num_keys in (num_colons, sum(rows.count(before + b":") for before in _BEFORE_COLON)))
    return list(values)


def _count_keys(value: dict[str, Any]) -> int:
    return len(value) + sum(_count_keys(inner) for inner in value.values() if type(inner) is dict)


def _columns(rows: list[dict[str, Any]]) -> Columns:
    """The fields that count of some annotations."""
    return {
        **{key: _integers(rows, key) for key in ("id", "image_id", "category_id")},
        "bbox": _xywh_of([row["bbox"] for row in rows]),
        "area": _areas_of([row.get("area") for row in rows]),
        **{key: _flags_of([row.get(key, 0) for row in rows]) for key in ("iscrowd", "ignore")},
    }


def _integers(rows: list[dict[str, Any]], key: str) -> Int64[numpy.ndarray, " R"]:
    values = [row[key] for row in rows]
    _require({*map(type, values)} <= {int})
    return numpy.array(values, dtype=numpy.int64)


def _xywh_of(values: list[Any]) -> Float64[numpy.ndarray, "R 4"]:
    _require({*map(type, values)} == {list} and {*map(len, values)} == {4})
    numbers = list(chain.from_iterable(values))
    _require({*map(type, numbers)} <= {int, float})
    return numpy.array(numbers, dtype=numpy.float64).reshape(-1, 4)


def _areas_of(values: list[Any]) -> Float64[numpy.ndarray, " R"]:
    _require({*map(type, values)} <= {int, float, type(None)})
    areas = numpy.array([math.nan if value is None else value for value in values], dtype=numpy.float64)
    _require((numpy.isnan(areas) | ((areas >= 0) & (areas < math.inf))).all())
    return areas


def _flags_of(values: list[Any]) -> UInt8[numpy.ndarray, " R"]:
    _require({*map(type, values)} <= {int, bool} and {*values} <= {0, 1})
    return numpy.array(values, dtype=numpy.uint8)


def _identifiers(rows: list[dict[str, Any]]) -> Int64[numpy.ndarray, " R"]:
    """The ids of images or categories, each given once."""
    ids = _integers(rows, "id")
    _require(_is_unique(ids))
    return ids


def _is_unique(ids: Int64[numpy.ndarray, " R"]) -> bool:
    ordered = numpy.sort(ids)
    return bool((ordered[1:] != ordered[:-1]).all())


def _indices(known: Int64[numpy.ndarray, " N"], wanted: Int64[numpy.ndarray, " R"]) -> Int64[numpy.ndarray, " R"]:
    """Where in `known` each of the wanted ids stands; all must."""
    order = numpy.argsort(known)
    places = numpy.minimum(numpy.searchsorted(known, wanted, sorter=order), len(known) - 1)
    indices = order[places]
    _require((known[indices] == wanted).all())
    return indices
