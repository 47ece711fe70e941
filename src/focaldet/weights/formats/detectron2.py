"""detectron2's RetinaNet and Faster R-CNN with ResNet: `model_final_….pkl` of its model zoo, and its `.pth` files.

After its modeling/ (resnet.py, fpn.py, anchor_generator.py, retinanet.py, rpn.py, roi_heads.py) and its configs
Base-RetinaNet, Base-RCNN-FPN and Base-RCNN-C4: anchors of a cell with the sizes outside and the ratios inside, RoIAlign
with as many samples as a cell is large, RetinaNet's boxes compared before they are cut to the picture, and pictures in
BGR. MSRA's ResNets, which it starts from, have their strides in the 1×1 convolutions and pictures that are not scaled;
its ResNeXt, and torchvision's ResNets as its convert-torchvision-to-d2.py brings them, have them in the 3×3.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.nets.necks import REGION_STRIDES_PX, STRIDES_PX
from focaldet.ops.anchors import AnchorConfig, cell_anchors
from focaldet.types import Preprocessing
from focaldet.weights.formats import resnet_detectors as twins
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.formats.resnet_detectors import Twin
from focaldet.weights.normalization import INPUTS, with_input

LICENSE = "detectron2 (its published weights: CC BY-SA 3.0)"
NOTE = (
    "what a detectron2 file does not state of anchors and input is taken for that of its configs for COCO; strides are "
    "in the 1×1 convolutions of a ResNet whose pictures are BGR and not scaled, else in the 3×3"
)
TAIL_STRIDES_PX = (16,)
ANCHORS_PX = 0.01
"""So far may anchors that a file states be from those of its config."""

_BLOCK = re.compile(r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res(\d)\.(\d+)\.(conv(\d)|shortcut)(\.norm)?\.(\w+)")
_FROM_PYRAMID = re.compile(r"backbone\.fpn_(lateral|output)(\d)\.(weight|bias)")
_TOWER = re.compile(r"head\.(cls|bbox)_subnet\.([0246])\.(weight|bias)")
_ANCHORS = re.compile(r"(?:proposal_generator\.)?anchor_generator\.cell_anchors\.(\d)")
_PIXELS = ("pixel_mean", "pixel_std")
_LAYERS = {
    "backbone.bottom_up.stem.conv1": "backbone.conv1",
    "backbone.bottom_up.stem.conv1.norm": "backbone.bn1",
    "backbone.stem.conv1": "backbone.conv1",
    "backbone.stem.conv1.norm": "backbone.bn1",
    "backbone.top_block.p6": "pyramid.p6",
    "backbone.top_block.p7": "pyramid.p7",
    "head.cls_score": "class_subnet.predict",
    "head.bbox_pred": "box_subnet.predict",
    "proposal_generator.rpn_head.conv": "proposal_head.tower.0",
    "proposal_generator.rpn_head.objectness_logits": "proposal_head.objectness",
    "proposal_generator.rpn_head.anchor_deltas": "proposal_head.boxes",
    "roi_heads.box_head.fc1": "region_head.fc6",
    "roi_heads.box_head.fc2": "region_head.fc7",
    "roi_heads.box_predictor.cls_score": "predictor.classes",
    "roi_heads.box_predictor.bbox_pred": "predictor.boxes",
}


def is_detector(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of detectron2's RetinaNet and Faster R-CNN with a ResNet."""
    has_resnet = any(name.startswith(("backbone.bottom_up.", "backbone.res2.")) for name in tensors)
    return has_resnet and ("head.cls_score.weight" in tensors or "roi_heads.box_predictor.cls_score.weight" in tensors)


