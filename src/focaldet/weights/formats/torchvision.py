"""torchvision's weights: its RetinaNets and Faster R-CNNs V1 and V2, and its ImageNet classifiers as backbones."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from focaldet.weights.tensor_names import COUNTER, rows

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
Only in the softmax of a Faster R-CNN label 0 means something, the background, which comes last here.
"""

BATCH_NORM_EPS = 1e-5
"""What torchvision's ordinary BatchNorm adds to the variance. Only its frozen one in the V1 weights adds 0."""

_RENAMED = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"pyramid.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)", r"pyramid.output.\1.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.1\.(\w+)", r"pyramid.lateral_norms.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.1\.(\w+)", r"pyramid.output_norms.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.(p6|p7)\.(weight|bias)", r"pyramid.\1.\2"),
    (r"head\.classification_head\.conv\.(\d+)\.0\.(weight|bias)", r"class_subnet.tower.\1.\2"),
    (r"head\.classification_head\.conv\.(\d+)\.1\.(weight|bias)", r"class_subnet.norms.\1.\2"),
    (r"head\.classification_head\.cls_logits\.(weight|bias)", r"class_subnet.predict.\1"),
    (r"head\.regression_head\.conv\.(\d+)\.0\.(weight|bias)", r"box_subnet.tower.\1.\2"),
    (r"head\.regression_head\.conv\.(\d+)\.1\.(weight|bias)", r"box_subnet.norms.\1.\2"),
    (r"head\.regression_head\.bbox_reg\.(weight|bias)", r"box_subnet.predict.\1"),
    (r"rpn\.head\.conv\.(weight|bias)", r"proposal_head.tower.0.\1"),  # before torchvision 0.13
    (r"rpn\.head\.conv\.(\d+)\.0\.(weight|bias)", r"proposal_head.tower.\1.\2"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", r"proposal_head.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(weight|bias)", r"proposal_head.boxes.\1"),
    (r"roi_heads\.box_head\.(fc6|fc7)\.(weight|bias)", r"region_head.\1.\2"),
    (r"roi_heads\.box_head\.([0-3])\.0\.weight", r"region_head.tower.\1.weight"),
    (r"roi_heads\.box_head\.([0-3])\.1\.(\w+)", r"region_head.norms.\1.\2"),
    (r"roi_heads\.box_head\.5\.(weight|bias)", r"region_head.fc.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"predictor.classes.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"predictor.boxes.\1"),
)
_BACKGROUND_ROWS = {"predictor.classes": 1, "predictor.boxes": 4}
# Before torchvision 0.13 a tower was conv, ReLU, conv, ReLU …: places 0, 2, 4, 6.
_OLD_TOWER = re.compile(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)")
_CLASSIFIER = re.compile(r"fc\..+|classifier\..+|features\.18\..+")


def is_retinanet(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of torchvision's RetinaNet."""
    return "head.classification_head.cls_logits.weight" in tensors


def is_faster_rcnn(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of torchvision's Faster R-CNN."""
    return "roi_heads.box_predictor.cls_score.weight" in tensors


def is_detector(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of any of torchvision's detectors that has a twin here."""
    return is_retinanet(tensors) or is_faster_rcnn(tensors)


def is_classifier(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of torchvision's ResNet, ResNeXt and MobileNetV2, with or without the last layer."""
    return "layer1.0.conv1.weight" in tensors or "features.0.0.weight" in tensors


def preset(tensors: Mapping[str, Tensor]) -> str:
    """The detector of our table that is the twin of a torchvision detector.

    The second RetinaNet has GroupNorm in its heads, the second Faster R-CNN convolutions in that of its regions.
    """
    if is_faster_rcnn(tensors):
        has_convolutions = "roi_heads.box_head.5.weight" in tensors
        return "faster_rcnn_r50_fpn_v2_tv" if has_convolutions else "faster_rcnn_r50_fpn_tv"
    has_norm = "head.classification_head.conv.0.1.weight" in tensors
    return "retinanet_r50_fpn_v2_tv" if has_norm else "retinanet_r50_fpn_tv"


def batch_norm_eps(tensors: Mapping[str, Tensor]) -> float | None:
    """1e-5 where the file shows that its BatchNorm was an ordinary one (it counted batches), else None: not told."""
    return BATCH_NORM_EPS if any(name.endswith(COUNTER) for name in tensors) else None


def num_classes(tensors: Mapping[str, Tensor]) -> int:
    """K of a torchvision detector.

    Of a RetinaNet the outputs of the class layer over those of the box layer, times the 4 of a box; of a Faster R-CNN
    the class values without the background.
    """
    if is_faster_rcnn(tensors):
        return rows(tensors, "roi_heads.box_predictor.cls_score.weight") - 1
    logits, boxes = (f"head.{layer}.weight" for layer in ("classification_head.cls_logits", "regression_head.bbox_reg"))
    return rows(tensors, logits) * 4 // max(1, rows(tensors, boxes))


def category_ids(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """torchvision's label of each of our classes."""
    first = 1 if is_faster_rcnn(tensors) else 0
    return tuple(range(first, first + num_classes(tensors)))


def class_names(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """COCO's names where the number of classes is COCO's, else none."""
    labels = category_ids(tensors)
    return tuple(COCO_NAMES[label] for label in labels) if labels and labels[-1] == len(COCO_NAMES) - 1 else ()


def detector_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision detector under our names and with the background last; an unknown name stays as it is."""
    renamed = {_renamed(_OLD_TOWER.sub(_new_tower, name)): value for name, value in tensors.items()}
    for layer, count in _BACKGROUND_ROWS.items():
        found = [name for name in renamed if name.startswith(f"{layer}.") and renamed[name].ndim]
        renamed |= {name: torch.roll(renamed[name], -count, 0) for name in found}
    return renamed


def backbone_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A classifier's tensors without its last layers, and the names of those left out."""
    skipped = tuple(name for name in tensors if _CLASSIFIER.fullmatch(name))
    return {name: value for name, value in tensors.items() if name not in skipped}, skipped


def _new_tower(match: re.Match[str]) -> str:
    return f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name
