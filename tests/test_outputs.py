"""What belongs to a call: the next one removes that and nothing else."""

import json

import pytest

from focaldet.outputs import MANIFEST, begin_call, earlier_call


def write(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def present(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST}


def test_the_files_of_the_call_before_are_replaced_and_no_others(tmp_path):
    assert begin_call(tmp_path, "predict", ["a.jpg", "labels/a.txt", "p.json"]) is None
    write(tmp_path, ["a.jpg", "labels/a.txt", "own.jpg"])
    before = begin_call(tmp_path, "eval", ["metrics.json"], keep={tmp_path / "own.jpg"})
    assert str(before) == "replaces the 2 files of an earlier predict"
    assert present(tmp_path) == {"own.jpg"}
    write(tmp_path, ["metrics.json"])
    assert str(earlier_call(tmp_path)) == "replaces the file of an earlier eval"


def test_an_image_of_the_call_stays(tmp_path):
    begin_call(tmp_path, "predict", ["a.jpg"])
    write(tmp_path, ["a.jpg"])
    assert begin_call(tmp_path, "predict", ["a.jpg"], keep={tmp_path / "a.jpg"}) is None
    assert present(tmp_path) == {"a.jpg"}


@pytest.mark.parametrize(
    "listed",
    [
        ["../outside.jpg"],
        ["/etc/passwd.txt"],
        ["link/outside.jpg"],
        ["script.py"],
        ["\0.jpg"],
        [7, None],
        "outside.jpg",
        {"outside.jpg": 1},
        None,
    ],
)
def test_a_strange_list_removes_nothing(tmp_path, listed):
    folder = tmp_path / "out"
    write(tmp_path, ["outside.jpg", "out/script.py", "out/outside.jpg"])
    (folder / "link").symlink_to(tmp_path)
    (folder / MANIFEST).write_text(json.dumps({"command": "predict", "files": listed}))
    before = present(tmp_path)
    if listed == {"outside.jpg": 1}:  # read as its keys, which name a file of results
        before -= {"out/outside.jpg"}
    begin_call(folder, "eval", [])
    assert present(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"command": 1}'])
def test_a_damaged_list_is_no_list(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    assert earlier_call(tmp_path) is None
