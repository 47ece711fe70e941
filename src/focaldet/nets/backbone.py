"""What a detector expects of a backbone."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

NUM_STAGES = 5


class Staged(nn.Module):
    """A network whose first stages can be kept from training."""

    num_frozen = 0

    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage, first the stem."""

    def freeze(self, num_stages: int) -> None:
        """Stop the training of the first `num_stages` stages; 2 means the stem and C2, as in the paper's ResNets.

        Their BatchNorm, if it is one that learns, keeps its statistics. 0 and `NUM_STAGES`, nothing and everything,
        need no cut into stages.
        """
        self.num_frozen = num_stages
        if num_stages == NUM_STAGES:
            self.requires_grad_(False)
        for module in self._frozen():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Staged":
        """Switch training on or off; what is frozen stays in evaluation."""
        super().train(mode and self.num_frozen < NUM_STAGES)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        some = 0 < self.num_frozen < NUM_STAGES
        return [module for stage in self.stages()[: self.num_frozen] for module in stage] if some else []


class Backbone(Staged):
    """Turns an image into the feature maps C2, C3, C4, C5 (strides 4, 8, 16, 32 px).

    `channels` are the widths of the four maps.
    """

    channels: tuple[int, int, int, int]

    @abstractmethod
    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps C2…C5 of normalized images."""

    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage: the stem, then those that end in C2, C3, C4, C5."""
