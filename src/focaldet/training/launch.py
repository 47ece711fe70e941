"""How a run computes: precision, seeds, threads, and the advice when memory runs out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from focaldet.config import NO_SPACE
from focaldet.errors import CheckpointError, OutOfMemoryError
from focaldet.runtime import is_out_of_memory
from focaldet.training.config import RunConfig


@contextmanager
def global_settings(config: RunConfig) -> Iterator[None]:
    """Threads and determinism as `config` wants them, as they were afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def advice(config: RunConfig) -> Iterator[None]:
    """Turn a want of memory or of disk space into an error that says what helps.

    Raises:
        OutOfMemoryError: the device or the machine has no memory left.
        CheckpointError: the disk is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory with {config.batch_size} images per update: try accumulate={config.accumulate * 2} "
            "(the same update in smaller parts), a smaller size, a smaller batch_size, or precision=bf16"
        ) from error
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise CheckpointError(
            f"{error.filename or config.out}: no space left on the disk; the state saved before is intact: make room, "
            "then go on with --resume"
        ) from error
