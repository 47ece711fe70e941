"""How long trained detectors take for an image: fair between detectors, and split into its parts.

All detectors take turns on the same images, round after round, so that what else the machine does meets all of them.
Nothing is left out but the first round, which warms up.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch.utils.flop_counter import FlopCounterMode

from focaldet.data.augment.geometry import resize_image
from focaldet.data.images import read_reduced
from focaldet.data.loading.collate import pad_images
from focaldet.evaluation.inference import to_original
from focaldet.prediction import Predictor, load
from focaldet.runtime import autocast
from focaldet.types import ImageSize

IMAGE_PARTS = ("decode", "resize", "forward", "postprocess")
PEAK_MEMORY = """
import resource, sys, torch
torch.set_num_threads(int(sys.argv[3]))
import focaldet
predictor = focaldet.load(sys.argv[1], batch_size=1, device=sys.argv[4])
for _ in range(2):
    predictor(sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(torch.cuda.max_memory_allocated() if predictor.device.type == "cuda" else peak)
"""


class Spread(NamedTuple):
    """Median, 10th and 90th percentile and number of measurements, in milliseconds or images per second."""

    median: float
    p10: float
    p90: float
    num_values: int


@dataclass(frozen=True, slots=True)
class DetectorTiming:
    """What one detector costs.

    Attributes:
        total: milliseconds from the image file to its boxes, one image at a time.
        parts: the same for each of `IMAGE_PARTS`.
        throughput: images per second in batches, reading included.
        parameters: numbers that are trained or fixed, BatchNorm's statistics not counted.
        gflop: billions of floating-point operations of the network for an image, a multiplication and an addition
            counted as two; operations outside convolutions and matrix products do not count. None for results of other
            programs, and so are the others below.
        memory_mb: largest memory of a process that runs the detector on one image; on a GPU what torch has taken there.
        input: height and width in pixels that the network sees of the first image.
    """

    total: Spread
    parts: dict[str, Spread]
    throughput: Spread | None = None
    parameters: int | None = None
    gflop: float | None = None
    memory_mb: float | None = None
    input: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class TimingReport:
    """The timings by detector, and the machine that they were taken on.

    `load_before` and `load_after` are the mean numbers of running processes of the last minute, this one included.
    """

    detectors: dict[str, DetectorTiming]
    machine: dict[str, str]
    threads: int
    rounds: int
    images: int
    batch_size: int
    load_before: float | None
    load_after: float | None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing else seems to have run: the load is not above the threads of the measurement."""
        return self.load_after is None or self.load_after <= max(1, self.threads) + 0.5


def time_detectors(
    runs: Mapping[str, Path],
    images: Sequence[Path],
    *,
    rounds: int,
    batch_size: int,
    device: str | None = None,
    precision: Any = None,
    log: Callable[[str], None] = lambda _: None,
) -> TimingReport:
    """Measure every detector on the same images, in rounds that go through all of them.

    Args:
        runs: the run folder of each detector.
        images: files to run them on.
        rounds: how often, after a first time that does not count.
        batch_size: images per batch for the throughput.
        device: as in `focaldet.load`.
        precision: as in `focaldet.load`.
        log: called with a line after each round.

    Raises:
        DataError: an image cannot be read.
        CheckpointError: weights that are missing or damaged.
    """
    predictors = {name: load(run, device=device, precision=precision) for name, run in runs.items()}
    load_before = _load_average()
    steps: dict[str, list[list[float]]] = {name: [] for name in runs}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, predictor in predictors.items():
            laps = [time_image(predictor, path) for path in images]
            rate = _time_batches(predictor, images, batch_size=batch_size)
            if number:
                steps[name] += laps
                rates[name].append(rate)
        log(f"time: round {number} of {rounds}" if number else "time: warmed up")
    load_after = _load_average()
    timings = {
        name: DetectorTiming(
            total=_quantiles([1e3 * sum(lap) for lap in steps[name]]),
            parts={
                part: _quantiles([1e3 * lap[index] for lap in steps[name]]) for index, part in enumerate(IMAGE_PARTS)
            },
            throughput=_quantiles(rates[name]),
            parameters=sum(parameter.numel() for parameter in predictor.detector.parameters()),
            gflop=count_gflop(predictor, images[0]),
            memory_mb=measure_peak_memory(runs[name], images[0], device=device),
            input=_input_size(predictor, images[0]),
        )
        for name, predictor in predictors.items()
    }
    threads = torch.get_num_threads()
    machine = describe_machine(next(iter(predictors.values())) if predictors else None)
    return TimingReport(timings, machine, threads, rounds, len(images), batch_size, load_before, load_after)


def time_image(predictor: Predictor, path: Path) -> list[float]:
    """Seconds of each of `IMAGE_PARTS` for one image from its file to its boxes."""
    detector, device, laps = predictor.detector, predictor.device, [time.perf_counter()]
    resize = detector.preprocessing.resize
    pixels, original = read_reduced(path, least_px=resize.size)
    laps.append(time.perf_counter())
    resized = resize_image(pixels, resize, original=original)
    size = ImageSize(*resized.shape[1:])
    batch = pad_images([resized], preprocessing=detector.preprocessing)
    laps.append(time.perf_counter())
    with torch.no_grad():
        batch = batch.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(device, predictor.precision):
            outputs = detector(batch, [size])
        _wait_for(device)
        laps.append(time.perf_counter())
        (detections,) = detector.detect(outputs, [size])
    to_original(detections.cpu(), resize, size=size, original=original)
    laps.append(time.perf_counter())
    return numpy.diff(laps).tolist()


def _time_batches(predictor: Predictor, images: Sequence[Path], *, batch_size: int) -> float:
    """Images per second through `Predictor.predict`, which reads with threads while the network works."""
    begin = time.perf_counter()
    predictor.predict(list(images), batch_size=batch_size)
    return len(images) / (time.perf_counter() - begin)


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _input_size(predictor: Predictor, path: Path) -> tuple[int, int]:
    preprocessing = predictor.detector.preprocessing
    return tuple(preprocessing.padded_size(preprocessing.resize.target(read_reduced(path)[1])))  # type: ignore[return-value]


def count_gflop(predictor: Predictor, path: Path) -> float:
    """Billions of floating-point operations of the network for one image (`torch.utils.flop_counter`)."""
    counter = FlopCounterMode(display=False)
    with counter:
        time_image(predictor, path)
    return float(counter.get_total_flops()) / 1e9


def measure_peak_memory(run: Path, image: Path, *, device: str | None) -> float | None:
    """Megabytes that a process takes at most that loads a run and looks at one image twice; None where it fails."""
    words = [str(run), str(image), str(torch.get_num_threads()), device or "cuda" * torch.cuda.is_available() or "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, *words], capture_output=True, text=True, check=False, timeout=600
    )
    return float(done.stdout.split()[-1]) / 1e6 if done.returncode == 0 and done.stdout else None


def _quantiles(values: Sequence[float]) -> Spread:
    p10, median, p90 = numpy.quantile(values, [0.1, 0.5, 0.9]).tolist()
    return Spread(median, p10, p90, len(values))


def _load_average() -> float | None:
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
