"""Weights files of any program as named tensors, read without running anything; and writing that outlives a crash."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.files import open_plain, require_plain, to_json_text, write_bytes
from focaldet.text import printable
from focaldet.weights.formats.archives import ZIP_START, is_npz, read_npz
from focaldet.weights.formats.pickles import read_pickle
from focaldet.weights.formats.tensorflow_checkpoint import is_checkpoint_index, read_checkpoint
from focaldet.weights.formats.tensorflow_graph import is_graph, read_graph
from focaldet.weights.formats.torch_files import OLD_TORCH_START, read_torch

PICKLE_START = b"\x80"
WRAPPERS = ("model", "state_dict", "blobs")
"""Keys under which training programs put the weights, beside optimizer and schedule; the last is Detectron1's."""
STATED = ("__author__", "matching_heuristics")
"""What detectron2's model zoo states beside the weights."""
META = ("config", "cfg", "mmdet_version")
"""What mmdetection's files state below `meta`: the text of their settings, and which version made them."""
LONGEST_NAMES = 100_000
"""The most characters of all class names together that are read; a small file could repeat one name endlessly."""
MOMENTUM = "_momentum"
"""End of the names of the optimizer's state that Detectron1 keeps among the weights."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Named tensors and what their file states about itself.

    That is the metadata of safetensors; of the files of training programs `STATED`, and `meta`: a mapping in JSON of
    `META` and `classes`, as far as they are there; of a graph of TensorFlow what `read_graph` says.
    """

    tensors: dict[str, Tensor]
    statements: dict[str, str]

    @property
    def license(self) -> str | None:
        """What the file states as its license, under the name that version 0.1 had for it, too."""
        return self.statements.get("license") or self.statements.get("licence")


def read_tensors(path: Path) -> TensorFile:
    """The tensors of a file by safetensors, `torch.save`, `numpy.savez`, detectron2 or TensorFlow, by its content.

    A dictionary under `model`, `state_dict` or `blobs` is unwrapped and the prefix `module.` of distributed training
    removed. Optimizer and schedule are skipped, and so is the momentum that Detectron1 keeps among its blobs.

    Raises:
        CheckpointError: missing, damaged, or with anything but named tensors, such as code (which is never run).
    """
    start = _read_start(path)
    if not is_safetensors(path):
        if start.startswith(ZIP_START) and is_npz(path):
            return TensorFile(read_npz(path), {})
        if start.startswith((ZIP_START, OLD_TORCH_START)):
            return _extract_tensors(read_torch(path), path)
        if start.startswith(PICKLE_START) or path.suffix == ".pkl":
            return _extract_tensors(read_pickle(path), path)
        if is_graph(start):
            return TensorFile(*read_graph(path))
        if is_checkpoint_index(path):
            return TensorFile(read_checkpoint(path), {})
    with open_safetensors(path) as content:
        return TensorFile({name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {})  # noqa: SIM118


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """The opened file: header read and checked against the file's length, tensors still on disk.

    Raises:
        CheckpointError: missing, truncated, another kind of file, or a header that does not fit the file.
    """
    try:
        require_plain(path)
        with safe_open(path, framework="pt") as content:
            yield content
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(f"{path}: damaged, or no weights file: {reason}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write `path` so that at every moment, even after a crash, it has the whole old content or the whole new one.

    Raises:
        CheckpointError: nothing could be written (disk full, no permission); the old file is intact.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content, sync=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}; what was there before is intact") from None


def is_safetensors(path: Path) -> bool:
    """True for a file that begins as safetensors do."""
    # The first 8 bytes are a length, which may look like anything; the header then opens with a brace.
    return _read_start(path)[8:9] == b"{"


def _read_start(path: Path) -> bytes:
    try:
        with open_plain(path) as file:
            return file.read(len(OLD_TORCH_START))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _extract_tensors(content: Any, path: Path) -> TensorFile:
    """The mapping of names to tensors in what was unpickled, and what stands beside it in words."""
    inner = content
    if isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(inner, Mapping) or not inner:
        raise CheckpointError(f"{path}: must be tensors by name, got {type(inner).__name__}")
    tensors = {}
    for name, value in inner.items():
        tensor = torch.from_numpy(value) if isinstance(value, numpy.ndarray) else value
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {printable(name)}: must be a tensor, got {type(value).__name__}")
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {printable(name)}: must be a plain tensor, got one that is sparse or has no memory"
            )
        if not name.endswith(MOMENTUM):
            tensors[name] = tensor
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return TensorFile(tensors, {} if inner is content else _statements(content))


def _statements(content: Mapping[Any, Any]) -> dict[str, str]:
    """What stands beside the weights in words."""
    stated = {key: str(content[key]) for key in STATED if isinstance(content.get(key), str | bool)}
    meta = content["meta"] if isinstance(content.get("meta"), Mapping) else {}
    plain: dict[str, Any] = {key: meta[key] for key in META if isinstance(meta.get(key), str)}
    if names := _read_class_names(meta):
        plain["classes"] = names
    return stated | ({"meta": to_json_text(plain)} if plain else {})


def _read_class_names(meta: Mapping[Any, Any]) -> list[str]:
    """mmdetection's class names: `dataset_meta.classes` of its version 3, `CLASSES` of its version 2."""
    data = meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), Mapping) else {}
    candidates = ((data, "classes"), (data, "CLASSES"), (meta, "CLASSES"))
    names = next((part[key] for part, key in candidates if isinstance(part.get(key), list | tuple)), ())
    is_plain = all(isinstance(name, str) and name.isprintable() for name in names)
    return list(names) if is_plain and sum(map(len, names)) <= LONGEST_NAMES else []
