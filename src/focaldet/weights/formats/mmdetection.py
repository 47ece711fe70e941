"""mmdetection's RetinaNet and Faster R-CNN with ResNet: `.pth` files of its versions 2 and 3.

After mmdet's models/ (backbones/resnet.py, necks/fpn.py, dense_heads/, roi_heads/) and its configs _base_/models/
retinanet_r50_fpn, faster-rcnn_r50_fpn and faster-rcnn_r50-caffe-c4: anchors of a cell with the ratios outside and the
scales inside, no ReLU before P7, RoIAlign with as many samples as a cell is large. A config's `style` says where a
ResNet has its strides: "pytorch" in the 3×3 convolutions, with images in RGB, or "caffe" in the 1×1, with images in BGR
that are not scaled. A file's `meta` has the text of its config and the names of its classes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import Detector
from focaldet.types import Preprocessing, Resize
from focaldet.weights.formats.detector_weights import DetectorWeights, coco_classes
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.formats.layer_names import rename_by_table
from focaldet.weights.formats.resnet_detectors import has_c4_head, infer_config, is_msra, rename_tensors
from focaldet.weights.normalization import INPUTS, replace_scaling, with_input
from focaldet.weights.sources import WeightsSource

MMDETECTION_LICENSE = "mmdetection (its published weights: Apache-2.0)"
MMDETECTION_NOTE = "anchors, style and input that a mmdetection file does not state are those of its configs for COCO"

OLD_VERSIONS = ("0.", "1.")
MMDET_NUMBERS = {
    "ratios": ((0.5, 1.0, 2.0),),
    "octave_base_scale": ((4.0,),),
    "scales_per_octave": ((3.0,),),
    "scales": ((8.0,), (2.0, 4.0, 8.0, 16.0, 32.0)),
    "center_offset": ((0.0,),),
    "target_stds": ((1.0,) * 4, (0.1, 0.1, 0.2, 0.2)),
    "sampling_ratio": ((0.0,),),
}
"""Numbers of a config that give tensors their meaning, and the values that a file may state for them."""

_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_THREE = ",".join([f"({_NUMBER})"] * 3) + ",?"


def _is_mmdet_retinanet(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of mmdetection's RetinaNet."""
    return "bbox_head.retina_cls.weight" in tensors


def is_mmdetection(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of mmdetection's RetinaNet and Faster R-CNN."""
    return _is_mmdet_retinanet(tensors) or "roi_head.bbox_head.fc_cls.weight" in tensors


def read_mmdetection(
    file: TensorFile, source: WeightsSource, stated: str | None, detector: Detector | None
) -> DetectorWeights:
    """The network of a file, with the input and the style that the config in its `meta` states.

    Without a config the style is "caffe" where the stated input is BGR that is not scaled, and for C4, which is
    published in no other; else that of `detector`, and the input is that of the style.

    Raises:
        CheckpointError: focaldet has no such network, its config has other anchors or boxes, or mmdetection was older
            than version 2.
    """
    meta, label = _meta(file.statements), source.label
    if str(meta.get("mmdet_version", "")).startswith(OLD_VERSIONS):
        raise CheckpointError(
            f"{label}: is of mmdetection {meta['mmdet_version']}, whose classes and boxes are counted "
            "otherwise; known are its versions 2 and 3"
        )
    is_retinanet = _is_mmdet_retinanet(file.tensors)
    table = "mmdetection_retinanet" if is_retinanet else "mmdetection"
    tensors, skipped = rename_tensors(file.tensors, lambda name: rename_by_table(name, table), source=label)
    config = infer_config(tensors, source=label)
    text = "".join(str(meta.get("cfg") or meta.get("config") or "").split())
    _require_known(text, source=label)
    if style := re.search(r"\bstyle=['\"](caffe|pytorch)", text):
        stride_in_1x1 = style[1] == "caffe"
    elif stated is not None:
        stride_in_1x1 = is_msra(with_input(INPUTS["imagenet"], stated, source=label))
    else:
        stride_in_1x1 = has_c4_head(tensors) or bool(detector and detector.config.stride_in_1x1)
    default = INPUTS["detectron2" if stride_in_1x1 else "imagenet"]
    if config.backbone == "resnext101_32x8d":  # FAIR's, which mmdetection scales as they do
        default = INPUTS["detectron2_x101"]
    config = replace(config, anchors=replace(config.anchors, order="ratio, scale"), stride_in_1x1=stride_in_1x1)
    if is_retinanet:
        config = replace(config, p7_relu="relu_before_extra_convs=True" in text)
    # OpenCV's bilinear interpolation, which mmdetection resizes with, does not smooth beforehand.
    pixels = replace(_config_pixels(text) or default, resize=Resize(antialias=False))
    trained_with = with_input(pixels, stated, source=label)
    return DetectorWeights(
        config=config,
        tensors=tensors,
        preprocessing=replace_scaling(detector.preprocessing, trained_with) if detector else trained_with,
        classes=coco_classes(config.num_classes, tuple(map(str, meta.get("classes") or ()))),
        notes=(MMDETECTION_NOTE,),
        license=file.license or MMDETECTION_LICENSE,
        skipped=skipped,
    )


def _require_known(text: str, *, source: str) -> None:
    """Compare the numbers in the text of a config with those that its network must have here."""
    for name, known in MMDET_NUMBERS.items():
        for match in re.finditer(rf"\b{name}=[\[(]?({_NUMBER}(?:,{_NUMBER})*)", text):
            values = tuple(float(part) for part in match[1].split(","))
            if values not in known:
                allowed = " or ".join(", ".join(f"{value:g}" for value in one) for one in known)
                raise CheckpointError(f"{source}: its config has {name} {match[1][:80]}, must be {allowed}")


def _meta(statements: Mapping[str, str]) -> dict[str, Any]:
    """What a file states about itself; `cfg` or `config` is the text of its config, `classes` its class names."""
    try:
        meta = json.loads(statements.get("meta", "{}"))
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


def _config_pixels(text: str) -> Preprocessing | None:
    """The input in the text of a config, as its normalization gives it."""
    order = re.search(r"\b(?:bgr_)?to_rgb=(True|False)", text)
    mean, std = (re.search(rf"\b{name}=[\[(]{_THREE}[\])]", text) for name in ("mean", "std"))
    if not (order and mean and std) or 0 in (values := _three(std)):
        return None
    return Preprocessing("RGB" if order[1] == "True" else "BGR", _three(mean), values)


def _three(match: re.Match[str]) -> tuple[float, float, float]:
    return float(match[1]), float(match[2]), float(match[3])
