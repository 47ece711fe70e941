"""The table of detectors with their sizes counted.

`focaldet models` prints the copy of it in `cli/detectors.json`, to read which no torch is needed.
"""

from dataclasses import dataclass

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


def detector_rows() -> tuple[DetectorRow, ...]:
    """Every detector of the table, its parameters counted without allocating them."""
    rows = []
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            num_parameters = sum(parameter.numel() for parameter in build(name).parameters())
        config, size = preset.config, str(preset.preprocessing.resize)
        row = DetectorRow(name, config.backbone or "-", config.num_classes, num_parameters, size, preset.published)
        rows.append(row)
    return tuple(rows)
