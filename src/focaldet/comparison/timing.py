"""How long trained detectors take for an image: fair between detectors, and split into its parts.

All detectors take turns on the same images, round after round, so that what else the machine does meets all of them.
Nothing is left out but the first round, which warms up: the figure to compare by is the median of all others, slow ones
included. On a machine that is not quiet the fastest round of each image, which stands beside it, repeats better.
Each round reads the weights anew: where they happen to lie in memory can make a detector slow for as long as it lives.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch.utils.flop_counter import FlopCounterMode

from focaldet import config as configs
from focaldet.allocator import freed_memory
from focaldet.comparison.machine import (
    Probe,
    describe_machine,
    measure_peak_memory,
    pick_computing,
    read_load,
)
from focaldet.data.augment.geometry import resize_image
from focaldet.data.images import read_reduced
from focaldet.data.loading.collate import pad_images
from focaldet.errors import FocaldetError
from focaldet.evaluation.inference import to_original
from focaldet.files import write_json
from focaldet.prediction import Predictor, load
from focaldet.runtime import Precision, autocast
from focaldet.types import ImageSize

TIMING_RECORD = "timing.json"
THROUGHPUT_BATCHES = 2  # at least, so that images are read while the network works
KEPT_OPEN_S = 5.0  # what takes longer to open is opened once
STEADY = 1.25  # how much longer the same work may take in nine of ten cases than at its fastest
IMAGE_PARTS = ("decode", "resize", "forward", "postprocess")


class Spread(NamedTuple):
    """Median, 10th and 90th percentile and number of measurements, in milliseconds or images per second, and the best.

    `best` is the least of the rounds for each image, the median over the images; of images per second the highest.
    """

    median: float
    p10: float
    p90: float
    num_values: int
    best: float


@dataclass(frozen=True, slots=True)
class DetectorTiming:
    """What one detector costs.

    Attributes:
        total: milliseconds from the image file to its boxes, one image at a time.
        parts: the same for each of `IMAGE_PARTS`.
        throughput: images per second in batches, reading included.
        parameters: numbers that are trained or fixed, BatchNorm's statistics not counted.
        gflop: billions of floating-point operations of the network for an image, a multiplication and an addition
            counted as two; operations outside convolutions and matrix products do not count. None for exported files
            and for results of other programs.
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

    `load_before` and `load_after` are the mean numbers of running processes of the last minute, this one included;
    `probe` is what a fixed piece of work took the processor, beside each detector in each round; `reasons` say why a
    detector has no times.
    """

    detectors: dict[str, DetectorTiming]
    machine: dict[str, str]
    threads: int
    rounds: int
    images: int
    batch_size: int
    load_before: float | None
    load_after: float | None
    reasons: dict[str, str] = field(default_factory=dict)
    probe: Spread | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing else seems to have run: the load is not above the threads of the measurement, and the
        processor's speed was steady.
        """
        is_loaded = self.load_after is not None and self.load_after > max(1, self.threads) + 0.5
        return not is_loaded and (self.probe is None or self.probe.p90 <= STEADY * self.probe.best)


