"""Why a detector that trains detects nothing, and what to try."""

from typing import Any

from focaldet.check.advice import advise_size
from focaldet.check.anchor_fit import anchor_report
from focaldet.data.dataset import Dataset
from focaldet.data.formats.text import quantity
from focaldet.models import Detector
from focaldet.ops.anchors import AnchorConfig

# Fewer boxes than this fraction with an anchor, or fewer updates than these, explain by themselves an AP of 0.
FEW_COVERED, FEW_UPDATES, FEW_UPDATES_FROM_RANDOM = 0.6, 300, 3000


def explain_zero_ap(detector: Detector, train: Dataset, *, updates: int, from_random: bool) -> str:
    """One line for a run whose AP is still 0: the likeliest reason, and what to try.

    Args:
        detector: with the preprocessing that it is trained with.
        train: the images that it is trained on, some of which have boxes.
        updates: of the weights so far.
        from_random: whether it began with random weights.
    """
    anchors = anchor_report(train, detector.config, detector.preprocessing)
    if anchors is not None and anchors.covered < FEW_COVERED:
        reason = f"only {anchors.covered:.0%} of the boxes {anchors.criterion} at {anchors.resize}"
        advice = f"try {_advise_anchors(detector, train)} (focaldet check measures how they fit)"
    elif from_random and updates < FEW_UPDATES_FROM_RANDOM:
        reason, advice = f"only {quantity(updates, 'update')} from random weights", "try --weights, or more --epochs"
    elif updates < FEW_UPDATES:
        reason, advice = (
            f"only {quantity(updates, 'update')}",
            "wait, or try more --epochs, a smaller --batch-size",
        )
    else:
        reason = f"not for want of anchors or updates ({updates})"
        advice = "try --find-lr for the learning rate, --overfit 8, and focaldet check for the boxes"
    return f"AP is still 0: {reason}; {advice}"


def _advise_anchors(detector: Detector, train: Dataset) -> str:
    """The flags that bring boxes and anchors together: the size, unless it is what `auto` would choose, or others."""
    resize, config = detector.preprocessing.resize, detector.config
    anchors: Any = getattr(config, "anchors", None)
    if anchors is None:
        flag = "other --architecture.priors"
    else:
        flag = "another --architecture.anchors.base-scale" if isinstance(anchors, AnchorConfig) else "focaldet anchors"
    is_auto = resize.mode != "short" and resize.size == advise_size(train, resize).value
    return flag if is_auto else f"--size auto, or {flag}"
