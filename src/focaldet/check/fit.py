"""Which training settings fit a data set: the table of `advice`, and how many boxes have an anchor."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from focaldet.check.advice import Choice, advise_augmentation, advise_epochs, advise_size
from focaldet.check.anchor_fit import anchor_report
from focaldet.check.box_checks import box_owners
from focaldet.config import to_dict
from focaldet.data.dataset import Dataset
from focaldet.models.base import DetectorConfig
from focaldet.types import Preprocessing

MOST_IMAGES = 3000  # that the sizes are tried on
BATCH_SIZE = 8  # that of training, on which the advised epochs depend
SIZES = (320, 416, 512, 640, 800, 1024)
ENOUGH_COVERED = 0.8  # of the boxes: license plates at 512 px have so many, and AP 67.7 instead of 15.9 at 320 px
ENOUGH_HELD = 0.95  # of the boxes, where the center of an anchor inside is enough
WORTH_COVERED = 0.05  # more of the boxes that a change must reach


@dataclass(frozen=True, slots=True)
class Advice:
    """What to train with, and the fraction of the boxes that reach an anchor.

    `choices` are settings with their reasons, the long side in pixels first. `covered` are the fractions at each long
    side that was tried. `asked` is the long side that was asked for, None where the short side decides; `resize` says
    it in words, and `covered_now` is the fraction there. `by_center` and `criterion` are those of `AnchorReport`.
    """

    choices: tuple[Choice, ...]
    asked: int | None
    resize: str
    covered: dict[int, float]
    covered_now: float
    by_center: bool
    criterion: str

    @property
    def size(self) -> int:
        """The long side in pixels that is advised."""
        return int(self.choices[0].value)

    @property
    def enough(self) -> float:
        """The fraction of the boxes that should be reached."""
        return ENOUGH_HELD if self.by_center else ENOUGH_COVERED

    @property
    def is_fine(self) -> bool:
        """Whether the size that was asked for reaches enough boxes, or as many as the advised one."""
        return self.covered_now >= min(self.enough, self.covered[self.size] - WORTH_COVERED)

    @property
    def used(self) -> int | None:
        """The long side in pixels of the command that is advised: the one that was asked for where it fits."""
        return self.asked if self.is_fine else self.size

    def lines(self) -> list[str]:
        """What fits and why, a line for each setting."""
        now = f"at {self.resize} {self.covered_now:.0%} of the boxes {self.criterion}"
        if self.is_fine:
            fits = "this size fits" if self.covered_now >= self.enough else "the images are not larger"
            return [f"{now}: {fits}", *map(str, self.choices[1:])]
        return [f"{now}, at {self.size} px {self.covered[self.size]:.0%}", *map(str, self.choices)]

    def flags(self) -> str:
        """The settings as flags of `focaldet train`; the size that was asked for where it fits."""
        chosen = {"size": self.used, **{choice.setting: choice.value for choice in self.choices[1:]}}
        named = {name.replace("_", "-"): value for name, value in chosen.items() if value is not None}
        return " ".join(f"--{name} {value}" for name, value in named.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return to_dict(self)


def advise(dataset: Dataset, detector: DetectorConfig, preprocessing: Preprocessing) -> Advice | None:
    """Settings for training a detector on a split; None where it has no boxes or the detector no anchors."""
    if not bool((dataset.flags == 0).any()):
        return None
    whole, dataset = dataset, _sample_images(dataset)
    now = anchor_report(dataset, detector, preprocessing)
    if now is None:
        return None
    resize = preprocessing.resize
    size = advise_size(dataset, resize)
    sides = sorted({*SIZES, int(size.value)})
    covered = {side: _coverage(dataset, detector, preprocessing, size=side) for side in sides}
    asked = None if resize.mode == "short" else resize.size
    advice = Advice((size,), asked, str(resize), covered, now.covered, now.by_center, now.criterion)
    epochs = advise_epochs(whole, batch_size=BATCH_SIZE)
    others = (epochs, advise_augmentation(whole, epochs=epochs.value))
    return replace(advice, choices=(size, *others))


def _sample_images(dataset: Dataset) -> Dataset:
    """The images with boxes, or a random sample of `MOST_IMAGES` of them: enough for fractions within a percent."""
    with_boxes = torch.unique(box_owners(dataset)[dataset.flags == 0])
    order = torch.randperm(len(with_boxes), generator=torch.Generator().manual_seed(0))[:MOST_IMAGES]
    return dataset.subset(with_boxes[order].sort().values.tolist(), dataset.name)


def _coverage(dataset: Dataset, detector: DetectorConfig, preprocessing: Preprocessing, *, size: int) -> float:
    """The fraction of the boxes that reach an anchor at a long side."""
    resized = replace(preprocessing, resize=preprocessing.resize.with_sides(size=size))
    report = anchor_report(dataset, detector, resized)
    return report.covered if report is not None else 0.0
