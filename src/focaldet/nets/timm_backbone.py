"""Any backbone of the `timm` package that can return feature maps (extra `focaldet[timm]`)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.nets.backbone import NUM_STAGES, Backbone
from focaldet.nets.norm import NormKind

# Height and width of an image that a model is tried on when it is built; multiples of the largest stride.
TRIED_PX = (128, 160)


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Weights that timm publishes: their full name with the tag, where they are on the Hugging Face hub, and what they
    were trained to see (mean and standard deviation on 0…255, RGB).
    """

    name: str
    hub_id: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    license: str | None = None


def published_weights(name: str) -> PublishedWeights:
    """What timm says of the weights of model `name`; without a tag those that timm prefers.

    Raises:
        ConfigError: timm is not installed, does not know the name, or has no weights of it on the hub.
    """
    timm = _import_timm(name)
    try:
        published = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise ConfigError(f"timm:{name}: {error}") from None
    if not published.hf_hub_id or published.hf_hub_filename:
        raise ConfigError(f"timm:{name}: timm publishes no weights of it as a file of its own; give the path of a file")
    full = f"{published.architecture}.{published.tag}" if published.tag else published.architecture
    hub_id = f"{published.hf_hub_id}{full}" if published.hf_hub_id.endswith("/") else published.hf_hub_id
    return PublishedWeights(full, hub_id, _on_255(published.mean), _on_255(published.std), published.license)


class TimmBackbone(Backbone):
    """A timm model cut after strides 4, 8, 16 and 32, with random weights.

    Normalization layers are timm's own. With `norm` frozen those that are BatchNorm are not trained and keep their
    statistics; layers of other kinds always learn, but for those of frozen stages.

    Attributes:
        name: timm's, with or without the tag of published weights, such as `resnet18.a1_in1k`.
        mean: of each channel on 0…255, RGB, as timm's published weights were trained.
        std: the standard deviation likewise.

    Raises:
        ConfigError: timm is not installed, does not know the name, the model has no maps of these strides or takes
            images of one size only, or `norm` is group.
    """

    def __init__(self, name: str, *, norm: NormKind = "batch") -> None:
        super().__init__()
        if norm == "group":
            raise ConfigError(f"backbone timm:{name}: has timm's own normalization: norm must be batch or frozen")
        self.name, self._freezes_norm = name, norm == "frozen"
        self.model = _create_model(name)
        self._is_channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        info: Any = self.model.feature_info
        at = {stride: index for index, stride in enumerate(info.reduction())}
        if not {4, 8, 16, 32} <= set(at):
            raise ConfigError(f"backbone timm:{name}: needs maps of strides 4, 8, 16 and 32, has {sorted(at)}")
        self._indices = [at[stride] for stride in (4, 8, 16, 32)]
        widths = [info.channels()[index] for index in self._indices]
        self.channels = (widths[0], widths[1], widths[2], widths[3])
        sources: list[str] = info.module_name()
        self._ends = {stride: sources[index] for stride, index in at.items()}
        published: Any = self.model.pretrained_cfg
        self.mean, self.std = _on_255(published["mean"]), _on_255(published["std"])
        for norm_layer in self._frozen_norms():
            norm_layer.requires_grad_(False)
        self._require_maps()

    def _frozen_norms(self) -> list[nn.Module]:
        kinds = (nn.BatchNorm2d,)
        return [module for module in self.modules() if self._freezes_norm and isinstance(module, kinds)]

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Switch training on or off; what is frozen stays in evaluation."""
        super().train(mode)
        for norm in self._frozen_norms():
            norm.eval()
        return self

    def read_classifier(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this network's tensors are after timm has read those of its classifier; the network stays as it is.

        timm knows the names in the files of whoever first published a model, too. A tensor that is not in the file
        keeps a random value.

        Raises:
            ConfigError: timm cannot read them.
        """
        with torch.random.fork_rng(devices=[]):
            model = _create_model(self.name, tensors)
        return {f"model.{name}": value for name, value in model.state_dict().items()}

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalized images."""
        maps = self.model(images)
        return [self._channels_first(maps[index]) for index in self._indices]

    def _channels_first(self, features: Tensor) -> Tensor:
        """A map as B C H W, which some of timm's transformers have as B H W C."""
        return features.permute(0, 3, 1, 2) if self._is_channels_last else features

    @torch.no_grad()
    def _require_maps(self) -> None:
        """Make sure that the model turns an image of any size into maps of the channels that timm states.

        Raises:
            ConfigError: it is made for one size, or its maps are of another form.
        """
        height, width = TRIED_PX
        try:
            maps = self.eval()(torch.zeros(1, 3, height, width, device=next(self.parameters()).device))
        except Exception as error:  # whatever the model, which is timm's, comes to
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                f"backbone timm:{self.name}: takes no image of {width} × {height} px, and a detector needs one that "
                f"takes every size: {reason}"
            ) from None
        self.train()
        widths = tuple(features.shape[1] if features.ndim == 4 else 0 for features in maps)
        if widths != self.channels:
            raise ConfigError(f"backbone timm:{self.name}: maps of {widths} channels, timm states {self.channels}")

    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage: the stem, then those that end in C2, C3, C4, C5.

        The stem ends in timm's map of stride 2, or before the module that gives C2 where timm has no such map.

        Raises:
            ConfigError: the model is not a chain of modules of which some give its maps.
        """
        chain = self._chain()
        index_of = {name: index for index, name in enumerate(chain)}
        ends = [index_of.get(self._ends[stride], -1) + 1 for stride in (4, 8, 16, 32)]
        stem = index_of.get(self._ends[2], -1) + 1 if 2 in self._ends else ends[0] - 1
        cuts = [0, stem, *ends]
        if any(start >= stop for start, stop in pairwise(cuts)):
            raise ConfigError(
                f"frozen_stages: timm does not tell the stages of timm:{self.name} apart, so it takes 0 (nothing) or "
                f"{NUM_STAGES} (the whole backbone)"
            )
        modules = list(chain.values())
        return [modules[start:stop] for start, stop in pairwise([*cuts[:-1], len(modules)])]

    def _chain(self) -> dict[str, nn.Module]:
        """The modules that run one after the other, by the names that timm gives its maps."""
        ends = set(self._ends.values())
        # timm's usual wrapper lifts `blocks.0` out of its Sequential and calls it `blocks_0`.
        renamed = {end.replace(".", "_", 1): end for end in ends}
        chain: dict[str, nn.Module] = {}
        for name, child in self.model.named_children():
            if isinstance(child, nn.Sequential) and any(end.startswith(f"{name}.") for end in ends):
                chain.update({f"{name}.{inner}": module for inner, module in child.named_children()})
            else:
                chain[renamed.get(name, name)] = child
        return chain


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"backbone timm:{name} needs the extra: pip install 'focaldet[timm]'") from None
    return timm


def _on_255(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (255 * value for value in values)
    return red, green, blue


def _create_model(name: str, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """timm's model of feature maps, with random weights or those of a classifier's tensors."""
    timm = _import_timm(name)
    given: dict[str, Any] = {"pretrained": False}
    if tensors is not None:
        given = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(tensors), "custom_load": False}}
    try:
        with _quiet():
            model: nn.Module = timm.create_model(name, features_only=True, **given)
    # timm raises whatever an unknown name, a hub that cannot be reached or a strange file leads it to.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        what = "build it with feature maps" if tensors is None else "read these weights"
        reason = " ".join(lines[:2]) or type(error).__name__
        raise ConfigError(f"backbone timm:{name}: timm cannot {what}: {reason}") from None
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep timm's warnings of left-over names from the terminal: the report of the weights names them."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
