"""A trained detector for use: images in, detections out, and the files that `focaldet predict` leaves.

Axes: H W pixels.
"""

import glob
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar, Unpack, overload

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from focaldet import draw
from focaldet.config import make_folder
from focaldet.data.augment.geometry import resize_image
from focaldet.data.formats.records import list_images
from focaldet.data.formats.text import quantity, read_lines
from focaldet.data.images import SUFFIXES, read_image, to_pixels
from focaldet.data.loading.collate import pad_images
from focaldet.data.loading.sampler import group_by_size
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.image_list import ListedCocoWriter, read_image_list
from focaldet.evaluation.inference import InferenceFields, InferenceOptions, apply_options, detect_batch
from focaldet.evaluation.writers import WRITERS, ImageDetections, PredictionFormat, PredictionWriter
from focaldet.models import PRESETS, Detector, find_preset
from focaldet.runtime import Process, Progress, gather_objects, join_processes, pick_device, pick_precision
from focaldet.types import Detections, ImageSize
from focaldet.weights import Trained, load_detector
from focaldet.weights.compatibility import require_same_settings

READING_THREADS = 4
ROUND_IMAGES = 32  # of each process, between two exchanges of detections
WINDOW_BATCHES = 4  # so many batches of images are held at a time, to group those of equal size
DRAWING_QUALITY = 92  # of the JPEG files

Item = TypeVar("Item")
Result = TypeVar("Result")


class Predictor:
    """A trained detector that is called on images.

    An image is a path, a PIL image, a uint8 array of H × W × 3 in RGB order (OpenCV's images are BGR: give
    `image[..., ::-1]`), or an RGB tensor of 3 × H × W, uint8 or floating point, in 0…255. Files are rotated upright by
    their EXIF orientation, and boxes are pixels of the upright image; PIL images are taken as they are.

    Args:
        detector: changed in place by the options, moved to the device and set to evaluation mode.
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
        detector = apply_options(detector, self.options).to(self.device)
        self.detector = detector.to(memory_format=torch.channels_last).eval()
        self.category_ids = category_ids

    def __repr__(self) -> str:
        """Model, number of classes, input size, device and precision."""
        detector = self.detector
        classes = quantity(detector.config.num_classes, "class", "classes")
        parts = (type(detector).__name__, classes, detector.preprocessing.resize, self.device, self.precision)
        return f"Predictor({', '.join(map(str, parts))})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names by label; empty where the detector has none."""
        return self.detector.class_names

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...], *, batch_size: int | None = None) -> list[Detections]: ...
    @overload
    def predict(self, images: Any, *, batch_size: int | None = None) -> Detections: ...
    def predict(self, images: Any, *, batch_size: int | None = None) -> Detections | list[Detections]:
        """The detections of one image, or a list of them for a list or tuple of images; also `predictor(images)`.

        Boxes are pixels of the given image, best first, none below the score threshold of the detector. Only images
        that are padded to the same size share a batch, so that the detections of an image do not depend on the others.

        Args:
            images: one image in any of the forms that the class describes, or a list or tuple of them.
            batch_size: images per batch; that of the options by default.

        Raises:
            DataError: an image cannot be read or is not one; names it.
        """
        if isinstance(images, list | tuple):
            return list(self.predict_stream(images, batch_size=batch_size))
        return next(self.predict_stream([images], batch_size=1))

    __call__ = predict

    def predict_stream(self, images: Iterable[Any], *, batch_size: int | None = None) -> Iterator[Detections]:
        """The detections of each image of any iterable, in order, with only a few batches in memory.

        Raises:
            DataError: as `predict`, when that image is reached.
        """
        for result in self.try_predict(images, batch_size=batch_size):
            if isinstance(result, DataError):
                raise result
            yield result.detections

    def try_predict(
        self, images: Iterable[Any], *, batch_size: int | None = None
    ) -> Iterator["ImageDetections | DataError"]:
        """As `predict_stream`, with the size of each image; one that cannot be read yields its error instead."""
        batch_size = self.options.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        num_threads, depth = self.options.workers or READING_THREADS, WINDOW_BATCHES * batch_size
        resized = _map_ahead(self._read_resized, images, depth=depth, num_threads=num_threads)
        while window := list(islice(resized, depth)):
            yield from self._detect_window(window, batch_size=batch_size)

    def _read_resized(self, image: Any) -> "_ResizedImage | DataError":
        """An image at the network's input size, still unpadded."""
        try:
            pixels = to_pixels(image)
        except DataError as error:
            return error
        preprocessing = self.detector.preprocessing
        resized = resize_image(pixels, preprocessing.resize)
        return _ResizedImage(resized, ImageSize(*pixels.shape[1:]))

    def _detect_window(
        self, window: Sequence["_ResizedImage | DataError"], *, batch_size: int
    ) -> list["ImageDetections | DataError"]:
        """The detections of a few images, batched by their padded size; errors stay where they are."""
        results: dict[int, ImageDetections | DataError] = {}
        results |= {index: error for index, error in enumerate(window) if isinstance(error, DataError)}
        images = [(index, image) for index, image in enumerate(window) if isinstance(image, _ResizedImage)]
        preprocessing = self.detector.preprocessing
        sizes = [preprocessing.padded_size(image.size) for _, image in images]
        for batch in group_by_size(sizes, batch_size=batch_size):
            indices, members = zip(*(images[number] for number in batch), strict=True)
            results.update(zip(indices, self._detect_images(members), strict=True))
        return [results[index] for index in range(len(window))]

    def _detect_images(self, images: Sequence["_ResizedImage"]) -> list[ImageDetections]:
        """The detections of images of one padded size."""
        batch = pad_images([image.pixels for image in images], preprocessing=self.detector.preprocessing)
        sizes, originals = [image.size for image in images], [image.original_size for image in images]
        detections = detect_batch(self.detector, batch, sizes=sizes, original_sizes=originals, precision=self.precision)
        return list(map(ImageDetections, originals, detections))


