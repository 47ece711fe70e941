"""torchvision's weights: its RetinaNets V1 and V2, and its ImageNet classifiers as backbones."""

import re
from collections.abc import Mapping

from torch import Tensor

from focaldet.weights.layout import COUNTER

# fmt: off
COCO_NAMES = (
    "__background__", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "N/A", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse",
    "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "N/A", "backpack", "umbrella", "N/A", "N/A", "handbag",
    "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
    "skateboard", "surfboard", "tennis racket", "bottle", "N/A", "wine glass", "cup", "fork", "knife", "spoon",
    "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    "chair", "couch", "potted plant", "bed", "N/A", "dining table", "N/A", "N/A", "toilet", "N/A", "tv", "laptop",
    "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "N/A",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""The 91 classes of torchvision's COCO detectors: a label is COCO's category id.

Label 0 and those called N/A are never true of anything: their outputs learned to stay silent, and keep their rows here.
"""

BATCH_NORM_EPS = 1e-5
"""What torchvision's ordinary BatchNorm adds to the variance. Only its frozen one in the V1 weights adds 0."""

_RENAMED = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"pyramid.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"pyramid.output.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.(p6|p7)\.(weight|bias)", r"pyramid.\1.\2"),
    (r"head\.classification_head\.conv\.(\d+)\.0\.(weight|bias)", r"class_subnet.tower.\1.\2"),
    (r"head\.classification_head\.conv\.(\d+)\.1\.(weight|bias)", r"class_subnet.norms.\1.\2"),
    (r"head\.classification_head\.cls_logits\.(weight|bias)", r"class_subnet.predict.\1"),
    (r"head\.regression_head\.conv\.(\d+)\.0\.(weight|bias)", r"box_subnet.tower.\1.\2"),
    (r"head\.regression_head\.conv\.(\d+)\.1\.(weight|bias)", r"box_subnet.norms.\1.\2"),
    (r"head\.regression_head\.bbox_reg\.(weight|bias)", r"box_subnet.predict.\1"),
)
# Before torchvision 0.13 a tower was conv, ReLU, conv, ReLU …: places 0, 2, 4, 6.
_OLD_TOWER = re.compile(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)")
_CLASSIFIER = re.compile(r"fc\..+|classifier\..+|features\.18\..+")


def is_retinanet(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of torchvision's RetinaNet."""
    return "head.classification_head.cls_logits.weight" in tensors


def is_classifier(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of torchvision's ResNet, ResNeXt and MobileNetV2, with or without the last layer."""
    return "layer1.0.conv1.weight" in tensors or "features.0.0.weight" in tensors


def preset(tensors: Mapping[str, Tensor]) -> str:
    """The detector of our table that is the twin of a torchvision RetinaNet: V2 has GroupNorm in its heads."""
    has_norm = "head.classification_head.conv.0.1.weight" in tensors
    return "retinanet_r50_fpn_v2_tv" if has_norm else "retinanet_r50_fpn_tv"


def batch_norm_eps(tensors: Mapping[str, Tensor]) -> float | None:
    """1e-5 where the file shows that its BatchNorm was an ordinary one (it counted batches), else None: not told."""
    return BATCH_NORM_EPS if any(name.endswith(COUNTER) for name in tensors) else None


def num_classes(tensors: Mapping[str, Tensor]) -> int:
    """K of a torchvision RetinaNet: outputs of the class layer over those of the box layer, times the 4 of a box."""
    logits, boxes = (f"head.{layer}.weight" for layer in ("classification_head.cls_logits", "regression_head.bbox_reg"))
    return len(tensors[logits]) * 4 // max(1, len(tensors[boxes])) if boxes in tensors else 0


def detector_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision RetinaNet under our names; a name that is none of its own stays as it is."""
    return {_renamed(_OLD_TOWER.sub(_new_tower, name)): value for name, value in tensors.items()}


def backbone_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A classifier's tensors without its last layers, and the names of those left out."""
    left_out = tuple(name for name in tensors if _CLASSIFIER.fullmatch(name))
    return {name: value for name, value in tensors.items() if name not in left_out}, left_out


def _new_tower(match: re.Match[str]) -> str:
    return f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name
