"""Another program's detector as a file of ours, with an account of what became of it."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.config import nearest
from focaldet.data.formats.text import list_names
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import DETECTORS, Detector, named_config
from focaldet.runtime import Progress
from focaldet.types import Preprocessing
from focaldet.weights.checkpoint import NO_LICENSE, is_own, save_detector
from focaldet.weights.compatibility import CONVENTIONS, FREE, conventions, fitting, require_same_settings
from focaldet.weights.download import sha256
from focaldet.weights.formats import darknet
from focaldet.weights.formats.files import TensorFile, read_tensors
from focaldet.weights.formats.registry import LAYOUTS, Layout, layout_of
from focaldet.weights.load import Trained, load_detector, load_into
from focaldet.weights.normalization import describe
from focaldet.weights.provenance import origins, traced
from focaldet.weights.sources import Source, resolve
from focaldet.weights.tensor_names import COUNTER, shapes_of

DARKNET, SUFFIX = "darknet", ".safetensors"
SHORT = {"mmdet": "mmdetection"}
NO_BACKGROUND = "none, each class is decided by itself"
BACKGROUND = {
    "torchvision": "first in the file, last here",
    "caffe": "first in the file, last here",
    "detectron2": "last in the file and here",
    "mmdetection": "last in the file and here",
    DARKNET: "none, the objectness tells",
}
"""Where the background stands where a softmax tells classes apart; a program that is missing here is not told of."""
BOXES = {DARKNET: "x, y, width, height, objectness"}
"""The numbers of a box in the programs that have others than its four."""
LICENSES = {
    "torchvision": "torchvision (its published weights: BSD-3-Clause)",
    DARKNET: "darknet (its published weights: public domain, by the YOLO LICENSE)",
}
"""What is known of a program where neither its reader nor the user states a license."""
ANCHORS = ("anchors", "priors")
"""The settings that say where boxes start, as the kinds of detectors call them."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """A tensor of the detector by its name and shape, and those of the file that it was made of."""

    name: str
    made_of: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` wrote, and what it took it from.

    `model` is the entry of the table of detectors that the file fits, if there is one; training and detection may be
    set otherwise, and so may the `conventions`, which are those of the file's program. `skipped` are the tensors of
    the file that none of the detector's was made of; their reader knows them, or they count BatchNorm's batches.
    """

    out: Path
    source: str
    layout: str
    model: str | None
    architecture: str
    conventions: tuple[str, ...]
    tensors: tuple[Mapped, ...]
    skipped: tuple[str, ...]
    num_classes: int
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    background: str | None
    boxes: str
    anchors: Any
    preprocessing: Preprocessing
    license: str
    notes: tuple[str, ...]

    def parts(self) -> dict[str, tuple[int, int]]:
        """The tensors and the numbers in them, by the part of the detector."""
        part_of = {tensor: tensor.name.split(".", maxsplit=1)[0] for tensor in self.tensors}
        counts = Counter(part_of.values())
        numbers = {part: sum(math.prod(one.shape) for one in self.tensors if part_of[one] == part) for part in counts}
        return {part: (count, numbers[part]) for part, count in counts.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything for programs: `tensors` by our names, each with those it was made of."""
        mapping = {one.name: {"made_of": list(one.made_of), "shape": list(one.shape)} for one in self.tensors}
        parts = {part: {"tensors": count, "numbers": numbers} for part, (count, numbers) in self.parts().items()}
        names = [field.name for field in fields(self) if field.name not in ("tensors", "out")]
        rest = {name: getattr(self, name) for name in names}
        preprocessing = asdict(self.preprocessing)
        return {"out": str(self.out), **rest, "preprocessing": preprocessing, "parts": parts, "tensors": mapping}

    def rows(self) -> list[list[str]]:
        """The account for people: what, and how it is."""
        parts = [["tensors", f"{part}: {count}, {size:,} numbers"] for part, (count, size) in self.parts().items()]
        names = f": {list_names(self.class_names)}" if self.class_names else ", without names"
        ids = f"{self.category_ids[0]}…{self.category_ids[-1]}" if self.category_ids else "none stated"
        return [
            ["read", f"{self.source} ({self.layout})"],
            ["detector", f"{self.model or 'no entry of the table'} ({self.architecture})"],
            *([["with its own", ", ".join(self.conventions)]] if self.conventions else []),
            *parts,
            ["classes", f"{self.num_classes}{names}"],
            ["category ids", ids],
            *([["background", self.background]] if self.background else []),
            ["boxes", self.boxes],
            ["anchors", _in_words(self.anchors)],
            ["input", f"{describe(self.preprocessing)}, {self.preprocessing.resize}"],
            ["license", self.license],
            ["left out", list_names(self.skipped) if self.skipped else "nothing"],
            *(["note", note] for note in self.notes),
            ["written", str(self.out)],
        ]


def convert(
    spec: str | Path,
    out: str | Path,
    *,
    layout: str | None = None,
    model: str | None = None,
    input: str | None = None,  # noqa: A002  as in load_into
    license: str | None = None,  # noqa: A002  as in the file
    overwrite: bool = False,
    progress: Progress | None = None,
    licence: str | None = None,
) -> Conversion:
    """Write the detector of another program's file as a file of ours at `out`; what was read, and what became of it.

    Args:
        spec: a file, or a name such as torchvision:coco_v1.
        out: ends in .safetensors.
        layout: the program whose file it must be, such as torchvision or darknet; recognised where it is None.
        model: the entry of the table of detectors that the file must fit. darknet's files need it.
        input: what the weights were trained to see, where the file does not state it.
        license: of the weights, where it is another than the source's own.
        overwrite: replace what is at `out`.
        progress: called with the bytes done and the bytes there are, while a name is downloaded.
        licence: the old name of `license`.

    Raises:
        CheckpointError: the file is no whole detector, of another layout or entry, has tensors left over, or cannot be
            read or written; nothing was written then.
        ConfigError: `layout` or `model` is unknown, `license` is no text, or `out` has another suffix or is there
            already.
    """
    if licence is not None:
        warnings.warn("convert(licence=…) is now called license", DeprecationWarning, stacklevel=2)
        license = licence  # noqa: A001
    out = Path(out)
    if license is not None and not license.isprintable():
        raise ConfigError(f"license: must be one line of text, found {license!r}")
    names = [*(known.program for known in LAYOUTS), DARKNET]
    layout = SHORT.get(layout, layout) if layout else None
    if layout is not None and layout not in names:
        raise ConfigError(
            f"from: no whole detectors of {layout!r} are known, only of {', '.join(names)}{nearest(layout, names)}; a "
            "backbone alone needs no conversion, training takes it as it is"
        )
    if model is not None:
        named_config(model)
    source = resolve(spec, progress=progress)
    _require_place(out, source, overwrite=overwrite)
    foreign = _read(source, layout=layout)
    trained = load_detector(spec, model=model, input=input)
    conversion = _account(
        *(trained, foreign, _told(foreign, trained.detector, named_input=input)),
        out=out,
        model=_entry(trained.detector, source, model=model),
        stated_license=license,
    )
    extra = {"converted_from": source.path.name, "layout": conversion.layout, "source_sha256": sha256(source.path)}
    classes = _Classes(trained.detector.class_names, trained.category_ids)
    save_detector(out, trained.detector, classes=classes, license=conversion.license, extra=extra)
    return conversion


@dataclass(frozen=True, slots=True)
class _Foreign:
    """A file of another program; of darknet's, whose numbers have no names, there is neither layout nor tensors."""

    source: Source
    layout: Layout | None
    file: TensorFile | None

    @property
    def program(self) -> str:
        return self.layout.program if self.layout else DARKNET


@dataclass(frozen=True, slots=True)
class _Classes:
    names: tuple[str, ...]
    category_ids: tuple[int, ...]


def _require_place(out: Path, source: Source, *, overwrite: bool) -> None:
    if out.suffix != SUFFIX:
        raise ConfigError(f"out: {out}: must end in {SUFFIX}")
    if out.exists() and out.samefile(source.path):
        raise ConfigError(f"out: {out}: is the file that would be read")
    if out.exists() and not overwrite:
        raise ConfigError(f"out: {out}: is there already; --overwrite replaces it")


def _read(source: Source, *, layout: str | None) -> _Foreign:
    if is_own(source.path):
        raise CheckpointError(f"{source.label}: is a file of focaldet's already")
    known = file = None
    if not darknet.is_darknet(source.path):
        file = read_tensors(source.path)
        known = layout_of(file.tensors)
    found = DARKNET if file is None else known.program if known else None
    if layout not in (None, found):
        raise CheckpointError(
            f"{source.label}: is laid out by {found or 'a program that focaldet does not know'}, not by {layout}"
        )
    return _Foreign(source, known, file)


def _entry(detector: Detector, source: Source, *, model: str | None) -> str | None:
    """The entry of the table of detectors that fits, best one with the same conventions; `model` must."""
    name = fitting(detector.config) or fitting(detector.config, free=FREE | CONVENTIONS)
    if model is None:
        return name
    try:
        require_same_settings(detector.config, DETECTORS[model], source=source.label, free=FREE | CONVENTIONS)
    except CheckpointError as error:
        instead = f"; it fits {name}" if name else ""
        differences = str(error).removesuffix(f" (it fits {name})")
        raise CheckpointError(f"{differences}; model {model} was asked for{instead}") from None
    return model


@dataclass(frozen=True, slots=True)
class _Told:
    """What a reader tells of a file, and what it made each tensor of."""

    made_of: Mapping[str, tuple[str, ...]]
    skipped: tuple[str, ...]
    license: str | None
    notes: tuple[str, ...]


def _told(foreign: _Foreign, detector: Detector, *, named_input: str | None) -> _Told:
    """The reader's account of the file that `detector` was opened from."""
    if foreign.layout is not None and foreign.file is not None:
        incoming = foreign.layout.brought(detector, traced(foreign.file), foreign.source, named_input)
        return _Told(origins(incoming.tensors), incoming.skipped, incoming.license, incoming.notes)
    report = load_into(detector, foreign.source.path, input=named_input)
    return _Told(_numbers(foreign.source, detector), report.skipped, report.license, report.notes)


def _numbers(source: Source, detector: Detector) -> dict[str, tuple[str, ...]]:
    """The numbers of a darknet file that each tensor is made of, counted from 1 behind its header."""
    found = darknet.detector_tensors(detector, darknet.read_darknet(source.path), source=source.label)
    tensors = found[1] if found else {}
    ends = list(accumulate(tensor.numel() for tensor in tensors.values()))
    starts = [1, *(end + 1 for end in ends)]
    return {name: (f"numbers {start}…{end}",) for name, start, end in zip(tensors, starts, ends, strict=False)}


def _account(
    trained: Trained, foreign: _Foreign, told: _Told, *, out: Path, model: str | None, stated_license: str | None
) -> Conversion:
    detector, config = trained.detector, trained.detector.config
    shapes, settings = shapes_of(detector, counters=False), configs.to_dict(config)
    tensors = tuple(Mapped(name, told.made_of[name], shape) for name, shape in shapes.items())
    is_softmax = getattr(config, "classifier", "softmax") == "softmax"
    return Conversion(
        out=out,
        source=foreign.source.label,
        layout=foreign.program,
        model=model,
        architecture=type(config).__name__,
        conventions=conventions(config, model) if model else (),
        tensors=tensors,
        skipped=_skipped(foreign, tensors, known=told.skipped),
        num_classes=config.num_classes,
        class_names=detector.class_names,
        category_ids=trained.category_ids,
        background=BACKGROUND.get(foreign.program) if is_softmax else NO_BACKGROUND,
        boxes=BOXES.get(foreign.program, "x, y, width, height"),
        anchors=next((settings[name] for name in ANCHORS if name in settings), None),
        preprocessing=detector.preprocessing,
        license=stated_license or told.license or LICENSES.get(foreign.program, NO_LICENSE),
        notes=told.notes,
    )


def _skipped(foreign: _Foreign, tensors: tuple[Mapped, ...], *, known: tuple[str, ...]) -> tuple[str, ...]:
    """The tensors of the file that no tensor was made of: those that its reader names, and BatchNorm's counters.

    Raises:
        CheckpointError: there are others.
    """
    if not all(one.made_of for one in tensors):  # a reader that leaves torch on the way cannot be followed
        return known
    used = {name for one in tensors for name in one.made_of}
    unused = tuple(name for name in (foreign.file.tensors if foreign.file else ()) if name not in used)
    if lost := [name for name in unused if name not in known and not name.endswith(COUNTER)]:
        raise CheckpointError(f"{foreign.source.label}: left over {list_names(lost)}")
    return unused


def _in_words(settings: Any) -> str:
    """Settings in one line, their numbers to five digits."""
    if isinstance(settings, Mapping):
        return ", ".join(f"{name} {_in_words(value)}" for name, value in settings.items())
    if isinstance(settings, list | tuple):
        return f"[{', '.join(map(_in_words, settings))}]"
    return f"{settings:.5g}" if isinstance(settings, float) else str(settings)
