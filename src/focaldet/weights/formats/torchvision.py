"""torchvision's weights: its RetinaNets and Faster R-CNNs V1 and V2, and its ImageNet classifiers as backbones."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from focaldet.data.dataset import Classes
from focaldet.models import Detector, find_preset
from focaldet.weights.formats.detector_weights import COCO_NAMES, DetectorWeights
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.formats.layer_names import rename_by_table
from focaldet.weights.formats.resnet_detectors import infer_num_classes
from focaldet.weights.normalization import with_input
from focaldet.weights.sources import WeightsSource
from focaldet.weights.tensor_names import COUNTER

TORCHVISION_NORM_EPS = 1e-5
"""What torchvision's ordinary BatchNorm adds to the variance. Only its frozen one in the V1 weights adds 0."""

_BACKGROUND_ROWS = {"predictor.classes": 1, "predictor.boxes": 4}
_CLASSIFIER_LAYERS = re.compile(r"fc\..+|classifier\..+|features\.18\..+")


def is_torchvision(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of any of torchvision's detectors that has an equivalent preset."""
    return "head.classification_head.cls_logits.weight" in tensors or _is_faster_rcnn(tensors)


def is_classifier(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of torchvision's ResNet, ResNeXt and MobileNetV2, with or without the last layer."""
    return "layer1.0.conv1.weight" in tensors or "features.0.0.weight" in tensors


def read_torchvision(
    file: TensorFile, source: WeightsSource, stated: str | None, detector: Detector | None
) -> DetectorWeights:
    """The RetinaNet or Faster R-CNN of a file; its input is part of torchvision's class, so it needs no statement.

    Raises:
        CheckpointError: there are no classes.
    """
    tensors = file.tensors
    preset = find_preset(equivalent_preset(tensors))
    renamed = rename_torchvision_tensors(tensors)
    num_classes = infer_num_classes(renamed, source=source.label)
    # Ordinary BatchNorm is known by its counters; else torchvision does not state its ε.
    if any(name.endswith(COUNTER) for name in tensors):
        norm_eps: float | None = TORCHVISION_NORM_EPS
    else:
        stated_by = preset if detector is None or source.input or detector.config.norm_eps is None else detector
        norm_eps = stated_by.config.norm_eps
    first = 1 if _is_faster_rcnn(tensors) else 0  # its label 0 is the background
    labels = tuple(range(first, first + num_classes))
    preprocessing = (detector or preset).preprocessing
    note = "the file states no input; that is the default of torchvision's detectors (--weights.input overrules it)"
    return DetectorWeights(
        config=preset.config.replace(num_classes=num_classes, norm_eps=norm_eps),
        tensors=renamed,
        preprocessing=with_input(preprocessing, stated or "imagenet", source=source.label),
        classes=Classes(COCO_NAMES[first:] if labels[-1] == len(COCO_NAMES) - 1 else (), labels),
        notes=() if stated else (note,),
        license=file.license or source.license,
    )


def equivalent_preset(tensors: Mapping[str, Tensor]) -> str:
    """The preset that is the same network as a torchvision detector.

    The second RetinaNet has GroupNorm in its heads, the second Faster R-CNN convolutions in that of its regions.
    """
    if _is_faster_rcnn(tensors):
        has_convolutions = "roi_heads.box_head.5.weight" in tensors
        return "faster_rcnn_r50_fpn_v2_tv" if has_convolutions else "faster_rcnn_r50_fpn_tv"
    has_norm = "head.classification_head.conv.0.1.weight" in tensors
    return "retinanet_r50_fpn_v2_tv" if has_norm else "retinanet_r50_fpn_tv"


def rename_torchvision_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision detector in focaldet's names and with the background last; an unknown name stays as it is."""
    renamed = {rename_by_table(name, "torchvision"): value for name, value in tensors.items()}
    for layer, count in _BACKGROUND_ROWS.items():
        names = [name for name in renamed if name.startswith(f"{layer}.") and renamed[name].ndim]
        renamed |= {name: torch.roll(renamed[name], -count, 0) for name in names}
    return renamed


def classifier_layers(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the tensors of a classifier's last layers."""
    return tuple(name for name in tensors if _CLASSIFIER_LAYERS.fullmatch(name))


def _is_faster_rcnn(tensors: Mapping[str, Tensor]) -> bool:
    return "roi_heads.box_predictor.cls_score.weight" in tensors
