"""From the records of a reader to a dataset: every picture's header is read, every box is held against its picture."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from torch import Tensor

from focaldet.data.dataset import BadBoxes, Dataset, pack_paths, starts
from focaldet.data.formats.records import Records
from focaldet.data.formats.text import brief, shown
from focaldet.data.images import read_header
from focaldet.data.problems import Place, Problem, Severity
from focaldet.errors import DataError
from focaldet.ops.boxes import areas
from focaldet.types import ImageSize

# No picture is this large: a coordinate beyond it is a slip of the tool that wrote the file, not a box to be clipped.
MAX_COORDINATE = 1e6
# Tools round to a few digits, so boxes at the border end up a hair outside: clipped in every mode, noted, no fault.
ROUNDING_PX = 0.5
# Doubles below `MAX_COORDINATE` are rounded by less, and no file states a side more finely.
FINEST_PX = 1e-9
_THREADS = 8
_WORTH_THREADS = 64


def assemble(records: Records, *, bad_boxes: BadBoxes, pictures: bool = True, lenient: bool = False) -> Dataset:
    """The dataset of a split: sizes from the picture files, boxes inside the pictures, everything odd in `problems`.

    Without `pictures` no file is opened and the declared sizes count. `lenient` lists pictures that cannot be read and
    boxes that would be refused as errors and goes on without them, so that a check can report all of them at once; it
    still raises where no picture can be read.

    Raises:
        DataError: no images; a picture that is missing, unreadable or outside its folder (unless `lenient`); a box that
            is no box of pixels (unless `lenient` or they are dropped); any bad box if `bad_boxes` is "error" (unless
            `lenient`).
    """
    if not records.paths:
        raise DataError(f'the split "{records.name}" holds no images', file=records.source)
    found = _measure(records) if pictures else [_declared(records, i) for i in range(len(records.paths))]
    keep = _without_failures(records, found, lenient=lenient)
    sizes = torch.tensor([[0, 0] if isinstance(size, DataError) else size for size in found], dtype=torch.int32)
    _note_repeated_paths(records)
    rows, boxes = _checked_boxes(records, sizes, keep, bad_boxes=bad_boxes, lenient=lenient)
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


def _remainders(sides: Float64[Tensor, "R 2"], boxes: Float64[Tensor, "R 4"]) -> Float32[Tensor, "R 2"]:
    """What rounding took from the sides; 0 for sides that were cut, whose difference is more than rounding."""
    lacking = sides - (boxes[:, 2:] - boxes[:, :2])
    return lacking.masked_fill(lacking.abs() > FINEST_PX, 0).float()


def _measure(records: Records) -> list[ImageSize | DataError]:
    """The size of every picture after EXIF rotation, or why there is none."""
    folders: dict[Path, bool] = {}
    root = Path(os.path.realpath(records.root))

    def measure(i: int) -> ImageSize | DataError:
        path = root / records.paths[i]
        try:
            if not _is_inside(path, root, folders):
                return records.image_place(i).error(
                    f"{shown(path)} is a link that leads out of the image folder {root}"
                )
            return read_header(path)
        except DataError as error:
            return records.image_place(i).error(f"{shown(path)} {error.problem}")
        except OSError as error:  # such as a file name that is too long
            return records.image_place(i).error(f"{shown(path)} cannot be read: {error.strerror}")

    if len(records.paths) < _WORTH_THREADS:
        return [measure(i) for i in range(len(records.paths))]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(measure, range(len(records.paths))))


def _is_inside(path: Path, root: Path, folders: dict[Path, bool]) -> bool:
    """Whether links lead nowhere out of `root` (a real path); `folders` remembers the answers for folders."""
    parent = path.parent
    if parent not in folders:
        folders[parent] = Path(os.path.realpath(parent)).is_relative_to(root)
    return folders[parent] and (not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(root))


def _declared(records: Records, i: int) -> ImageSize | DataError:
    size = records.declared[i]
    return size or records.image_place(i).error(
        "states no width and height, which are needed where no picture is opened"
    )


def _without_failures(records: Records, found: list[ImageSize | DataError], *, lenient: bool) -> Bool[Tensor, " N"]:
    """Which images stay. Notes failures, and sizes that are not as declared."""
    failures = [size for size in found if isinstance(size, DataError)]
    if failures and (not lenient or len(failures) == len(found)):
        more = f" ({len(failures)} pictures like this of {len(found)})" if len(failures) > 1 else ""
        first = failures[0]
        raise DataError(first.problem + more, file=first.file, record=first.record, field=first.field)
    for i, (size, declared) in enumerate(zip(found, records.declared, strict=True)):
        place = records.image_place(i)
        if isinstance(size, DataError):
            records.problems.add(place.problem("error", "picture unusable", size.problem))
        elif declared is not None and declared != size:
            records.problems.add(place.problem("warning", "size differs", _size_difference(declared, size)))
    return torch.tensor([not isinstance(size, DataError) for size in found])


def _size_difference(declared: ImageSize, size: ImageSize) -> str:
    turned = (declared.width, declared.height) == (size.height, size.width)
    hint = "; width and height are exchanged: were the boxes drawn before an EXIF rotation?" if turned else ""
    return (
        f"the file says {declared.width} × {declared.height}, the picture has {size.width} × {size.height} pixels "
        f"(after EXIF rotation), which count{hint}"
    )


def _note_repeated_paths(records: Records) -> None:
    if len(set(records.paths)) == len(records.paths):
        return
    seen: set[str] = set()
    for i, path in enumerate(records.paths):
        if path in seen:
            records.problems.add(records.image_place(i).problem("warning", "picture listed twice", brief(path)))
        seen.add(path)


def _checked_boxes(
    records: Records, sizes: Int32[Tensor, "N 2"], keep: Bool[Tensor, " N"], *, bad_boxes: BadBoxes, lenient: bool
) -> tuple[Int64[Tensor, " R"], Float64[Tensor, "R 4"]]:
    """Rows of the boxes that stay, and these boxes inside their pictures."""
    rows = keep[records.owners].nonzero()[:, 0]
    limits = sizes[records.owners[rows]].flip(1).double().repeat(1, 2)
    boxes = records.boxes[rows] * limits if records.fractions else records.boxes[rows]
    clipped = boxes.clamp(min=0).minimum(limits)
    wild = ~(boxes.abs() <= MAX_COORDINATE).all(1)  # NaN is wild too
    empty = (clipped[:, 2:] <= clipped[:, :2]).any(1) & ~wild
    moved = (clipped - boxes).abs().nan_to_num().amax(1) if len(rows) else empty.double()
    outside = (moved > ROUNDING_PX) & ~wild & ~empty
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
        report.add(wild, "error", "box impossible", "these are no pixel coordinates; training refuses it")
    report.add(empty, fault, "box empty", f"nothing of it is inside, {dropped}")
    report.add(outside, fault, "box clipped" if clip else "box outside", "clipped" if clip else dropped)
    report.note_rounded((moved > 0) & ~wild & ~empty & ~outside)
    stays = ~(wild | empty) if clip else ~(wild | empty | outside)
    return rows[stays], clipped[stays]


@dataclass(frozen=True, slots=True)
class _BoxReport:
    """Says where bad boxes stand. Axes: R boxes under review; `rows` are their positions in `records`."""

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
                allowed = f"these are no pixel coordinates; {allowed}"
            raise self._place(i).error(f"{self._describe(i)}; {allowed}{more}")

    def add(self, bad: Bool[Tensor, " R"], severity: Severity, kind: str, outcome: str) -> None:
        """List the marked boxes as problems of one kind."""
        chosen = bad.nonzero()[:, 0].tolist()

        def problem(k: int) -> Problem:
            return self._place(chosen[k]).problem(severity, kind, f"{self._describe(chosen[k])}: {outcome}")

        self.records.problems.add_all(severity, kind, len(chosen), problem)

    def note_rounded(self, moved: Bool[Tensor, " R"]) -> None:
        """One note on all boxes that a rounding tool put a hair outside."""
        if number := int(moved.sum()):
            place = self._place(int(moved.nonzero()[0, 0]))
            message = f"{number} boxes reach out of their picture by at most {ROUNDING_PX} px; clipped"
            self.records.problems.add(place.problem("note", "box rounded", message))

    def _place(self, i: int) -> Place:
        return self.records.box_place(int(self.rows[i]))

    def _describe(self, i: int) -> str:
        numbers = ", ".join(f"{value:.6g}" for value in self.boxes[i].tolist())
        width, height = self.limits[i, :2].int().tolist()
        return f"box x1, y1, x2, y2 = {numbers} in a picture of {width} × {height} pixels"
