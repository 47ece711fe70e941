"""How fast and how good a detector is in every format that is installed here, measured turn by turn."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from focaldet.data.config import DataConfig
from focaldet.errors import CheckpointError, ConfigError
from focaldet.evaluation.evaluate import open_loader
from focaldet.evaluation.inference import InferenceOptions, detect_batch
from focaldet.export.export import FORMAT_SUFFIXES, Format, Writer, convert_all, detect, measure_ap, open_trained
from focaldet.export.images import ExportImages, open_export_images
from focaldet.export.metadata import describe_export
from focaldet.export.proof import ExportPrecision
from focaldet.models import Detector
from focaldet.runtime import Process, Progress, pick_precision
from focaldet.types import Batch
from focaldet.weights import Metadata, load_detector
from focaldet.weights.exported.graphs import summarize_error

ROUNDS = 5
VARIANTS: tuple[tuple[Format, ExportPrecision], ...] = (
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("openvino", "int8"),
    ("torch", "fp32"),
)


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One format: its AP in [0, 1] (None without data), and milliseconds per image (median of the rounds).

    Times are of the network and everything behind it, one image at a time, without reading and resizing. `note` says
    why a format was not measured.
    """

    name: str
    ap: float | None = None
    milliseconds_per_image: float | None = None
    note: str = ""


def benchmark(
    run: str | Path,
    *,
    data: DataConfig | str | Path | None = None,
    split: str = "val",
    rounds: int = ROUNDS,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    progress: Progress | None = None,
) -> list[BenchmarkRow]:
    """A row for the detector in torch, then for each format and precision; all take turns on the same images.

    Args:
        run: a run folder, a weights file, or a name.
        data: images with boxes, on which the AP is measured; without it the images of the run's own data, else
            embedded ones, are only timed.
        split: of the data.
        rounds: how often everything is timed.
        options: as of `export_detector`.
        progress: called with rounds done and to do.

    Raises:
        ConfigError: a setting out of range, an exported file, or several processes.
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
    """
    if rounds < 1:
        raise ConfigError(f"rounds: must be at least 1, got {rounds}")
    trained, is_changed = open_trained(run, options, purpose="benchmarked")
    detector = trained.detector
    images = open_export_images(run, detector, data=data, split=split)
    batches = {detector.preprocessing.size_divisor: _open_batches(detector, images)}
    files, rows = {"torch, eager": detector}, {}
    with tempfile.TemporaryDirectory(prefix="focaldet-") as folder:
        for (kind, precision), write in convert_all(detector, images, VARIANTS):
            name = f"{kind} {precision}" if kind != "torch" else "torch.export fp32"
            path = Path(folder) / f"{precision}{FORMAT_SUFFIXES[kind]}"
            about = describe_export(trained, detector, run, format=kind, precision=precision, is_changed=is_changed)
            try:
                exported = _open_file(write, path, about)
                if (divisor := exported.preprocessing.size_divisor) not in batches:
                    batches[divisor] = _open_batches(exported, images)
                _time(exported, batches[divisor][:1])
                files[name] = exported
            except (ConfigError, CheckpointError) as error:
                rows[name] = BenchmarkRow(name, note=str(error))
            except RuntimeError as error:  # of the library that runs the file
                rows[name] = BenchmarkRow(name, note=summarize_error(error))
        times = time_in_turns(files, batches, rounds=rounds, progress=progress)
        for name, each in files.items():
            rows[name] = BenchmarkRow(name, _ap(each, images), times[name])
    return sorted(rows.values(), key=lambda row: row.milliseconds_per_image or float("inf"))


def time_in_turns(
    detectors: Mapping[str, Detector],
    batches: Mapping[int, list[Batch]],
    *,
    rounds: int,
    progress: Progress | None,
) -> dict[str, float]:
    """Milliseconds per image of each, the median of rounds in which all run one after the other; one round warms up.

    `batches` are the images by the number of pixels that they are padded to multiples of; each detector gets its own.
    """
    spent: dict[str, list[float]] = {name: [] for name in detectors}
    for number in range(rounds + 1):
        for name, detector in detectors.items():
            spent[name].append(_time(detector, batches[detector.preprocessing.size_divisor]))
        if progress is not None:
            progress(number, rounds)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def _open_file(write: Writer | ConfigError, path: Path, about: Metadata) -> Detector:
    """The detector of the file that `write` makes; an error instead of it is raised."""
    if isinstance(write, ConfigError):
        raise write
    write(path, about, None)
    return load_detector(path).detector


def _open_batches(detector: Detector, images: ExportImages) -> list[Batch]:
    """The images to compare on, each a batch."""
    ranks, options = Process(0, 1, torch.device("cpu")), InferenceOptions(batch_size=1)
    return list(open_loader(detector, images.proof, options=options, ranks=ranks).epoch(0))


def _time(detector: Detector, batches: list[Batch]) -> float:
    precision = pick_precision("fp32", device=detector.device)
    begin = time.perf_counter()
    for batch in batches:
        sizes, originals = batch.sizes, batch.original_sizes
        detect_batch(detector, batch.images, sizes=sizes, original_sizes=originals, precision=precision)
    return 1e3 * (time.perf_counter() - begin) / len(batches)


def _ap(detector: Detector, images: ExportImages) -> float | None:
    if images.labeled is None or images.class_match is None:
        return None
    return measure_ap(detect(detector, images.labeled), images.labeled, images.class_match)
