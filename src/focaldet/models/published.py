"""The table of detectors with their sizes counted: what `focaldet models` prints."""

from dataclasses import astuple, dataclass

import torch

from focaldet.models import build
from focaldet.models.base import PublishedAP
from focaldet.models.presets import PRESETS


@dataclass(frozen=True, slots=True)
class DetectorRow:
    """One line of `focaldet models`.

    `num_parameters` counts what an optimizer could train, with the number of classes of the name's own config (frozen
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
    return tuple(_detector_row(name) for name in PRESETS)


def _detector_row(name: str) -> DetectorRow:
    preset = PRESETS[name]
    with torch.device("meta"):
        detector = build(name)
    return DetectorRow(
        name=name,
        backbone=preset.config.backbone or "-",
        num_classes=preset.config.num_classes,
        num_parameters=sum(parameter.numel() for parameter in detector.parameters()),
        input=str(preset.preprocessing.resize),
        published=preset.published,
    )
