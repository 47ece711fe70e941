"""Download files: continue where a connection was cut, and keep only what has the right checksum."""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock

from focaldet.errors import CheckpointError
from focaldet.files import open_plain, sync_folder
from focaldet.runtime import Progress

ATTEMPTS = 3
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0


def cache_folder() -> Path:
    """Where downloaded weights are kept: `weights` in `$FOCALDET_HOME` or in `~/.cache/focaldet`."""
    return Path(os.environ.get("FOCALDET_HOME") or Path.home() / ".cache" / "focaldet") / "weights"


def stated_checksum(name: str) -> str | None:
    """The first hexadecimal digits of the SHA-256 that a file name such as `resnet50-0676ba61.pth` carries."""
    match = re.search(r"-([0-9a-f]{8,64})\.", name)
    return match[1] if match else None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content in hexadecimal digits."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, folder: Path, *, progress: Progress | None = None) -> Path:
    """The file of `url` in `folder`, fetched unless it is there; several processes may ask at once.

    A partial download is continued. The content must fit the checksum in the name, if there is one.

    Raises:
        CheckpointError: the server cannot be reached, refuses, or sent something else.
    """
    path = folder / url.rsplit("/", 1)[-1]
    partial = path.with_name(f".{path.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{path.name}.lock"):
            if not path.exists():
                _fetch(url, partial, progress=progress)
                _verify(url, partial, name=path.name)
                partial.replace(path)
                sync_folder(folder)
    except urllib.error.HTTPError as error:
        raise _unreachable(url, f"the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _unreachable(url, getattr(error.reason, "strerror", None) or str(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, getattr(error, "strerror", None) or str(error) or type(error).__name__) from None
    return path


def _unreachable(url: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{url} could not be downloaded: {reason}; give the path of a local copy instead")


def _fetch(url: str, partial: Path, *, progress: Progress | None) -> None:
    """Fill `partial`; after a cut connection try again at once, a few times."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, partial, progress=progress)
        except (ConnectionError, http.client.HTTPException):
            if attempt == ATTEMPTS:
                raise
        else:
            return


def _continue(url: str, partial: Path, *, progress: Progress | None) -> None:
    """Append what is missing in `partial`, or start again where the server does not offer that."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            start = start if response.status == http.client.PARTIAL_CONTENT else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            _append(response, partial, start=start, total=total, progress=progress)
    except urllib.error.HTTPError as error:
        # Nothing lies beyond `start`: the file is whole already, or it is not this server's; the checksum shows which.
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise


def _append(
    response: http.client.HTTPResponse, partial: Path, *, start: int, total: int | None, progress: Progress | None
) -> None:
    """Write a response behind the first `start` bytes of `partial` and sync it to disk."""
    done = start
    with partial.open("ab" if start else "wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise ConnectionError(f"the connection was cut after {done} of {total} bytes (they are kept)")


def _verify(url: str, partial: Path, *, name: str) -> None:
    """Remove a file whose content is not what its name states, and say so."""
    stated, actual = stated_checksum(name), sha256(partial)
    if stated and not actual.startswith(stated):
        partial.unlink()
        raise CheckpointError(
            f"{url}: wrong checksum: the name states {stated}, the content has {actual[: len(stated)]}"
        )
