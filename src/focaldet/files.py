"""Reading and writing files: only plain ones are read, and every one is written whole or not at all.

A name may stand for a pipe that never ends, a device without end or a folder; `open_plain` looks before it reads. All
text that the program stores goes through `write_text`, which knows how to store any name (`text.storable`).
"""

import csv
import io
import json
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from focaldet.text import storable

KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
"""What a name may stand for that is neither a file nor a folder."""
TOO_LARGE = 27  # EFBIG


def open_plain(path: Path) -> io.BufferedReader:
    """The bytes of a plain file, opened for reading.

    Raises:
        OSError: missing, not to be read, or a folder, pipe or device.
    """
    # Without O_NONBLOCK a pipe that nobody writes to would be waited for.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(21, "Is a directory", str(path))
    raise OSError(22, f"is {KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file", str(path))


def require_plain(path: Path) -> None:
    """Look whether `path` is a plain file, for libraries that open it themselves.

    Raises:
        OSError: missing, not to be read, or a folder, pipe or device.
    """
    open_plain(path).close()


def read_bytes(path: Path, *, most: int | None = None) -> bytes:
    """The content of a plain file of at most `most` bytes.

    Raises:
        OSError: missing, not to be read, a folder, pipe or device, or too large.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(TOO_LARGE, f"has {size:,} bytes, allowed are {most:,}", str(path))
        return file.read()


def read_utf8(path: Path, *, most: int | None = None) -> str:
    """The text of a plain file in UTF-8.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most=most).decode("utf-8")


def write_bytes(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write `path` so that it has the whole old content or the whole new one at every moment.

    With `sync` that holds for a power cut too, at the cost of waiting for the disk.

    Raises:
        OSError: nothing could be written (disk full, no permission, no folder, a pipe or device of that name); names
            `path`, which is as it was.
    """
    # A file would replace /dev/null where root writes it.
    if (kind := KINDS.get(stat.S_IFMT(path.stat().st_mode) if path.exists() else 0)) is not None:
        raise OSError(22, f"is {kind}, not a file", str(path))
    partial = path.with_name(f".{path.name[:200]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise type(error)(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, as `write_bytes` does; names that are no Unicode are stored by `text.storable`.

    Raises:
        OSError: see `write_bytes`.
    """
    write_bytes(path, storable(text).encode("utf-8"))


def to_json_text(value: Any, *, indent: int | None = None, **options: Any) -> str:
    """`value` as JSON that UTF-8 can hold; reading it gives every text back as it was."""
    return storable(json.dumps(value, ensure_ascii=False, indent=indent, **options))


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, in UTF-8.

    Raises:
        OSError: see `write_bytes`.
    """
    write_text(path, to_json_text(value, indent=1) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]], *, newline: str = "\r\n") -> None:
    """Write a table as CSV, in UTF-8, with the names of its columns in the first line.

    Raises:
        OSError: see `write_bytes`.
    """
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=newline).writerows([columns, *rows])
    write_text(path, buffer.getvalue())


def open_growing(path: Path) -> TextIO:
    """A text file that lines are added to, each written at once; what UTF-8 cannot hold is escaped.

    Raises:
        OSError: it cannot be written.
    """
    return path.open("a", encoding="utf-8", errors="backslashreplace", newline="", buffering=1)


def sync_folder(folder: Path) -> None:
    """Sync a folder's own entries to disk, so that a renamed file is there after a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
