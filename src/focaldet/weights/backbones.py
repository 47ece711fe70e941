"""ImageNet classifiers of torchvision and timm as the backbone of a detector."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from focaldet.data.formats.text import list_names
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import Detector
from focaldet.models.base import rename_prefixes
from focaldet.nets.timm_backbone import TimmBackbone
from focaldet.types import Preprocessing
from focaldet.weights.formats import timm, torchvision
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.normalization import describe_scaling
from focaldet.weights.sources import WeightsSource
from focaldet.weights.tensor_names import TensorShapes, shapes_of, without_counters

_KEEP_FROZEN = re.compile(r"keep (it|batchnorm|bn) frozen", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BackboneWeights:
    """A classifier's tensors by a detector's names, the shapes that the detector has there, and the names of those in
    the file that it does not have.

    `input` is what these weights were trained to see, `norm_eps` what BatchNorm adds to the variance, None where the
    network keeps its own.
    """

    tensors: Mapping[str, Tensor]
    expected: TensorShapes
    skipped: tuple[str, ...]
    input: str
    norm_eps: float | None
    notes: tuple[str, ...] = ()


def read_backbone(
    detector: Detector, file: TensorFile, source: WeightsSource, *, stated: str | None
) -> BackboneWeights:
    """What a classifier's file gives `detector`: its backbone, or both stages for an Inception-ResNet-v2.

    `stated` is the input that the user, the file or its origin states.

    Raises:
        CheckpointError: an unknown layout, or made for another network.
        ConfigError: nobody states the input, or the detector's settings go against what the file states.
    """
    tensors, backbone = file.tensors, dict(detector.named_modules()).get("backbone")
    if isinstance(backbone, TimmBackbone):
        return _read_timm(backbone, file, source, stated=stated)
    is_inception, is_efficientnet = timm.is_inception_resnet(tensors), timm.is_efficientnet(tensors)
    if not (is_inception or is_efficientnet or torchvision.is_classifier(tensors)):
        raise CheckpointError(
            f"{source.label}: not a layout that focaldet knows (first tensors: {list_names(list(tensors))})"
        )
    if stated is None:
        raise ConfigError(
            f"{source.label}: does not state what input it was trained on; say it with --weights.input "
            "(torchvision's ImageNet weights: imagenet; timm's Inception-ResNet-v2 and EfficientNets: symmetric)"
        )
    if is_inception:
        renamed, expected, skipped = timm.inception_resnet_tensors(detector, tensors, source=source.label)
        return BackboneWeights(renamed, expected, skipped, stated, timm.TIMM_NORM_EPS, timm.unusual_scales(tensors))
    notes = _frozen_norm_note(detector, file, source)
    skipped = (timm.efficientnet_classifier if is_efficientnet else torchvision.classifier_layers)(tensors)
    kept = {name: value for name, value in without_counters(tensors).items() if name not in skipped}
    return BackboneWeights(
        tensors=rename_prefixes(kept, detector.pretrained),
        expected=shapes_of(detector, counters=False, prefixes=tuple(new for _, new in detector.pretrained)),
        skipped=skipped,
        input=stated,
        norm_eps=timm.TIMM_NORM_EPS if is_efficientnet else torchvision.TORCHVISION_NORM_EPS,
        notes=notes,
    )


def _read_timm(
    backbone: TimmBackbone, file: TensorFile, source: WeightsSource, *, stated: str | None
) -> BackboneWeights:
    """The tensors of a backbone of timm, read by timm itself; its config states the input where nobody else does."""
    tensors, skipped = timm.feature_tensors(backbone, without_counters(file.tensors), source=source.label)
    scaling = Preprocessing(mean=backbone.mean, std=backbone.std)
    note = f"that is what timm states for {backbone.name}; the file states no input (--weights.input overrules it)"
    return BackboneWeights(
        tensors={f"backbone.{name}": value for name, value in tensors.items()},
        expected={f"backbone.{name}": shape for name, shape in shapes_of(backbone, counters=False).items()},
        skipped=skipped,
        input=stated or describe_scaling(scaling),
        norm_eps=None,
        notes=() if stated else (note,),
    )


def _frozen_norm_note(detector: Detector, file: TensorFile, source: WeightsSource) -> tuple[str, ...]:
    """The note that BatchNorm stays frozen, where the file asks for it.

    Raises:
        ConfigError: the detector trains what the file wants frozen, or has its strides elsewhere.
    """
    keep_frozen = bool(_KEEP_FROZEN.search(file.statements.get("note", "")))
    filled = tuple(new for _, new in detector.pretrained)
    modules = (module for name, module in detector.named_modules() if f"{name}.".startswith(filled))
    if keep_frozen and any(isinstance(module, nn.BatchNorm2d) for module in modules):
        raise ConfigError(
            f"{source.label}: asks to keep BatchNorm frozen; this detector trains it (norm: frozen is needed)"
        )
    if detector.config.stride_in_1x1:
        raise ConfigError(f"{source.label}: has its strides in the 3×3 convolutions; stride_in_1x1 must be false")
    return ("BatchNorm of the backbone stays frozen, as the file asks",) if keep_frozen else ()
