"""Building a `Dataset` of the records of a reader: every image's header is read, every box is checked against it."""

import functools
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from torch import Tensor

from focaldet.data.dataset import Dataset, pack_paths, starts
from focaldet.data.formats.locate import locate_images
from focaldet.data.formats.reading import Reading
from focaldet.data.formats.records import Records
from focaldet.data.formats.text import brief, show_path
from focaldet.data.images import read_header
from focaldet.data.problems import Location, Problem, Severity
from focaldet.errors import DataError
from focaldet.ops.boxes import areas
from focaldet.types import ImageSize

# No image is this large: a coordinate beyond it is an error of the tool that wrote the file, not a box to clip.
MAX_COORDINATE = 1e6
# Tools round to a few digits, so boxes at the border end up slightly outside: clipped in every mode, and not a fault.
ROUNDING_PX = 0.5
# Doubles below `MAX_COORDINATE` are rounded by less, and no file states a side more finely.
FINEST_PX = 1e-9
# How far fractions may lie outside of 0…1.
FRACTION_ROUNDING = 1e-3
_THREADS = 8
_COMPUTED = 0.5  # of the time: more, and the disk is not what is waited for
_IMAGES_AT_ONCE = 64  # a task for each image would take longer than its header


def build_dataset(records: Records, reading: Reading | None = None, *, read_images: bool = True) -> Dataset:
    """The dataset of a split: sizes from the image files, boxes clipped to the images, and `problems` of both.

    Without `read_images` no file is looked for or opened and the stated sizes are used. With a lenient reading images
    that cannot be read and boxes that would be refused are listed as errors and ignored, so that a check can report all
    of them at once; it still raises where no image can be read.

    Raises:
        DataError: there are no images; one is missing, unreadable or outside its folder (unless lenient); a box cannot
            be one of pixels (unless lenient or they are dropped); any bad box if `bad_boxes` is "error" (unless
            lenient).
    """
    reading = reading or Reading()
    lenient = reading.lenient
    if not records.paths:
        raise DataError(f'no images in the split "{records.name}"', file=records.source)
    records = locate_images(records, reading) if read_images else records
    records = take_fractions(records, reading)
    indices = range(len(records.paths))
    measured = (
        _measure_images(records, follow_links=reading.follow_links)
        if read_images
        else [_stated_size(records, i) for i in indices]
    )
    keep = _note_failures(records, measured, lenient=lenient)
    sizes = torch.tensor([[0, 0] if isinstance(size, DataError) else size for size in measured], dtype=torch.int32)
    _note_repeated_paths(records)
    rows, boxes = _check_boxes(records, sizes, keep, reading)
    records.problems.name_images(_images_by_file(records))
    images = keep.nonzero()[:, 0]
    owners = (keep.cumsum(0) - 1)[records.owners[rows]]
    order = owners.argsort(stable=True)
    rows, boxes = rows[order], boxes[order]
    path_bytes, path_offsets = pack_paths([records.paths[i] for i in images.tolist()])
    stated = records.areas[rows]
    return Dataset(
        name=records.name,
        root=records.root,
        classes=records.classes,
        image_ids=torch.tensor(records.image_ids, dtype=torch.int64)[images],
        sizes=sizes[images],
        offsets=starts(owners.bincount(minlength=len(images))),
        boxes=boxes,
        labels=records.labels[rows].int(),
        flags=records.flags[rows],
        areas=torch.where(stated.isnan(), areas(boxes), stated),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=records.problems,
        side_remainders=None if records.sides is None else _remainders(records.sides[rows], boxes),
    )


def take_fractions(records: Records, reading: Reading) -> Records:
    """The records with boxes taken as fractions of the image where all of them can be nothing else.

    Boxes in pixels that all lie within the first pixel of their images are not annotations of anything.

    Raises:
        DataError: such boxes, with a strict reading.
    """
    boxes = records.boxes
    within = len(boxes) > 0 and bool(((boxes >= -FRACTION_ROUNDING) & (boxes <= 1 + FRACTION_ROUNDING)).all())
    if records.fractions or not within or bool((boxes == boxes.round()).all()):
        return records
    message = f"all {len(boxes)} boxes lie in 0…1: taken as fractions of the image's width and height, not pixels"
    strict = replace(reading, problems=records.problems)
    strict.accept_loosely(records.box_location(0), "boxes are fractions", message)
    return replace(records, fractions=True, sides=None, areas=torch.full_like(records.areas, math.nan))


def _remainders(sides: Float64[Tensor, "R 2"], boxes: Float64[Tensor, "R 4"]) -> Float32[Tensor, "R 2"]:
    """The rounding errors of the sides; 0 for sides that were clipped, whose difference is more than rounding."""
    lacking = sides - (boxes[:, 2:] - boxes[:, :2])
    return lacking.masked_fill(lacking.abs() > FINEST_PX, 0).float()


