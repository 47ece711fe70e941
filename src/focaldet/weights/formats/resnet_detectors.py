"""Which network a file of detectron2 or mmdetection holds, told by its tensors under our names.

Both programs have the pyramid paper's networks, 80 classes of COCO in the order of its category ids, the background
behind them, boxes as x1, y1, x2, y2, and no box of the background.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import DETECTORS, MOST_CLASSES
from focaldet.nets.resnet import RESNETS, ResNetShape
from focaldet.ops.roi import PoolConfig
from focaldet.types import Preprocessing
from focaldet.weights.formats.darknet import COCO_CLASS_NAMES
from focaldet.weights.tensor_names import rows

CLASSES = {"retinanet": "class_subnet.predict.weight", "faster_rcnn": "predictor.classes.weight"}
"""The class layers by which the two kinds of networks are known."""
TAIL = "region_head.tail"
"""The last stage of a ResNet where the regions have it to themselves."""


@dataclass(frozen=True, slots=True)
class Twin:
    """The network of a file: its config, its tensors by our names, how its program prepares pictures, the names of its
    classes, where they are known, and those of the file's tensors that are none of the network's.
    """

    config: Any
    tensors: dict[str, Tensor]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]


def coco_names(num_classes: int) -> tuple[str, ...]:
    """COCO's names where there are as many classes as COCO has, else none."""
    return COCO_CLASS_NAMES if num_classes == len(COCO_CLASS_NAMES) else ()


def brought(
    tensors: Mapping[str, Tensor], rename: Callable[[str], str | None], *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under the names that `rename` gives them, and the names of those it gives None, which are left out.

    Raises:
        CheckpointError: two tensors want the same name.
    """
    names = {name: rename(name) for name in tensors}
    renamed: dict[str, Tensor] = {}
    for name, ours in names.items():
        if ours in renamed:
            raise CheckpointError(f"{source}: {name}: there is another tensor for {ours}")
        if ours is not None:
            renamed[ours] = tensors[name]
    return renamed, tuple(name for name, ours in names.items() if ours is None)


def described(tensors: Mapping[str, Tensor], *, source: str) -> Any:
    """The config of the network of these tensors, as far as both programs agree; `stride_in_1x1` is not told.

    Raises:
        CheckpointError: the backbone is no ResNet that focaldet has, or there is no class.
    """
    backbone = _backbone(tensors, source=source)
    num_classes = require_classes(_num_classes(tensors), source=source)
    is_retinanet = CLASSES["retinanet"] in tensors
    pyramid = "retinanet_r50_fpn" if is_retinanet else "faster_rcnn_r50_fpn"
    entry: Any = DETECTORS["faster_rcnn_r101_c4" if has_tail(tensors) else pyramid]
    config = replace(entry, backbone=backbone, num_classes=num_classes)
    if is_retinanet:
        return config
    pooling = PoolConfig(kind="align", size=entry.pooling.size, sampling_ratio=0)
    return replace(config, pooling=pooling, background_box=False)


def require_classes(count: int, *, source: str) -> int:
    """`count` as it is.

    Raises:
        CheckpointError: no detector has so many classes; names `source`.
    """
    if not 1 <= count <= MOST_CLASSES:
        raise CheckpointError(
            f"{source}: its class and box layers are of no whole number of classes, 1 to {MOST_CLASSES}"
        )
    return count


def is_msra(pixels: Preprocessing) -> bool:
    """Whether pictures are prepared as for MSRA's ResNets: BGR and not scaled. Their strides are in the 1×1."""
    return pixels.channels == "BGR" and pixels.std == (1.0, 1.0, 1.0)


def has_tail(tensors: Mapping[str, Tensor]) -> bool:
    """True where the regions have the last stage of the ResNet to themselves and there is no pyramid."""
    return f"{TAIL}.0.conv1.weight" in tensors


def _num_classes(tensors: Mapping[str, Tensor]) -> int:
    """K by the class layer; of RetinaNet it has K values for each four of the box layer."""
    if CLASSES["faster_rcnn"] in tensors:
        return rows(tensors, CLASSES["faster_rcnn"]) - 1
    values, boxes = (rows(tensors, name) for name in (CLASSES["retinanet"], "box_subnet.predict.weight"))
    return values * 4 // boxes if boxes and values * 4 % boxes == 0 else 0


def _backbone(tensors: Mapping[str, Tensor], *, source: str) -> str:
    stages = [f"backbone.layer{number}" for number in range(1, 4)]
    stages.append(TAIL if has_tail(tensors) else "backbone.layer4")
    depths = tuple(next(n for n in count() if f"{stage}.{n}.conv1.weight" not in tensors) for stage in stages)
    inner = tensors.get(f"{stages[0]}.0.conv2.weight")
    width = () if inner is None else tuple(inner.shape[:2])
    bottleneck = f"{stages[0]}.0.conv3.weight" in tensors
    found = (name for name, shape in RESNETS.items() if _traits(shape) == (depths, bottleneck, width))
    if (name := next(found, None)) is None:
        raise CheckpointError(
            f"{source}: its backbone has {' + '.join(map(str, depths))} blocks and a first 3 × 3 convolution of shape "
            f"{width}: that is none of {', '.join(RESNETS)}"
        )
    return name


def _traits(shape: ResNetShape) -> tuple[tuple[int, ...], bool, tuple[int, int]]:
    width = (shape.groups * shape.width_per_group, shape.width_per_group)
    return shape.depths, shape.bottleneck, width
