"""A trained detector for use: pictures in, detections out, and the files that `focaldet predict` leaves.

Axes: H W pixels.
"""

import glob
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

import numpy
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from focaldet import draw
from focaldet.config import make_folder, nearest
from focaldet.data.augment.geometry import resize_image
from focaldet.data.formats.records import pictures_below
from focaldet.data.formats.text import read_lines
from focaldet.data.images import SUFFIXES, from_array, read_image
from focaldet.data.loading.collate import padded
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.inference import InferenceFields, InferenceOptions, apply_options, detect_batch
from focaldet.evaluation.writers import WRITERS, ImageDetections, PredictionFormat, Writer
from focaldet.models import DETECTORS, Detector, build
from focaldet.runtime import Process, Progress, gather_objects, join_processes, pick_device, pick_precision
from focaldet.types import Detections, ImageSize
from focaldet.weights import Trained, load_detector, load_into

READING_THREADS = 4
ROUND_IMAGES = 32  # of each process, between two exchanges of what was found
WINDOW_BATCHES = 4  # so many batches of pictures are held at a time, to find among them those of equal size
JPEG_QUALITY = 92

Item = TypeVar("Item")
Result = TypeVar("Result")


class Predictor:
    """A detector, what its classes are called, and how its pictures are prepared.

    A picture is a path, a PIL image, a uint8 array of H × W × 3 in RGB order (OpenCV's pictures are BGR: give
    `image[..., ::-1]`), or an RGB tensor of 3 × H × W, uint8 or floating point, in 0…255. Files are turned upright by
    their EXIF orientation, and boxes are pixels of the upright picture; PIL images are taken as they stand.

    Args:
        detector: moved to `device` and used there.
        category_ids: the ids that the files of its data set use, by label; may be empty.
        options: size, device, precision and so on.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        ConfigError: there is no such device, or a setting is out of range.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        category_ids: tuple[int, ...] = (),
        options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
        **fields: Unpack[InferenceFields],
    ) -> None:
        self.options = replace(options, **fields)
        self.device = pick_device(self.options.device)
        self.precision = pick_precision(self.options.precision, device=self.device)
        self.detector = (
            apply_options(detector, self.options).to(self.device).to(memory_format=torch.channels_last).eval()
        )
        self.category_ids = category_ids

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names by label; empty where the detector has none."""
        return self.detector.class_names

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], *, batch_size: int | None = None) -> list[Detections]: ...
    @overload
    def predict(self, images: Any, *, batch_size: int | None = None) -> Detections: ...
    def predict(self, images: Any, *, batch_size: int | None = None) -> Detections | list[Detections]:
        """The objects in a picture, or a list of them for a list or tuple of pictures; best first, none below the
        detector's own threshold.

        Only pictures that are padded to the same size share a batch, so that a picture's detections do not depend on
        its company.

        Raises:
            DataError: a picture cannot be read or is none; names it.
        """
        if isinstance(images, list | tuple):
            return list(self.predict_stream(images, batch_size=batch_size))
        return next(self.predict_stream([images], batch_size=1))

    def predict_stream(self, images: Iterable[Any], *, batch_size: int | None = None) -> Iterator[Detections]:
        """The detections of picture after picture, in order, holding only a few batches in memory.

        Raises:
            DataError: as `predict`, when the picture's turn comes.
        """
        for found in self.try_predict(images, batch_size=batch_size):
            if isinstance(found, DataError):
                raise found
            yield found.detections

    def try_predict(
        self, images: Iterable[Any], *, batch_size: int | None = None
    ) -> Iterator["ImageDetections | DataError"]:
        """As `predict_stream`, with the size of each picture; one that cannot be read gives its error instead."""
        batch_size = self.options.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, found {batch_size}")
        ready = _ahead(
            self._prepared, images, depth=WINDOW_BATCHES * batch_size, threads=self.options.workers or READING_THREADS
        )
        while window := list(islice(ready, WINDOW_BATCHES * batch_size)):
            yield from self._window(window, batch_size=batch_size)

    def _prepared(self, image: Any) -> "_Prepared | DataError":
        """A picture at the network's size, still unpadded."""
        try:
            pixels = _pixels(image)
        except DataError as error:
            return error
        resized = resize_image(pixels, self.detector.preprocessing.resize)
        return _Prepared(resized, ImageSize(*pixels.shape[1:]))

    def _window(
        self, window: Sequence["_Prepared | DataError"], *, batch_size: int
    ) -> list["ImageDetections | DataError"]:
        """What is found in a handful of pictures, batched by their padded size."""
        groups: dict[ImageSize, list[int]] = {}
        for place, one in enumerate(window):
            if isinstance(one, _Prepared):
                groups.setdefault(self.detector.preprocessing.padded_size(one.size), []).append(place)
        results: dict[int, ImageDetections | DataError] = {
            place: one for place, one in enumerate(window) if isinstance(one, DataError)
        }
        for places in groups.values():
            for start in range(0, len(places), batch_size):
                chosen = places[start : start + batch_size]
                batch = [one for place in chosen if isinstance(one := window[place], _Prepared)]
                results.update(zip(chosen, self._batch(batch), strict=True))
        return [results[place] for place in range(len(window))]

    def _batch(self, batch: Sequence["_Prepared"]) -> list[ImageDetections]:
        found = detect_batch(
            self.detector,
            padded([one.image for one in batch], preprocessing=self.detector.preprocessing),
            sizes=[one.size for one in batch],
            original_sizes=[one.original for one in batch],
            device=self.device,
            precision=self.precision,
        )
        return [ImageDetections(one.original, detections) for one, detections in zip(batch, found, strict=True)]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A resized picture and the size it came from."""

    image: UInt8[Tensor, "3 H W"] | Float[Tensor, "3 H W"]
    original: ImageSize

    @property
    def size(self) -> ImageSize:
        return ImageSize(*self.image.shape[1:])


@dataclass(frozen=True, slots=True)
class PredictResult:
    """What `predict_files` did. `failed` are the pictures that could not be used, each with its error."""

    out: Path
    num_images: int
    num_detections: int
    failed: tuple[DataError, ...]


def load(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    **fields: Unpack[InferenceFields],
) -> Predictor:
    """The trained detector of a run folder, a weights file or a name such as `torchvision:coco_v1`, ready for pictures.

    Args:
        spec: any of these; or the name of a detector such as `retinanet_r50_fpn_tv`, whose `weights` are then given.
        weights: what to fill the named detector with.
        options: size, device, precision and so on.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        CheckpointError: missing or damaged weights, or weights that do not fill the whole detector.
        ConfigError: a name without weights, or a setting out of range.
    """
    is_name = weights is not None or (str(spec) in DETECTORS and not Path(spec).exists())
    trained = _filled(str(spec), weights) if is_name else load_detector(spec)
    return Predictor(trained.detector, category_ids=trained.category_ids, options=options, **fields)


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: Path,
    *,
    score: float = 0.3,
    formats: Sequence[PredictionFormat] = ("json",),
    drawn: bool = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> PredictResult:
    """Detect in many pictures; draw each and write all detections into `out`.

    Under `torchrun` or SLURM every process takes a share of the pictures; the files and the result are those of one.

    `<name>.jpg` is the picture with its boxes; the other files are told in `evaluate.formats`. Names are those of the
    pictures; where two are equal, the folder's name or a number is added. A picture that cannot be read is reported in
    the result and the rest goes on.

    Args:
        predictor: the detector.
        inputs: pictures, folders (with all below them), patterns such as `shots/*.png`, and `.txt` lists of paths.
        out: a folder; it is made, and files of the same names are replaced, but none of the pictures.
        score: detections below it are left out.
        formats: which files to write: json, coco, yolo, csv.
        drawn: whether to write the pictures.
        batch_size: pictures per batch; that of the predictor by default.
        progress: called after each picture.

    Raises:
        DataError: an input does not exist or holds no picture.
        ConfigError: `out` cannot be made, a drawing would replace one of the pictures, or no score is as high or low.
    """
    if not 0 <= score <= 1:
        raise ConfigError(f"score: must be in 0…1, found {score:g}")
    paths = find_images(inputs, leave_out=out)
    names = output_names(paths)
    drawings = [out / f"{name}.jpg" for name in names]
    if drawn:
        _refuse_replacing(paths, drawings)
    make_folder(out)
    failed: list[DataError] = []
    num_detections = num_done = 0

    def finished(place: int, found: ImageDetections | DataError) -> ImageDetections | DataError:
        if isinstance(found, DataError):
            return found
        kept = ImageDetections(found.size, found.detections.above(score))
        if drawn:
            drawing = draw.boxes(read_image(paths[place]), kept.detections)
            drawing.save(drawings[place], quality=JPEG_QUALITY)
        return kept

    with join_processes(predictor.device) as process, ExitStack() as stack:
        writers = _opened(formats, out, predictor, stack) if process.global_rank == 0 else []
        for place, found in _shared(predictor, paths, finished, process=process, batch_size=batch_size):
            if isinstance(found, DataError):
                failed.append(found)
            else:
                num_detections += len(found.detections)
                for writer in writers:
                    writer.add(paths[place], names[place], found)
            num_done += 1
            if progress is not None and process.global_rank == 0:
                progress(num_done, len(paths))
    return PredictResult(out, len(paths), num_detections, tuple(failed))


def find_images(inputs: Sequence[str | Path], *, leave_out: Path | None = None) -> list[Path]:
    """The pictures that files, folders, patterns and `.txt` lists stand for, each once, in their order.

    What lies in `leave_out`, the folder of an earlier run's results, is not taken from folders; patterns and lists mean
    what they say.

    Raises:
        DataError: an input does not exist, holds or matches no picture, or none outside `leave_out`.
    """
    found: dict[Path, Path] = {}
    for one in inputs:
        try:
            everything, exists = _expanded(one), Path(one).exists()
            paths = _outside(leave_out, everything, folder=Path(one)) if Path(one).is_dir() else everything
        except (OSError, ValueError) as error:  # a name too long, or one that no disk can have
            raise DataError(f"cannot be read: {error}", file=str(one)) from None
        if everything and not paths:
            raise DataError(
                f"all its pictures lie in out, {leave_out}, and are left out as results of an earlier run: "
                "choose another out, or give the pictures themselves or a pattern",
                file=str(one),
            )
        if not paths:
            raise DataError("holds no pictures" if exists else "there is no such file", file=str(one))
        for path in paths:
            found.setdefault(path.absolute(), path)
    return list(found.values())


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each picture: its stem; with its folder before it, then a number, where that is taken.

    No two are equal, not even on a disk that takes capitals and small letters for the same.
    """
    stems = Counter(path.stem.casefold() for path in paths)
    taken: set[str] = set()
    names = []
    for path in paths:
        alone = stems[path.stem.casefold()] == 1 or not path.absolute().parent.name
        base = path.stem if alone else f"{path.absolute().parent.name}_{path.stem}"
        name = next(n for n in _numbered(base) if n.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def _refuse_replacing(paths: Sequence[Path], drawings: Sequence[Path]) -> None:
    """Raise a `ConfigError` where the drawing of one picture is the same file as that or another picture."""
    pictures = {_resolved(path): path for path in paths}
    for path, drawing in zip(paths, drawings, strict=True):
        replaced = pictures.get(_resolved(drawing))
        if replaced is not None:
            raise ConfigError(f"out: the drawing of {path} would replace the picture {replaced}: choose another folder")


def _opened(formats: Sequence[PredictionFormat], out: Path, predictor: Predictor, stack: ExitStack) -> list[Writer]:
    """A writer for each format, closed with the `stack`: whoever interrupts a long job keeps what was found so far."""
    writers = [WRITERS[name](out, predictor.class_names, predictor.category_ids) for name in dict.fromkeys(formats)]
    for writer in writers:
        stack.callback(writer.close)
    return writers


def _shared(
    predictor: Predictor,
    paths: Sequence[Path],
    finished: Callable[[int, ImageDetections | DataError], ImageDetections | DataError],
    *,
    process: Process,
    batch_size: int | None,
) -> Iterator[tuple[int, ImageDetections | DataError]]:
    """What `finished` makes of every picture, with its place and in its order, each taken by one of the processes."""
    ours = range(process.global_rank, len(paths), process.world_size)
    attempts = zip(ours, predictor.try_predict((paths[place] for place in ours), batch_size=batch_size), strict=True)
    size = ROUND_IMAGES if process.world_size > 1 else 1
    for _ in range(0, len(paths), size * process.world_size):
        part = [(place, finished(place, found)) for place, found in islice(attempts, size)]
        yield from sorted(chain(*gather_objects(part, num_ranks=process.world_size)), key=itemgetter(0))


def _filled(name: str, weights: str | Path | None) -> Trained:
    """The detector of `weights`, after making sure that it is the one called `name`."""
    if name not in DETECTORS:
        raise ConfigError(f"unknown detector {name!r}{nearest(name, DETECTORS)}; weights go with a detector's name")
    if weights is None:
        raise ConfigError(
            f"{name} has no weights of its own: name a run folder or a weights file (focaldet.build takes random ones)"
        )
    trained = load_detector(weights, model=name)
    classes = trained.detector.class_names
    load_into(build(name, num_classes=trained.detector.config.num_classes, class_names=classes), weights)
    return trained


def _pixels(image: Any) -> UInt8[Tensor, "3 H W"]:
    """The bytes of a picture in any of the forms that `Predictor` takes."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Tensor) and image.is_floating_point():
        return from_array(_bytes(image.detach().cpu()))
    if isinstance(image, Tensor | numpy.ndarray | Image.Image):
        return from_array(image.cpu() if isinstance(image, Tensor) else image)
    raise DataError(
        f"is no picture: found {type(image).__name__}; allowed are a path, a PIL image, a uint8 RGB array and a tensor",
        file="picture given to predict",
    )


def _bytes(image: Float[Tensor, "*axes"]) -> UInt8[Tensor, "*axes"]:
    """Floating-point pixels rounded to bytes; those in 0…1 are refused, not taken for a black picture."""
    name = "picture given as Tensor"
    low, high = (image.min().item(), image.max().item()) if image.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 255):
        raise DataError(f"values must be in 0…255, found {low:g}…{high:g}", file=name)
    if 0 < high <= 1 and bool((image != image.round()).any()):
        raise DataError(f"values must be in 0…255, found {low:g}…{high:g}: multiply by 255", file=name)
    return image.round().to(torch.uint8)


def _ahead(function: Callable[[Item], Result], items: Iterable[Item], *, depth: int, threads: int) -> Iterator[Result]:
    """`function` of every item in order, computed by `threads` for the next `depth` items while the caller is busy."""
    with ThreadPoolExecutor(threads, thread_name_prefix="focaldet-read") as pool:
        waiting = deque[Future[Result]]()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _expanded(one: str | Path) -> list[Path]:
    """The pictures of one input; a named file counts as a picture whatever its name is."""
    path = Path(one)
    if path.is_dir():
        return [path / name for name in pictures_below(path)]
    if path.suffix.lower() == ".txt" and path.is_file():
        return [path.parent / line for _, line in read_lines(path)]
    if path.exists():
        return [path]
    matches = sorted(glob.glob(str(one), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
    return [Path(match) for match in matches if Path(match).suffix.lower() in SUFFIXES]


def _outside(leave_out: Path | None, paths: list[Path], *, folder: Path) -> list[Path]:
    """Those of the `paths` below `folder` that do not lie in `leave_out`, however the two folders are written."""
    if leave_out is None:
        return paths
    here, there = _resolved(folder), _resolved(leave_out)
    return [path for path in paths if not (here / path.relative_to(folder)).is_relative_to(there)]


def _resolved(path: Path) -> Path:
    """The path without links; as it stands where it leads round in a circle or is none that a disk can have."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return path.absolute()


def _numbered(base: str) -> Iterator[str]:
    """`base`, then `base_2`, `base_3` and so on."""
    yield base
    yield from (f"{base}_{number}" for number in count(2))
