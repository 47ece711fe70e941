"""The nine systems of the paper's table 2, and which of them a detector is a member of."""

import csv
from importlib.resources import files
from typing import NamedTuple

from focaldet.models import FasterRCNNConfig, SSDConfig, YOLOv2Config, find_preset
from focaldet.models.base import DetectorConfig, PublishedAP
from focaldet.models.retinanet import RetinaNetConfig


class System(NamedTuple):
    """A row of table 2 of Lin et al. 2017; `preset` is the name of the same network here."""

    title: str
    backbone: str
    preset: str
    two_stage: bool

    @property
    def published(self) -> PublishedAP | None:
        """The published row, on COCO test-dev, in percent."""
        return find_preset(self.preset).published


C4, FPN, GRMI, TDM, YOLO, SSD, DSSD, RETINANET, RETINANET_X = SYSTEMS = (
    System("Faster R-CNN+++", "ResNet-101-C4", "faster_rcnn_r101_c4_plus", True),
    System("Faster R-CNN w FPN", "ResNet-101-FPN", "faster_rcnn_r101_fpn", True),
    System("Faster R-CNN by G-RMI", "Inception-ResNet-v2", "faster_rcnn_inception_resnet_v2", True),
    System("Faster R-CNN w TDM", "Inception-ResNet-v2-TDM", "faster_rcnn_inception_resnet_v2_tdm", True),
    System("YOLOv2", "DarkNet-19", "yolov2", False),
    System("SSD513", "ResNet-101-SSD", "ssd513_r101", False),
    System("DSSD513", "ResNet-101-DSSD", "dssd513_r101", False),
    System("RetinaNet", "ResNet-101-FPN", "retinanet_r101_fpn", False),
    System("RetinaNet", "ResNeXt-101-FPN", "retinanet_x101_32x8d_fpn", False),
)

PAPER_DETECTORS = tuple(system.preset for system in SYSTEMS)
"""The detectors of the paper's table at full size."""

SMALL_DETECTORS = (
    "faster_rcnn_r18_c4",
    "faster_rcnn_efficientnet_lite0_fpn",
    "faster_rcnn_inception_resnet_small",
    "faster_rcnn_inception_resnet_small_tdm",
    "yolov2_tiny",
    "ssd_efficientnet_lite0",
    "dssd_r18",
    "retinanet_efficientnet_lite0_fpn",
    "retinanet_mobilenet_v2_fpn",
)
"""A small member of each family; the two RetinaNets differ in the backbone, as they do in the paper."""

TABLES = {"paper": PAPER_DETECTORS, "small": SMALL_DETECTORS}


def system_of(config: DetectorConfig) -> System | None:
    """The row of the paper's table to set beside a detector: the one built as it is; None for any other."""
    backbone = config.backbone or ""
    if isinstance(config, FasterRCNNConfig):
        if "inception" in backbone:
            return TDM if config.top_down else GRMI
        return C4 if config.trunk == "c4" else FPN
    if isinstance(config, SSDConfig):
        return SSD if config.decoder is None else DSSD
    if isinstance(config, YOLOv2Config):
        return YOLO
    if isinstance(config, RetinaNetConfig):
        return RETINANET_X if "resnext" in backbone else RETINANET
    return None


class PublishedPoint(NamedTuple):
    """A point of the paper's Figure 2: AP in percent on COCO test-dev, milliseconds an image on an M40 or Titan X."""

    name: str
    ap: float
    milliseconds: float


def published_points() -> tuple[PublishedPoint, ...]:
    """The points of Figure 2, from the table inside it."""
    lines = files("focaldet.comparison").joinpath("figure2.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(lines)
    return tuple(PublishedPoint(row["name"], float(row["ap"]), float(row["milliseconds"])) for row in rows)
