"""How a run computes: precision, seeds, threads, and the advice when memory runs out."""

import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from focaldet.config import NO_SPACE
from focaldet.errors import CheckpointError, MemoryShortError
from focaldet.evaluate.inference import Precision, autocast, pick_precision
from focaldet.train.config import RunConfig


@dataclass(frozen=True, slots=True)
class Autocast:
    """The type of a network's products on a device; `scaler` keeps fp16 gradients from vanishing."""

    precision: Precision
    device: torch.device
    scaler: torch.amp.GradScaler | None

    def __call__(self) -> AbstractContextManager[Any]:
        """The context for `forward`."""
        return autocast(self.device, self.precision)


def build_autocast(precision: Precision | None, *, device: torch.device) -> Autocast:
    """The precision asked for, or bf16 where `device` multiplies in it natively and fp32 elsewhere."""
    chosen = pick_precision(precision, device=device)
    return Autocast(chosen, device, torch.amp.GradScaler(device.type) if chosen == "fp16" else None)


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and torch from `numbers`, for example (seed, step, rank).

    The engine does so before every step. The random state of a run is therefore its seed and its step: nothing else
    needs to be stored for a resumed run to draw the same dropout masks.
    """
    words = numpy.random.SeedSequence(numbers).generate_state(2, dtype=numpy.uint32)
    random.seed(int(words[0]))
    numpy.random.seed(int(words[0]))
    torch.manual_seed((int(words[0]) << 32) | int(words[1]))


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
        MemoryShortError: the device or the machine has no memory left.
        CheckpointError: the disk is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_short(error):
            raise
        raise MemoryShortError(
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


def is_memory_short(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or in the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return any(sign in text for sign in ("can't allocate memory", "not enough memory", "out of memory"))
