"""timm's ImageNet classifiers: as a backbone of timm's or EfficientNet-Lite0; Inception-ResNet-v2 as trunk and C4 head.

Cadene's files, which timm's Inception-ResNet-v2 was made from, have the same names but for the classifier's.
TensorFlow's BatchNorm had no scale in this network: a file converted from it has ones. Other values, of a file that was
trained otherwise, are kept and never trained.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from focaldet.data.formats.text import list_names
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import Detector
from focaldet.nets.inception_resnet import InceptionResNetTail, InceptionResNetTrunk
from focaldet.nets.timm_backbone import TimmBackbone
from focaldet.weights.tensor_names import shapes_of, without_counters

TIMM_NORM_EPS = 1e-3
_HEAD_LAYERS = ("mixed_7a.", "repeat_2.", "block8.", "conv2d_7b.")
_TIMM_CLASSIFIER = ("classif.", "last_linear.")
_NORM_SCALE = ".bn.weight"
_EFFICIENTNET_CLASSIFIER = ("conv_head.", "bn2.", "classifier.")

_FIRST_MARK = 2**20  # no weight of a new network is such a number, and all numbers up to 2**24 are exact


def feature_tensors(
    backbone: TimmBackbone, tensors: Mapping[str, Tensor], *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of any backbone of timm from those of its classifier, and the names of those skipped.

    timm reads the file and does not say what it used. So it reads a second file, where every tensor is filled with its
    own number, which tells for each tensor of the network where it came from.

    Raises:
        CheckpointError: timm cannot read them, or a tensor of the network is not among them.
    """
    marked = {
        name: torch.full_like(value, _FIRST_MARK + i, dtype=torch.float32)
        for i, (name, value) in enumerate(tensors.items())
    }
    try:
        marks, read = (without_counters(backbone.read_classifier(given)) for given in (marked, tensors))
    except ConfigError as error:
        raise CheckpointError(f"{source}: made for another network: {error}") from None
    origins = {name: set(torch.unique(value).tolist()) for name, value in marks.items() if value.is_floating_point()}
    known = {_FIRST_MARK + i: name for i, name in enumerate(tensors)}
    if missing := [name for name, numbers in origins.items() if not numbers <= known.keys()]:
        raise CheckpointError(f"{source}: made for another network: missing {list_names(missing)}")
    used = set().union(*origins.values())
    return read, tuple(name for number, name in known.items() if number not in used)


def is_efficientnet(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of timm's EfficientNets, with or without the classifier."""
    return "conv_stem.weight" in tensors and "blocks.0.0.conv_dw.weight" in tensors


def efficientnet_classifier(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the tensors behind an EfficientNet's last block."""
    return tuple(name for name in tensors if name.startswith(_EFFICIENTNET_CLASSIFIER))


def is_inception_resnet(tensors: Mapping[str, Tensor]) -> bool:
    """True for the names of timm's and Cadene's Inception-ResNet-v2, with or without the classifier."""
    return "conv2d_1a.conv.weight" in tensors


def inception_resnet_tensors(
    detector: Detector, tensors: Mapping[str, Tensor], *, source: str
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The tensors by the detector's names, the shapes it has under them, and the names of those skipped.

    Raises:
        CheckpointError: the detector does not have both parts of an Inception-ResNet-v2.
    """
    trunk, head = (_part_prefix(detector, kind, source=source) for kind in (InceptionResNetTrunk, InceptionResNetTail))
    skipped = tuple(name for name in tensors if name.startswith(_TIMM_CLASSIFIER))
    renamed = {
        (head if name.startswith(_HEAD_LAYERS) else trunk) + name: value
        for name, value in without_counters(tensors).items()
        if name not in skipped
    }
    return renamed, shapes_of(detector, counters=False, prefixes=(trunk, head)), skipped


def unusual_scales(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Notes for the report: scales of BatchNorm, which TensorFlow's network does not have."""
    scales = [name for name in tensors if name.endswith(_NORM_SCALE)]
    changed = [name for name in scales if not (tensors[name] == 1).all()]
    if not changed:
        return ()
    return (
        f"{len(changed)} of {len(scales)} scales of BatchNorm in the file are not 1 (first: {changed[0]}): kept, and "
        "never trained",
    )


def _part_prefix(detector: Detector, kind: type[InceptionResNetTrunk | InceptionResNetTail], *, source: str) -> str:
    """The prefix of the names of the tensors of the part of that kind."""
    path = next((name for name, module in detector.named_modules() if isinstance(module, kind)), None)
    if path is None:
        raise CheckpointError(
            f"{source}: made for another network: it is an Inception-ResNet-v2, "
            f"{type(detector.config).__name__} with backbone {detector.config.backbone!r} has none"
        )
    return f"{path}."
