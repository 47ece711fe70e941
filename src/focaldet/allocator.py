"""How the C library hands out memory. By itself glibc gives what is freed back to the system and asks for it again."""

import ctypes
import os
import sys
from collections.abc import Mapping

# Of mallopt(3): how much may lie free at the end before it goes back, and from what size on each block is the system's.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3

KEPT_BYTES = 1 << 30
LEAST_BYTES = 32 << 20  # where the library takes no more

_state = {"is_kept": False}

VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep memory that it frees for what it needs next; whether the C library accepted that.

    A network frees its maps and asks for as much again, image after image. Each time the system has to hand out the
    pages anew, filled with zeros. What lies free at the end of the heap goes back from 1 GiB on; what is free between
    blocks in use stays. Processes that are forked inherit the setting.

    It concerns all of the process, so only a program's own main may call it, as the command `focaldet` does. Without
    glibc, and where `environment` sets it already, nothing is done.
    """
    if sys.platform != "linux" or any(environment.get(name) for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    is_large = any(mallopt(MMAP_THRESHOLD, size) for size in (KEPT_BYTES, LEAST_BYTES))
    _state["is_kept"] = is_large and bool(mallopt(TRIM_THRESHOLD, KEPT_BYTES))
    return _state["is_kept"]


def freed_memory() -> str:
    """What this process does with memory that it frees, for a record of how a time was measured."""
    if any(os.environ.get(name) for name in VARIABLES):
        return "as the environment says"
    return "kept" if _state["is_kept"] else "given back"
