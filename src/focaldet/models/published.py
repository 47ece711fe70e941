"""What the papers print about the detectors of the table, and the table itself with sizes counted."""

from dataclasses import astuple, dataclass

import torch

from focaldet.models import DETECTORS, PREPROCESSING, build
from focaldet.types import Preprocessing


@dataclass(frozen=True, slots=True)
class PublishedAP:
    """Percent on COCO test-dev, as a table prints it."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float


# Lin et al. 2017, "Focal Loss for Dense Object Detection", table 2: RetinaNet with scale jitter and the 1.5× schedule,
# Faster R-CNN with a pyramid as Lin et al. 2016 trained it, "+++" as He et al. 2015, by G-RMI as Huang et al. 2016,
# with TDM as Shrivastava et al. 2016 (their abstract says 37.3), SSD513 and DSSD513 as Fu et al. 2017 trained them,
# YOLOv2 at 544 px (Redmon and Farhadi 2016, table 5).
PUBLISHED: dict[str, PublishedAP] = {
    "retinanet_r101_fpn": PublishedAP(39.1, 59.1, 42.3, 21.8, 42.7, 50.2),
    "retinanet_x101_32x8d_fpn": PublishedAP(40.8, 61.1, 44.1, 24.1, 44.2, 51.2),
    "faster_rcnn_r101_fpn": PublishedAP(36.2, 59.1, 39.0, 18.2, 39.0, 48.2),
    "faster_rcnn_r101_c4_plus": PublishedAP(34.9, 55.7, 37.4, 15.6, 38.7, 50.9),
    "faster_rcnn_inception_resnet_v2": PublishedAP(34.7, 55.5, 36.7, 13.5, 38.1, 52.0),
    "faster_rcnn_inception_resnet_v2_tdm": PublishedAP(36.8, 57.7, 39.2, 16.2, 39.8, 52.1),
    "ssd513_r101": PublishedAP(31.2, 50.4, 33.3, 10.2, 34.5, 49.8),
    "dssd513_r101": PublishedAP(33.2, 53.3, 35.2, 13.0, 35.4, 51.1),
    "yolov2": PublishedAP(21.6, 44.0, 19.2, 5.0, 22.4, 35.5),
}


@dataclass(frozen=True, slots=True)
class DetectorRow:
    """One line of `focaldet models`.

    `num_parameters` counts what an optimiser could train, with the number of classes of the name's own config (frozen
    BatchNorm has none). `published` is None where the paper's table has no such network.
    """

    name: str
    backbone: str
    num_classes: int
    num_parameters: int
    input: str
    published: PublishedAP | None

    def cells(self) -> list[str]:
        """The row of a table: name, backbone, classes, parameters, the six figures, input."""
        figures = [f"{value:.1f}" for value in astuple(self.published)] if self.published else ["-"] * 6
        return [self.name, self.backbone, str(self.num_classes), f"{self.num_parameters:,}", *figures, self.input]


def detector_rows() -> tuple[DetectorRow, ...]:
    """Every detector of the table, its parameters counted without allocating them."""
    return tuple(_row(name) for name in DETECTORS)


def _row(name: str) -> DetectorRow:
    config = DETECTORS[name]
    with torch.device("meta"):
        detector = build(name)
    return DetectorRow(
        name=name,
        backbone=config.backbone,
        num_classes=config.num_classes,
        num_parameters=sum(parameter.numel() for parameter in detector.parameters()),
        input=str(PREPROCESSING.get(name, Preprocessing()).resize),
        published=PUBLISHED.get(name),
    )