def time_detectors(
    runs: Mapping[str, Path],
    images: Sequence[Path],
    *,
    rounds: int,
    batch_size: int,
    device: str | None = None,
    precision: Precision | None = None,
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

    A detector that fails, for example for lack of memory, has its reason among `reasons` and no times.
    """
    load_before, reasons, laps = read_load(), dict[str, str](), {name: _Laps() for name in runs}
    opened, machine, probe = dict[str, Predictor](), describe_machine(None), Probe()
    with _fewer_objects():
        for number in range(rounds + 1):
            for name in [name for name in runs if name not in reasons]:
                with _leave_out(name, reasons, log):
                    predictor = _open(opened, runs[name], device=device, precision=precision)
                    if not laps[name].costs:
                        machine = describe_machine(predictor) | machine  # of the first where they differ
                        laps[name].costs = _count_costs(predictor, images[0])
                    predictor.predict(images[0])  # the first image takes longer, of whatever was just read
                    probe_ms, seconds = probe(), [time_image(predictor, path) for path in images]
                    rate = _time_batches(predictor, images, batch_size=batch_size)
                    if number:
                        laps[name].add(seconds, rate, probe_ms)
            log(f"time: round {number} of {rounds}" if number else "time: warmed up")
    load_after = read_load()
    timings = {}
    for name in [name for name in runs if name not in reasons]:
        with _leave_out(name, reasons, log):
            memory_mb = measure_peak_memory(runs[name], images[0], device=device, precision=precision)
            timings[name] = laps[name].sum_up(memory_mb)
    return TimingReport(
        timings,
        machine,
        threads=torch.get_num_threads(),
        rounds=rounds,
        images=len(images),
        batch_size=batch_size,
        load_before=load_before,
        load_after=load_after,
        reasons=reasons,
        probe=_join_probes(laps.values()),
    )


@contextmanager
def _fewer_objects() -> Iterator[None]:
    """Inside, what the program holds by now is not looked through for garbage, which would take longer each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(slots=True)
class _Laps:
    """What was measured of a detector, round after round: seconds by image and part, images per second, the probe.

    `costs` is what is the same in every round.
    """

    costs: dict[str, Any] = field(default_factory=dict)
    seconds: list[list[list[float]]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    probes_ms: list[float] = field(default_factory=list)

    def add(self, seconds: list[list[float]], rate: float, probe_ms: float) -> None:
        self.seconds.append(seconds)
        self.rates.append(rate)
        self.probes_ms.append(probe_ms)

    def sum_up(self, memory_mb: float | None) -> DetectorTiming:
        times = 1e3 * numpy.array(self.seconds)
        return DetectorTiming(
            total=_find_spread(times.sum(axis=2)),
            parts={part: _find_spread(times[:, :, index]) for index, part in enumerate(IMAGE_PARTS)},
            throughput=_find_spread(numpy.array(self.rates))._replace(best=max(self.rates)),
            memory_mb=memory_mb,
            **self.costs,
        )


def _join_probes(laps: Iterable[_Laps]) -> Spread | None:
    values = [value for each in laps for value in each.probes_ms]
    return _find_spread(numpy.array(values))._replace(best=min(values)) if values else None


@contextmanager
def _leave_out(name: str, reasons: dict[str, str], log: Callable[[str], None]) -> Iterator[None]:
    """Where a detector fails, write down why: the others are measured without it."""
    try:
        yield
    except (FocaldetError, RuntimeError, MemoryError, OSError) as error:
        reasons[name] = " ".join(str(error).split()) or type(error).__name__
        log(f"time: {name} is left out: {reasons[name]}")


def _open(opened: dict[str, Predictor], run: Path, *, device: str | None, precision: Precision | None) -> Predictor:
    """The detector, read anew; one that is slow to open (`.pt2` files: 15 s) is among `opened` and stays there."""
    if str(run) in opened:
        return opened[str(run)]
    begin = time.perf_counter()
    device, precision = pick_computing(run, device=device, precision=precision)
    predictor = load(run, device=device, precision=precision)
    if time.perf_counter() - begin > KEPT_OPEN_S:
        opened[str(run)] = predictor
    return predictor


def _count_costs(predictor: Predictor, path: Path) -> dict[str, Any]:
    """`parameters`, `gflop` and `input` of `DetectorTiming`."""
    return {
        "parameters": sum(parameter.numel() for parameter in predictor.detector.parameters()) or None,
        "gflop": count_gflop(predictor, path) or None,  # torch does not see into an exported file
        "input": _input_size(predictor, path),
    }


def measure_or_read(
    out: Path,
    runs: Mapping[str, Path],
    images: Sequence[Path],
    *,
    rounds: int,
    batch_size: int,
    device: str | None,
    precision: Precision | None,
    log: Callable[[str], None],
    marks: Mapping[str, str],
) -> TimingReport:
    """The times that `time_detectors` measures; those that an earlier call measured of the same are read from `out`.

    `marks` tell the weights of those runs apart that somebody else may replace.

    Raises:
        ConfigError: what an earlier call wrote is damaged.
    """
    key = {
        "runs": {name: [str(path), marks.get(name)] for name, path in runs.items()},
        "images": list(map(str, images)),
        "rounds": rounds,
        "batch": batch_size,
        "computing": [torch.get_num_threads(), device, precision],
        "numbers": list(Spread._fields),
        "weights": "read in each round",
        "freed memory": freed_memory(),
    }
    file = out / TIMING_RECORD
    saved = configs.read_mapping(file) if file.exists() else {}
    if saved.get("key") == key:
        return read_timing(saved["report"], source=str(file))
    report = time_detectors(
        runs, images, rounds=rounds, batch_size=batch_size, device=device, precision=precision, log=log
    )
    write_json(file, {"key": key, "report": configs.to_dict(report)})
    return report


def read_timing(values: Mapping[str, Any], *, source: str) -> TimingReport:
    """The report that was written as plain values."""
    timings = {
        name: configs.from_dict(DetectorTiming, each, source=source) for name, each in values["detectors"].items()
    }
    report = configs.from_dict(TimingReport, {**values, "detectors": {}}, source=source)
    return replace(report, detectors=timings)


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
    many = list(images) * math.ceil(THROUGHPUT_BATCHES * batch_size / len(images))
    begin = time.perf_counter()
    predictor.predict(many, batch_size=batch_size)
    return len(many) / (time.perf_counter() - begin)


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


def _find_spread(values: numpy.ndarray[Any, Any]) -> Spread:
    """The numbers of measurements by round and image."""
    p10, median, p90 = numpy.quantile(values, [0.1, 0.5, 0.9]).tolist()
    return Spread(median, p10, p90, values.size, best=float(numpy.median(values.min(axis=0))))
