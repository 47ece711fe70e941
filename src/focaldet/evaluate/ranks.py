"""The processes that share an evaluation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import distributed


@runtime_checkable
class Ranks(Protocol):
    """What an evaluation must know of its processes; a `lightning.Fabric` is one."""

    @property
    def global_rank(self) -> int:
        """The place of this process, 0 … `world_size` − 1."""

    @property
    def world_size(self) -> int:
        """The number of processes."""


class Process(NamedTuple):
    """One process among those that were started together, and the device it computes on."""

    global_rank: int
    world_size: int
    device: torch.device


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Process]:
    """Join the processes that `torchrun` started, each with a GPU of its own if there are any; leave at the end.

    Without `torchrun` it is one process. A group that the caller has joined before is used and left joined.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if device.type == "cuda" and started > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    joining = started > 1 and not distributed.is_initialized()
    if joining:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(distributed.get_rank() if started > 1 else 0, started, device)
    finally:
        if joining:
            distributed.destroy_process_group()


def gathered(part: Any, *, num_ranks: int) -> list[Any]:
    """The parts of all processes, in their order, on each of them. Parts are pickled."""
    if num_ranks == 1:
        return [part]
    parts: list[Any] = [None] * num_ranks
    distributed.all_gather_object(parts, part)
    return parts
