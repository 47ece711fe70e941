"""Which anchors take part in the loss, where not all do: a random sample, or the hardest (online hard example mining).

Axes: B images, A anchors.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import nms

from focaldet.config import Fraction, validate_fields
from focaldet.ranges import PositiveFloat, PositiveInt

FIRST, GROWTH = 8, 4  # of the anchors sorted by loss, first so many minibatches are looked at, then that times more


@validate_fields
@dataclass(frozen=True, slots=True)
class MiningConfig:
    """Online hard example mining (Shrivastava et al. 2016) as in table 1d of the focal-loss paper.

    The `batch` anchors of an image with the highest loss train, after non-maximum suppression with `nms_iou`, so that
    one hard region does not fill the minibatch. With `ratio` (3 for the paper's 1:3) at most so many negatives stand
    beside every positive.
    """

    batch: PositiveInt = 128
    nms_iou: Fraction = 0.5
    ratio: PositiveFloat | None = None


@torch.no_grad()
def hardest(
    losses: Float[Tensor, " A"],
    boxes: Float[Tensor, "A 4"],
    foreground: Bool[Tensor, " A"],
    ignored: Bool[Tensor, " A"],
    *,
    config: MiningConfig,
) -> Bool[Tensor, " A"]:
    """True for the anchors of the minibatch of one image: at most `batch`, none that is `ignored`.

    Of equal losses the first anchor counts as the harder. With `ratio` the minibatch is filled again from the
    survivors: at most batch / (1 + ratio) positives, and at most `ratio` negatives for each of them, hardest first; an
    image without positives gives as many negatives as one with a single positive, so that background images count.

    Survivors of the hardest N anchors are survivors of all, so N grows only until they suffice.
    """
    order = losses.masked_fill(ignored, -torch.inf).argsort(descending=True, stable=True)
    order = order[: len(order) - int(ignored.sum())]
    num_positives = int(foreground[order].sum())
    looked_at = FIRST * config.batch
    while True:
        first = order[:looked_at]
        ranks = torch.arange(len(first), 0, -1, dtype=boxes.dtype, device=boxes.device)
        survivors = first[nms(boxes[first], ranks, config.nms_iou)]
        all_positives = int(foreground[first].sum()) == num_positives
        chosen, is_full = _minibatch(survivors, foreground[survivors], config, all_positives=all_positives)
        if is_full or len(first) == len(order):
            return torch.zeros_like(foreground).index_fill_(0, chosen, value=True)
        looked_at *= GROWTH


def _minibatch(
    survivors: Int64[Tensor, " N"], foreground: Bool[Tensor, " N"], config: MiningConfig, *, all_positives: bool
) -> tuple[Int64[Tensor, " C"], bool]:
    """The chosen of the `survivors`, hardest first, and whether more survivors could not change the choice."""
    if config.ratio is None:
        return survivors[: config.batch], len(survivors) >= config.batch
    most = max(1, int(config.batch / (1 + config.ratio)))
    positives, negatives = survivors[foreground][:most], survivors[~foreground]
    limit = min(config.batch - len(positives), int(config.ratio * max(1, len(positives))))
    is_full = (all_positives or len(positives) == most) and len(negatives) >= limit
    return torch.cat([positives, negatives[:limit]]), is_full


@torch.no_grad()
def hardest_negatives(
    losses: Float[Tensor, "B A"],
    foreground: Bool[Tensor, "B A"],
    ignored: Bool[Tensor, "B A"],
    *,
    ratio: float,
) -> Bool[Tensor, "B A"]:
    """True for the negatives that train: of each image at most `ratio` per positive (rounded down), hardest first.

    SSD's hard negative mining (Liu et al. 2016, section 2.2) with 3 for `ratio`. `losses` are those of calling the
    anchor background. Of equal losses the first anchor counts as the harder. An image without positives gives none;
    `ignored` anchors are never chosen.
    """
    negative = ~foreground & ~ignored
    wanted = (foreground.sum(1).double() * ratio).long().minimum(negative.sum(1))
    order = losses.masked_fill(~negative, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(losses.shape[1], device=losses.device) < wanted[:, None]
    return torch.zeros_like(foreground).scatter(1, order, chosen)


@validate_fields
@dataclass(frozen=True, slots=True)
class SampleConfig:
    """Random minibatches (Girshick 2015, section 2.3): `count` of an image train, a fraction `positives` at most."""

    count: PositiveInt = 256
    positives: Fraction = 0.5


@torch.no_grad()
def sample_balanced(
    noise: Float[Tensor, "*B A"],
    foreground: Bool[Tensor, "*B A"],
    ignored: Bool[Tensor, "*B A"],
    *,
    config: SampleConfig,
) -> Bool[Tensor, "*B A"]:
    """True for the anchors of the minibatch of each image: at most `count`, none that is `ignored`.

    `noise` are random numbers; the lowest win, of equal ones the first. First ⌊`count` · `positives`⌋ positives are
    drawn, or all where there are fewer; negatives fill what is left. Too few negatives leave the minibatch small.
    """
    positive, negative = foreground & ~ignored, ~foreground & ~ignored
    num_positives = positive.sum(-1, keepdim=True).clamp(max=int(config.count * config.positives))
    return _lowest(noise, positive, num_positives) | _lowest(noise, negative, config.count - num_positives)


def _lowest(
    noise: Float[Tensor, "*B A"], eligible: Bool[Tensor, "*B A"], wanted: Int64[Tensor, "*B 1"]
) -> Bool[Tensor, "*B A"]:
    """True for the `wanted` eligible ones with the lowest noise, or all where there are fewer."""
    order = noise.masked_fill(~eligible, torch.inf).argsort(dim=-1, stable=True)
    first = torch.arange(noise.shape[-1], device=noise.device) < wanted
    return torch.zeros_like(eligible).scatter(-1, order, first) & eligible