@dataclass(frozen=True, slots=True)
class _ResizedImage:
    """A resized image and the size of the image it was made from."""

    pixels: UInt8[Tensor, "3 H W"] | Float[Tensor, "3 H W"]
    original_size: ImageSize

    @property
    def size(self) -> ImageSize:
        return ImageSize(*self.pixels.shape[1:])


@dataclass(frozen=True, slots=True)
class PredictResult:
    """What `predict_files` did; `failed` are the errors of the images that could not be read, `notes` are on `like`."""

    out: Path
    num_images: int
    num_detections: int
    failed: tuple[DataError, ...]
    notes: tuple[str, ...] = ()


def load(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    **fields: Unpack[InferenceFields],
) -> Predictor:
    """A predictor with the trained detector of a run folder, a weights file or a name such as `torchvision:coco_v1`.

    Args:
        spec: any of these; or the name of a detector such as `retinanet_r50_fpn_tv`, together with `weights` for it.
        weights: run folder, file or name of weights for the detector that `spec` names.
        options: size, device, precision and so on.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        CheckpointError: missing or damaged weights, or weights that do not fill the whole detector.
        ConfigError: a name without weights, or a setting out of range.
    """
    is_name = weights is not None or (str(spec) in PRESETS and not Path(spec).exists())
    trained = _load_named(str(spec), weights) if is_name else load_detector(spec)
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
    like: Path | None = None,
    progress: Progress | None = None,
) -> PredictResult:
    """Detect in many images; draw the boxes on each and write all detections into the folder `out`.

    Under `torchrun` or SLURM every process takes a part of the images; files and result are the same as of one process.

    `<name>.jpg` is the image with its boxes; `evaluation.writers` describes the other files. Names are those of the
    images; where two are equal, the folder's name or a number is added. An image that cannot be read is reported in the
    result and the others are still processed.

    Args:
        predictor: the detector.
        inputs: images, folders (with all below them), patterns such as `shots/*.png`, and `.txt` lists of paths.
        out: a folder, made if it is missing; files of the same names are replaced, but never one of the images.
        score: detections below it are dropped.
        formats: which files to write: json, coco, yolo, csv.
        drawn: whether to write the images with their boxes.
        batch_size: images per batch; that of the predictor by default.
        like: a COCO file that lists images, such as an evaluation server's `image_info.json`: only these are taken, and
            the format `coco` has its ids (`evaluation.image_list`).
        progress: called after each image.

    Raises:
        DataError: an input does not exist or has no images, or none of them is in `like`.
        ConfigError: `out` cannot be made, a drawing would replace one of the images, or `score` is not in 0…1.
    """
    if not 0 <= score <= 1:
        raise ConfigError(f"score: must be in 0…1, got {score:g}")
    paths, notes, coco_writer = _select_listed(find_images(inputs, exclude=out), like)
    names = output_names(paths)
    drawings = [out / f"{name}.jpg" for name in names]
    if drawn:
        _refuse_replacing(paths, drawings)
    make_folder(out)
    failed: list[DataError] = []
    num_detections = num_done = 0

    def draw_best(index: int, result: ImageDetections | DataError) -> ImageDetections | DataError:
        if isinstance(result, DataError):
            return result
        best = ImageDetections(result.size, result.detections.above(score))
        if drawn:
            draw.boxes(read_image(paths[index]), best.detections).save(drawings[index], quality=DRAWING_QUALITY)
        return best

    with join_processes(predictor.device) as process, ExitStack() as stack:
        # Closed in any case: interrupting a long job keeps the detections so far.
        writers = [
            stack.enter_context(closing(make(out, predictor.class_names, predictor.category_ids)))
            for name in dict.fromkeys(formats)
            for make in [coco_writer if name == "coco" else WRITERS[name]]
            if process.global_rank == 0
        ]
        for index, result in _predict_on_all(predictor, paths, draw_best, process=process, batch_size=batch_size):
            if isinstance(result, DataError):
                failed.append(result)
            else:
                num_detections += len(result.detections)
                for writer in writers:
                    writer.add(paths[index], names[index], result)
            num_done += 1
            if progress is not None and process.global_rank == 0:
                progress(num_done, len(paths))
    return PredictResult(out, len(paths), num_detections, tuple(failed), tuple(notes))