def _measure_images(records: Records, *, follow_links: bool) -> list[ImageSize | DataError]:
    """The size of every image after EXIF rotation, or the error that it cannot be read with."""
    root = Path(os.path.realpath(records.root))
    bounds = root if records.bounds is None else Path(os.path.realpath(records.bounds))

    @functools.cache  # a folder has many images
    def is_inside(path: Path) -> bool:
        return follow_links or Path(os.path.realpath(path)).is_relative_to(bounds)

    def measure(i: int) -> ImageSize | DataError:
        path = root / records.paths[i]
        try:
            if not is_inside(path.parent) or (path.is_symlink() and not is_inside(path)):
                return records.image_location(i).error(
                    f"{show_path(path)} is a link that leads out of the image folder {bounds}; "
                    "--data.follow-links takes it"
                )
            return read_header(path)
        except DataError as error:
            return records.image_location(i).error(f"{show_path(path)} {error.problem}")
        except OSError as error:  # such as a file name that is too long
            return records.image_location(i).error(f"{show_path(path)} cannot be read: {error.strerror}")

    def measure_some(start: int) -> list[ImageSize | DataError]:
        return [measure(i) for i in range(start, min(start + _IMAGES_AT_ONCE, len(records.paths)))]

    starts = range(_IMAGES_AT_ONCE, len(records.paths), _IMAGES_AT_ONCE)
    begin, computed = time.perf_counter(), time.thread_time()
    first = measure_some(0)
    computed = time.thread_time() - computed
    if computed > _COMPUTED * (time.perf_counter() - begin):  # threads would only wait for one another
        return first + list(chain.from_iterable(map(measure_some, starts)))
    with ThreadPoolExecutor(_THREADS) as pool:
        return first + list(chain.from_iterable(pool.map(measure_some, starts)))


def _stated_size(records: Records, i: int) -> ImageSize | DataError:
    size = records.stated_sizes[i]
    return size or records.image_location(i).error("has no width and height, which are needed where no image is opened")


def _note_failures(records: Records, measured: list[ImageSize | DataError], *, lenient: bool) -> Bool[Tensor, " N"]:
    """Which images are kept; adds problems for the others, and for sizes that differ from the stated ones."""
    failures = [size for size in measured if isinstance(size, DataError)]
    if failures and (not lenient or len(failures) == len(measured)):
        more = f" ({len(failures)} images like this of {len(measured)})" if len(failures) > 1 else ""
        first = failures[0]
        raise DataError(first.problem + more, file=first.file, record=first.record, field=first.field)
    for i, (size, stated) in enumerate(zip(measured, records.stated_sizes, strict=True)):
        if isinstance(size, DataError):
            records.problems.add(records.image_location(i).problem("error", "image unusable", size.problem))
        elif stated is not None and stated != size:
            image, message = records.root / records.paths[i], _size_difference(stated, size)
            records.problems.add(records.image_location(i).problem("warning", "size differs", message, image=image))
    return torch.tensor([not isinstance(size, DataError) for size in measured])


def _size_difference(stated: ImageSize, size: ImageSize) -> str:
    turned = (stated.width, stated.height) == (size.height, size.width)
    hint = "; width and height are exchanged: were the boxes drawn before an EXIF rotation?" if turned else ""
    return (
        f"the file says {stated.width} × {stated.height}, the image has {size.width} × {size.height} pixels "
        f"(after EXIF rotation), which count{hint}"
    )


def _note_repeated_paths(records: Records) -> None:
    seen: set[str] = set()
    for i, path in enumerate(records.paths):
        if path in seen:
            records.problems.add(records.image_location(i).problem("warning", "image listed twice", brief(path)))
        seen.add(path)


def _images_by_file(records: Records) -> dict[str, Path]:
    """The image of each annotation file that describes one image; empty for files that describe many."""
    if not records.problems.examples:
        return {}
    last_image, last_row = len(records.paths) - 1, len(records.owners) - 1
    ends = [records.image_location(0), records.image_location(last_image)]
    ends += [records.box_location(0), records.box_location(last_row)] if last_row >= 0 else []
    if last_image and len({location.file for location in ends}) == 1:
        return {}  # one file for all images, as COCO's and CSV's are
    first_rows = dict(reversed(list(zip(records.owners.tolist(), range(len(records.owners)), strict=True))))
    images: dict[str, set[str]] = {}
    for i, path in enumerate(records.paths):
        locations = [records.image_location(i)]
        locations += [records.box_location(first_rows[i])] if i in first_rows else []
        for location in locations:
            images.setdefault(str(location.file), set()).add(path)
    return {file: records.root / paths.pop() for file, paths in images.items() if len(paths) == 1}


