"""Weights of any known file into a detector: checked tensor by tensor, with an account of what was done."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from focaldet.data.formats.text import list_names
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import Detector, build
from focaldet.nets.norm import FrozenBatchNorm
from focaldet.runtime import Progress
from focaldet.types import Preprocessing
from focaldet.weights.checkpoint import NO_LICENSE, detector_config, is_own, read_checkpoint, read_metadata
from focaldet.weights.compatibility import BEHIND_ENCODER, FREE, require_same_settings
from focaldet.weights.formats import darknet, timm, torchvision
from focaldet.weights.formats.files import TensorFile, read_tensors
from focaldet.weights.formats.registry import Incoming, coco_ids, layout_of
from focaldet.weights.formats.resnet_detectors import coco_names
from focaldet.weights.normalization import describe, with_input
from focaldet.weights.sources import Source, resolve
from focaldet.weights.tensor_names import COUNTER, class_layer, renamed, require_fit, shapes_of

_KEEP_FROZEN = re.compile(r"keep (it|batchnorm|bn) frozen", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `load_into` did: the detector's tensors that were loaded, those that keep their fresh values because the
    classes differ (`reset`), and the file's tensors that have no place in the detector (`skipped`).
    """

    source: str
    kind: Literal["detector", "encoder", "backbone"]
    loaded: tuple[str, ...]
    reset: tuple[str, ...]
    skipped: tuple[str, ...]
    preprocessing: Preprocessing
    license: str | None = None
    notes: tuple[str, ...] = ()

    def sentences(self) -> tuple[str, ...]:
        """The account in lines for people."""
        rest = f"; left out: {list_names(self.skipped)}" if self.skipped else ""
        return (
            f"weights: {self.kind} from {self.source}, {len(self.loaded)} tensors{rest}",
            f"input: {describe(self.preprocessing)}",
            *self.notes,
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """A detector as its file describes it, and the ids that its data set's files use for its classes (may be empty)."""

    detector: Detector
    category_ids: tuple[int, ...]
    source: str


def load_into(
    detector: Detector,
    spec: str | Path,
    *,
    input: str | None = None,  # noqa: A002  what users write: --weights.input
    progress: Progress | None = None,
) -> LoadReport:
    """Fill a freshly built `detector` with the weights of `spec`: a whole detector's or a backbone's.

    `detector.preprocessing` takes the channels and scaling those weights were trained with (`input` overrules what the
    file states) and keeps its resize rule. The class layer stays fresh where the file's classes are others.

    Raises:
        CheckpointError: the file is missing, damaged, or made for another network; names the tensors or settings.
        ConfigError: nobody states the input, or the detector's settings go against what the file states.
    """
    source = resolve(spec, backbone=getattr(detector.config, "backbone", None), progress=progress)
    if is_own(source.path):
        return _take_detector(detector, _own(detector, source, named_input=input), source)
    if darknet.is_darknet(source.path):
        return _take_darknet(detector, source, named_input=input)
    file = read_tensors(source.path)
    if (layout := layout_of(file.tensors)) is not None:
        return _take_detector(detector, layout.brought(detector, file, source, input), source)
    if timm.is_inception_resnet(file.tensors):
        return _take_halves(detector, file, source, named_input=input)
    return _take_backbone(detector, file, source, named_input=input)


def load_detector(
    spec: str | Path,
    *,
    model: str | None = None,
    input: str | None = None,  # noqa: A002  what users write: --weights.input
    progress: Progress | None = None,
) -> Trained:
    """The trained detector of a file, run folder or name, built as the file says.

    A darknet file says nothing but its numbers: only there `model` names the entry of the table that is built.

    Raises:
        CheckpointError: missing, damaged, or a backbone alone, which detects nothing.
    """
    source = resolve(spec, progress=progress)
    if is_own(source.path):
        detector, described = read_checkpoint(source.path)
        if input is not None:
            detector.preprocessing = with_input(detector.preprocessing, input, source=source.label)
        return Trained(detector, described.category_ids, source.label)
    if darknet.is_darknet(source.path):
        return _open_darknet(source, model=model, named_input=input)
    file = read_tensors(source.path)
    if (layout := layout_of(file.tensors)) is None:
        raise CheckpointError(
            f"{source.label}: holds no detector that focaldet knows (a backbone alone can be trained from)"
        )
    # The random weights that the file's replace must not cost the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        detector, ids = layout.built(file, source, input)
    _take_detector(detector, layout.brought(detector, file, source, input), source)
    return Trained(detector, ids, source.label)


def _open_darknet(source: Source, *, model: str | None, named_input: str | None) -> Trained:
    """The detector called `model`, with as many classes as the file has; 80 are taken for COCO's."""
    if model is None:
        raise CheckpointError(f"{source.label}: a darknet file does not state its network: name one, such as yolov2")
    with torch.device("meta"):
        sketch = build(model)
    found = darknet.detector_tensors(sketch, darknet.read_darknet(source.path), source=source.label)
    if found is None:
        raise CheckpointError(f"{source.label}: holds a classifier, which detects nothing (it can be trained from)")
    count, _ = found
    with torch.random.fork_rng(devices=[]):
        detector = build(model, num_classes=count)
    load_into(detector, source.path, input=named_input)
    return Trained(detector, coco_ids(coco_names(count)), source.label)


def _own(detector: Detector, source: Source, *, named_input: str | None) -> Incoming:
    """One of our own files; its tensors keep their names."""
    described = read_metadata(source.path)
    theirs = described.preprocessing
    ours = replace(detector.preprocessing, channels=theirs.channels, mean=theirs.mean, std=theirs.std)
    return Incoming(
        config=detector_config(described, source.path),
        tensors=read_tensors(source.path).tensors,
        class_names=described.class_names,
        preprocessing=ours if named_input is None else with_input(ours, named_input, source=source.label),
        license=None if described.license == NO_LICENSE else described.license,
    )


def _take_darknet(detector: Detector, source: Source, *, named_input: str | None) -> LoadReport:
    """A whole YOLOv2, or the backbone of a classifier."""
    file = darknet.read_darknet(source.path)
    preprocessing = with_input(detector.preprocessing, named_input or "unit", source=source.label)
    found = darknet.detector_tensors(detector, file, source=source.label)
    if found is None:
        classes, tensors = darknet.backbone_tensors(detector, file)
        backbone = detector.get_submodule("backbone")
        _copy(backbone, tensors, shapes_of(backbone, counters=False), source)
        detector.preprocessing = preprocessing
        loaded, skipped = tuple(f"backbone.{name}" for name in tensors), ("the classifier",) if classes else ()
        return LoadReport(source.label, "backbone", loaded, (), skipped, preprocessing)
    count, tensors = found
    incoming = Incoming(
        config=replace(detector.config, num_classes=count),
        tensors=tensors,
        class_names=coco_names(count),
        preprocessing=preprocessing,
        notes=("a darknet file states neither anchors nor classes: the anchors are those of the settings",),
    )
    return _take_detector(detector, incoming, source)


def _take_encoder(detector: Detector, incoming: Incoming, source: Source, *, parts: tuple[str, ...]) -> LoadReport:
    """The part of another detector that this one starts from; what comes behind it stays fresh."""
    require_same_settings(incoming.config, detector.config, source=source.label, free=FREE | BEHIND_ENCODER)
    tensors = {name: value for name, value in incoming.tensors.items() if not name.endswith(COUNTER)}
    reset = () if _same_classes(detector, incoming) else class_layer(detector)
    lost = tuple(name for name in reset if name.startswith(parts) and name in tensors)
    skipped = tuple(name for name in tensors if not name.startswith(parts))
    tensors = {name: value for name, value in tensors.items() if name not in (*skipped, *lost)}
    shapes = shapes_of(detector, counters=False)
    expected = {name: shape for name, shape in shapes.items() if name.startswith(parts) and name not in reset}
    _copy(detector, tensors, expected, source)
    notes = (*incoming.notes, *_set_norm_eps(detector, incoming.config.norm_eps))
    if fresh := [name for name in shapes if name not in expected and name not in lost]:
        notes = (*notes, f"starts from random weights: {list_names(fresh)}")
    if lost:
        notes = (*notes, _of_reset(detector, incoming))
    detector.preprocessing = incoming.preprocessing
    return LoadReport(
        source.label, "encoder", tuple(expected), lost, skipped, incoming.preprocessing, incoming.license, notes
    )


def _take_detector(detector: Detector, incoming: Incoming, source: Source) -> LoadReport:
    if parts := detector.starts_from(incoming.config):
        return _take_encoder(detector, incoming, source, parts=parts)
    require_same_settings(incoming.config, detector.config, source=source.label)
    tensors = {name: value for name, value in incoming.tensors.items() if not name.endswith(COUNTER)}
    expected = shapes_of(detector, counters=False)
    reset = () if _same_classes(detector, incoming) else class_layer(detector)
    lost = tuple(name for name in reset if name in tensors)
    tensors = {name: value for name, value in tensors.items() if name not in reset}
    expected = {name: shape for name, shape in expected.items() if name not in reset}
    _copy(detector, tensors, expected, source)
    notes = [*incoming.notes, *_set_norm_eps(detector, incoming.config.norm_eps)]
    if lost:
        notes.append(_of_reset(detector, incoming))
    elif not detector.class_names:
        detector.class_names = incoming.class_names
    detector.preprocessing = incoming.preprocessing
    loaded = tuple(expected)
    return LoadReport(
        source.label,
        "detector",
        loaded,
        lost,
        incoming.skipped,
        incoming.preprocessing,
        incoming.license,
        tuple(notes),
    )


def _take_backbone(detector: Detector, file: TensorFile, source: Source, *, named_input: str | None) -> LoadReport:
    """An ImageNet classifier's weights into `detector.backbone`."""
    if not torchvision.is_classifier(file.tensors):
        raise CheckpointError(
            f"{source.label}: no layout that focaldet knows (first tensors: {list_names(list(file.tensors))})"
        )
    preprocessing = _classifier_input(detector, file, source, named_input=named_input)
    backbone = detector.get_submodule("backbone")
    kept_frozen = bool(_KEEP_FROZEN.search(file.statements.get("note", "")))
    if kept_frozen and any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        raise ConfigError(
            f"{source.label}: asks to keep BatchNorm frozen; this detector trains it (norm: frozen is needed)"
        )
    if getattr(detector.config, "stride_in_1x1", False):
        raise ConfigError(f"{source.label}: has its strides in the 3×3 convolutions; stride_in_1x1 must be false")
    tensors, skipped = torchvision.backbone_tensors(file.tensors)
    tensors = {
        renamed(name, detector.pretrained): value for name, value in tensors.items() if not name.endswith(COUNTER)
    }
    places = tuple(place for _, place in detector.pretrained)
    shapes = shapes_of(detector, counters=False)
    expected = {name: shape for name, shape in shapes.items() if name.startswith(places)}
    _copy(detector, tensors, expected, source)
    notes = _set_norm_eps(detector, torchvision.BATCH_NORM_EPS)
    if kept_frozen:
        notes = (*notes, "BatchNorm of the backbone stays frozen, as the file asks")
    detector.preprocessing = preprocessing
    return LoadReport(
        source=source.label,
        kind="backbone",
        loaded=tuple(expected),
        reset=(),
        skipped=skipped,
        preprocessing=preprocessing,
        license=file.license or source.license,
        notes=notes,
    )


def _take_halves(detector: Detector, file: TensorFile, source: Source, *, named_input: str | None) -> LoadReport:
    """timm's Inception-ResNet-v2 into both stages of a detector that is made of it."""
    preprocessing = _classifier_input(detector, file, source, named_input=named_input)
    tensors, expected, skipped = timm.detector_tensors(detector, file.tensors, source=source.label)
    _copy(detector, tensors, expected, source)
    notes = (*timm.notes(file.tensors), *_set_norm_eps(detector, timm.BATCH_NORM_EPS))
    detector.preprocessing = preprocessing
    return LoadReport(source.label, "backbone", tuple(expected), (), skipped, preprocessing, file.license, notes)


def _classifier_input(
    detector: Detector, file: TensorFile, source: Source, *, named_input: str | None
) -> Preprocessing:
    """The detector's preprocessing with the input that the user, the file or its origin states, in that order."""
    stated = named_input or file.statements.get("input") or source.input
    if stated is None:
        raise ConfigError(
            f"{source.label}: does not state what input it was trained on; say it with --weights.input "
            "(torchvision's ImageNet weights: imagenet; timm's Inception-ResNet-v2: symmetric)"
        )
    return with_input(detector.preprocessing, stated, source=source.label)


def _copy(
    module: nn.Module, tensors: dict[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: Source
) -> None:
    """Fill the `expected` tensors of `module`, after all names and shapes were found right."""
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    require_fit(expected, found, source=source.label)
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{source.label}: {name}: is {value.dtype}, must hold floating-point numbers")
    module.load_state_dict(tensors, strict=False)


def _same_classes(detector: Detector, incoming: Incoming) -> bool:
    """Same number, same classifier and, where both sides have names, the same names in the same order."""
    named = bool(detector.class_names and incoming.class_names)
    if named and detector.class_names != incoming.class_names:
        return False
    ours, theirs = detector.config, incoming.config
    return bool(ours.num_classes == theirs.num_classes) and _classifier(ours) == _classifier(theirs)


def _classifier(config: Any) -> str | None:
    """How classes are told apart, where the architecture has a choice."""
    return getattr(config, "classifier", None)


def _of_reset(detector: Detector, incoming: Incoming) -> str:
    ours, theirs = (_classes_in_words(part.class_names, part.config) for part in (detector, incoming))
    return f"class layer reset, it starts from random weights: here {ours}, in the file {theirs}"


def _classes_in_words(names: tuple[str, ...], config: Any) -> str:
    softmax = " in a softmax" if _classifier(config) == "softmax" else ""
    return f"{config.num_classes} classes{f' ({list_names(names)})' if names else ''}{softmax}"


def _set_norm_eps(detector: Detector, eps: float) -> tuple[str, ...]:
    """Give BatchNorm the ε its weights were trained with; what was changed, in words."""
    old = getattr(detector.config, "norm_eps", eps)
    if old == eps:
        return ()
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm | nn.BatchNorm2d):
            module.eps = eps
    detector.config = replace(detector.config, norm_eps=eps)
    return (f"norm_eps is now {eps:g} instead of {old:g}: these weights were trained with it",)
