"""The machine that times are measured on: what it is, how busy it is, and the memory that a detector takes there."""

import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from focaldet.allocator import freed_memory
from focaldet.prediction import Predictor
from focaldet.runtime import Precision
from focaldet.weights.exported.graphs import is_exported

PEAK_MEMORY_SECONDS = 600
PROBE_CHANNELS, PROBE_SIDE, PROBE_TIMES = 64, 192, 5
PROBE_MS = 5.0  # at least: what is shorter varies by itself
PEAK_MEMORY = """
import pathlib, resource, sys, torch
from focaldet.allocator import keep_freed_memory
if sys.argv[6] == "kept":
    keep_freed_memory()
torch.set_num_threads(int(sys.argv[3]))
import focaldet
predictor = focaldet.load(sys.argv[1], batch_size=1, device=sys.argv[4], precision=sys.argv[5] or None)
for _ in range(2):
    predictor(sys.argv[2])
status = pathlib.Path("/proc/self/status")
if status.exists():  # Linux passes the peak of the process that starts another on to its getrusage
    peak = 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(torch.cuda.max_memory_allocated() if predictor.device.type == "cuda" else peak)
"""


def pick_computing(
    path: Path, *, device: str | None, precision: Precision | None
) -> tuple[str | None, Precision | None]:
    """Device and precision to run a run folder with: those given; of an exported file, which fixes both, its own."""
    return ("cpu", None) if is_exported(path) else (device, precision)


def measure_peak_memory(
    run: Path, image: Path, *, device: str | None, precision: Precision | None = None
) -> float | None:
    """Megabytes that a process takes at most that loads a run and looks at one image twice; None where it fails."""
    device, precision = pick_computing(run, device=device, precision=precision)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    words = [str(run), str(image), str(torch.get_num_threads()), device, precision or "", freed_memory()]
    call = [sys.executable, "-c", PEAK_MEMORY, *words]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=PEAK_MEMORY_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    return float(done.stdout.split()[-1]) / 1e6 if done.returncode == 0 and done.stdout else None


class Probe:
    """A fixed piece of work, convolutions, whose time says how fast the machine is at the moment.

    The load does not say that of a virtual machine, whose processor others use too. Where one takes less than
    `PROBE_MS`, with many cores, as many as take that long are the piece of work.
    """

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.map = torch.randn(1, PROBE_CHANNELS, PROBE_SIDE, PROBE_SIDE, generator=draw)
        self.weight = torch.randn(PROBE_CHANNELS, PROBE_CHANNELS, 3, 3, generator=draw)
        self.repeats = 1
        self._time()  # the first takes longer
        self.repeats = math.ceil(PROBE_MS / min(self._time() for _ in range(PROBE_TIMES)))

    def __call__(self) -> float:
        """Milliseconds, the median of `PROBE_TIMES`."""
        return statistics.median(self._time() for _ in range(PROBE_TIMES))

    @torch.no_grad()
    def _time(self) -> float:
        begin = time.perf_counter()
        for _ in range(self.repeats):
            functional.conv2d(self.map, self.weight, padding=1)
        return 1e3 * (time.perf_counter() - begin)


def read_load() -> float | None:
    """Running processes, the mean of a minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe_machine(predictor: Predictor | None) -> dict[str, str]:
    """Processor, cores, system, versions, device and precision."""
    processor = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    machine = {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "focaldet": importlib.metadata.version("focaldet"),
    }
    if predictor is not None:
        machine |= {"device": str(predictor.device), "precision": predictor.precision}
        if predictor.device.type == "cuda":
            machine["gpu"] = torch.cuda.get_device_name(predictor.device)
    return machine
