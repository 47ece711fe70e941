"""The detectors of TensorFlow's Object Detection API: SSD with MobileNetV2, Faster R-CNN with Inception-ResNet-v2.

After the released code (tensorflow/models: research/object_detection, research/slim) and its configurations for COCO. A
convolution is stored as rows, columns, inputs, outputs; a box as ty, tx, th, tw; the background is the first class. An
anchor's ratio is width / height, so that those of the Faster R-CNN come in the opposite order of focaldet's.

Axes: S anchors of a cell, V = K + 1 class values, of which the first is the background's.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from focaldet.data.dataset import Classes
from focaldet.errors import CheckpointError
from focaldet.models import MOST_CLASSES, Detector, FasterRCNNConfig, find_preset
from focaldet.models.ssd_tf import TensorFlowSSDConfig
from focaldet.weights.formats.detector_weights import (
    COCO_CATEGORY_IDS,
    COCO_CLASS_NAMES,
    COCO_NAMES,
    DetectorWeights,
)
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.formats.layer_names import rename_by_table
from focaldet.weights.normalization import with_input
from focaldet.weights.sources import WeightsSource
from focaldet.weights.tensor_names import num_rows

TENSORFLOW_SSD = "ssd_mobilenet_v2_tf"
TENSORFLOW_FASTER_RCNN = {8: "faster_rcnn_inception_resnet_v2_atrous", 16: "faster_rcnn_inception_resnet_v2"}
"""The presets that are the same networks, of the Faster R-CNN by its trunk's stride."""
TENSORFLOW_EPS = 1e-3
TENSORFLOW_LICENSE = "TensorFlow's detection model zoo (its published weights: Apache-2.0)"
CHECKPOINT_NOTE = "the file states neither ε of BatchNorm nor strides: they are those of the published networks"
SSD_CLASSES, FASTER_RCNN_ROWS = "BoxPredictor_0/ClassPredictor/biases", "SecondStageBoxPredictor/ClassPredictor/biases"
"""The class layers by which the two kinds of networks are known, and their backbones."""
SSD_BACKBONE, FASTER_RCNN_BACKBONE = (
    "FeatureExtractor/MobilenetV2/Conv/weights",
    "FirstStageFeatureExtractor/InceptionResnetV2/Conv2d_1a_3x3/weights",
)
HALVING = "/Mixed_6a/Branch_0/Conv2d_1a_3x3/"
"""Part of the name of the convolution whose stride says what the trunk's is."""

