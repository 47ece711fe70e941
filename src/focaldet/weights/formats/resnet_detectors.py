"""Which network a file of detectron2 or mmdetection has, known by its tensors in focaldet's names.

Both programs have the pyramid paper's networks, 80 classes of COCO in the order of its category ids, the background
behind them, boxes as x1, y1, x2, y2, and no box of the background.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import MOST_CLASSES, find_preset
from focaldet.nets.resnet import RESNETS, ResNetShape
from focaldet.ops.roi import PoolConfig
from focaldet.types import Preprocessing
from focaldet.weights.tensor_names import num_rows

RETINANET_CLASSES, FASTER_RCNN_CLASSES = "class_subnet.predict.weight", "predictor.classes.weight"
"""The class layers by which the two kinds of networks are known."""
C4_HEAD = "roi_head.tail"
"""The last stage of a ResNet where it works on the regions."""


def rename_tensors(
    tensors: Mapping[str, Tensor], rename: Callable[[str], str | None], *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under the names that `rename` gives them, and the names of those it gives None, which are skipped.

    Raises:
        CheckpointError: two tensors want the same name.
    """
    names = {name: rename(name) for name in tensors}
    renamed: dict[str, Tensor] = {}
    for name, new_name in names.items():
        if new_name in renamed:
            raise CheckpointError(f"{source}: {name}: there is another tensor for {new_name}")
        if new_name is not None:
            renamed[new_name] = tensors[name]
    return renamed, tuple(name for name, new_name in names.items() if new_name is None)


def infer_config(tensors: Mapping[str, Tensor], *, source: str) -> Any:
    """The config of the network of these tensors, as far as both programs agree; without `stride_in_1x1`.

    Raises:
        CheckpointError: the backbone is not a ResNet that focaldet has, or there are no classes.
    """
    backbone = _resnet_name(tensors, source=source)
    num_classes = infer_num_classes(tensors, source=source)
    is_retinanet = RETINANET_CLASSES in tensors
    pyramid = "retinanet_r50_fpn" if is_retinanet else "faster_rcnn_r50_fpn"
    preset: Any = find_preset("faster_rcnn_r101_c4" if has_c4_head(tensors) else pyramid).config
    config = replace(preset, backbone=backbone, num_classes=num_classes)
    if is_retinanet:
        return config
    pooling = PoolConfig(kind="align", size=preset.pooling.size, sampling_ratio=0)
    return replace(config, pooling=pooling, background_box=False)


def is_msra(pixels: Preprocessing) -> bool:
    """Whether images are prepared as for MSRA's ResNets: BGR and not scaled. Their strides are in the 1×1."""
    return pixels.channels == "BGR" and pixels.std == (1.0, 1.0, 1.0)


def has_c4_head(tensors: Mapping[str, Tensor]) -> bool:
    """True where the last stage of the ResNet works on the regions, without a pyramid."""
    return f"{C4_HEAD}.0.conv1.weight" in tensors


def infer_num_classes(tensors: Mapping[str, Tensor], *, source: str) -> int:
    """K by the class layer; of RetinaNet it has K values for each four of the box layer.

    Raises:
        CheckpointError: no detector has so many classes; names `source`.
    """
    if FASTER_RCNN_CLASSES in tensors:
        count, rest = num_rows(tensors, FASTER_RCNN_CLASSES) - 1, 0
    else:
        values, boxes = (num_rows(tensors, name) for name in (RETINANET_CLASSES, "box_subnet.predict.weight"))
        count, rest = divmod(values * 4, max(1, boxes))
    if rest or not 1 <= count <= MOST_CLASSES:
        raise CheckpointError(
            f"{source}: its class and box layers are not of a whole number of classes, 1 to {MOST_CLASSES}"
        )
    return count


def _resnet_name(tensors: Mapping[str, Tensor], *, source: str) -> str:
    stages = [f"backbone.layer{number}" for number in range(1, 4)]
    stages.append(C4_HEAD if has_c4_head(tensors) else "backbone.layer4")
    depths = tuple(next(n for n in count() if f"{stage}.{n}.conv1.weight" not in tensors) for stage in stages)
    inner = tensors.get(f"{stages[0]}.0.conv2.weight")
    width = () if inner is None else tuple(inner.shape[:2])
    bottleneck = f"{stages[0]}.0.conv3.weight" in tensors
    names = (name for name, shape in RESNETS.items() if _traits(shape) == (depths, bottleneck, width))
    if (name := next(names, None)) is None:
        raise CheckpointError(
            f"{source}: its backbone has {' + '.join(map(str, depths))} blocks and a first 3 × 3 convolution of shape "
            f"{width}, unlike {', '.join(RESNETS)}"
        )
    return name


def _traits(shape: ResNetShape) -> tuple[tuple[int, ...], bool, tuple[int, int]]:
    width = (shape.groups * shape.width_per_group, shape.width_per_group)
    return shape.depths, shape.bottleneck, width
