"""Where and how the program computes: device, precision, the processes that share a job, and seeds."""

import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy
import torch
from torch import distributed, nn

from focaldet.cores import CoreWatch
from focaldet.errors import ConfigError
from focaldet.types import ImageSize

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Bytes per pixel of the input that the smallest detector takes at the least: pixels, and what a network makes of them.
INFERENCE_BYTES, TRAINING_BYTES = 25, 200

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int, int | None], None]
"""Called with how much of a job is done and how much there is; None where that is not known."""


# Device and precision


def pick_device(name: str | None) -> torch.device:
    """The device called `name`, such as cpu, cuda, cuda:1, mps or the number of a GPU; by default the best there is.

    Where several processes were started together, each takes the GPU of its local rank unless a number names another.

    Raises:
        ConfigError: no such device.
    """
    num_devices = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    name = name or next(kind for kind, number in num_devices.items() if number)
    kind, _, index = (f"cuda:{name}" if name.isdigit() else name).partition(":")
    if kind not in num_devices or (index and not index.isdigit()):
        many = "; several GPUs: torchrun --nproc-per-node N -m focaldet" if "," in name else ""
        raise ConfigError(f"device: {name!r} is unknown; allowed: cpu, cuda, cuda:0, cuda:1, …, mps{many}")
    if int(index or 0) >= num_devices[kind]:
        raise ConfigError(f"device: {name!r} is not there; this machine has {num_devices[kind]} of {kind!r}")
    if kind == "cuda" and not index and num_processes() > 1:
        return torch.device(kind, local_rank())
    return torch.device(f"{kind}:{index}" if index else kind)


def has_native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies in bf16 without emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def pick_precision(precision: Precision | None, *, device: torch.device) -> Precision:
    """`precision` if it is given; else bf16 where `device` multiplies in it natively and fp32 elsewhere."""
    return precision or ("bf16" if has_native_bf16(device) else "fp32")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The context in which torch computes a network's products in `precision`."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision])


@dataclass(frozen=True, slots=True)
class Autocast:
    """The precision of a training on a device; `scaler` keeps fp16 gradients from vanishing."""

    precision: Precision
    device: torch.device
    scaler: torch.amp.GradScaler | None

    def __call__(self) -> AbstractContextManager[Any]:
        """The context for `forward`."""
        return autocast(self.device, self.precision)


def build_autocast(precision: Precision | None, *, device: torch.device) -> Autocast:
    """The `Autocast` of `pick_precision(precision)`, with a gradient scaler for fp16."""
    picked = pick_precision(precision, device=device)
    return Autocast(picked, device, torch.amp.GradScaler(device.type) if picked == "fp16" else None)


@contextmanager
def eval_mode(detector: nn.Module) -> Iterator[None]:
    """Norm layers and dropout behave as at inference inside; every module has its own mode again afterwards."""
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# Processes that share a job


@runtime_checkable
class Ranks(Protocol):
    """What a job must know of its processes; a `lightning_fabric.Fabric` is one."""

    @property
    def global_rank(self) -> int:
        """The rank of this process, 0 … `world_size` − 1."""

    @property
    def world_size(self) -> int:
        """The number of processes."""


class Process(NamedTuple):
    """One process among those that were started together, and the device it computes on."""

    global_rank: int
    world_size: int
    device: torch.device


