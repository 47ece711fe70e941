"""Any backbone of the `timm` package that can return feature maps (extra `focaldet[timm]`)."""

from jaxtyping import Float
from torch import Tensor, nn

from focaldet.errors import ConfigError
from focaldet.nets.backbone import Backbone


class TimmBackbone(Backbone):
    """A timm model cut after strides 4, 8, 16 and 32, with random weights.

    Normalisation layers are timm's own and are trained; `freeze` takes all of it or nothing.

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
        at = {stride: place for place, stride in enumerate(info.reduction())}  # type: ignore[union-attr,operator]
        if not {4, 8, 16, 32} <= set(at):
            raise ConfigError(f"backbone timm:{name}: needs maps of strides 4, 8, 16 and 32, has {sorted(at)}")
        self._places = [at[stride] for stride in (4, 8, 16, 32)]
        widths = [info.channels()[place] for place in self._places]  # type: ignore[union-attr,operator]
        self.channels = (widths[0], widths[1], widths[2], widths[3])

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalised images."""
        maps = self.model(images)
        return [maps[place] for place in self._places]

    def stages(self) -> list[list[nn.Module]]:
        """One stage that holds everything: timm's models share no cut."""
        return [[self.model]]
