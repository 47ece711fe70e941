"""detectron2's RetinaNet and Faster R-CNN with ResNet: `model_final_….pkl` of its model zoo, and its `.pth` files.

After its modeling/ (resnet.py, fpn.py, anchor_generator.py, retinanet.py, rpn.py, roi_heads.py) and its configs
Base-RetinaNet, Base-RCNN-FPN and Base-RCNN-C4: anchors of a cell with the sizes outside and the ratios inside, RoIAlign
with as many samples as a cell is large, RetinaNet's boxes compared before they are clipped to the image, and images in
BGR. MSRA's ResNets, which it starts from, have their strides in the 1×1 convolutions and images that are not scaled;
its ResNeXt, and torchvision's ResNets as its convert-torchvision-to-d2.py writes them, have them in the 3×3.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import Detector
from focaldet.nets.necks import PYRAMID_STRIDES_PX, REGION_STRIDES_PX
from focaldet.ops.anchors import AnchorConfig, cell_anchors
from focaldet.types import Preprocessing
from focaldet.weights.formats.detector_weights import DetectorWeights, coco_classes
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.formats.layer_names import rename_by_table
from focaldet.weights.formats.resnet_detectors import C4_HEAD, has_c4_head, infer_config, is_msra, rename_tensors
from focaldet.weights.normalization import INPUTS, replace_scaling, with_input
from focaldet.weights.sources import WeightsSource

DETECTRON2_LICENSE = "detectron2 (its published weights: CC BY-SA 3.0)"
DETECTRON2_NOTE = (
    "anchors and input that a detectron2 file does not state are those of its configs for COCO; strides are in the "
    "1×1 convolutions of a ResNet whose images are BGR and not scaled, else in the 3×3"
)
C4_STRIDES_PX = (16,)
ANCHOR_TOLERANCE_PX = 0.01
"""The largest difference between anchors that a file states and those of its config."""

_D2_BLOCK = re.compile(r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res(\d)\.(\d+)\.(conv(\d)|shortcut)(\.norm)?\.(\w+)")
_D2_ANCHORS = re.compile(r"(?:proposal_generator\.)?anchor_generator\.cell_anchors\.(\d)")
_D2_PIXELS = ("pixel_mean", "pixel_std")


def is_detectron2(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of detectron2's RetinaNet and Faster R-CNN with a ResNet."""
    has_resnet = any(name.startswith(("backbone.bottom_up.", "backbone.res2.")) for name in tensors)
    return has_resnet and ("head.cls_score.weight" in tensors or "roi_heads.box_predictor.cls_score.weight" in tensors)


def read_detectron2(
    file: TensorFile, source: WeightsSource, stated: str | None, detector: Detector | None
) -> DetectorWeights:
    """The network of a file; anchors, mean and deviation that it states must be those that its config has.

    Without a stated input the file's own mean and deviation count, or the ones of its backbone.

    Raises:
        CheckpointError: focaldet has no such network, its anchors are others, or its input has no name.
    """
    label = source.label
    is_retinanet = "head.cls_score.weight" in file.tensors
    table = "detectron2_retinanet" if is_retinanet else "detectron2"
    tensors, skipped = rename_tensors(file.tensors, lambda name: _rename_detectron2(name, table), source=label)
    config = infer_config(tensors, source=label)
    is_resnext = config.backbone.startswith("resnext")
    pixels = INPUTS["detectron2_x101" if is_resnext else "detectron2"]
    if stated is None and all(name in file.tensors for name in _D2_PIXELS):
        pixels = _stated_pixels(file.tensors, label)
    pixels = with_input(pixels, stated, source=label)
    stride_in_1x1 = not is_resnext and is_msra(pixels)
    config = replace(config, anchors=replace(config.anchors, order="scale, ratio"), stride_in_1x1=stride_in_1x1)
    if is_retinanet:
        config = replace(config, detect=replace(config.detect, clip_first=False))
    has_pyramid = not has_c4_head(tensors)
    strides_px = PYRAMID_STRIDES_PX if is_retinanet else REGION_STRIDES_PX if has_pyramid else C4_STRIDES_PX
    _require_anchors(file.tensors, config.anchors, strides_px=strides_px, source=label)
    # Without a pyramid no sides need divide, and detectron2 pads images to the largest of a batch alone.
    trained_with = pixels if has_pyramid else replace(pixels, size_divisor=1)
    return DetectorWeights(
        config=config,
        tensors=tensors,
        preprocessing=replace_scaling(detector.preprocessing, trained_with) if detector else trained_with,
        classes=coco_classes(config.num_classes),
        notes=(DETECTRON2_NOTE,),
        license=file.license or DETECTRON2_LICENSE,
        skipped=skipped,
    )


def _require_anchors(
    tensors: Mapping[str, Tensor], config: AnchorConfig, *, strides_px: tuple[int, ...], source: str
) -> None:
    for name, anchors in tensors.items():
        if match := _D2_ANCHORS.fullmatch(name):
            level = int(match[1])
            expected = cell_anchors(config, stride_px=strides_px[level]) if level < len(strides_px) else None
            if expected is None or not _are_near(anchors, expected):
                raise CheckpointError(f"{source}: {name}: has other anchors than detectron2's configs for COCO")


def _are_near(anchors: Tensor, expected: Tensor) -> bool:
    """True for equal shapes whose numbers differ by at most `ANCHOR_TOLERANCE_PX`; false for NaN."""
    return anchors.shape == expected.shape and bool(((anchors.float() - expected).abs() <= ANCHOR_TOLERANCE_PX).all())


def _stated_pixels(tensors: Mapping[str, Tensor], source: str) -> Preprocessing:
    """The input of the mean and deviation that the file states."""
    mean, std = (tuple(round(float(value), 3) for value in tensors[name].flatten()[:9]) for name in _D2_PIXELS)
    known = next((known for known in INPUTS.values() if (known.mean, known.std) == (mean, std)), None)
    if known is None:
        raise CheckpointError(
            f"{source}: {' and '.join(_D2_PIXELS)} are {mean} and {std}, an input without a name: say with "
            "--weights.input what these weights were trained with"
        )
    return known


def _rename_detectron2(name: str, table: str) -> str | None:
    """focaldet's name of a tensor, None for what does not belong to the network; an unknown name stays as it is."""
    if name in _D2_PIXELS or _D2_ANCHORS.fullmatch(name):
        return None
    if match := _D2_BLOCK.fullmatch(name):
        stage, block, _, number, norm, part = match.groups()
        module = C4_HEAD if name.startswith("roi_heads.") else f"backbone.layer{int(stage) - 1}"
        kind = f"{'bn' if norm else 'conv'}{number}" if number else f"downsample.{1 if norm else 0}"
        return f"{module}.{block}.{kind}.{part}"
    return rename_by_table(name, table)
