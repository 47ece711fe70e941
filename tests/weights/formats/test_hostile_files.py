"""Hostile weights files: every one is refused in one line, at once, and nothing large is made of it."""

import resource
import socket
import time

import pytest
import torch

from focaldet.errors import CheckpointError
from focaldet.models import build
from focaldet.weights import load_detector, load_into, read_tensors, save_detector
from tests import hostile

MOST_SECONDS, MOST_KB = 5.0, 300_000


@pytest.fixture(autouse=True)
def nothing_is_asked_of_the_network(monkeypatch):
    """The blocked network of the tests would say no; here not even the question may be asked."""

    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def refusal(path) -> str:
    """The line with which a file is refused, in little time and memory."""
    memory, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_detector(path)
    assert time.process_time() - begin < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_KB
    message = str(caught.value)
    assert len(message) <= 2000
    assert message.isprintable()
    return message


SAMPLES = {
    f"{kind}: {name}": sample
    for kind, table in (("names", hostile.NAMES), ("claims", hostile.JUDGED), ("ranges", hostile.RANGES))
    for name, sample in table.items()
} | hostile.STRANGE_WEIGHTS


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, sample):
    write, message = SAMPLES[sample]
    import re

    assert re.search(message, refusal(write(tmp_path)))


@pytest.mark.parametrize("old", [False, True])
def test_what_torch_writes_is_read_as_before(tmp_path, old):
    """The judge lets everything pass that programs write: views, shared storages, counters, half precision."""
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "a": base,
        "b": base.T,
        "c": base[1:],
        "d": torch.tensor(3),
        "e": torch.ones(2).half(),
        "f": torch.zeros(0),
    }
    optimizer = {"state": {0: {"step": 1, "exp_avg": base}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    content = {"state_dict": tensors, "optimizer": optimizer, "epoch": 3, "size": base.shape, "type": torch.float16}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    read = read_tensors(tmp_path / "w.pth").tensors
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


@pytest.fixture(scope="module")
def detector():
    return build("yolov2_tiny", num_classes=2)


@pytest.mark.parametrize(
    ("end", "value", "message"),
    [
        ("conv.weight", float("nan"), "has NaN"),
        ("conv.weight", float("inf"), "has infinite numbers"),
        ("running_var", -0.5, "has a negative variance"),
        ("predict.bias", float("-inf"), "has infinite numbers"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, detector, end, value, message):
    state = detector.state_dict()
    name = next(name for name in state if name.endswith(end))
    kept = state[name].clone()
    state[name].view(-1)[0] = value
    save_detector(tmp_path / "w.safetensors", detector)
    state[name].copy_(kept)
    assert f"{name}: {message}" in refusal(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_into(build("yolov2_tiny", num_classes=2), tmp_path / "w.safetensors")
    assert load_detector(tmp_path / "w.safetensors", allow_nonfinite=True).detector.config == detector.config


def test_a_number_too_large_for_its_type_is_refused(tmp_path, detector):
    tensors = {
        name: value.double() if value.is_floating_point() else value for name, value in detector.state_dict().items()
    }
    name = next(iter(tensors))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = 1e300
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=f"{name}: has infinite numbers"):
        load_detector(tmp_path / "w.pth")


def test_a_detector_that_does_not_fit_gives_the_estimate(tmp_path, detector, monkeypatch):
    monkeypatch.setattr("focaldet.weights.tensor_names.total_memory", lambda _: 1_000_000)
    save_detector(tmp_path / "w.safetensors", detector)
    assert "this machine has 0.0 GB" in refusal(tmp_path / "w.safetensors")
