"""What every benchmark shares: interleaved timing, and results that say on which machine and with which versions."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "lightning-fabric", "hotcoco", "numpy")


def interleaved(
    forms: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """Seconds of each form, A/B/A/B…: shared machines drift, so only times of one interleaved run compare."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(warmup + rounds):
        for name, form in forms.items():
            start = clock()
            form()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return {
        name: {"min": min(taken), "median": statistics.median(taken), "rounds": taken}
        for name, taken in seconds.items()
    }


def wait_for_device(form: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`form`, followed by a wait until a GPU has computed it."""

    def run() -> None:
        form()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def environment() -> dict[str, Any]:
    """Machine, versions and commit, without the name of the host."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_result(name: str, values: Mapping[str, Any], *, folder: Path | None = None) -> Path:
    """Write `values` with the environment as `<name>.json` and return its path."""
    path = (folder or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**values, "environment": environment()}, indent=2) + "\n")
    return path


def _version(package: str) -> str | None:
    """None where the package is not installed: not every benchmark needs all of them."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