def num_processes() -> int:
    """The number of processes that `torchrun` or SLURM started for this job; 1 without them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    interactive = os.environ.get("SLURM_JOB_NAME") in (None, "bash", "interactive")
    return 1 if interactive else int(os.environ.get("SLURM_NTASKS", "1"))


def is_first_process() -> bool:
    """Whether this is the process of rank 0, which prints and writes for all."""
    return num_processes() == 1 or int(os.environ.get("RANK") or os.environ["SLURM_PROCID"]) == 0


def local_rank() -> int:
    """The rank of this process among those on this machine, which decides its GPU."""
    return int(os.environ.get("LOCAL_RANK") or os.environ["SLURM_LOCALID"]) if num_processes() > 1 else 0


def launch_fabric(device: torch.device) -> Any:
    """A launched `lightning_fabric.Fabric` on devices of the type of `device`, over all processes of the job."""
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

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
def join_processes(device: torch.device) -> Iterator[Process]:
    """Join the processes that were started together, each with a GPU of its own if there are any.

    A single process joins nothing. A group that was joined before is used, and none is left before the program ends:
    torchrun's store keeps what a group has written there, and a second one that finds it waits for ever.
    """
    if num_processes() == 1:
        yield Process(0, 1, device)
        return
    if not distributed.is_initialized():
        device = launch_fabric(device).device
    yield Process(distributed.get_rank(), distributed.get_world_size(), device)


def gather_objects(part: Any, *, num_ranks: int) -> list[Any]:
    """The parts of all processes, by rank, on each of them. Parts are pickled."""
    if num_ranks == 1:
        return [part]
    parts: list[Any] = [None] * num_ranks
    distributed.all_gather_object(parts, part)
    return parts


# Seeds, threads and memory


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, depth: int, num_threads: int
) -> Iterator[Result]:
    """`function` of every item in order, computed by threads for the next `depth` items while the caller is busy."""
    with ThreadPoolExecutor(num_threads, thread_name_prefix="focaldet-read") as pool:
        waiting = deque[Future[Result]]()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and torch from `numbers`, for example (seed, step, rank).

    Training does so before every step. The random state of a run is therefore its seed and its step: nothing else needs
    to be stored for a resumed run to draw the same dropout masks.
    """
    words = numpy.random.SeedSequence(numbers).generate_state(2, dtype=numpy.uint32)
    random.seed(int(words[0]))
    numpy.random.seed(int(words[0]))
    torch.manual_seed((int(words[0]) << 32) | int(words[1]))


@contextmanager
def torch_settings(*, threads: int | None, deterministic: bool) -> Iterator[None]:
    """Inside, torch computes with so many threads and refuses operations whose result differs from run to run."""
    threads_before, deterministic_before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(deterministic_before)


@dataclass
class CoreSharing:
    """To be called between two batches: torch then has fewer threads while other programs need the cores.

    `watch` is None where nothing is to be done. Where the number of threads is somebody's own (`is_fixed`) it stays,
    and `note` says in one line what would be faster, once that is known.
    """

    watch: CoreWatch | None
    is_fixed: bool = False
    note: str | None = None

    def __call__(self) -> None:
        """Look at the cores and act."""
        if self.watch is None or not self.watch.look():
            return
        if not self.is_fixed:
            torch.set_num_threads(self.watch.threads)
            return
        before, fewer, self.watch = torch.get_num_threads(), self.watch.threads, None
        waste = f"other programs use the cores, and {before} threads wait for each other"
        self.note = f"{waste}: OMP_NUM_THREADS={fewer} would be faster"


@contextmanager
def shared_cores(device: torch.device) -> Iterator[CoreSharing]:
    """Gives what is to be called between two batches; the number of threads of before holds again behind it.

    The number is fixed where it is somebody's own, by OMP_NUM_THREADS or because results must not vary, and nothing is
    done where the work is done on a GPU.
    """
    before = torch.get_num_threads()
    if device.type != "cpu":
        yield CoreSharing(None)
        return
    is_fixed = "OMP_NUM_THREADS" in os.environ or torch.are_deterministic_algorithms_enabled()
    watch = CoreWatch(before)
    try:
        if not is_fixed:
            torch.set_num_threads(watch.threads)
        yield CoreSharing(watch, is_fixed)
    finally:
        torch.set_num_threads(before)


def total_memory(device: torch.device) -> int | None:
    """The bytes that a GPU has, or the machine (or what its container may use of it); None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):  # no limit is written as "max"
            limits.append(int(file.read_text()))
    return min(limits)


def require_memory(num_images: int, size: ImageSize, *, device: torch.device, training: bool = False) -> None:
    """Refuse a batch of images of this size that cannot fit: what any detector keeps of it is more than there is.

    Raises:
        ConfigError: gives the size, the estimate and the memory.
    """
    needed = num_images * size.height * size.width * (TRAINING_BYTES if training else INFERENCE_BYTES)
    there = total_memory(device)
    if there is not None and needed > there:
        where = "the GPU" if device.type == "cuda" else "this machine"
        smaller = "a smaller size or batch_size, or more accumulate" if training else "a smaller size or batch_size"
        raise ConfigError(
            f"size: {num_images} × {size.width} × {size.height} px at once need at least {needed / 1e9:.0f} GB, "
            f"{where} has {there / 1e9:.0f} GB: take {smaller}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or in the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    signs = ("can't allocate memory", "not enough memory", "out of memory", "can't start new thread")
    return any(sign in text for sign in signs)


def is_lost_process(error: BaseException) -> bool:
    """Whether `error` says that another process of the group has ended or cannot be reached any more."""
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistBackendError):
        return True
    signs = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "Socket closed")
    return torch.distributed.is_initialized() and any(sign in str(error) for sign in signs)