PARTS = {
    "weights": "weight",
    "depthwise_weights": "weight",
    "biases": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
COUNTED = re.compile(r"<(?:([a-z])|(\d+)([+-]\d+))>")
NORM = "/BatchNorm"
EPSILON = "/batchnorm/add/y"
ARGUMENTS = re.compile(
    r"(Pre|Post|SecondStagePost)processor/.+|(Multiple)?GridAnchorGenerator/.+|Const(_\d+)?|global_step"
    r"|.+/(Momentum|RMSProp|RMSProp_1|Adam|Adam_1|ExponentialMovingAverage)"
)
"""Constants of a graph's own preparation and postprocessing, and an optimizer's state: no weights."""
ONES = re.compile(r".+/BatchNorm/Const(_\d+)?")


class TensorFlowSettings(NamedTuple):
    """What decides how weights are used, and no shape says."""

    eps: float
    output_stride: int


def is_tensorflow(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of any SSD or Faster R-CNN of TensorFlow's Object Detection API."""
    return SSD_CLASSES in tensors or FASTER_RCNN_ROWS in tensors


def read_tensorflow(
    file: TensorFile, source: WeightsSource, stated: str | None, detector: Detector | None
) -> DetectorWeights:
    """The detector of a frozen graph or a checkpoint; with 91 class values its classes are COCO's.

    Of SSD's sigmoids those of the 80 classes that COCO has stay, of Faster R-CNN's softmax all 90: to leave one out of
    a softmax changes the others.

    Raises:
        CheckpointError: focaldet has no such network, or its layers do not fit each other.
    """
    label = source.label
    is_ssd = SSD_CLASSES in file.tensors
    if (SSD_BACKBONE if is_ssd else FASTER_RCNN_BACKBONE) not in file.tensors:
        raise CheckpointError(
            f"{label}: of TensorFlow's detectors focaldet has SSD with MobileNetV2 and Faster R-CNN with "
            "Inception-ResNet-v2, this is another one"
        )
    settings, notes = _infer_settings(file, detector, source=label)
    preset = find_preset(TENSORFLOW_SSD if is_ssd else TENSORFLOW_FASTER_RCNN[settings.output_stride])
    skipped = tuple(name for name, value in file.tensors.items() if _is_argument(name, value))
    tensors = _rename_tensors({name: value for name, value in file.tensors.items() if name not in skipped})
    config: Any = preset.config.replace(norm_eps=settings.eps)
    if is_ssd:
        tensors, classes = _convert_ssd(tensors, config, source=label)
    else:
        tensors, classes = _convert_faster_rcnn(tensors, config, source=label)
    return DetectorWeights(
        config=config.replace(num_classes=len(classes.category_ids)),
        tensors=tensors,
        preprocessing=with_input((detector or preset).preprocessing, stated or "symmetric", source=label),
        classes=classes,
        notes=notes,
        license=file.license or TENSORFLOW_LICENSE,
        skipped=skipped,
    )


def _is_argument(name: str, value: Tensor) -> bool:
    """True for what is not a weight: scalars, `ARGUMENTS`, and ones instead of the scale that a BatchNorm lacks."""
    is_scale = ONES.fullmatch(name) is not None and bool((value == 1).all())
    return not value.ndim or is_scale or ARGUMENTS.fullmatch(name) is not None


def _rename_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in focaldet's names and layout, heads as they are in the file; an unknown name stays as it is."""
    renamed = {}
    for name, value in tensors.items():
        layer, _, part = name.rpartition("/")
        names = rename_by_table(layer.removesuffix(NORM), "tensorflow").split()
        if names == [layer] or part not in PARTS or (layer.endswith(NORM) and len(names) < 2):
            renamed[name] = value
            continue
        new_layer = COUNTED.sub(_count, names[layer.endswith(NORM)])
        renamed[f"{new_layer}.{PARTS[part]}"] = _as_torch(value, part)
        if part == "beta" and f"{layer}/gamma" not in tensors:
            renamed[f"{new_layer}.weight"] = torch.ones_like(value)  # slim's BatchNorm has no scale here
    return renamed


def _count(match: re.Match[str]) -> str:
    """A letter counted from a, or a number and what is added to it."""
    letter, number, shift = match.groups()
    return str(ord(letter) - ord("a")) if letter else str(int(number) + int(shift))


def _as_torch(value: Tensor, part: str) -> Tensor:
    """A layer's tensor with outputs before inputs before rows and columns."""
    if part == "depthwise_weights" and value.ndim == 4:
        rows, columns, channels, copies = value.shape
        return value.permute(2, 3, 0, 1).reshape(channels * copies, 1, rows, columns)
    if part == "weights" and value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    return value.T.contiguous() if part == "weights" and value.ndim == 2 else value


def _infer_settings(
    file: TensorFile, detector: Detector | None, *, source: str
) -> tuple[TensorFlowSettings, tuple[str, ...]]:
    """ε of BatchNorm and the trunk's stride as the graph says; without one others are taken, which is noted."""
    graph = json.loads(file.statements.get("graph", "{}"))
    scalars = (value for name, value in file.tensors.items() if name.endswith(EPSILON) and value.numel() == 1)
    named = [float(f"{value.item():.6g}") for value in scalars]
    epsilons = {*named, *graph.get("epsilons", ())}
    if len(epsilons) > 1:
        raise CheckpointError(f"{source}: its BatchNorms have ε of {', '.join(f'{eps:g}' for eps in sorted(epsilons))}")
    strides = [value for name, value in graph.get("strides", {}).items() if HALVING in name]
    output_stride = 8 * strides[0] if strides else getattr(detector and detector.config, "output_stride", 8)
    if output_stride not in TENSORFLOW_FASTER_RCNN:
        raise CheckpointError(f"{source}: its trunk has a stride of {output_stride}, must be 8 or 16")
    eps = epsilons.pop() if epsilons else None
    settings = TensorFlowSettings(TENSORFLOW_EPS if eps is None else eps, output_stride)
    return settings, (CHECKPOINT_NOTE,) if eps is None else ()


def _convert_ssd(
    tensors: dict[str, Tensor], config: TensorFlowSSDConfig, *, source: str
) -> tuple[dict[str, Tensor], Classes]:
    """The heads without the background's sigmoid and with boxes as x, y, w, h; of COCO's 90 ids the 80 that exist."""
    values = _num_values(tensors, "predictors.0.classes.bias", config.priors.counts[0], source=source)
    classes = _tensorflow_classes(values - 1)
    if classes.names:
        classes = Classes(COCO_CLASS_NAMES, COCO_CATEGORY_IDS)
    rows = torch.tensor(classes.category_ids)
    for level, count in enumerate(config.priors.counts):
        for part in ("weight", "bias"):
            name = f"predictors.{level}.classes.{part}"
            _replace(tensors, name, (count, values), lambda value: value[:, rows], source=source)
            _replace(tensors, f"predictors.{level}.boxes.{part}", (count, 4), _swap_xy(1), source=source)
    return tensors, classes


def _convert_faster_rcnn(
    tensors: dict[str, Tensor], config: FasterRCNNConfig, *, source: str
) -> tuple[dict[str, Tensor], Classes]:
    """The heads with anchors in focaldet's order, boxes as x, y, w, h, and the background behind all classes."""
    values = _num_values(tensors, "predictor.classes.bias", 1, source=source)
    anchors = len(config.anchors.ratios), len(config.anchors.scales)
    for part in ("weight", "bias"):
        _replace(tensors, f"rpn_head.objectness.{part}", (*anchors, 2), lambda value: value.flip(0), source=source)
        name = f"rpn_head.boxes.{part}"
        _replace(tensors, name, (*anchors, 4), lambda value: _swap_xy(2)(value.flip(0)), source=source)
        _replace(tensors, f"predictor.classes.{part}", (values,), lambda value: value.roll(-1, 0), source=source)
        _replace(tensors, f"predictor.boxes.{part}", (values - 1, 4), _swap_xy(1), source=source)
    return tensors, _tensorflow_classes(values - 1)


def _num_values(tensors: Mapping[str, Tensor], name: str, count: int, *, source: str) -> int:
    """V by the class layer, which has them for `count` priors.

    Raises:
        CheckpointError: no detector has so many classes.
    """
    values, rest = divmod(num_rows(tensors, name), count)
    if rest or not 2 <= values <= MOST_CLASSES + 1:
        raise CheckpointError(f"{source}: {name}: is not of a whole number of classes, 1 to {MOST_CLASSES}")
    return values


def _tensorflow_classes(num_classes: int) -> Classes:
    """The classes of a file: COCO's if they are as many as its ids, else without names; ids count from 1."""
    ids = tuple(range(1, num_classes + 1))
    return Classes(COCO_NAMES[1:] if num_classes == len(COCO_NAMES) - 1 else (), ids)


def _replace(
    tensors: dict[str, Tensor],
    name: str,
    axes: tuple[int, ...],
    change: Callable[[Tensor], Tensor],
    *,
    source: str,
) -> None:
    """Change a tensor of a head, its rows laid out in `axes`; one that is missing is for others to name.

    Raises:
        CheckpointError: it does not have as many rows.
    """
    if (value := tensors.get(name)) is None:
        return
    if num_rows(tensors, name) != math.prod(axes):
        raise CheckpointError(f"{source}: {name} has shape {tuple(value.shape)}, must have {math.prod(axes)} rows")
    tensors[name] = change(value.reshape(*axes, *value.shape[1:])).flatten(0, len(axes) - 1)


def _swap_xy(axis: int) -> Callable[[Tensor], Tensor]:
    """What makes tx, ty, tw, th of the ty, tx, th, tw along an axis."""
    return lambda rows: rows.index_select(axis, torch.tensor([1, 0, 3, 2]))
