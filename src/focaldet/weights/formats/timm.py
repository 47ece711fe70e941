"""timm's Inception-ResNet-v2, an ImageNet classifier, as the two halves of a detector.

Cadene's files, which timm's were made from, have the same names but for the classifier's. TensorFlow's BatchNorm had no
scale in this network: a file converted from it holds ones. What a file trained otherwise holds is kept, never trained.
"""

from collections.abc import Mapping

from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.models import Detector
from focaldet.nets.inception_resnet import InceptionResNetTail, InceptionResNetTrunk
from focaldet.weights.tensor_names import COUNTER, shapes_of

BATCH_NORM_EPS = 1e-3
_TAIL = ("mixed_7a.", "repeat_2.", "block8.", "conv2d_7b.")
_CLASSIFIER = ("classif.", "last_linear.")
_SCALE = ".bn.weight"


def is_inception_resnet(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of timm's and Cadene's Inception-ResNet-v2, with or without the classifier."""
    return "conv2d_1a.conv.weight" in tensors


def detector_tensors(
    detector: Detector, tensors: Mapping[str, Tensor], *, source: str
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The tensors by the detector's names, the shapes it has under them, and the names of those left out.

    Raises:
        CheckpointError: the detector has not both halves of an Inception-ResNet-v2.
    """
    trunk, tail = (_place(detector, kind, source=source) for kind in (InceptionResNetTrunk, InceptionResNetTail))
    skipped = tuple(name for name in tensors if name.startswith(_CLASSIFIER))
    renamed = {
        (tail if name.startswith(_TAIL) else trunk) + name: value
        for name, value in tensors.items()
        if name not in skipped and not name.endswith(COUNTER)
    }
    shapes = shapes_of(detector, counters=False)
    return renamed, {name: shape for name, shape in shapes.items() if name.startswith((trunk, tail))}, skipped


def notes(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What a reader of the report should know: scales of BatchNorm that are none of TensorFlow's."""
    scales = [name for name in tensors if name.endswith(_SCALE)]
    changed = [name for name in scales if not (tensors[name] == 1).all()]
    if not changed:
        return ()
    return (
        f"{len(changed)} of {len(scales)} scales of BatchNorm in the file are not 1 (first: {changed[0]}): kept, and "
        "never trained",
    )


def _place(detector: Detector, kind: type[InceptionResNetTrunk | InceptionResNetTail], *, source: str) -> str:
    """The beginning of the names of the tensors of the half of that kind."""
    found = next((name for name, module in detector.named_modules() if isinstance(module, kind)), None)
    if found is None:
        raise CheckpointError(
            f"{source}: made for another network: it holds an Inception-ResNet-v2, "
            f"{type(detector.config).__name__} with backbone {getattr(detector.config, 'backbone', None)!r} has none"
        )
    return f"{found}."
