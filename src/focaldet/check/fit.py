"""Which training settings fit a data set: the table of `advice`, and how many boxes have an anchor."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from focaldet.check.advice import (
    Choice,
    advise_anchors,
    advise_augmentation,
    advise_epochs,
    advise_size,
    anchor_models,
    candidate_models,
)
from focaldet.check.anchor_fit import FOREGROUND_IOU, anchor_report, overlap_coverage
from focaldet.check.box_checks import box_owners
from focaldet.config import to_dict
from focaldet.data.dataset import Dataset
from focaldet.models import find_preset, named_config
from focaldet.models.base import DetectorConfig
from focaldet.models.retinanet import RetinaNetConfig
from focaldet.nets.necks import PYRAMID_STRIDES_PX
from focaldet.types import Preprocessing, Resize

MOST_IMAGES = 3000  # that the sizes are tried on
BATCH_SIZE = 8  # that of training, on which the advised epochs depend
SIZES = (320, 416, 512, 640, 800, 1024)
ENOUGH_COVERED = 0.8  # of the boxes: license plates at 512 px have so many, and AP 67.7 instead of 15.9 at 320 px
ENOUGH_HELD = 0.95  # of the boxes, where the center of an anchor inside is enough
WORTH_COVERED = 0.05  # more of the boxes that a change must reach


@dataclass(frozen=True, slots=True)
class FittedAnchors:
    """The anchors that training gives the small RetinaNet `model`: as wide as the smaller objects of the data.

    `base_scale` is their width in strides, `smallest_px` the side of the smallest ones, `preset_px` that of the
    preset's; `resize` says the size of the images in words. `covered` is the fraction of the boxes with IoU ≥ 0.5 to
    some anchor, `average_iou` the mean IoU with the best one: objects far from square reach 0.5 with no square anchor,
    and yet are learned from one that fits them better. `covered_before` and `average_iou_before` are the same with
    the anchors of the preset.
    """

    model: str
    resize: str
    base_scale: float
    smallest_px: float
    preset_px: float
    covered: float
    covered_before: float
    average_iou: float
    average_iou_before: float

    def line(self) -> str:
        """One sentence for those who wonder what training will do."""
        begin = f"{self.model}: at {self.resize} training gives it anchors from {self.smallest_px:.0f} px on, "
        reach = (
            f"{self.covered:.0%} of the boxes reach IoU {FOREGROUND_IOU} with an anchor (mean {self.average_iou:.2f})"
        )
        if self.smallest_px == self.preset_px:
            return f"{begin}as they are; {reach}"
        before = f"{self.covered_before:.0%} ({self.average_iou_before:.2f}) with those from {self.preset_px:.0f} px on"
        return f"{begin}as wide as the smaller objects; {reach}, {before} that it has by itself"


@dataclass(frozen=True, slots=True)
class Advice:
    """What to train with, and the fraction of the boxes that reach an anchor.

    `choices` are settings with their reasons, the long side in pixels first. `covered` are the fractions at each long
    side that was tried. `asked` is the long side that was asked for, None where the short side decides; `resize` says
    it in words, and `covered_now` is the fraction there. `by_center` and `criterion` are those of `AnchorReport`.
    `anchors` are those of a small RetinaNet at the size of the command that is advised, None where nothing is fitted.
    """

    choices: tuple[Choice, ...]
    asked: int | None
    resize: str
    covered: dict[int, float]
    covered_now: float
    by_center: bool
    criterion: str
    anchors: FittedAnchors | None = None

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
        anchors = [] if self.anchors is None else [self.anchors.line()]
        if self.is_fine:
            fits = "this size fits" if self.covered_now >= self.enough else "the images are not larger"
            return [f"{now}: {fits}", *map(str, self.choices[1:]), *anchors]
        return [f"{now}, at {self.size} px {self.covered[self.size]:.0%}", *map(str, self.choices), *anchors]

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
    size = advise_size(whole, resize)
    sides = sorted({*SIZES, int(size.value)})
    covered = {side: _coverage(dataset, detector, preprocessing, size=side) for side in sides}
    asked = None if resize.mode == "short" else resize.size
    advice = Advice((size,), asked, str(resize), covered, now.covered, now.by_center, now.criterion)
    epochs = advise_epochs(whole, batch_size=BATCH_SIZE)
    others = (epochs, advise_augmentation(whole, epochs=epochs.value))
    model = choose_anchor_model(detector)
    anchors = None
    if model is not None:
        own = resize if advice.used is None else find_preset(model).preprocessing.resize.with_sides(size=advice.used)
        anchors = fit_model_anchors(model, whole, own)
    return replace(advice, choices=(size, *others), anchors=anchors)


def choose_anchor_model(detector: DetectorConfig) -> str | None:
    """The small RetinaNet whose anchors are worth a line: the detector itself if training fits them, the first one of
    the table beside another detector that `model: auto` may choose, and None beside all others.
    """
    presets = {name: find_preset(name).config for name in (*candidate_models(), *anchor_models())}
    alike = [
        name
        for name, config in presets.items()
        if (type(config), config.backbone) == (type(detector), detector.backbone)
    ]
    if not alike:
        return None
    if alike[0] not in anchor_models():
        return anchor_models()[0]
    own = presets[alike[0]]
    assert isinstance(detector, RetinaNetConfig) and isinstance(own, RetinaNetConfig)
    return alike[0] if (detector.anchors, detector.matching) == (own.anchors, own.matching) else None


def fit_model_anchors(model: str, dataset: Dataset, resize: Resize) -> FittedAnchors:
    """The anchors that training gives a detector of `anchor_models` on a split with boxes, and how they fit these."""
    scale = float(advise_anchors(dataset, resize).value)
    before, after = named_config(model), named_config(model, architecture={"anchors": {"base_scale": scale}})
    assert isinstance(before, RetinaNetConfig)
    sample, preprocessing = _sample_images(dataset), replace(find_preset(model).preprocessing, resize=resize)
    stride = PYRAMID_STRIDES_PX[0]
    covered, average_iou = overlap_coverage(sample, after, preprocessing)
    covered_before, average_iou_before = overlap_coverage(sample, before, preprocessing)
    return FittedAnchors(
        model=model,
        resize=str(resize),
        base_scale=scale,
        smallest_px=scale * stride,
        preset_px=before.anchors.base_scale * stride,
        covered=covered,
        covered_before=covered_before,
        average_iou=average_iou,
        average_iou_before=average_iou_before,
    )


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
