"""Tables 1a, 1b and 1d of Lin et al. 2017: what the paper measured of α, γ and hard example mining."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedLoss:
    """Percent on COCO minival: ResNet-50-FPN at 600 px with the α-balanced focal loss; γ = 0 is cross entropy."""

    gamma: float
    alpha: float
    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True, slots=True)
class PublishedMining:
    """Percent on COCO minival: ResNet-101-FPN at 600 px with OHEM; `ratio` 3 is the paper's 1:3."""

    batch: int
    nms_iou: float
    ratio: float | None
    ap: float
    ap50: float
    ap75: float


TABLE_1A = (
    PublishedLoss(0.0, 0.10, 0.0, 0.0, 0.0),
    PublishedLoss(0.0, 0.25, 10.8, 16.0, 11.7),
    PublishedLoss(0.0, 0.50, 30.2, 46.7, 32.8),
    PublishedLoss(0.0, 0.75, 31.1, 49.4, 33.0),
    PublishedLoss(0.0, 0.90, 30.8, 49.7, 32.3),
    PublishedLoss(0.0, 0.99, 28.7, 47.4, 29.9),
    PublishedLoss(0.0, 0.999, 25.1, 41.7, 26.1),
)
"""Cross entropy (γ = 0) with every α."""

TABLE_1B = (
    PublishedLoss(0.0, 0.75, 31.1, 49.4, 33.0),
    PublishedLoss(0.1, 0.75, 31.4, 49.9, 33.1),
    PublishedLoss(0.2, 0.75, 31.9, 50.7, 33.4),
    PublishedLoss(0.5, 0.50, 32.9, 51.7, 35.2),
    PublishedLoss(1.0, 0.25, 33.7, 52.0, 36.2),
    PublishedLoss(2.0, 0.25, 34.0, 52.5, 36.5),
    PublishedLoss(5.0, 0.25, 32.2, 49.6, 34.8),
)
"""Every γ with its best α."""

TABLE_1D = (
    PublishedMining(128, 0.7, None, 31.1, 47.2, 33.2),
    PublishedMining(256, 0.7, None, 31.8, 48.8, 33.9),
    PublishedMining(512, 0.7, None, 30.6, 47.0, 32.6),
    PublishedMining(128, 0.5, None, 32.8, 50.3, 35.1),
    PublishedMining(256, 0.5, None, 31.0, 47.4, 33.0),
    PublishedMining(512, 0.5, None, 27.6, 42.0, 29.2),
    PublishedMining(128, 0.5, 3.0, 31.1, 47.2, 33.2),
    PublishedMining(256, 0.5, 3.0, 28.3, 42.4, 30.3),
    PublishedMining(512, 0.5, 3.0, 24.0, 35.5, 25.8),
)
"""Cross entropy with online hard example mining."""

TABLE_1D_FOCAL = PublishedLoss(2.0, 0.25, 36.0, 54.9, 38.7)
"""The focal loss in table 1d, with the same ResNet-101-FPN."""
