"""Whole detectors in the files of other programs, each brought to our names, classes and settings.

Every program's own conventions stand in the module of its name; here is what becomes of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from focaldet.models import DETECTORS, Detector, build, from_config
from focaldet.types import Preprocessing
from focaldet.weights.formats import caffe, darknet, detectron2, mmdetection, torchvision
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.formats.resnet_detectors import Twin, coco_names, require_classes
from focaldet.weights.normalization import with_input
from focaldet.weights.sources import Source
from focaldet.weights.tensor_names import COUNTER, require_fit, shapes_of, without_memory

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file brought to the detector's names; `config` and `class_names` are those it was made with.

    `skipped` are the tensors of the file that state what the config says already, or what nothing reads.
    """

    config: Any
    tensors: dict[str, Tensor]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()
    license: str | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one program: how they are known by their names, the detector that one was made for, with random
    weights, and the ids of its classes, and how its tensors come into a detector. The last text is `--weights.input`.
    """

    program: str
    is_detector: Callable[[Mapping[str, Tensor]], bool]
    built: Callable[[TensorFile, Source, str | None], tuple[Detector, Ids]]
    brought: Callable[[Detector, TensorFile, Source, str | None], Incoming]


def layout_of(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The layout that has these names; None for a backbone alone and for what nobody knows."""
    return next((layout for layout in LAYOUTS if layout.is_detector(tensors)), None)


def coco_ids(class_names: tuple[str, ...]) -> Ids:
    """COCO's category ids where the names are COCO's, else none."""
    return darknet.COCO_CATEGORY_IDS if class_names == darknet.COCO_CLASS_NAMES else ()


def _of_torchvision(file: TensorFile, source: Source, _named_input: str | None) -> tuple[Detector, Ids]:
    count = require_classes(torchvision.num_classes(file.tensors), source=source.label)
    detector = build(torchvision.preset(file.tensors), num_classes=count)
    return detector, torchvision.category_ids(file.tensors)


def _from_torchvision(detector: Detector, file: TensorFile, source: Source, named_input: str | None) -> Incoming:
    """Its normalisation is part of torchvision's class, so a file that states nothing still has one."""
    count = require_classes(torchvision.num_classes(file.tensors), source=source.label)
    twin = DETECTORS[torchvision.preset(file.tensors)]
    eps = torchvision.batch_norm_eps(file.tensors)
    if eps is None:
        eps = twin.norm_eps if source.input else getattr(detector.config, "norm_eps", twin.norm_eps)
    stated = named_input or file.statements.get("input") or source.input
    note = "the file states no input; that is the default of torchvision's detectors (--weights.input overrules it)"
    return Incoming(
        config=replace(twin, num_classes=count, norm_eps=eps),
        tensors=torchvision.detector_tensors(file.tensors),
        class_names=torchvision.class_names(file.tensors),
        preprocessing=with_input(detector.preprocessing, stated or "imagenet", source=source.label),
        notes=() if stated else (note,),
        license=file.license or source.license,
    )


def _of_caffe(file: TensorFile, _source: Source, _named_input: str | None) -> tuple[Detector, Ids]:
    name, count = caffe.preset(file.tensors)
    return build(name, num_classes=count), coco_ids(coco_names(count or 0))


def _from_caffe(detector: Detector, file: TensorFile, source: Source, named_input: str | None) -> Incoming:
    """Caffe's scripts have but one input, so a file that states nothing still has one."""
    config, tensors = caffe.detector_tensors(detector, file.tensors, source=source.label)
    stated = named_input or file.statements.get("input") or caffe.INPUT
    return Incoming(
        config=config,
        tensors=tensors,
        class_names=coco_names(config.num_classes),
        preprocessing=with_input(detector.preprocessing, stated, source=source.label),
        notes=(caffe.NOTE,),
        license=file.license,
    )


def _of_detectron2(file: TensorFile, source: Source, named_input: str | None) -> tuple[Detector, Ids]:
    return _fresh(detectron2.twin(file, source=source.label, stated=_stated(file, named_input)), source)


def _from_detectron2(detector: Detector, file: TensorFile, source: Source, named_input: str | None) -> Incoming:
    stated = _stated(file, named_input)
    twin = detectron2.twin(file, source=source.label, stated=stated)
    incoming = _from_twin(detector, twin, source, stated)
    return replace(incoming, notes=(detectron2.NOTE,), license=file.license or detectron2.LICENSE)


def _of_mmdetection(file: TensorFile, source: Source, named_input: str | None) -> tuple[Detector, Ids]:
    return _fresh(mmdetection.twin(file, source=source.label, stated=_stated(file, named_input)), source)


def _from_mmdetection(detector: Detector, file: TensorFile, source: Source, named_input: str | None) -> Incoming:
    stated, ours = _stated(file, named_input), getattr(detector.config, "stride_in_1x1", False)
    twin = mmdetection.twin(file, source=source.label, stated=stated, stride_in_1x1=ours)
    incoming = _from_twin(detector, twin, source, stated)
    return replace(incoming, notes=(mmdetection.NOTE,), license=file.license or mmdetection.LICENSE)


def _stated(file: TensorFile, named_input: str | None) -> str | None:
    """The input in words: the user's, or the file's."""
    return named_input or file.statements.get("input")


def _fresh(twin: Twin, source: Source) -> tuple[Detector, Ids]:
    """The detector of a twin's config with random weights; made only after the file's shapes were found to fit it."""
    found = {name: tuple(value.shape) for name, value in twin.tensors.items() if not name.endswith(COUNTER)}
    require_fit(shapes_of(without_memory(twin.config), counters=False), found, source=source.label)
    return from_config(twin.config, class_names=(), preprocessing=twin.preprocessing), coco_ids(twin.class_names)


def _from_twin(detector: Detector, twin: Twin, source: Source, stated: str | None) -> Incoming:
    """A twin's tensors, with its input, or the stated one, and the resize rule of the detector."""
    theirs = twin.preprocessing
    ours = replace(detector.preprocessing, channels=theirs.channels, mean=theirs.mean, std=theirs.std)
    return Incoming(
        config=twin.config,
        tensors=twin.tensors,
        class_names=twin.class_names,
        preprocessing=with_input(ours, stated, source=source.label) if stated else ours,
        skipped=twin.skipped,
    )


# detectron2 before torchvision: some of their names are the same.
LAYOUTS = (
    Layout("detectron2", detectron2.is_detector, _of_detectron2, _from_detectron2),
    Layout("mmdetection", mmdetection.is_detector, _of_mmdetection, _from_mmdetection),
    Layout("torchvision", torchvision.is_detector, _of_torchvision, _from_torchvision),
    Layout("caffe", caffe.is_detector, _of_caffe, _from_caffe),
)
"""The programs whose whole detectors are known."""
