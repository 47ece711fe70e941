"""What every detector is: three methods, a config that rebuilds it, and the preprocessing it was trained with.

Axes: B images, H W pixels.
"""

import functools
import importlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.nets.norm import NormKind
from focaldet.ops.classifier import Classifier
from focaldet.ops.grids import Grid
from focaldet.ops.losses.normalize import Normalizer, loss_normalizers
from focaldet.ops.padded import PaddedDetections
from focaldet.types import Detections, Images, ImageSize, ImageSizes, Preprocessing, Target

Value = TypeVar("Value")


def rename_prefixes(values: Mapping[str, Value], prefixes: Iterable[tuple[str, str]]) -> dict[str, Value]:
    """Values by name, where the first of `prefixes` (old, new) that a name starts with is replaced in it."""
    pairs = tuple(prefixes)
    return {
        next((new + name.removeprefix(old) for old, new in pairs if name.startswith(old)), name): value
        for name, value in values.items()
    }


@dataclass
class LossContext:
    """What a loss may know beside its batch.

    `images_seen` counts over all ranks. `averages` holds moving averages and belongs to the training state.
    `all_reduce_sum` adds a tensor up over the ranks; without it there is one rank.
    """

    images_seen: int = 0
    averages: dict[str, Tensor] = field(default_factory=dict)
    all_reduce_sum: Callable[[Tensor], Tensor] | None = None
    num_ranks: int = 1

    def normalizers(
        self, counts: Int64[Tensor, " B"], kind: Normalizer = "batch", *, across_ranks: bool = True
    ) -> Float[Tensor, " B"]:
        """What to divide the summed loss of each image by, see `ops.losses.normalize.loss_normalizers`."""
        return loss_normalizers(
            counts,
            kind,
            averages=self.averages,
            all_reduce_sum=self.all_reduce_sum if across_ranks else None,
            num_ranks=self.num_ranks if across_ranks else 1,
        )


class Margins(NamedTuple):
    """x_t = y x of the paper's appendix for every decision that the class loss counts, P about objects, N about others.

    The probability that the network gives to the truth is p_t = σ(x_t). A sigmoid detector decides for every anchor and
    class: of an object's anchor the decision about its class is positive, all others are negative.
    """

    positive: Float[Tensor, " P"]
    negative: Float[Tensor, " N"]


