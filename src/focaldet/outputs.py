"""Folders that a call writes its results to: which files belong to the call before, so that no mixture is left.

A hidden file in the folder lists the files of the last call. The next one removes exactly those before it writes, and
nothing else; a call that was killed has its list, too, since that is written first.
"""

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from focaldet.files import read_bytes, write_json

MANIFEST = ".focaldet-files.json"
MOST_MANIFEST_BYTES = 200_000_000
RESULT_SUFFIXES = {".jpg", ".png", ".txt", ".json", ".csv"}
"""What a list may name: whoever writes another list cannot have other files removed."""


class EarlierCall(NamedTuple):
    """The call that a folder has the files of: its command, and those files that are there."""

    command: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        count = len(self.files)
        return f"replaces {'the file' if count == 1 else f'the {count:,} files'} of an earlier {self.command}"


def earlier_call(folder: Path) -> EarlierCall | None:
    """What an earlier call left in `folder`; None where there is nothing, or nobody knows of what call it is."""
    try:
        listed = json.loads(read_bytes(folder / MANIFEST, most=MOST_MANIFEST_BYTES))
        command, names = str(listed["command"])[:20], [name for name in listed["files"] if isinstance(name, str)]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    files = tuple(path for name in names if (path := _inside(folder, name)) is not None)
    return EarlierCall(command, files) if files else None


def begin_call(folder: Path, command: str, names: Iterable[str], *, keep: Collection[Path] = ()) -> EarlierCall | None:
    """Remove the files of the call before and list those of this one; what was removed.

    Args:
        folder: where the files are.
        command: what the call is, such as predict.
        names: the files that the call may write, relative to `folder`, with "/" between their parts.
        keep: files that stay, such as the images of the call, without links.

    Raises:
        OSError: the list cannot be written.
    """
    before = earlier_call(folder)
    if before is not None:
        before = before._replace(files=tuple(path for path in before.files if path.resolve() not in keep))
        for path in before.files:
            with suppress(OSError):
                path.unlink()
    if listed := list(names):
        write_json(folder / MANIFEST, {"command": command, "files": listed})
    return before if before is not None and before.files else None


def _inside(folder: Path, name: str) -> Path | None:
    """The file of that name in `folder`; None where it is not there, elsewhere, or no file of results."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or relative.suffix not in RESULT_SUFFIXES or "\0" in name:
        return None
    path = folder / relative
    try:
        is_there = path.is_file() and path.parent.resolve().is_relative_to(folder.resolve())
    except OSError:
        return None
    return path if is_there else None
