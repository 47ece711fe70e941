"""Reading text files and numbers in them, and quoting their values in messages."""

import codecs
import math
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from focaldet.config import nearest
from focaldet.data.problems import Location
from focaldet.errors import DataError
from focaldet.files import open_plain, read_bytes

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlong = 40
_LARGEST = 1e9
MOST_TEXT_BYTES = 2_000_000_000
"""Of a list, table or label file."""
_FLOAT_LIMIT = 1e300
_LONGEST_HINT = _LONGEST_PATH = 300


def brief(value: Any) -> str:
    """A value from a file as text for a message: quoted, and shortened if it is long."""
    return _SHORT.repr(value)


def show_path(path: Path) -> str:
    """A path as text for a message: whole if it is one line of moderate length, else quoted and shortened."""
    text = str(path)
    return text if len(text) <= _LONGEST_PATH and text.isprintable() else brief(text)


def hint(name: str, valid: Iterable[str]) -> str:
    """The suggestion of `config.nearest` for a name from a file, whose names may be long, many or of several lines."""
    suggestion = nearest(name[:60], [" ".join(other[:60].split()) for other in valid])
    return suggestion if len(suggestion) <= _LONGEST_HINT else ""


def list_names(names: Iterable[str], *, most: int = 4) -> str:
    """The first `most` names and the number of the others: "a, b and 3 more"."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def quantity(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: "1 image", "2 images", "1,200 boxes"; `plural` where it is not `noun` with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def as_number(text: str, location: Location, allowed: str = "a finite number") -> float:
    """The number that a text field holds, in ASCII; spaces around it are allowed, NaN and infinity are not.

    Raises:
        DataError: anything else, also `1_000` and digits of other scripts, which Python itself would take.
    """
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise location.error(f"got {brief(text)}; must be {allowed}")
    return number


def loose_number(value: Any) -> float | None:
    """The finite number that a JSON value of another type stands for, such as `"12.5"`; None where it is none."""
    if isinstance(value, str) and len(value) < 40 and value.isascii() and "_" not in value:
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    return float(value) if type(value) in (int, float) and abs(value) < _FLOAT_LIMIT else None


def plain_numbers(values: Sequence[Any]) -> list[float] | None:
    """Values of a JSON file as numbers; None where one is not a number, or larger than any coordinate."""
    numbers = [float(v) for v in values if type(v) in (int, float) and abs(v) <= _LARGEST]
    return numbers if len(numbers) == len(values) else None


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file that are not blank, with their numbers from 1.

    Raises:
        DataError: the file cannot be read or is not text.
    """
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        DataError: the file cannot be read or is not text.
    """
    try:
        return read_bytes(file, most=MOST_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text: {error.reason} at byte {error.start}", file=file) from None
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from None


def read_head(file: Path, most: int) -> str:
    """The first `most` bytes of a plain file as text in UTF-8, without a byte order mark; the last letter may be cut.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8.
    """
    with open_plain(file) as stream:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(stream.read(most))


def unreadable(file: Path, error: Exception) -> DataError:
    """The `DataError` for a file that the system cannot read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"cannot be read: {reason}", file=file)


def what_is_at(path: Path) -> Literal["file", "folder"] | None:
    """What lies at a path; None for nothing, and for paths that the system does not take, such as overlong ones."""
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    except (OSError, ValueError):
        return None