class DetectorConfig:
    """What the program asks of the config of a detector: derive a frozen dataclass from it.

    Its fields decide the architecture and are stored with the weights. The names below mean the same in every detector
    that has them; None says that it has no such setting.
    """

    __slots__ = ()

    num_classes: int
    """K, the number of classes."""
    backbone: str | None = None
    """The name that `nets.build_backbone` knows."""
    norm: NormKind | None = None
    """Normalization of the backbone."""
    norm_eps: float | None = None
    """What BatchNorm adds to the variance."""
    frozen_stages: int | None = None
    """How many stages of the backbone, stem included, are not trained."""
    stride_in_1x1: bool = False
    """Whether a ResNet has its strides in the 1×1 convolutions."""
    detect: Any = None
    """From raw outputs to detections; a dataclass with a `score_threshold`."""

    def __post_init__(self) -> None:
        if self.norm == "batch" and self.norm_eps == 0:
            raise ConfigError("norm_eps: trained BatchNorm divides by a batch's own deviation, so it must be above 0")

    @property
    def classifier(self) -> Classifier | None:
        """Sigmoids or a softmax, where the detector has class logits of that kind."""
        return None

    def build(self, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> "Detector":
        """The detector with random weights."""
        raise NotImplementedError

    def grids(self, image: ImageSize) -> tuple[Grid, ...]:
        """The anchors over an input of this size (padding included), finest map first; none without anchors."""
        return ()

    def replace(self, **changes: Any) -> "DetectorConfig":
        """The same config with other values of some fields."""
        return replace(self, **changes)  # type: ignore[type-var]


@functools.lru_cache(maxsize=1024)  # images of a data set have few sizes, and the network takes time to build
def level_cells(config: DetectorConfig, *, per_cell: Sequence[int], image: ImageSize) -> tuple[tuple[int, int], ...]:
    """Rows and columns of every map with `per_cell` anchors, as the network itself makes them of an input of this size.

    It is built on the device "meta", which computes shapes alone, and given squares: rows come from the height as
    columns come from the width.
    """
    with torch.device("meta"), torch.no_grad():
        detector = config.build(class_names=(), preprocessing=Preprocessing()).eval()
        rows, columns = (detector(torch.zeros(1, 3, side, side), [ImageSize(side, side)]).level_sizes for side in image)
    sides = [
        tuple(math.isqrt(n // count) for n, count in zip(sizes, per_cell, strict=True)) for sizes in (rows, columns)
    ]
    return tuple(zip(*sides, strict=True))


@dataclass(frozen=True, slots=True)
class PublishedAP:
    """Percent on COCO test-dev, as a table prints it."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float


@dataclass(frozen=True, slots=True)
class Preset:
    """A detector that has a name.

    `published` is what the table of the RetinaNet paper prints for it, None where it has no such row.
    """

    config: DetectorConfig
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    published: PublishedAP | None = None


class Detector(nn.Module):
    """Base of all detectors. `forward` is the only part with weights, and the only one that is wrapped or compiled."""

    config: DetectorConfig
    _mean: Tensor
    _std: Tensor

    renamed_tensors: ClassVar[Mapping[str, str]] = {}
    """Beginnings of tensor names in state dicts of earlier versions, and what they are now."""

    def __init__(self, config: DetectorConfig, *, class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config = config
        self.class_names = class_names
        self.preprocessing = preprocessing

    @property
    def preprocessing(self) -> Preprocessing:
        """How images must be prepared; its mean and scale are the first thing that `forward` applies."""
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing) -> None:
        self._preprocessing = value
        self._set_scaling()

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights; float32 of a detector without weights."""
        return next(self.parameters(), torch.empty(0)).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are; the processor's memory of a detector without weights."""
        return next(self.parameters(), torch.empty(0)).device

    def _set_scaling(self) -> None:
        """Make mean and standard deviation again, beside the weights and never in less than float32.

        They are not in the state dict, whose file states the preprocessing, so that whatever empties or converts the
        buffers of a module (`to_empty`, `half`) has to be followed by this.
        """
        value, weight = self._preprocessing, next(self.parameters(), None)
        device = None if weight is None else weight.device
        dtype = torch.promote_types(self.dtype, torch.float32)
        # On the scale of the input and in RGB order; where the network wants BGR, its input is flipped afterwards.
        order = slice(None) if value.channels == "RGB" else slice(None, None, -1)
        for name, triple in (("_mean", value.mean), ("_std", value.std)):
            row = torch.tensor(triple[order], dtype=dtype, device=device).view(3, 1, 1)
            self.register_buffer(name, row, persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        # `to`, `half`, `to_empty` and all others of their kind come through here.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._set_scaling()
        return self

    def normalize(self, images: Images) -> Float[Tensor, "B 3 H W"]:
        """RGB in 0…255 turned into what the first convolution expects, in the type of the weights."""
        x = ((images.float() - self._mean) / self._std).to(self.dtype)
        return x if self.preprocessing.channels == "RGB" else x.flip(1)

    def normalise(self, images: Images) -> Float[Tensor, "B 3 H W"]:
        """Deprecated: the name of `normalize` until version 0.1."""
        warnings.warn("Detector.normalise is now called normalize", DeprecationWarning, stacklevel=2)
        return self.normalize(images)

    @abstractmethod
    def forward(self, images: Images, sizes: ImageSizes, targets: Sequence[Target] | None = None) -> Any:
        """The raw outputs for RGB images in 0…255, padded at the bottom and right; `sizes` are those without padding.

        One stage predicts at every cell, padding or not, and takes no notice of `sizes`; `targets` only choose the
        regions that a second stage sees.
        """

    @abstractmethod
    def losses(self, outputs: Any, targets: Sequence[Target], context: LossContext) -> dict[str, Tensor]:
        """Named scalars whose sum is minimized. Has no weights."""

    def margins(self, outputs: Any, targets: Sequence[Target]) -> Margins:
        """How sure the network is of the truth in every decision about a class that the loss counts.

        For studies only: a detector trains and detects without it.

        Raises:
            ConfigError: this kind of detector does not have it.
        """
        raise ConfigError(f"{type(self).__name__} has no method `margins`, which this study needs")

    @abstractmethod
    def detect(self, outputs: Any, sizes: Sequence[ImageSize]) -> list[Detections]:
        """The objects of each image, in the frame of the resized image and clipped to its size; best first."""

    def detect_padded(self, images: Images, sizes: Int64[Tensor, "B 2"]) -> PaddedDetections:
        """What `forward` and `detect` give together, in tensors of fixed shapes: this is what is exported.

        `sizes` are (height, width) of the images without padding.

        Raises:
            ConfigError: this kind of detector does not have it.
        """
        raise ConfigError(f"{type(self).__name__} has no method `detect_padded`, which an export needs")

    def current_tensor_names(self, tensors: Mapping[str, Value]) -> dict[str, Value]:
        """What is given by tensor name, under the present names where those are of an earlier version."""
        return rename_prefixes(tensors, self.renamed_tensors.items())

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in `nn.Module`; reads state dicts of earlier versions too."""
        result = super().load_state_dict(self.current_tensor_names(state_dict), strict=strict, assign=assign)
        if assign:  # the weights may be on another device now
            self._set_scaling()
        return result

    def save(self, path: str | Path, *, license: str | None = None) -> None:  # noqa: A002  as in the file
        """Write weights, settings, class names and preprocessing to a file that `focaldet.load` opens.

        Raises:
            CheckpointError: the file cannot be written (what was there before is intact).
        """
        # The file is the business of weights, which stand above models. Looked up when it is called: a function that
        # weights would register here is there only after somebody has imported them.
        checkpoint = importlib.import_module("focaldet.weights.checkpoint")
        checkpoint.save_detector(Path(path), self, license=license)

    @property
    def pretrained(self) -> tuple[tuple[str, str], ...]:
        """Beginnings of the names of a classifier's tensors, and what they are here; the first that fits counts."""
        return (("", "backbone."),)

    def starts_from(self, other: Any) -> tuple[str, ...]:
        """The beginnings of the names of the tensors that this detector takes from one of config `other`.

        Empty unless `other` describes the first stage of training of this one.
        """
        return ()

    def backbone_parameters(self) -> list[nn.Parameter]:
        """The parameters that come from pre-training on classification; they usually learn at a lower rate."""
        return list(self.get_submodule("backbone").parameters())
