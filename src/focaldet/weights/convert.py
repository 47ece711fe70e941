"""Convert another program's detector to a file of focaldet, with a report of what became of it."""

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from focaldet import config as configs
from focaldet.data.formats.text import list_names
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import Detector, named_config
from focaldet.runtime import Progress
from focaldet.types import Preprocessing
from focaldet.weights import compatibility
from focaldet.weights.checkpoint import NO_LICENSE, is_checkpoint, save_detector
from focaldet.weights.download import sha256
from focaldet.weights.formats import darknet
from focaldet.weights.formats.detector_weights import DetectorWeights
from focaldet.weights.formats.files import read_tensors
from focaldet.weights.formats.registry import FILE_FORMATS, recognize_format
from focaldet.weights.load import build_detector, read_foreign
from focaldet.weights.normalization import describe_input
from focaldet.weights.provenance import source_names, track_names
from focaldet.weights.sources import WeightsSource, find_weights
from focaldet.weights.tensor_names import COUNTER, require_finite, shapes_of

DARKNET = "darknet"
SHORT_PROGRAM_NAMES = {"mmdet": "mmdetection"}
NO_BACKGROUND = "none, each class is decided by itself"
BACKGROUND = {
    **dict.fromkeys(("torchvision", "caffe", "tensorflow"), "first in the file, last here"),
    **dict.fromkeys(("detectron2", "mmdetection"), "last in the file and here"),
    DARKNET: "none, the objectness decides",
}
"""The position of the background among the classes of a softmax, by program."""
BOXES = {DARKNET: "x, y, width, height, objectness"}
"""The numbers of a box in the programs that do not have the usual four."""
LICENSES = {
    "torchvision": "torchvision (its published weights: BSD-3-Clause)",
    DARKNET: "darknet (its published weights: public domain, by the YOLO LICENSE)",
}
"""The licenses of published weights of the programs whose reader states none."""
RENAMED_ATTRIBUTES = {"licence": "license", "left_out": "skipped", "remarks": "notes"}


