"""A trained detector for use: images in, detections out, and the files that `focaldet predict` leaves.

Axes: H W pixels.
"""

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from focaldet import draw
from focaldet.config import make_folder
from focaldet.data.augment.geometry import resize_image
from focaldet.data.formats.text import quantity
from focaldet.data.images import read_reduced, to_pixels
from focaldet.data.inputs import count_skipped, find_images, output_names, resolve_links
from focaldet.data.loading.collate import blank_image, pad_images
from focaldet.data.loading.sampler import group_by_size
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.image_list import ListedCocoWriter, read_image_list
from focaldet.evaluation.inference import InferenceFields, InferenceOptions, apply_options, detect_batch
from focaldet.evaluation.writers import WRITERS, ImageDetections, PredictionFormat, PredictionWriter
from focaldet.files import write_bytes
from focaldet.models import PRESETS, Detector, find_preset
from focaldet.outputs import begin_call
from focaldet.runtime import (
    Process,
    Progress,
    gather_objects,
    is_first_process,
    join_processes,
    map_ahead,
    pick_device,
    pick_precision,
    require_memory,
    shared_cores,
)
from focaldet.types import Detections, ImageSize
from focaldet.weights import Trained, load_detector
from focaldet.weights.compatibility import require_same_settings
from focaldet.weights.exported.detector import ExportedDetector
from focaldet.weights.thresholds import ScoreThresholds

READING_THREADS = 4
DEFAULT_SCORE = 0.3  # where the weights keep no better one
ROUND_IMAGES = 32  # of each process, between two exchanges of detections
WINDOW_BATCHES = 4  # so many batches of images are held at a time, to group those of equal size
DRAWING_QUALITY, MOST_JPEG_SIDE_PX, PNG = 92, 65_500, ".png"
FORMAT_FILES = {
    "json": ("predictions.json",),
    "coco": ("coco.json", "results.json"),
    "yolo": ("classes.txt",),
    "csv": ("predictions.csv",),
}
"""What each format writes once."""


