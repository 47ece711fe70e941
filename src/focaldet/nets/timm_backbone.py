"""Any backbone of the `timm` package that can return feature maps (extra `focaldet[timm]`)."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.nets.backbone import NUM_STAGES, Backbone


class TimmBackbone(Backbone):
    """A timm model cut after strides 4, 8, 16 and 32, with random weights.

    Normalization layers are timm's own and are trained, but for those of frozen stages.

    Raises:
        ConfigError: timm is not installed, does not know the name, or the model has no maps of these strides.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import timm
        except ImportError:
            raise ConfigError(f"backbone timm:{name} needs the extra: pip install 'focaldet[timm]'") from None
        try:
            self.model: nn.Module = timm.create_model(name, pretrained=False, features_only=True)
        except (RuntimeError, ValueError, AttributeError, AssertionError) as error:
            raise ConfigError(f"backbone timm:{name}: timm cannot build it with feature maps: {error}") from None
        info = self.model.feature_info
        at = {stride: index for index, stride in enumerate(info.reduction())}  # type: ignore[union-attr,operator]
        if not {4, 8, 16, 32} <= set(at):
            raise ConfigError(f"backbone timm:{name}: needs maps of strides 4, 8, 16 and 32, has {sorted(at)}")
        self._name, self._indices = name, [at[stride] for stride in (4, 8, 16, 32)]
        widths = [info.channels()[index] for index in self._indices]  # type: ignore[union-attr,operator]
        self.channels = (widths[0], widths[1], widths[2], widths[3])
        sources: list[str] = info.module_name()  # type: ignore[union-attr,operator]
        self._ends = {stride: sources[index] for stride, index in at.items()}

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalized images."""
        maps = self.model(images)
        return [maps[index] for index in self._indices]

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
                f"frozen_stages: timm does not tell the stages of timm:{self._name} apart, so it takes 0 (nothing) or "
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
