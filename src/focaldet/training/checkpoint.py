"""The file from which a run is resumed after it was stopped or killed.

`state/last/checkpoint.pt` is replaced as a whole (temporary file, flush, fsync, rename, fsync of the folder): whenever
the process dies, the old state or the new one is there. What follows from the seed and the step is not stored:
learning rate, order and changes of the images, and the random generators, which are seeded before every step.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from focaldet.errors import CheckpointError
from focaldet.weights.formats.files import write_atomically
from focaldet.weights.formats.torch_files import judge_file

STATE_FORMAT = 1


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the state at `path`.

    Raises:
        CheckpointError: it cannot be written; what was at `path` is still there.
    """
    buffer = io.BytesIO()
    torch.save({"format": STATE_FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, *, device: torch.device) -> dict[str, Any]:
    """The state that `save_state` wrote.

    Raises:
        CheckpointError: the file is damaged or from another version of focaldet.
    """
    try:
        judge_file(path)
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    # The restricted unpickler raises whatever the bytes of a strange file lead it to.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{path}: was not written by this version of focaldet")
    return state
