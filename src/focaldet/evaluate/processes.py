"""The processes that share a job: how many were started, how they join, and what each tells the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import distributed


@runtime_checkable
class Ranks(Protocol):
    """What a job must know of its processes; a `lightning.Fabric` is one."""

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


def num_processes() -> int:
    """The processes that `torchrun` or SLURM started for this job; 1 without them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    interactive = os.environ.get("SLURM_JOB_NAME") in (None, "bash", "interactive")
    return 1 if interactive else int(os.environ.get("SLURM_NTASKS", "1"))


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    return num_processes() == 1 or int(os.environ.get("RANK") or os.environ["SLURM_PROCID"]) == 0


def local_rank() -> int:
    """The place of this process among those on this machine, which decides its GPU."""
    return int(os.environ.get("LOCAL_RANK") or os.environ["SLURM_LOCALID"]) if num_processes() > 1 else 0


def launch(device: torch.device) -> Any:
    """A launched `lightning.fabric.Fabric` on devices of the kind of `device`, one process of all that were started."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    processes = num_processes()
    if processes == 1:
        devices = [device.index or 0] if device.type == "cuda" else 1
        fabric = Fabric(accelerator=device.type, devices=devices)
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or processes)
        strategy = DDPStrategy(gradient_as_bucket_view=True)
        fabric = Fabric(accelerator=device.type, devices=local, num_nodes=processes // local, strategy=strategy)
    fabric.launch()
    return fabric


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Process]:
    """Join the processes that were started together, each with a GPU of its own if there are any; leave at the end.

    Alone, nothing is joined. A group that the caller has joined before is used and left joined.
    """
    if num_processes() == 1:
        yield Process(0, 1, device)
        return
    joining = not distributed.is_initialized()
    if joining:
        device = launch(device).device
    try:
        yield Process(distributed.get_rank(), distributed.get_world_size(), device)
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
