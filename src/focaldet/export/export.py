"""Export a trained detector: trace it, write the file, compare both on real images, keep or reject the file."""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from focaldet.config import make_folder
from focaldet.data.config import DataConfig
from focaldet.data.dataset import ImageSource
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.evaluate import ClassMatch, TimedDetections, detect_all, relabel_detections
from focaldet.evaluation.inference import InferenceOptions, apply_options
from focaldet.export.graph import fixed_size, make_once, pad_to, trace
from focaldet.export.images import ExportImages, open_export_images, require_ap, require_calibration
from focaldet.export.metadata import describe_export, write_statements
from focaldet.export.onnx_file import convert_onnx, write_onnx
from focaldet.export.openvino_file import convert_openvino, model_info, write_openvino
from focaldet.export.program_file import convert_program, write_program
from focaldet.export.proof import LIMITS, Agreement, ExportPrecision, compare_detections
from focaldet.export.quantize import quantize_model
from focaldet.models import Detector
from focaldet.runtime import Progress, num_processes
from focaldet.types import Detections
from focaldet.weights import Metadata, Trained, load_detector
from focaldet.weights.exported.detector import ExportedDetector

Format = Literal["onnx", "openvino", "torch"]
Writer = Callable[[Path, Metadata, dict[str, Any] | None], None]
"""Writes an exported detector to a path, with its metadata and, once there are any, the results of the comparison."""
FORMAT_SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
MAX_DROP = 0.01
REJECTED = ".rejected"
ROUNDED_NOTE = (
    "this detector resizes images to values between two bytes, which the file rounds: both are compared on bytes"
)
PADDED_NOTE = (
    "the file pads images to multiples of {} px, the detector in torch to {}, so that their detections differ: boxes "
    "are compared with both padded as the file pads, the AP of the detector is that with its own padding"
)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export made.

    `path` is the file, or, with `reasons` to reject it, the same name with `.rejected` behind it. `ap` and
    `exported_ap`, in [0, 1], and the times of the detector in torch and of the file are None without data to evaluate
    on.
    """

    path: Path
    images: str
    comparison: Agreement
    reasons: tuple[str, ...] = ()
    ap: float | None = None
    exported_ap: float | None = None
    milliseconds_per_image: float | None = None
    exported_milliseconds_per_image: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_accepted(self) -> bool:
        """Whether the file answers as the detector does, within the limits of its precision."""
        return not self.reasons

    @property
    def speed_ratio(self) -> float | None:
        """How many times as fast as the detector in torch the file is."""
        before, after = self.milliseconds_per_image, self.exported_milliseconds_per_image
        return before / after if before and after else None


def export_detector(
    run: str | Path,
    out: str | Path,
    *,
    format: Format = "onnx",  # noqa: A002  as the flag
    precision: ExportPrecision = "fp32",
    data: DataConfig | str | Path | None = None,
    split: str = "val",
    max_drop: float | None = None,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    progress: Progress | None = None,
) -> ExportResult:
    """Write the trained detector of `run` to `out` and compare the two on real images.

    The file holds all but resizing: RGB bytes in, detections out. It is kept where it answers as the detector within
    the limits of `export.proof`; else its name gets `.rejected` at its end, and what was at `out` before stays.

    Args:
        run: a run folder (its best weights), a weights file, or a name such as `torchvision:coco_v1`.
        out: the file; its suffix is that of the format: `.onnx`, `.xml` (with a `.bin` beside it), `.pt2`.
        format: onnx, openvino or torch.
        precision: fp32; of openvino also fp16 (of the weights) and int8.
        data: images with boxes. The AP of both is compared on them, and int8 is calibrated on them. Without it the
            images of the run's own data are compared, for int8 and where `max_drop` is given with their AP, else
            embedded ones.
        split: of the data.
        max_drop: how far the AP of the file, in [0, 1], may lie below that of the detector; .01 by default.
        options: `size`, `short_side`, `max_side` and `architecture` become part of the file.
        progress: called with images done and to do.

    Raises:
        ConfigError: a setting out of range, a library that is not installed, a detector that cannot be traced, int8
            without images of the data, `max_drop` without boxes, or several processes.
        CheckpointError: no weights or damaged ones, or a file that cannot be written.
        DataError: data that cannot be read.
    """
    path = Path(out)
    check_request(path, format=format, precision=precision, max_drop=max_drop)
    trained, is_changed = open_trained(run, options, purpose="exported")
    detector, needs_ap = trained.detector, precision == "int8" or max_drop is not None
    images = open_export_images(run, detector, data=data, split=split, needs_ap=needs_ap)
    if precision == "int8":
        require_calibration(images)
    if max_drop is not None:
        require_ap(images)
    most = MAX_DROP if max_drop is None else max_drop
    metadata = describe_export(trained, detector, run, format=format, precision=precision, is_changed=is_changed)
    make_folder(path.parent)
    write = convert_detector(detector, images, format=format, precision=precision, max_drop=most)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        trial = Path(folder) / path.name
        write(trial, metadata, None)
        exported = load_detector(trial).detector
        assert isinstance(exported, ExportedDetector)
        result = compare_file(detector, exported, images, precision=precision, max_drop=most, progress=progress)
        write(trial, metadata, asdict(replace(result, path=Path(path.name))) | {"path": path.name})
        return replace(result, path=move_result(trial, path, is_accepted=result.is_accepted))


def check_request(
    path: Path,
    *,
    format: Format,  # noqa: A002  as the flag
    precision: ExportPrecision,
    max_drop: float | None,
) -> None:
    """Refuse what does not fit together, before the work.

    Raises:
        ConfigError: a suffix that is not the format's, a folder of that name, a precision that the format does not
            have, `max_drop` out of range.
    """
    if path.suffix != FORMAT_SUFFIXES[format]:
        raise ConfigError(f"out: a file of {format} ends in {FORMAT_SUFFIXES[format]}, got {path.name}")
    if folder := next((each for each in list_files(path) if each.is_dir()), None):
        raise ConfigError(f"out: {folder} is a folder")
    if precision != "fp32" and format != "openvino":
        raise ConfigError(f"precision: {precision} is for --format openvino, {format} takes fp32")
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise ConfigError(f"max_drop: must be in 0…1, got {max_drop:g}")


def list_files(path: Path) -> list[Path]:
    """All files that an export to `path` may write: itself, the numbers of a `.xml`, and both where it is rejected."""
    parts = [path, path.with_suffix(".bin")] if path.suffix == FORMAT_SUFFIXES["openvino"] else [path]
    return [file for part in parts for file in (part, part.with_name(part.name + REJECTED))]


def open_trained(run: str | Path, options: InferenceOptions, *, purpose: str) -> tuple[Trained, bool]:
    """The detector of `run`, in fp32 on the CPU and with the options, and whether these made another one of it.

    Raises:
        ConfigError: an exported file, which cannot be what `purpose` says, a setting out of range, or several
            processes, which would all do the same.
        CheckpointError: no weights, or damaged ones.
    """
    if num_processes() > 1:
        raise ConfigError(f"a detector is {purpose} by one process; start it without torchrun or SLURM tasks")
    trained = load_detector(run)
    if isinstance(trained.detector, ExportedDetector):
        trained.detector.refuse(f"be {purpose}")
    before = trained.detector.config, trained.detector.preprocessing
    detector = apply_options(trained.detector, replace(options, device="cpu", precision=None)).float().eval()
    return replace(trained, detector=detector), before != (detector.config, detector.preprocessing)


def convert_all(
    detector: Detector,
    images: ExportImages,
    variants: Sequence[tuple[Format, ExportPrecision]],
    *,
    max_drop: float = MAX_DROP,
) -> Iterator[tuple[tuple[Format, ExportPrecision], Writer | ConfigError]]:
    """Of each format and precision in turn a function that writes the detector with its metadata to a path.

    The detector is traced once. Where the library of a format is not installed, or the detector cannot be traced, the
    error is given instead of the function.
    """
    traced = make_once(lambda: trace(detector))
    onnx_model = make_once(lambda: convert_onnx(traced().program))
    network = make_once(lambda: convert_openvino(onnx_model(), size=fixed_size(detector.preprocessing)))

    def convert(kind: Format, precision: ExportPrecision) -> Writer:
        divisor = traced().size_divisor
        if kind == "torch":
            return make_writer(write_program, convert_program(traced().program), divisor)
        if kind == "onnx":
            return make_writer(write_onnx, onnx_model(), divisor)
        model = network()
        if precision == "int8":
            require_calibration(images)
            with pad_to(detector, divisor):
                model = quantize_model(model, detector, images, max_drop=max_drop)
        return make_openvino_writer(model, divisor, half=precision == "fp16")

    for variant in variants:
        try:
            writer: Writer | ConfigError = convert(*variant)
        except ConfigError as error:
            writer = error
        yield variant, writer


def convert_detector(
    detector: Detector,
    images: ExportImages,
    *,
    format: Format,  # noqa: A002  as the flag
    precision: ExportPrecision,
    max_drop: float,
) -> Writer:
    """The detector in one format, as a function that writes it with its metadata to a path.

    Raises:
        ConfigError: a library is not installed, or the detector cannot be traced.
    """
    ((_, writer),) = convert_all(detector, images, [(format, precision)], max_drop=max_drop)
    if isinstance(writer, ConfigError):
        raise writer
    return writer


def make_writer(write: Callable[..., None], model: Any, size_divisor: int) -> Writer:
    """`write` for this model, whose images are padded to multiples of `size_divisor`."""

    def write_file(path: Path, metadata: Metadata, results: dict[str, Any] | None) -> None:
        write(model, path, statements=write_statements(metadata, results, size_divisor=size_divisor))

    return write_file


def make_openvino_writer(model: Any, size_divisor: int, *, half: bool) -> Writer:
    """As `make_writer` for a model of OpenVINO, with its weights in fp16 where `half`."""

    def write_file(path: Path, metadata: Metadata, results: dict[str, Any] | None) -> None:
        statements = write_statements(metadata, results, size_divisor=size_divisor) | model_info(metadata)
        write_openvino(model, path, half=half, statements=statements)

    return write_file


def compare_file(
    detector: Detector,
    exported: ExportedDetector,
    images: ExportImages,
    *,
    precision: ExportPrecision,
    max_drop: float,
    progress: Progress | None = None,
) -> ExportResult:
    """The result of comparing a detector with its exported file, without a path yet.

    Detections are compared with images padded as the file pads them. The AP is of each with its own padding: what
    everybody who uses them gets.
    """
    limits, match = LIMITS[precision], images.class_match
    own, padded = detector.preprocessing.size_divisor, exported.preprocessing.size_divisor
    with pad_to(detector, padded):
        before, after = detect_both(detector, exported, images.proof)
    least_score = pick_least_score(before.detections, most=limits.least_score)
    comparison = compare_detections(before.detections, after.detections, least_score=least_score)
    result = ExportResult(Path(), images.description, comparison)
    if images.labeled is not None and match is not None:
        before, after = detect_both(detector, exported, images.labeled, progress=progress)
        result = replace(
            result,
            ap=measure_ap(before, images.labeled, match),
            exported_ap=measure_ap(after, images.labeled, match),
            milliseconds_per_image=before.milliseconds_per_image,
            exported_milliseconds_per_image=after.milliseconds_per_image,
        )
    reasons, notes = [*comparison.reasons(limits)], list[str]()
    if images.embedded_because:
        notes.append(f"compared on embedded images, since {images.embedded_because}; --data names others")
    if not comparison.num_detections and precision == "int8" and not result.ap:
        reasons.append("nothing was detected on these images: give others, with boxes, with --data")
    elif not comparison.num_detections:
        notes.append("nothing was detected on these images: they prove nothing")
    if not detector.preprocessing.resize.antialias:
        notes.append(ROUNDED_NOTE)
    if padded != own:
        notes.append(PADDED_NOTE.format(padded, own))
    if result.ap is not None and result.exported_ap is not None and result.ap - result.exported_ap > max_drop:
        drop = f"AP {100 * result.exported_ap:.1f} after {100 * result.ap:.1f}"
        reasons.append(f"{drop}, at most {100 * max_drop:g} less are allowed")
    return replace(result, reasons=tuple(reasons), notes=tuple(notes))


def detect_both(
    detector: Detector, exported: ExportedDetector, source: ImageSource, *, progress: Progress | None = None
) -> tuple[TimedDetections, TimedDetections]:
    """What a detector and its file detect on all images of a source, both of the bytes that the file's graph gets."""
    with give_bytes(detector, exported):
        return detect(detector, source, progress=progress), detect(exported, source, progress=progress)


