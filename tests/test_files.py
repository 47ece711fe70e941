"""Reading only what is a file, and writing whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from focaldet import files


def make(kind: str, folder: Path) -> Path:
    path = folder / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "is a pipe, not a file"),
        ("folder", "Is a directory"),
        ("link to a device", "is a device, not a file"),
        ("nothing", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("read", [files.read_bytes, files.read_utf8, files.require_plain])
def test_only_plain_files_are_read(tmp_path, kind, reason, read):
    path = make(kind, tmp_path)
    with pytest.raises(OSError, match=reason) as caught:
        read(path)
    assert caught.value.filename in (str(path), path)


@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_no_file_takes_the_place_of_a_pipe_or_device(tmp_path, kind):
    path = make(kind, tmp_path)
    with pytest.raises(OSError, match=r"is a (pipe|device), not a file"):
        files.write_bytes(path, b"x")
    assert not path.is_file() and path.exists() and list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(OSError, match="has 1,000,000,000,000 bytes, allowed are 5"):
        files.read_bytes(path, most=5)


@pytest.mark.parametrize("step", ["replace", "open"])
def test_a_file_is_written_whole_or_stays(tmp_path, monkeypatch, step):
    path = tmp_path / "x.json"
    files.write_json(path, [1])

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, step, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_text(path, "new")
    monkeypatch.undo()
    assert caught.value.filename == str(path)
    assert path.read_text() == "[\n 1\n]\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_a_growing_file_takes_any_name(tmp_path):
    with files.open_growing(tmp_path / "log") as file:
        file.write("\udcff\n")
        assert (tmp_path / "log").read_text() == "\\udcff\n"
