"""A detector of another program in focaldet's names, as a reader returns it; and the names of COCO's classes."""

from dataclasses import dataclass

from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import MOST_CLASSES, DetectorConfig
from focaldet.types import Preprocessing

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
COCO_CATEGORY_IDS = tuple(label for label, name in enumerate(COCO_NAMES) if name not in ("__background__", "N/A"))
COCO_CLASS_NAMES = tuple(COCO_NAMES[label] for label in COCO_CATEGORY_IDS)
"""The 80 classes of COCO that exist, in the order of the category ids, which is also darknet's."""


@dataclass(frozen=True, slots=True)
class DetectorWeights:
    """A file's detector: its config, its tensors in focaldet's names, and how its program prepares images.

    `class_names` and `category_ids` are empty where nobody knows them. `skipped` are the tensors of the file that state
    what the config says already, or that nothing reads. `notes` are for the reader of the report.
    """

    config: DetectorConfig
    tensors: dict[str, Tensor]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    license: str | None = None
    skipped: tuple[str, ...] = ()


def coco_class_names(num_classes: int) -> tuple[str, ...]:
    """COCO's names where there are as many classes as COCO has, else none."""
    return COCO_CLASS_NAMES if num_classes == len(COCO_CLASS_NAMES) else ()


def coco_category_ids(class_names: tuple[str, ...]) -> tuple[int, ...]:
    """COCO's category ids where the names are COCO's, else none."""
    return COCO_CATEGORY_IDS if class_names == COCO_CLASS_NAMES else ()


def require_class_count(count: int, *, source: str) -> int:
    """`count` as it is.

    Raises:
        CheckpointError: no detector has so many classes; names `source`.
    """
    if not 1 <= count <= MOST_CLASSES:
        raise CheckpointError(
            f"{source}: its class and box layers are not of a whole number of classes, 1 to {MOST_CLASSES}"
        )
    return count
