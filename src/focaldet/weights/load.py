"""Load the weights of any known file into a detector: checked tensor by tensor, with a report of what was done."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from focaldet.data.dataset import Classes
from focaldet.data.formats.text import list_names, quantity
from focaldet.errors import CheckpointError
from focaldet.models import Detector, DetectorConfig, build, from_config
from focaldet.nets.norm import FrozenBatchNorm
from focaldet.nets.timm_backbone import TimmBackbone
from focaldet.runtime import Progress
from focaldet.types import Preprocessing
from focaldet.weights.backbones import read_backbone
from focaldet.weights.checkpoint import (
    NO_LICENSE,
    Metadata,
    build_saved,
    is_checkpoint,
    parse_metadata,
    saved_config,
)
from focaldet.weights.compatibility import BEHIND_ENCODER, FREE, require_same_settings, setting_differences
from focaldet.weights.exported.detector import open_exported
from focaldet.weights.exported.graphs import is_exported
from focaldet.weights.formats import darknet
from focaldet.weights.formats.detector_weights import DetectorWeights
from focaldet.weights.formats.files import TensorFile, read_tensors
from focaldet.weights.formats.registry import recognize_format
from focaldet.weights.normalization import describe_input, replace_scaling, with_input
from focaldet.weights.parts import shared_names
from focaldet.weights.sources import TORCHVISION_WEIGHTS, WeightsSource, find_weights
from focaldet.weights.tensor_names import (
    TensorShapes,
    build_on_meta,
    class_layer_tensors,
    require_finite,
    require_fit,
    require_numbers,
    shapes_of,
    tensor_shapes,
    without_counters,
)
from focaldet.weights.thresholds import ScoreThresholds, read_thresholds


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `load_into` did: the detector's tensors that were loaded, those that keep their fresh values because the
    classes differ (`reset`), and the file's tensors that the detector does not have (`skipped`).
    """

    source: str
    kind: Literal["detector", "encoder", "backbone and pyramid", "backbone"]
    loaded: tuple[str, ...]
    reset: tuple[str, ...]
    skipped: tuple[str, ...]
    preprocessing: Preprocessing
    license: str | None = None
    notes: tuple[str, ...] = ()

    def sentences(self) -> tuple[str, ...]:
        """The report in lines for people."""
        rest = f"; skipped: {list_names(self.skipped)}" if self.skipped else ""
        return (
            f"weights: {self.kind} from {self.source}, {quantity(len(self.loaded), 'tensor')}{rest}",
            f"input: {describe_input(self.preprocessing)}",
            *self.notes,
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """A detector as its file describes it, and the ids that its data set's files use for its classes (may be empty).

    `thresholds` are the scores from which on its detections are best taken, where the file says so. `metadata` is what
    a file of focaldet's own says about itself; files of other programs have none.
    """

    detector: Detector
    category_ids: tuple[int, ...]
    source: str
    thresholds: ScoreThresholds | None = None
    metadata: Metadata | None = None


def load_detector(
    spec: str | Path,
    *,
    model: str | None = None,
    input: str | None = None,  # noqa: A002  what users write: --weights.input
    progress: Progress | None = None,
    allow_nonfinite: bool = False,
) -> Trained:
    """Build the trained detector that a file, run folder or name describes; `load_into` fills a given one.

    A darknet file describes nothing, it has only numbers: only there `model` names the preset that is built. Weights
    with which nothing can be computed (NaN, infinite, a negative variance) are taken with `allow_nonfinite` only. Of a
    file that was exported (`.onnx`, `.xml`, `.pt2`) it is an `ExportedDetector`.

    Raises:
        CheckpointError: missing, damaged, a backbone alone, which detects nothing, or weights that are not finite.
        ConfigError: an exported file needs a library that is not installed.
    """
    source = find_weights(spec, progress=progress)
    if is_exported(source.path):
        exported = open_exported(source.path, label=source.label)
        stated = exported.metadata
        thresholds = read_thresholds(stated.extra, source=str(source.path))
        return Trained(exported, stated.category_ids, source.label, thresholds, stated)
    file = None if darknet.is_darknet(source.path) else read_tensors(source.path)
    if file is not None:
        _require_sound(file.tensors, source, allow_nonfinite)
    if file is not None and is_checkpoint(file):
        detector, metadata = build_saved(file, source.path)
        detector.preprocessing = with_input(detector.preprocessing, input, source=source.label)
        thresholds = read_thresholds(metadata.extra, source=str(source.path))
        return Trained(detector, metadata.category_ids, source.label, thresholds, metadata)
    weights = read_foreign(source, file, model=model, named_input=input)
    if file is None:
        _require_sound(weights.tensors, source, allow_nonfinite)
    detector = build_detector(weights, source)
    return Trained(detector, weights.classes.category_ids, source.label)


def load_into(
    detector: Detector,
    spec: str | Path,
    *,
    input: str | None = None,  # noqa: A002  what users write: --weights.input
    progress: Progress | None = None,
    allow_nonfinite: bool = False,
) -> LoadReport:
    """Fill a freshly built `detector` with the weights of `spec`: a whole detector's or a backbone's.

    A file of focaldet's of another detector gives its backbone and as much of its pyramid as both have.

    `detector.preprocessing` takes the channels and scaling those weights were trained with (`input` overrules what the
    file states) and keeps its resize rule. The class layer stays fresh where the file's classes are others.

    Raises:
        CheckpointError: the file is missing, damaged, or made for another network; names the tensors or settings.
        ConfigError: nobody states the input, or the detector's settings go against what the file states.
    """
    source = find_weights(spec, backbone=detector.config.backbone, progress=progress)
    if darknet.is_darknet(source.path):
        numbers = darknet.read_darknet(source.path)
        weights = darknet.read_yolov2(numbers, source, input, detector)
        _require_sound(weights.tensors if weights else {"numbers": numbers.numbers}, source, allow_nonfinite)
        return _fill_detector(detector, weights, source) if weights else _fill_darknet(detector, numbers, source, input)
    file = read_tensors(source.path)
    _require_sound(file.tensors, source, allow_nonfinite)
    stated = stated_input(file, source, input)
    if is_checkpoint(file):
        return _fill_from_detector(detector, _read_saved(file, source, input, detector), source)
    if (file_format := recognize_format(file.tensors)) is not None:
        return _fill_detector(detector, file_format.read(file, source, stated, detector), source)
    return _fill_backbone(detector, file, source, stated)


def saved_settings(spec: str) -> DetectorConfig | None:
    """The settings of the detector in a file of focaldet's; None for any other file.

    Raises:
        CheckpointError, ConfigError: as `find_weights`, or the file is damaged.
    """
    if spec in TORCHVISION_WEIGHTS or spec.startswith("timm:"):
        return None  # a download of another program's
    path = find_weights(spec).path
    if darknet.is_darknet(path) or is_exported(path):
        return None
    file = read_tensors(path)
    return saved_config(parse_metadata(file.statements, path), path) if is_checkpoint(file) else None


def _require_sound(tensors: Mapping[str, Tensor], source: WeightsSource, allow_nonfinite: bool) -> None:
    """Refuse weights with which nothing can be computed, unless they are asked for."""
    if not allow_nonfinite:
        require_finite(tensors, source=source.label)


def stated_input(file: TensorFile, source: WeightsSource, named: str | None) -> str | None:
    """The input that the user (`named`), the file or its origin states, in that order."""
    return named or file.statements.get("input") or source.input


def read_foreign(
    source: WeightsSource, file: TensorFile | None, *, model: str | None, named_input: str | None
) -> DetectorWeights:
    """Read the whole detector in another program's file; `file` is None for darknet's, which is read as preset `model`.

    Raises:
        CheckpointError: not a whole detector, or no preset is named for a darknet file.
    """
    if file is not None:
        if (file_format := recognize_format(file.tensors)) is None:
            raise CheckpointError(
                f"{source.label}: not a detector that focaldet knows (a backbone alone can be trained from)"
            )
        return file_format.read(file, source, stated_input(file, source, named_input), None)
    if model is None:
        raise CheckpointError(f"{source.label}: a darknet file does not state its network: name one, such as yolov2")
    with torch.device("meta"):
        sketch = build(model)
    weights = darknet.read_yolov2(darknet.read_darknet(source.path), source, named_input, sketch)
    if weights is None:
        raise CheckpointError(f"{source.label}: is a classifier, which detects nothing (it can be trained from)")
    return weights


def build_detector(weights: DetectorWeights, source: WeightsSource) -> Detector:
    """The detector of another program with its weights; built once the shapes are known to fit.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or type.
    """
    actual = tensor_shapes(without_counters(weights.tensors))
    require_fit(shapes_of(build_on_meta(weights.config), counters=False), actual, source=source.label)
    # The random weights that the file's replace must not cost the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        detector = from_config(weights.config, class_names=(), preprocessing=weights.preprocessing)
    _fill_detector(detector, weights, source)
    return detector


def _read_saved(file: TensorFile, source: WeightsSource, named: str | None, detector: Detector) -> DetectorWeights:
    """The detector of a file by `save_detector`."""
    metadata = parse_metadata(file.statements, source.path)
    preprocessing = replace_scaling(detector.preprocessing, metadata.preprocessing)
    return DetectorWeights(
        config=saved_config(metadata, source.path),
        tensors=detector.current_tensor_names(file.tensors),
        preprocessing=with_input(preprocessing, named, source=source.label),
        classes=Classes(metadata.class_names, metadata.category_ids),
        license=None if metadata.license == NO_LICENSE else metadata.license,
    )


def _fill_detector(detector: Detector, weights: DetectorWeights, source: WeightsSource) -> LoadReport:
    """Fill a whole detector, or the part of it that starts from another; what comes behind that stays fresh."""
    encoder = detector.starts_from(weights.config)
    parts = encoder or ("",)  # "" begins every name
    free = frozenset(FREE | BEHIND_ENCODER if encoder else FREE)
    require_same_settings(weights.config, detector.config, source=source.label, free=free)
    tensors = without_counters(weights.tensors)
    class_layer = () if _has_same_classes(detector, weights) else class_layer_tensors(detector)
    reset = tuple(name for name in class_layer if name.startswith(parts) and name in tensors)
    skipped = tuple(name for name in tensors if not name.startswith(parts))
    shapes = shapes_of(detector, counters=False)
    expected = {name: shape for name, shape in shapes.items() if name.startswith(parts) and name not in class_layer}
    report = LoadReport(
        source.label,
        "encoder" if encoder else "detector",
        loaded=tuple(expected),
        reset=reset,
        skipped=(*weights.skipped, *skipped),
        preprocessing=weights.preprocessing,
        license=weights.license,
        notes=weights.notes,
    )
    tensors = {name: value for name, value in tensors.items() if name not in (*skipped, *reset)}
    report = _fill(detector, tensors, expected, report, weights.config.norm_eps)
    notes = list(report.notes)
    if encoder and (fresh := [name for name in shapes if name not in expected and name not in reset]):
        notes.append(f"starts from random weights: {list_names(fresh)}")
    if reset:
        here = _describe_classes(detector.class_names, detector.config)
        there = _describe_classes(weights.classes.names, weights.config)
        notes.append(f"class layer reset, it starts from random weights: here {here}, in the file {there}")
    elif not encoder and not detector.class_names:
        detector.class_names = weights.classes.names
    return replace(report, notes=tuple(notes))


def _fill_from_detector(detector: Detector, weights: DetectorWeights, source: WeightsSource) -> LoadReport:
    """Fill from a detector of focaldet's: the whole if it is the same one, else what both share, if anything."""
    free = frozenset(FREE | BEHIND_ENCODER if detector.starts_from(weights.config) else FREE)
    differences = setting_differences(weights.config, detector.config, free=free)
    shared = shared_names(detector, weights.config, weights.tensors) if differences else {}
    if not shared:
        return _fill_detector(detector, weights, source)
    expected = {name: shape for name, shape in shapes_of(detector, counters=False).items() if name in shared}
    fresh = [name for name in shapes_of(detector, counters=False) if name not in shared]
    report = LoadReport(
        source.label,
        "backbone and pyramid" if any(name.startswith("pyramid.") for name in shared) else "backbone",
        loaded=tuple(shared),
        reset=(),
        skipped=tuple(name for name in without_counters(weights.tensors) if name not in shared.values()),
        preprocessing=weights.preprocessing,
        license=weights.license,
        notes=(
            f"the file is of another detector: {differences}",
            f"starts from random weights: {list_names(fresh)}",
        ),
    )
    tensors = {name: weights.tensors[old] for name, old in shared.items()}
    return _fill(detector, tensors, expected, report, weights.config.norm_eps)


def _fill_darknet(
    detector: Detector, numbers: darknet.DarknetFile, source: WeightsSource, stated: str | None
) -> LoadReport:
    """Fill the backbone from darknet's classifier."""
    num_classes, tensors = darknet.read_darknet_backbone(detector, numbers)
    preprocessing = with_input(detector.preprocessing, stated or "unit", source=source.label)
    skipped = ("the classifier",) if num_classes else ()
    report = LoadReport(source.label, "backbone", tuple(tensors), (), skipped, preprocessing)
    expected = shapes_of(detector, counters=False, prefixes=("backbone.",))
    return _fill(detector, tensors, expected, report, None)


def _fill_backbone(detector: Detector, file: TensorFile, source: WeightsSource, stated: str | None) -> LoadReport:
    """Fill the backbone from a classifier of torchvision's or timm's, or both stages from an Inception-ResNet-v2."""
    weights = read_backbone(detector, file, source, stated=stated)
    report = LoadReport(
        source.label,
        "backbone",
        loaded=tuple(weights.expected),
        reset=(),
        skipped=weights.skipped,
        preprocessing=with_input(detector.preprocessing, weights.input, source=source.label),
        license=file.license or source.license,
        notes=weights.notes,
    )
    return _fill(detector, weights.tensors, weights.expected, report, weights.norm_eps)


def _fill(
    detector: Detector, tensors: Mapping[str, Tensor], expected: TensorShapes, report: LoadReport, eps: float | None
) -> LoadReport:
    """Fill the `expected` tensors, once all names, shapes and types are known to be right; the completed report."""
    require_fit(expected, tensor_shapes(tensors), source=report.source)
    require_numbers(tensors, source=report.source)
    detector.load_state_dict(tensors, strict=False)
    detector.preprocessing = report.preprocessing
    return replace(report, notes=(*report.notes, *_set_norm_eps(detector, eps)))


def _has_same_classes(detector: Detector, weights: DetectorWeights) -> bool:
    """Same number, same classifier and, where both have names, the same names in the same order."""
    names, file_names = detector.class_names, weights.classes.names
    config, file_config = detector.config, weights.config
    same_outputs = (config.num_classes, config.classifier) == (file_config.num_classes, file_config.classifier)
    return same_outputs and (names == file_names or not (names and file_names))


def _describe_classes(names: tuple[str, ...], config: DetectorConfig) -> str:
    softmax = " in a softmax" if config.classifier == "softmax" else ""
    return f"{quantity(config.num_classes, 'class', 'classes')}{f' ({list_names(names)})' if names else ''}{softmax}"


def _set_norm_eps(detector: Detector, eps: float | None) -> tuple[str, ...]:
    """Give BatchNorm the ε its weights were trained with; a note of the change."""
    old = detector.config.norm_eps
    if old is None or eps is None or old == eps:
        return ()
    backbones = [module for module in detector.modules() if isinstance(module, TimmBackbone)]
    of_timm = {id(module) for backbone in backbones for module in backbone.modules()}  # whose layers keep their own
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm | nn.BatchNorm2d) and id(module) not in of_timm:
            module.eps = eps
    detector.config = detector.config.replace(norm_eps=eps)
    return (f"norm_eps is now {eps:g} instead of {old:g}: these weights were trained with it",)
