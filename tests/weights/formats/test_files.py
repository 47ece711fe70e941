"""Reading tensors of any file without running it, and writing that outlives a crash."""

import argparse
import json
import os
import pickle
import random
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save, save_file

from focaldet.errors import CheckpointError
from focaldet.weights.formats.files import read_tensors, write_atomically

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5])}


def equal(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        OrderedDict(TENSORS),
        {"model": TENSORS, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        {"state_dict": OrderedDict(TENSORS), "meta": {"version": "1"}, "optimizer": {"state": {0: torch.ones(9)}}},
        {f"module.{name}": tensor for name, tensor in TENSORS.items()},
    ],
    ids=["plain", "ordered", "torchvision training script", "state_dict", "distributed"],
)
@pytest.mark.parametrize("old_format", [False, True])
def test_pickles_of_tensors_are_unwrapped(tmp_path: Path, content: object, old_format: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    file = read_tensors(path)
    assert equal(file.tensors)
    assert file.statements == {}


@pytest.mark.parametrize(
    ("meta", "classes"),
    [
        ({"CLASSES": ("cat", "dog")}, ["cat", "dog"]),
        ({"dataset_meta": {"classes": ["cat"], "palette": [(1, 2, 3)]}, "CLASSES": ("older",)}, ["cat"]),
        ({"dataset_meta": {"CLASSES": ("cat",)}}, ["cat"]),
        ({"CLASSES": None}, None),
        ({"CLASSES": ("cat", 3)}, None),
        ({"CLASSES": ("혈소판", "ca\x1b[2Jt")}, None),
        ({"CLASSES": ("cat", "\udc80")}, None),
        ({"CLASSES": ("혈소판", "a dog")}, ["혈소판", "a dog"]),
        ({"CLASSES": ["a" * 1000] * 101}, None),
        ("no mapping", None),
    ],
)
def test_what_mmdetection_states(tmp_path: Path, meta: Any, classes: list[str] | None) -> None:
    if isinstance(meta, dict):
        meta |= {"mmdet_version": "2.3.0", "config": "model = dict(type='RetinaNet')\n", "epoch": 12}
    torch.save({"state_dict": TENSORS, "meta": meta}, tmp_path / "w.pth")
    file = read_tensors(tmp_path / "w.pth")
    assert equal(file.tensors)
    stated: dict[str, Any] = {"mmdet_version": "2.3.0", "config": "model = dict(type='RetinaNet')\n"}
    expected = stated | ({"classes": classes} if classes else {})
    assert json.loads(file.statements.get("meta", "{}")) == (expected if isinstance(meta, dict) else {})


@pytest.mark.parametrize("length_byte", range(0, 256, 8))
def test_safetensors_are_told_by_content_whatever_their_name_and_first_byte(tmp_path: Path, length_byte: int) -> None:
    # The header's length is the file's first byte; 0x50 ("P") and 0x80 also open zip archives and pickles.
    path = tmp_path / "misnamed.pth"
    for filler in range(0, 264, 8):
        save_file(TENSORS, path, metadata={"input": "x/255, RGB", "filler": "." * filler})
        if path.read_bytes()[0] == length_byte:
            break
    assert path.read_bytes()[0] == length_byte
    file = read_tensors(path)
    assert equal(file.tensors)
    assert file.statements["input"] == "x/255, RGB"


class Malicious:
    """Unpickling this runs a command that creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("writer", ["torch", "torch, old format", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    trace, path = tmp_path / "executed", tmp_path / "weights.pth"
    content = {"model": TENSORS, "extra": Malicious(trace)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError, match=r"weights.pth: refused: it holds code \(\w+\.system\)") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    # The corpus is dangerous indeed: an unrestricted reader does run it.
    if writer != "pickle":
        torch.load(path, weights_only=False)
        assert trace.exists()


def damaged() -> dict[str, bytes]:
    whole = save(TENSORS)
    return {
        "empty": b"",
        "short": b"\x01\x02",
        "html": b"<!doctype html><title>404</title>" * 9,
        "truncated data": whole[:-5],
        "truncated header": whole[:30],
        "trailing bytes": whole + b"0000",
        "huge header": struct.pack("<Q", 1 << 60) + b"{}",
        "no json": struct.pack("<Q", 8) + b"{nothing",
        "not utf-8": struct.pack("<Q", 4) + b"{\xff\xff}",
        "deep nesting": struct.pack("<Q", 100_001) + b"{" + b'"a":[' * 20_000,
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle start": b"\x80\x02" + bytes(40),
        "newer pickle": pickle.dumps({"a": 1}, protocol=5),
        "zeros": bytes(500),
    }


@pytest.mark.parametrize("kind", damaged())
def test_damaged_files_give_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(damaged()[kind])
    with pytest.raises(CheckpointError, match=r"weights\.bin: ") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": 3}, {1: torch.zeros(1)}, torch.zeros(3)], ids=str)
def test_pickles_of_something_else_are_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: .*must"):
        read_tensors(tmp_path / "other.pth")


def test_truncated_pickle(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-300])
    with pytest.raises(CheckpointError, match="refused: damaged"):
        read_tensors(tmp_path / "w.pth")


def test_random_damage_of_an_archive_of_arrays(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "w.npz", weight=numpy.arange(4.0))
    whole, rng = (tmp_path / "w.npz").read_bytes(), random.Random(3)
    refused = 0
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 4))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "w.npz").write_bytes(content)
        try:
            read_tensors(tmp_path / "w.npz")
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_an_archive_that_wants_a_newer_reader(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "w.npz", weight=numpy.arange(4.0))
    content = (tmp_path / "w.npz").read_bytes()
    index = content.index(b"PK\x01\x02") + 6  # of the version that is needed to extract
    (tmp_path / "w.npz").write_bytes(content[:index] + b"\xff" + content[index + 1 :])
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(tmp_path / "w.npz")


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.zeros(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_that_cannot_be_copied(tmp_path: Path, odd: torch.Tensor) -> None:
    torch.save({"a.weight": torch.zeros(3), "a.bias": odd}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth: a\.bias: must be a plain tensor"):
        read_tensors(tmp_path / "w.pth")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth: cannot be read: No such file"):
        read_tensors(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_tensors(tmp_path)


def test_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "w.safetensors"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_content_is_on_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append(f"replace {to.name}"), replace(self, to))[1])
    write_atomically(tmp_path / "w", b"content")
    assert events == ["fsync", "replace w", "fsync"]


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device; .* intact"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "w", b"new")