def twin(file: TensorFile, *, source: str, stated: str | None) -> Twin:
    """The network of a file; where it tells anchors, mean and deviation, they must be those that its config has.

    `stated` is the input that somebody names; without it the file's own counts, or the one of its backbone.

    Raises:
        CheckpointError: the network is none of ours, its anchors are others, or its input is none that has a name.
    """
    finest = 3 if "head.cls_score.weight" in file.tensors else 2
    tensors, skipped = twins.brought(file.tensors, lambda name: _renamed(name, finest=finest), source=source)
    config = twins.described(tensors, source=source)
    is_resnext = config.backbone.startswith("resnext")
    default = INPUTS["detectron2_x101" if is_resnext else "detectron2"]
    pixels = default if stated or any(name not in file.tensors for name in _PIXELS) else _pixels(file.tensors, source)
    is_msra = not is_resnext and twins.is_msra(with_input(pixels, stated, source=source) if stated else pixels)
    config = replace(config, anchors=replace(config.anchors, order="scale, ratio"), stride_in_1x1=is_msra)
    if finest == 3:
        config = replace(config, detect=replace(config.detect, clip_first=False))
    has_pyramid = not twins.has_tail(tensors)
    strides_px = STRIDES_PX if finest == 3 else REGION_STRIDES_PX if has_pyramid else TAIL_STRIDES_PX
    _require_anchors(file.tensors, config.anchors, strides_px=strides_px, source=source)
    # Without a pyramid no sides need divide, and detectron2 pads pictures to the largest of a batch alone.
    preprocessing = pixels if has_pyramid else replace(pixels, size_divisor=1)
    return Twin(config, tensors, preprocessing, twins.coco_names(config.num_classes), skipped)


def _require_anchors(
    tensors: Mapping[str, Tensor], config: AnchorConfig, *, strides_px: tuple[int, ...], source: str
) -> None:
    for name, anchors in tensors.items():
        if match := _ANCHORS.fullmatch(name):
            level = int(match[1])
            expected = cell_anchors(config, stride_px=strides_px[level]) if level < len(strides_px) else None
            if expected is None or not _are_near(anchors, expected):
                raise CheckpointError(f"{source}: {name}: has other anchors than detectron2's configs for COCO")


def _are_near(anchors: Tensor, expected: Tensor) -> bool:
    """Of one shape and nowhere further apart than `ANCHORS_PX`; not true of what is no number."""
    return anchors.shape == expected.shape and bool(((anchors.float() - expected).abs() <= ANCHORS_PX).all())


def _pixels(tensors: Mapping[str, Tensor], source: str) -> Preprocessing:
    """The input of the mean and deviation that the file states."""
    mean, std = (tuple(round(float(value), 3) for value in tensors[name].flatten()[:9]) for name in _PIXELS)
    found = next((known for known in INPUTS.values() if (known.mean, known.std) == (mean, std)), None)
    if found is None:
        raise CheckpointError(
            f"{source}: {' and '.join(_PIXELS)} are {mean} and {std}, an input without a name: say with "
            "--weights.input what these weights were trained with"
        )
    return found


def _renamed(name: str, *, finest: int) -> str | None:
    """Our name of a tensor, None for what is none of the network's; an unknown name stays as it is."""
    if name in _PIXELS or _ANCHORS.fullmatch(name):
        return None
    if match := _BLOCK.fullmatch(name):
        stage, block, _, number, norm, part = match.groups()
        place = twins.TAIL if name.startswith("roi_heads.") else f"backbone.layer{int(stage) - 1}"
        kind = f"{'bn' if norm else 'conv'}{number}" if number else f"downsample.{1 if norm else 0}"
        return f"{place}.{block}.{kind}.{part}"
    if match := _FROM_PYRAMID.fullmatch(name):
        return f"pyramid.{match[1]}.{int(match[2]) - finest}.{match[3]}"
    if match := _TOWER.fullmatch(name):
        return f"{'class' if match[1] == 'cls' else 'box'}_subnet.tower.{int(match[2]) // 2}.{match[3]}"
    layer, _, part = name.rpartition(".")
    return f"{_LAYERS[layer]}.{part}" if layer in _LAYERS else name