def _select_listed(
    paths: list[Path], like: Path | None
) -> tuple[list[Path], list[str], Callable[..., PredictionWriter]]:
    """The images that a list names, notes on the others, and the writer of COCO files with its ids; else all images."""
    if like is None:
        return paths, [], WRITERS["coco"]
    images = read_image_list(like)
    chosen, ids, notes = images.select(paths)
    return chosen, notes, partial(ListedCocoWriter, images=images, ids=ids)


def find_images(inputs: Sequence[str | Path], *, exclude: Path | None = None) -> list[Path]:
    """The paths of the images that files, folders, patterns and `.txt` lists stand for, each once, in their order.

    What lies in `exclude`, the folder of an earlier run's results, is not taken from folders; patterns and lists are
    taken literally.

    Raises:
        DataError: an input does not exist, has or matches no images, or none outside `exclude`.
    """
    images: dict[Path, Path] = {}
    for source in inputs:
        try:
            listed, exists = _list_input(source), Path(source).exists()
            paths = _outside(exclude, listed, folder=Path(source)) if Path(source).is_dir() else listed
        except (OSError, ValueError) as error:  # a name too long, or one that no disk can have
            raise DataError(f"cannot be read: {error}", file=str(source)) from None
        if listed and not paths:
            raise DataError(
                f"all its images lie in out, {exclude}, and are skipped as results of an earlier run: "
                "choose another out, or give the images themselves or a pattern",
                file=str(source),
            )
        if not paths:
            raise DataError("no images in it" if exists else "there is no such file", file=str(source))
        for path in paths:
            images.setdefault(path.absolute(), path)
    return list(images.values())


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for the results of each image: its stem; with its folder before it, then a number, where that is taken.

    No two are equal, not even on a disk that does not distinguish upper and lower case.
    """
    stems = Counter(path.stem.casefold() for path in paths)
    taken: set[str] = set()
    names = []
    for path in paths:
        unique = stems[path.stem.casefold()] == 1 or not path.absolute().parent.name
        base = path.stem if unique else f"{path.absolute().parent.name}_{path.stem}"
        candidates = chain([base], (f"{base}_{number}" for number in count(2)))
        name = next(name for name in candidates if name.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def _refuse_replacing(paths: Sequence[Path], drawings: Sequence[Path]) -> None:
    """Raise a `ConfigError` where the drawing of one image is the same file as that or another image."""
    images = {_resolve_links(path): path for path in paths}
    for path, drawing in zip(paths, drawings, strict=True):
        replaced = images.get(_resolve_links(drawing))
        if replaced is not None:
            raise ConfigError(f"out: the drawing of {path} would replace the image {replaced}: choose another folder")


def _predict_on_all(
    predictor: Predictor,
    paths: Sequence[Path],
    finish: Callable[[int, ImageDetections | DataError], ImageDetections | DataError],
    *,
    process: Process,
    batch_size: int | None,
) -> Iterator[tuple[int, ImageDetections | DataError]]:
    """Index and result of every image, in order, after `finish`; each image is processed by one of the processes."""
    indices = range(process.global_rank, len(paths), process.world_size)
    results = predictor.try_predict((paths[index] for index in indices), batch_size=batch_size)
    size = ROUND_IMAGES if process.world_size > 1 else 1
    numbered = zip(indices, results, strict=True)
    for _ in range(0, len(paths), size * process.world_size):
        part = [(index, finish(index, result)) for index, result in islice(numbered, size)]
        yield from sorted(chain(*gather_objects(part, num_ranks=process.world_size)), key=itemgetter(0))


def _load_named(name: str, weights: str | Path | None) -> Trained:
    """The detector of `weights`, after making sure that it is the one called `name`."""
    config = find_preset(name).config
    if weights is None:
        raise ConfigError(
            f"{name} has no weights of its own: name a run folder or a weights file (focaldet.build takes random ones)"
        )
    trained = load_detector(weights, model=name)
    require_same_settings(trained.detector.config, config, source=trained.source)
    return trained


def _map_ahead(
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


def _list_input(source: str | Path) -> list[Path]:
    """The images of one input; a file that is named counts as an image whatever its name is."""
    path = Path(source)
    if path.is_dir():
        return [path / name for name in list_images(path)]
    if path.suffix.lower() == ".txt" and path.is_file():
        return [path.parent / line for _, line in read_lines(path)]
    if path.exists():
        return [path]
    matches = sorted(glob.glob(str(source), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
    return [Path(match) for match in matches if Path(match).suffix.lower() in SUFFIXES]


def _outside(excluded: Path | None, paths: list[Path], *, folder: Path) -> list[Path]:
    """Those of the `paths` below `folder` that do not lie in `excluded`, however the two folders are written."""
    if excluded is None:
        return paths
    base, outer = _resolve_links(folder), _resolve_links(excluded)
    return [path for path in paths if not (base / path.relative_to(folder)).is_relative_to(outer)]


def _resolve_links(path: Path) -> Path:
    """The path without links; as it is where the links form a circle or no disk can have such a path."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return path.absolute()
