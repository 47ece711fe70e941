"""The classification losses as modules: sums over any shape, divided by a normalizer that detectors know.

Axes: B images (the first axis of whatever is given), K classes.
"""

import functools
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from focaldet.ops.losses import focal
from focaldet.ops.losses.arguments import Alpha, check_alpha, check_class_weights, require_beta, require_gamma
from focaldet.ops.losses.cross_entropy import balanced_cross_entropy, binary_cross_entropy
from focaldet.ops.losses.inputs import is_positive
from focaldet.ops.losses.normalize import START, Normalizer, loss_normalizers, sum_over_ranks

Uncounted = Literal["elements", "none"]
LossNormalizer = Normalizer | Uncounted

RENAMED_ARGUMENTS = {"normaliser": "normalizer", "over_ranks": "across_ranks"}  # of version 0.1


class NormalizedLoss(nn.Module):
    """A scalar: the sum of an elementwise loss, divided by `normalizer`.

    `batch`, `image`, `batch_plus_one` and `moving_average` count the positives (targets of 1) as
    `normalize.loss_normalizers` does; the moving average is part of the state dict. `elements` counts all that is not
    ignored, `none` divides by 1. With `across_ranks` the counts are those of all processes of `torch.distributed`, so
    that the mean of the gradients over the processes is that of one process with all the data.

    Raises:
        ValueError: an unknown normalizer.
    """

    average: Tensor

    def __init_subclass__(cls) -> None:
        """Let the constructor take the argument names of version 0.1, with a warning."""
        super().__init_subclass__()
        construct = cls.__init__

        @functools.wraps(construct)
        def init(self: NormalizedLoss, *args: Any, **named: Any) -> None:
            for old in [name for name in named if name in RENAMED_ARGUMENTS]:
                new = RENAMED_ARGUMENTS[old]
                warnings.warn(f"{cls.__name__}: {old} is now called {new}", FutureWarning, stacklevel=2)
                named[new] = named.pop(old)
            construct(self, *args, **named)

        cls.__init__ = init  # type: ignore[method-assign]

    def __init__(self, *, normalizer: LossNormalizer = "batch", across_ranks: bool = False) -> None:
        super().__init__()
        known = (*get_args(Normalizer), *get_args(Uncounted))
        if normalizer not in known:
            raise ValueError(f"normalizer must be one of {', '.join(known)}, got {normalizer!r}")
        self.normalizer, self.across_ranks = normalizer, across_ranks
        self.register_buffer("average", torch.tensor(START), persistent=normalizer == "moving_average")

    @abstractmethod
    def elementwise(self, logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Tensor:
        """The loss of every element or row, 0 where ignored."""

    def positives(self, targets: Tensor) -> Bool[Tensor, "*shape"]:
        """True where there is an object."""
        return is_positive(targets)

    def forward(self, logits: Tensor, targets: Tensor, ignore: Tensor | None = None) -> Float[Tensor, ""]:
        """The normalized loss of logits of any shape with at least one axis.

        `targets` and `ignore` are as the elementwise function of the same name takes them.
        """
        loss = self.elementwise(logits, targets, ignore)
        if self.normalizer == "none":
            return loss.sum()
        counted = torch.ones_like(loss, dtype=torch.bool) if ignore is None else ~ignore
        if self.normalizer != "elements":
            counted = counted & self.positives(targets)
        return (loss.flatten(1).sum(1) if loss.ndim > 1 else loss).div(self._normalizers(counted)).sum()

    def _normalizers(self, counted: Bool[Tensor, "B *rest"]) -> Float[Tensor, " B"]:
        """What the loss of each image is divided by."""
        ranks = torch.distributed.get_world_size() if self.across_ranks and torch.distributed.is_initialized() else 1
        averages = {"positives": self.average}
        normalizers = loss_normalizers(
            counted.flatten(1).sum(1) if counted.ndim > 1 else counted.long(),
            "batch" if self.normalizer == "elements" else cast(Normalizer, self.normalizer),
            averages=averages,
            all_reduce_sum=sum_over_ranks if ranks > 1 else None,
            num_ranks=ranks,
        )
        if self.training:
            self.average.copy_(averages["positives"])
        return normalizers


def keep_alpha(module: nn.Module, alpha: Alpha) -> None:
    """Set `module.alpha`; one per class becomes a buffer, which moves with the module.

    Raises:
        ValueError: one is outside [0, 1].
    """
    alpha = check_alpha(alpha, num_classes=None)
    if isinstance(alpha, Tensor):
        module.register_buffer("alpha", alpha, persistent=False)
    else:
        setattr(module, "alpha", alpha)  # noqa: B010  nn.Module declares only modules and tensors


class BinaryCrossEntropyLoss(NormalizedLoss):
    """Equation 1, summed and normalized: `cross_entropy.binary_cross_entropy`."""

    def elementwise(self, logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Tensor:
        return binary_cross_entropy(logits, targets, ignore=ignore)


class BalancedCrossEntropyLoss(NormalizedLoss):
    """Equation 3, summed and normalized: `cross_entropy.balanced_cross_entropy`."""

    alpha: Alpha

    def __init__(self, *, alpha: Alpha, normalizer: LossNormalizer = "batch", across_ranks: bool = False) -> None:
        super().__init__(normalizer=normalizer, across_ranks=across_ranks)
        keep_alpha(self, alpha)

    def elementwise(self, logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Tensor:
        return balanced_cross_entropy(logits, targets, alpha=self.alpha, ignore=ignore)


class FocalLoss(NormalizedLoss):
    """Equation 4, summed and normalized: `focal.focal_loss`."""

    def __init__(self, *, gamma: float = 2.0, normalizer: LossNormalizer = "batch", across_ranks: bool = False) -> None:
        super().__init__(normalizer=normalizer, across_ranks=across_ranks)
        require_gamma(gamma)
        self.gamma = gamma

    def elementwise(self, logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Tensor:
        return focal.focal_loss(logits, targets, gamma=self.gamma, ignore=ignore)


class BalancedFocalLoss(NormalizedLoss):
    """Equation 5, summed and normalized, with the paper's α and γ: `focal.balanced_focal_loss`."""

    alpha: Alpha

    def __init__(
        self,
        *,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        normalizer: LossNormalizer = "batch",
        across_ranks: bool = False,
    ) -> None:
        super().__init__(normalizer=normalizer, across_ranks=across_ranks)
        require_gamma(gamma)
        keep_alpha(self, alpha)
        self.gamma = gamma

    def elementwise(self, logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Tensor:
        return focal.balanced_focal_loss(logits, targets, alpha=self.alpha, gamma=self.gamma, ignore=ignore)


class FocalStarLoss(NormalizedLoss):
    """FL* of appendix A, summed and normalized: `focal.focal_star_loss`."""

    def __init__(
        self, *, gamma: float = 2.0, beta: float = 1.0, normalizer: LossNormalizer = "batch", across_ranks: bool = False
    ) -> None:
        super().__init__(normalizer=normalizer, across_ranks=across_ranks)
        focal.require_star(gamma, beta)
        self.gamma, self.beta = gamma, beta

    def elementwise(self, logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Tensor:
        return focal.focal_star_loss(logits, targets, gamma=self.gamma, beta=self.beta, ignore=ignore)


class QualityFocalLoss(NormalizedLoss):
    """The focal loss for soft targets, summed and normalized: `focal.quality_focal_loss`. A quality above 0 counts as a
    positive.
    """

    def __init__(self, *, beta: float = 2.0, normalizer: LossNormalizer = "batch", across_ranks: bool = False) -> None:
        super().__init__(normalizer=normalizer, across_ranks=across_ranks)
        require_beta(beta)
        self.beta = beta

    def elementwise(self, logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Tensor:
        return focal.quality_focal_loss(logits, targets, beta=self.beta, ignore=ignore)

    def positives(self, targets: Tensor) -> Bool[Tensor, "*shape"]:
        return targets > 0


class SoftmaxFocalLoss(NormalizedLoss):
    """The focal loss of a softmax over the last axis, summed over rows and normalized: `focal.softmax_focal_loss`.

    By default it is the mean over rows. `background` is the class that does not count as positive.

    Raises:
        ValueError: a normalizer that counts positives without a `background`, or an `alpha` that is not a number ≥ 0
            for each class.
    """

    alpha: Tensor | None

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: Float[Tensor, " K"] | Sequence[float] | None = None,
        background: int | None = None,
        normalizer: LossNormalizer = "elements",
        across_ranks: bool = False,
    ) -> None:
        super().__init__(normalizer=normalizer, across_ranks=across_ranks)
        require_gamma(gamma)
        if background is None and normalizer not in get_args(Uncounted):
            raise ValueError(f"normalizer {normalizer!r} counts positives: say which class is the background")
        self.gamma, self.background = gamma, background
        weights = None if alpha is None else check_class_weights(alpha, num_classes=None)
        self.register_buffer("alpha", weights, persistent=False)

    def elementwise(self, logits: Tensor, targets: Tensor, ignore: Tensor | None) -> Tensor:
        if self.background is not None and not 0 <= self.background < logits.shape[-1]:
            raise ValueError(f"background must be a class in [0, {logits.shape[-1]}), got {self.background}")
        return focal.softmax_focal_loss(logits, targets, gamma=self.gamma, alpha=self.alpha, ignore=ignore)

    def positives(self, targets: Tensor) -> Bool[Tensor, "*shape"]:
        classes = targets.argmax(-1) if targets.is_floating_point() else targets
        return classes.ne(-1 if self.background is None else self.background)
