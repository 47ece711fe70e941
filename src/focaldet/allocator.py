"""How the C library hands out memory. By itself glibc gives what is freed back to the system and asks for it again."""

import ctypes
import os
import sys
from collections.abc import Mapping

# Of mallopt(3): how much may lie free before it goes back to the system, and from what size on memory is the system's.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3

KEPT_BYTES = 1 << 30
LEAST_BYTES = 32 << 20  # where the library takes no more

VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep memory that it frees, up to 1 GiB, for what it needs next; whether that holds now.

    A network frees its maps and asks for as much again, image after image. Each time the system has to hand out the
    pages anew, filled with zeros: a fifth of what Faster R-CNN takes for an image on a CPU, a tenth of a training step.
    Processes that are forked inherit the setting.

    It concerns all of the process, so only a program's own main may call it, as the command `focaldet` does. Without
    glibc, and where `environment` sets it already, nothing is done.
    """
    if sys.platform != "linux" or any(environment.get(name) for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return any(mallopt(MMAP_THRESHOLD, size) for size in (KEPT_BYTES, LEAST_BYTES)) and bool(
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
    )