def _check_boxes(
    records: Records, sizes: Int32[Tensor, "N 2"], keep: Bool[Tensor, " N"], reading: Reading
) -> tuple[Int64[Tensor, " R"], Float64[Tensor, "R 4"]]:
    """The rows of the boxes that are kept, and these boxes clipped to their images; adds problems for the others."""
    bad_boxes, lenient = reading.bad_boxes, reading.lenient
    rows = keep[records.owners].nonzero()[:, 0]
    limits = sizes[records.owners[rows]].flip(1).double().repeat(1, 2)
    boxes = records.boxes[rows] * limits if records.fractions else records.boxes[rows]
    clipped = boxes.clamp(min=0).minimum(limits)
    wild = ~(boxes.abs() <= MAX_COORDINATE).all(1)  # NaN is wild too
    empty = (clipped[:, 2:] <= clipped[:, :2]).any(1) & ~wild
    shifted = (clipped - boxes).abs().nan_to_num().amax(1) if len(rows) else empty.double()
    outside = (shifted > ROUNDING_PX) & ~wild & ~empty
    report = _BoxReport(records, rows, boxes, limits)
    if not lenient and bad_boxes != "drop":
        report.refuse(wild)
    if not lenient and bad_boxes == "error":
        report.refuse(empty | outside)
    clip = bad_boxes == "clip"
    dropped = "training refuses it" if bad_boxes == "error" else "dropped"
    fault: Severity = "error" if bad_boxes == "error" else "warning"
    if bad_boxes == "drop":
        report.add(wild, "warning", "box impossible", "dropped")
    else:
        report.add(wild, "error", "box impossible", "these are not pixel coordinates; training refuses it")
    report.add(empty, fault, "box empty", f"nothing of it is inside, {dropped}")
    report.add(outside, fault, "box clipped" if clip else "box outside", "clipped" if clip else dropped)
    report.note_rounded((shifted > 0) & ~wild & ~empty & ~outside)
    stays = ~(wild | empty) if clip else ~(wild | empty | outside)
    return rows[stays], clipped[stays]


@dataclass(frozen=True, slots=True)
class _BoxReport:
    """Reports bad boxes with their locations. Axes: R boxes to check; `rows` are their rows in `records`."""

    records: Records
    rows: Int64[Tensor, " R"]
    boxes: Float64[Tensor, "R 4"]
    limits: Float64[Tensor, "R 4"]

    def refuse(self, bad: Bool[Tensor, " R"]) -> None:
        """Raise for the first of the marked boxes."""
        if bad.any():
            i = int(bad.nonzero()[0, 0])
            more = f" ({int(bad.sum())} boxes are bad)" if bad.sum() > 1 else ""
            allowed = "allowed is 0 ≤ x1 < x2 ≤ width and 0 ≤ y1 < y2 ≤ height"
            if not bool((self.boxes[i].abs() <= MAX_COORDINATE).all()):
                allowed = f"these are not pixel coordinates; {allowed}"
            raise self._location(i).error(f"{self._describe(i)}; {allowed}{more}")

    def add(self, bad: Bool[Tensor, " R"], severity: Severity, kind: str, outcome: str) -> None:
        """Add the marked boxes as problems of one kind."""
        chosen = bad.nonzero()[:, 0].tolist()

        def problem(k: int) -> Problem:
            return self._problem(chosen[k], severity, kind, f"{self._describe(chosen[k])}: {outcome}")

        problems = self.records.problems
        problems.add_all(severity, kind, len(chosen), problem)

    def note_rounded(self, shifted: Bool[Tensor, " R"]) -> None:
        """Add one note on all boxes that are outside by no more than rounding."""
        if number := int(shifted.sum()):
            message = f"{number} boxes extend beyond their image by at most {ROUNDING_PX} px; clipped"
            first = int(shifted.nonzero()[0, 0])
            problems = self.records.problems
            problems.add(self._problem(first, "note", "box rounded", message))

    def _problem(self, i: int, severity: Severity, kind: str, message: str) -> Problem:
        x1, y1, x2, y2 = self.boxes[i].tolist()
        image = self.records.root / self.records.paths[int(self.records.owners[self.rows[i]])]
        return self._location(i).problem(severity, kind, message, image=image, box=(x1, y1, x2, y2))

    def _location(self, i: int) -> Location:
        return self.records.box_location(int(self.rows[i]))

    def _describe(self, i: int) -> str:
        numbers = ", ".join(f"{value:.6g}" for value in self.boxes[i].tolist())
        width, height = self.limits[i, :2].int().tolist()
        return f"box x1, y1, x2, y2 = {numbers} in an image of {width} × {height} pixels"
