"""The saved state: it comes back, and survives whatever happens while the next one is written."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from focaldet.errors import CheckpointError
from focaldet.training.checkpoint import load_state, save_state

CPU = torch.device("cpu")


def test_state_comes_back(tmp_path):
    position = {"epoch": 2, "step": 31, "best": {"ap": 0.5, "per_class": [{"name": "red"}]}, "num_rows": 9}
    state = {"position": position, "weights": {"a": torch.randn(3)}, "ema": None}
    save_state(tmp_path / "checkpoint.pt", state)
    loaded = load_state(tmp_path / "checkpoint.pt", device=CPU)
    assert loaded["position"] == position
    assert torch.equal(loaded["weights"]["a"], state["weights"]["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "replace"), (None, "write")])
def test_full_disk_leaves_the_old_state(tmp_path, monkeypatch, owner, call):
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"weights": torch.ones(2)})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if owner is not None:
        monkeypatch.setattr(owner, call, full)
    else:  # the system itself cuts the file short
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot be written: .*before is intact"):
            save_state(path, {"weights": torch.zeros(4096)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    monkeypatch.undo()
    assert torch.equal(load_state(path, device=CPU)["weights"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"not a checkpoint"])
def test_damaged_state(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot be read"):
        load_state(tmp_path / "checkpoint.pt", device=CPU)


def test_state_that_is_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": 1, "weights": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "checkpoint.pt", device=CPU)
    assert not (tmp_path / "owned").exists()


def test_state_of_another_version(tmp_path):
    torch.save({"format": 0}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="not written by this version"):
        load_state(tmp_path / "checkpoint.pt", device=CPU)