def pick_least_score(detections: Sequence[Detections], *, most: float) -> float:
    """From which score on detections are compared: the median of the images' best, or `most` where that is less.

    So something is compared of a detector that is not sure of anything, too.
    """
    best = [float(each.scores.max()) for each in detections if len(each)]
    return min(most, statistics.median(best)) if best else most


@contextlib.contextmanager
def give_bytes(detector: Detector, exported: ExportedDetector) -> Iterator[None]:
    """Inside, the detector gets images as the graph of its file does: in bytes, none shorter than the graph takes."""
    hook = detector.register_forward_pre_hook(lambda _, given: (exported.prepare(given[0]), *given[1:]))
    try:
        yield
    finally:
        hook.remove()


def detect(detector: Detector, source: ImageSource, *, progress: Progress | None = None) -> TimedDetections:
    """The detections on all images of a source, in fp32."""
    return detect_all(detector, source, options=InferenceOptions(device="cpu", precision="fp32"), progress=progress)


def measure_ap(timed: TimedDetections, source: ImageSource, match: ClassMatch) -> float | None:
    """COCO's AP of these detections, in [0, 1]; None where the data have no boxes."""
    dataset = source.dataset
    detections = (relabel_detections(each, match, dataset.classes) for each in timed.detections)
    return evaluate_detections(dataset, dict(enumerate(detections))).ap


def move_result(trial: Path, path: Path, *, is_accepted: bool) -> Path:
    """Move a written file, and the `.bin` that belongs to a `.xml`, to where it stays; the path of the first.

    At no moment is a `.xml` there with the `.bin` of another. What was rejected before goes where a file is accepted.
    """

    def target_of(suffix: str, *, is_rejected: bool) -> Path:
        name = path.with_suffix(suffix)
        return name.with_name(name.name + REJECTED) if is_rejected else name

    parts = [part for part in (trial.with_suffix(".bin"), trial) if part.is_file()]
    target = target_of(trial.suffix, is_rejected=not is_accepted)
    if len(parts) > 1:
        target.unlink(missing_ok=True)
    for part in parts:
        part.replace(target_of(part.suffix, is_rejected=not is_accepted))
        if is_accepted:
            target_of(part.suffix, is_rejected=True).unlink(missing_ok=True)
    return target