class Predictor:
    """A trained detector that is called on images.

    An image is a path, a PIL image, a uint8 array of H × W × 3 in RGB order (OpenCV's images are BGR: give
    `image[..., ::-1]`), or an RGB tensor of 3 × H × W, uint8 or floating point, in 0…255. Files are rotated upright by
    their EXIF orientation, and boxes are pixels of the upright image; PIL images are taken as they are.

    Args:
        detector: changed in place by the options, moved to the device and set to evaluation mode.
        category_ids: the ids that the files of its data set use, by label; may be empty.
        thresholds: the scores from which on its detections are best taken, if they were measured; `predict_files` drops
            those below, `predict` gives all.
        options: size, device, precision and so on.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        ConfigError: no such device, or a setting is out of range.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        category_ids: tuple[int, ...] = (),
        thresholds: ScoreThresholds | None = None,
        options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
        **fields: Unpack[InferenceFields],
    ) -> None:
        self.options = replace(options, **fields)
        detector = apply_options(detector, self.options).to(pick_device(self.options.device))
        self.detector = detector.to(memory_format=torch.channels_last).eval()
        self.category_ids, self.thresholds = category_ids, thresholds
        self.device = self.detector.device  # an exported file stays on the CPU
        # Around an exported file nothing is computed in fewer bits, whatever is in it.
        is_exported = isinstance(detector, ExportedDetector)
        self.precision = pick_precision("fp32" if is_exported else self.options.precision, device=self.device)

    def __repr__(self) -> str:
        """Model, number of classes, input size, device and precision, of an exported file that of the file."""
        detector = self.detector
        classes = quantity(detector.config.num_classes, "class", "classes")
        precision = detector.precision if isinstance(detector, ExportedDetector) else self.precision
        parts = (type(detector).__name__, classes, detector.preprocessing.resize, self.device, precision)
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

    def predict_stream(
        self, images: Iterable[Any], *, batch_size: int | None = None, window_batches: int = WINDOW_BATCHES
    ) -> Iterator[Detections]:
        """The detections of each image of any iterable, in order, with only a few batches in memory.

        Args:
            images: in any of the forms that the class describes.
            batch_size: images per batch; that of the options by default.
            window_batches: of so many batches of images those of equal size are put together, and as many are read
                ahead; 1 for images that all have one size.

        Raises:
            DataError: as `predict`, when that image is reached.
        """
        for result in self.try_predict(images, batch_size=batch_size, window_batches=window_batches):
            if isinstance(result, DataError):
                raise result
            yield result.detections

    def try_predict(
        self, images: Iterable[Any], *, batch_size: int | None = None, window_batches: int = WINDOW_BATCHES
    ) -> Iterator["ImageDetections | DataError"]:
        """As `predict_stream`, with the size of each image; one that cannot be read yields its error instead."""
        batch_size = self.options.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        num_threads, depth = self.options.workers or READING_THREADS, window_batches * batch_size
        resized = map_ahead(self._try_prepare, images, depth=depth, num_threads=num_threads)
        while window := list(islice(resized, depth)):
            yield from self._detect_window(window, batch_size=batch_size)

    def prepare(self, image: Any, *, most_pixels: int | None = None) -> "ResizedImage":
        """An image at the network's input size, still unpadded; any thread may do this while another detects.

        Args:
            image: in any of the forms that the class describes, or the content of a file (`io.BytesIO`).
            most_pixels: the largest file that is read; `data.images.largest_pixels` of its format by default.

        Raises:
            DataError: it cannot be read or is not an image.
            ConfigError: it would not fit into memory.
        """
        preprocessing = self.detector.preprocessing
        resize = preprocessing.resize
        if isinstance(image, str | Path | io.BytesIO):
            file = image if isinstance(image, io.BytesIO) else Path(image)
            pixels, size = read_reduced(file, least_px=resize.size, most_pixels=most_pixels)
        else:
            pixels = to_pixels(image)
            size = ImageSize(*pixels.shape[1:])
        padded = preprocessing.padded_size(resize.target(size))
        require_memory(1, padded, device=self.device)
        return ResizedImage(resize_image(pixels, resize, original=size), size, padded)

    def _try_prepare(self, image: Any) -> "ResizedImage | DataError":
        try:
            return self.prepare(image)
        except DataError as error:
            return error

    def _detect_window(
        self, window: Sequence["ResizedImage | DataError"], *, batch_size: int
    ) -> list["ImageDetections | DataError"]:
        """The detections of a few images, batched by their padded size; errors stay where they are."""
        results: dict[int, ImageDetections | DataError] = {}
        results |= {index: error for index, error in enumerate(window) if isinstance(error, DataError)}
        images = [(index, image) for index, image in enumerate(window) if isinstance(image, ResizedImage)]
        for batch in group_by_size([image.padded_size for _, image in images], batch_size=batch_size):
            indices, members = zip(*(images[number] for number in batch), strict=True)
            results.update(zip(indices, self.detect_prepared(members), strict=True))
        return [results[index] for index in range(len(window))]

    def detect_prepared(self, images: Sequence["ResizedImage"]) -> list[ImageDetections]:
        """The detections of images of one padded size, in one batch; the second half of `predict`."""
        batch = pad_images([image.pixels for image in images], preprocessing=self.detector.preprocessing)
        sizes, originals = [image.size for image in images], [image.original_size for image in images]
        detections = detect_batch(self.detector, batch, sizes=sizes, original_sizes=originals, precision=self.precision)
        return list(map(ImageDetections, originals, detections))

    def warm_up(self) -> None:
        """Detect in a blank image: the first one takes longer than those that follow, in each thread."""
        preprocessing = self.detector.preprocessing
        original = ImageSize(480, 640)
        size = preprocessing.padded_size(preprocessing.resize.target(original))
        batch = blank_image(size, preprocessing=preprocessing)[None]
        detect_batch(self.detector, batch, sizes=[size], original_sizes=[original], precision=self.precision)


@dataclass(frozen=True, slots=True)
class ResizedImage:
    """A resized image, the size of the image it was made from, and the size that it is padded to in a batch."""

    pixels: UInt8[Tensor, "3 H W"] | Float[Tensor, "3 H W"]
    original_size: ImageSize
    padded_size: ImageSize

    @property
    def size(self) -> ImageSize:
        return ImageSize(*self.pixels.shape[1:])


@dataclass(frozen=True, slots=True)
class PredictResult:
    """What `predict_files` did; `failed` are the errors of the images that could not be read.

    `notes` say from which score on detections were taken where none was given, and what `like` lists.

    `skipped` counts what was passed over in folders, by kind: a suffix, or "hidden", "in out", "folder unreadable".
    """

    out: Path
    num_images: int
    num_detections: int
    failed: tuple[DataError, ...]
    notes: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def load(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    **fields: Unpack[InferenceFields],
) -> Predictor:
    """A predictor with the trained detector of a run folder, a weights file or a name such as `torchvision:coco_v1`.

    Args:
        spec: any of these, or a file that `focaldet export` wrote; or the name of a detector such as
            `retinanet_r50_fpn_tv`, together with `weights` for it.
        weights: run folder, file or name of weights for the detector that `spec` names.
        options: size, device, precision and so on.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        CheckpointError: missing or damaged weights, or weights that do not fill the whole detector.
        ConfigError: a name without weights, or a setting out of range.
    """
    is_name = weights is not None or (str(spec) in PRESETS and not Path(spec).exists())
    options = replace(options, **fields)
    allow = options.allow_nonfinite
    trained = _load_named(str(spec), weights, allow) if is_name else load_detector(spec, allow_nonfinite=allow)
    return Predictor(
        trained.detector, category_ids=trained.category_ids, thresholds=trained.thresholds, options=options
    )


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: Path,
    *,
    score: float | None = None,
    formats: Sequence[PredictionFormat] = ("json",),
    drawn: bool = True,
    batch_size: int | None = None,
    like: Path | None = None,
    progress: Progress | None = None,
) -> PredictResult:
    """Detect in many images; draw the boxes on each and write all detections into the folder `out`.

    Under `torchrun` or SLURM every process takes a part of the images; files and result are the same as of one process.

    `<name>.jpg` is the image with its boxes, its JPEG comment the path of the image (`.png` where a side is longer than
    JPEG can hold); `evaluation.writers` describes the other files, of which `images.csv` says which name stands for
    which image. Names are those of the images; where two are equal, the names of their folders or a number are added.
    An image that cannot be read is reported in the result and the others are still processed.

    Args:
        predictor: the detector.
        inputs: images, folders (with all below them), patterns such as `shots/*.png`, and `.txt` lists of paths.
        out: a folder, made if it is missing; what an earlier call left there is replaced, but never one of the images.
        score: detections below it are dropped; by default below the scores that the weights file keeps, those of the
            largest F1 of each class, and below .3 where it keeps none.
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
    select, score_notes = score_filter(predictor, score)
    paths, notes, coco_writer = _select_listed(find_images(inputs, exclude=out), like)
    names = output_names(paths)
    drawings = [out / f"{name}.jpg" for name in names]
    if drawn:
        _refuse_replacing(paths, [*drawings, *(path.with_suffix(PNG) for path in drawings)])
    make_folder(out)
    notes += _replace_earlier(out, _result_files(names, formats, drawn=drawn), paths)
    failed: list[DataError] = []
    num_detections = num_done = 0

    def draw_best(index: int, result: ImageDetections | DataError) -> ImageDetections | DataError:
        if isinstance(result, DataError):
            return result
        best = ImageDetections(result.size, select(result.detections))
        if drawn:
            _write_drawing(drawings[index], paths[index], _draw_file(paths[index], best))
        return best

    with join_processes(predictor.device) as process, shared_cores(predictor.device) as share, ExitStack() as stack:
        # Closed in any case: interrupting a long job keeps the detections so far.
        writers = [
            stack.enter_context(closing(make(out, predictor.class_names, predictor.category_ids)))
            for name in (*dict.fromkeys(formats), *(["names"] if drawn or "yolo" in formats else []))
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
            share()
            if progress is not None and process.global_rank == 0:
                progress(num_done, len(paths))
    notes += [share.note] if share.note is not None else []
    skipped = count_skipped(inputs, exclude=out)
    return PredictResult(out, len(paths), num_detections, tuple(failed), (*score_notes, *notes), skipped)


def score_filter(predictor: Predictor, score: float | None) -> tuple[Callable[[Detections], Detections], list[str]]:
    """What drops the detections below `score`, or by default those below the scores of the weights; and a note on them.

    Raises:
        ConfigError: `score` is not in 0…1.
    """
    thresholds, names = predictor.thresholds, predictor.class_names
    if score is not None and not 0 <= score <= 1:
        raise ConfigError(f"score: must be in 0…1, got {score:g}")
    if score is not None or thresholds is None:
        least = DEFAULT_SCORE if score is None else score
        return (lambda detections: detections.above(least)), []
    scores = torch.tensor(thresholds.for_classes(names or [""] * predictor.detector.config.num_classes))
    return (lambda detections: detections[detections.scores >= scores[detections.labels]]), [thresholds.describe(names)]


def _select_listed(
    paths: list[Path], like: Path | None
) -> tuple[list[Path], list[str], Callable[..., PredictionWriter]]:
    """The images that a list names, notes on the others, and the writer of COCO files with its ids; else all images."""
    if like is None:
        return paths, [], WRITERS["coco"]
    images = read_image_list(like)
    chosen, ids, notes = images.select(paths)
    return chosen, notes, partial(ListedCocoWriter, images=images, ids=ids)


def _draw_file(path: Path, result: ImageDetections) -> Image.Image:
    """The image with its boxes; a very large one as it was read, reduced."""
    pixels, size = read_reduced(path)
    detections = result.detections.scale(pixels.shape[2] / size.width, pixels.shape[1] / size.height)
    return draw.boxes(pixels, detections)


def _write_drawing(target: Path, source: Path, drawing: Image.Image) -> None:
    """Write a drawing as JPEG, its comment the path of the image; as PNG where a side is too long for JPEG."""
    buffer = io.BytesIO()
    if max(drawing.size) > MOST_JPEG_SIDE_PX:
        drawing.save(buffer, "PNG")
        write_bytes(target.with_suffix(PNG), buffer.getvalue())
    else:
        drawing.save(buffer, "JPEG", quality=DRAWING_QUALITY, comment=os.fsencode(source))
        write_bytes(target, buffer.getvalue())


def _replace_earlier(out: Path, files: Sequence[str], images: Sequence[Path]) -> list[str]:
    """Remove what an earlier call left in `out`, but none of the images; a note on what that was."""
    if not is_first_process():  # which does it before the processes join: none has written yet
        return []
    earlier = begin_call(out, "predict", files, keep=set(map(resolve_links, images)))
    return [] if earlier is None else [f"{earlier} in {out}"]


def _result_files(names: Sequence[str], formats: Sequence[PredictionFormat], *, drawn: bool) -> list[str]:
    """All files that a call may write into its folder."""
    files = [file for name in formats for file in FORMAT_FILES[name]]
    files += ["images.csv"] if drawn or "yolo" in formats else []
    for name in names:
        files += [f"{name}.jpg", f"{name}{PNG}"] if drawn else []
        files += [f"labels/{name}.txt"] if "yolo" in formats else []
    return files


def _refuse_replacing(paths: Sequence[Path], drawings: Sequence[Path]) -> None:
    """Raise a `ConfigError` where a drawing, of which each image has its own in turn, is the same file as an image."""
    images = {resolve_links(path): path for path in paths}
    for path, drawing in zip(itertools.cycle(paths), drawings, strict=False):
        replaced = images.get(resolve_links(drawing))
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


def _load_named(name: str, weights: str | Path | None, allow_nonfinite: bool) -> Trained:
    """The detector of `weights`, after making sure that it is the one called `name`."""
    config = find_preset(name).config
    if weights is None:
        raise ConfigError(
            f"{name} has no weights of its own: name a run folder or a weights file (focaldet.build takes random ones)"
        )
    trained = load_detector(weights, model=name, allow_nonfinite=allow_nonfinite)
    require_same_settings(trained.detector.config, config, source=trained.source)
    return trained