@dataclass(frozen=True, slots=True)
class TensorMapping:
    """A tensor of the detector by its name and shape, and the tensors of the file that it was made of."""

    name: str
    made_of: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` wrote, and from what.

    `model` is the preset that the file fits, if there is one, but for settings of training and detection and for the
    `conventions`, which are those of the file's program. `skipped` are the tensors of the file that none of the
    detector's was made of: their reader knows them, or they count BatchNorm's batches.
    """

    out: Path
    source: str
    layout: str
    model: str | None
    architecture: str
    conventions: tuple[str, ...]
    tensors: tuple[TensorMapping, ...]
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

    def __getattr__(self, name: str) -> Any:
        """The attributes of version 0.1 that are called otherwise now."""
        if (new := RENAMED_ATTRIBUTES.get(name)) is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(f"Conversion.{name} is now called {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    def parts(self) -> dict[str, tuple[int, int]]:
        """The tensors and the numbers in them, by the part of the detector."""
        counts, numbers = Counter[str](), Counter[str]()
        for tensor in self.tensors:
            part = tensor.name.split(".", maxsplit=1)[0]
            counts[part] += 1
            numbers[part] += math.prod(tensor.shape)
        return {part: (count, numbers[part]) for part, count in counts.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything for programs: `tensors` by focaldet's names, each with those it was made of."""
        mapping = {each.name: {"made_of": list(each.made_of), "shape": list(each.shape)} for each in self.tensors}
        parts = {part: {"tensors": count, "numbers": numbers} for part, (count, numbers) in self.parts().items()}
        values = asdict(self)
        del values["tensors"]  # they come last
        return values | {"out": str(self.out), "parts": parts, "tensors": mapping}

    def rows(self) -> list[list[str]]:
        """The report for people: a subject and a text in each row."""
        parts = [["tensors", f"{part}: {count}, {size:,} numbers"] for part, (count, size) in self.parts().items()]
        names = f": {list_names(self.class_names)}" if self.class_names else ", without names"
        ids = f"{self.category_ids[0]}…{self.category_ids[-1]}" if self.category_ids else "none stated"
        return [
            ["read", f"{self.source} ({self.layout})"],
            ["detector", f"{self.model or 'no preset'} ({self.architecture})"],
            *([["conventions", ", ".join(self.conventions)]] if self.conventions else []),
            *parts,
            ["classes", f"{self.num_classes}{names}"],
            ["category ids", ids],
            *([["background", self.background]] if self.background else []),
            ["boxes", self.boxes],
            ["anchors", _settings_text(self.anchors)],
            ["input", f"{describe_input(self.preprocessing)}, {self.preprocessing.resize}"],
            ["license", self.license],
            ["skipped", list_names(self.skipped) if self.skipped else "nothing"],
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
    """Write the detector of another program's file as a file of focaldet at `out`; return what was read and written.

    Args:
        spec: a file, or a name such as torchvision:coco_v1.
        out: ends in .safetensors.
        layout: the program whose file it must be, such as torchvision or darknet; recognized where it is None.
        model: the preset that the file must fit. darknet's files need it.
        input: what the weights were trained to see, where the file does not state it.
        license: of the weights, where it is another than the source's own.
        overwrite: replace what is at `out`.
        progress: called with the bytes done and the bytes there are, while a name is downloaded.
        licence: the old name of `license`.

    Raises:
        CheckpointError: the file is not a whole detector, of another layout or preset, has tensors left over, or cannot
            be read or written; nothing was written then.
        ConfigError: `layout` or `model` is unknown, `license` is not one line of text, or `out` has another suffix or
            is there already.
    """
    if licence is not None:
        warnings.warn("convert(licence=…) is now called license", DeprecationWarning, stacklevel=2)
        license = licence  # noqa: A001
    out = Path(out)
    if license is not None and not license.isprintable():
        raise ConfigError(f"license: must be one line of text, got {license!r}")
    names = [*(known.program for known in FILE_FORMATS), DARKNET]
    layout = SHORT_PROGRAM_NAMES.get(layout, layout) if layout else None
    if layout is not None and layout not in names:
        raise ConfigError(
            f"from: no whole detectors of {layout!r} are known, only of {', '.join(names)}"
            f"{configs.nearest(layout, names)}; a backbone alone needs no conversion, training takes it as it is"
        )
    if model is not None:
        named_config(model)
    source = find_weights(spec, progress=progress)
    _require_free_path(out, source, overwrite=overwrite)
    foreign = _read_foreign(source, layout=layout, model=model, named_input=input)
    require_finite(foreign.weights.tensors, source=source.label)
    detector = build_detector(foreign.weights, source)
    conversion = _report(detector, foreign, out=out, model=model, stated_license=license)
    extra = {"converted_from": source.path.name, "layout": conversion.layout, "source_sha256": sha256(source.path)}
    save_detector(out, detector, classes=foreign.weights.classes, license=conversion.license, extra=extra)
    return conversion


@dataclass(frozen=True, slots=True)
class _ForeignFile:
    """A file of another program: the names of its tensors (darknet's have none), what its reader makes of them, and of
    which tensors or numbers in it each tensor was made.
    """

    source: WeightsSource
    program: str
    names: tuple[str, ...]
    weights: DetectorWeights
    made_of: Mapping[str, tuple[str, ...]]


def _require_free_path(out: Path, source: WeightsSource, *, overwrite: bool) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"out: {out}: must end in .safetensors")
    if out.exists() and out.samefile(source.path):
        raise ConfigError(f"out: {out}: is the file that would be read")
    if out.exists() and not overwrite:
        raise ConfigError(f"out: {out}: is there already; --overwrite replaces it")


def _read_foreign(
    source: WeightsSource, *, layout: str | None, model: str | None, named_input: str | None
) -> _ForeignFile:
    file = None if darknet.is_darknet(source.path) else read_tensors(source.path)
    if file is not None and is_checkpoint(file):
        raise CheckpointError(f"{source.label}: is a file of focaldet already")
    known = recognize_format(file.tensors) if file is not None else None
    program = known.program if known else DARKNET if file is None else "a program that focaldet does not know"
    if layout not in (None, program):
        raise CheckpointError(f"{source.label}: is laid out by {program}, not by {layout}")
    tracked = None if file is None else track_names(file)
    weights = read_foreign(source, tracked, model=model, named_input=named_input)
    made_of = _number_ranges(weights.tensors) if file is None else source_names(weights.tensors)
    return _ForeignFile(source, program, () if file is None else tuple(file.tensors), weights, made_of)


def _number_ranges(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """The numbers of a darknet file that each tensor is made of, counted from 1 behind its header."""
    ends = accumulate((tensor.numel() for tensor in tensors.values()), initial=0)
    return {name: (f"numbers {last + 1}…{end}",) for name, (last, end) in zip(tensors, pairwise(ends), strict=True)}


def _require_preset(detector: Detector, source: WeightsSource, *, model: str | None) -> str | None:
    """The preset that fits, preferably with the same conventions; if `model` is given, it must."""
    free = frozenset(compatibility.FREE | compatibility.CONVENTIONS)
    config = detector.config
    name = compatibility.matching_preset(config) or compatibility.matching_preset(config, free=free)
    if model is None:
        return name
    try:
        compatibility.require_same_settings(config, named_config(model), source=source.label, free=free)
    except CheckpointError as error:
        instead = f"; it fits {name}" if name else ""
        differences = str(error).removesuffix(f" (it fits {name})")
        raise CheckpointError(f"{differences}; model {model} was asked for{instead}") from None
    return model


def _report(
    detector: Detector, foreign: _ForeignFile, *, out: Path, model: str | None, stated_license: str | None
) -> Conversion:
    config, weights = detector.config, foreign.weights
    preset = _require_preset(detector, foreign.source, model=model)
    shapes, settings = shapes_of(detector, counters=False), configs.to_dict(config)
    tensors = tuple(TensorMapping(name, foreign.made_of[name], shape) for name, shape in shapes.items())
    return Conversion(
        out=out,
        source=foreign.source.label,
        layout=foreign.program,
        model=preset,
        architecture=type(config).__name__,
        conventions=compatibility.differing_conventions(config, preset) if preset else (),
        tensors=tensors,
        skipped=_skipped_tensors(foreign, tensors),
        num_classes=config.num_classes,
        class_names=weights.classes.names,
        category_ids=weights.classes.category_ids,
        background=NO_BACKGROUND if config.classifier == "sigmoid" else BACKGROUND.get(foreign.program),
        boxes=BOXES.get(foreign.program, "x, y, width, height"),
        anchors=settings.get("anchors", settings.get("priors")),
        preprocessing=detector.preprocessing,
        license=stated_license or weights.license or LICENSES.get(foreign.program, NO_LICENSE),
        notes=weights.notes,
    )


def _skipped_tensors(foreign: _ForeignFile, tensors: tuple[TensorMapping, ...]) -> tuple[str, ...]:
    """The tensors of the file that no tensor was made of: those that its reader names, and BatchNorm's counters.

    Raises:
        CheckpointError: there are others.
    """
    known = foreign.weights.skipped
    if not all(tensor.made_of for tensor in tensors):  # a reader that leaves torch on the way cannot be followed
        return known
    used = {name for tensor in tensors for name in tensor.made_of}
    unused = tuple(name for name in foreign.names if name not in used)
    if lost := [name for name in unused if name not in known and not name.endswith(COUNTER)]:
        raise CheckpointError(f"{foreign.source.label}: left over {list_names(lost)}")
    return unused


def _settings_text(settings: Any) -> str:
    """Settings in one line, their numbers to five digits."""
    if isinstance(settings, Mapping):
        return ", ".join(f"{name} {_settings_text(value)}" for name, value in settings.items())
    if isinstance(settings, list | tuple):
        return f"[{', '.join(map(_settings_text, settings))}]"
    return f"{settings:.5g}" if isinstance(settings, float) else str(settings)
