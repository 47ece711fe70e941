"""A detector of another program in focaldet's names, as a reader returns it; and the names of COCO's classes."""

from dataclasses import dataclass

from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from focaldet.data.dataset import Classes
from focaldet.models import DetectorConfig
from focaldet.types import Preprocessing

COCO_NAMES = tuple(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
"""The 91 classes of torchvision's COCO detectors: a label is COCO's category id.

Label 0 and those called N/A are never true of anything: their outputs learned to stay silent, and keep their rows here.
Only in the softmax of a Faster R-CNN label 0 means something, the background, which comes last here.
"""
COCO_CATEGORY_IDS = tuple(label for label, name in enumerate(COCO_NAMES) if name not in ("__background__", "N/A"))
COCO_CLASS_NAMES = tuple(COCO_NAMES[label] for label in COCO_CATEGORY_IDS)
"""The 80 classes of COCO that exist, in the order of the category ids, which is also darknet's."""


@dataclass(frozen=True, slots=True)
class DetectorWeights:
    """A file's detector: its config, its tensors in focaldet's names, and how its program prepares images.

    `classes` has no names or category ids where nobody knows them. `skipped` are the tensors of the file that state
    what the config says already, or that nothing reads. `notes` are for the reader of the report.
    """

    config: DetectorConfig
    tensors: dict[str, Tensor]
    preprocessing: Preprocessing
    classes: Classes = Classes((), ())  # noqa: RUF009  frozen
    notes: tuple[str, ...] = ()
    license: str | None = None
    skipped: tuple[str, ...] = ()


def coco_classes(num_classes: int, stated_names: tuple[str, ...] = ()) -> Classes:
    """The stated names if there is one for each class, else COCO's if it has as many classes, else none.

    COCO's names go with its category ids, others with none.
    """
    default = COCO_CLASS_NAMES if num_classes == len(COCO_CLASS_NAMES) else ()
    names = stated_names if len(stated_names) == num_classes else default
    return Classes(names, COCO_CATEGORY_IDS if names == COCO_CLASS_NAMES else ())
