"""The data doctor: what a data set holds, how anchors fit it, and what is odd, before any training."""

import hashlib
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from focaldet.data.coverage import FOREGROUND_IOU, best_overlaps, resized_boxes, smallest_area
from focaldet.data.findings import Findings, Problem
from focaldet.data.index import DataConfig, Index
from focaldet.data.splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, Part, find_parts, open_parts
from focaldet.nets.necks import STRIDES_PX
from focaldet.ops.anchors import AnchorConfig
from focaldet.ops.boxes import areas
from focaldet.types import Resize

SMALL_AREA, MEDIUM_AREA = 32**2, 96**2  # square pixels, as COCO counts small, medium and large


@dataclass(frozen=True, slots=True)
class AnchorReport:
    """How the anchors fit the boxes of one split at the size of the network; ignored boxes are left out.

    `covered` is the share of boxes with IoU ≥ 0.5 to some anchor, `covered_per_level` the same for each stride alone.
    `resize` says that size.
    `too_small` counts boxes of less than half the area of the smallest anchor: no anchor can reach IoU 0.5 with them.
    """

    resize: str
    covered: float
    covered_per_level: dict[str, float]
    too_small: int
    smallest_anchor_px: float


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What one split holds. Boxes per class and sizes leave out `ignored` boxes (crowds and difficult objects).

    `imbalance` is the number of boxes of the most frequent class per box of the rarest one that has any.
    """

    name: str
    images: int
    background_images: int
    boxes: int
    ignored: int
    boxes_per_class: dict[str, int]
    sizes: dict[str, int]
    imbalance: float
    anchors: AnchorReport | None


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of `check`."""

    source: str
    splits: tuple[SplitReport, ...]
    chosen: str
    findings: Findings = field(default_factory=Findings)

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong (notes are not), 1 where there are warnings or errors."""
        return 1 if self.findings.count("error", "warning") else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        splits = [asdict(split) for split in self.splits]
        return {"source": self.source, "chosen": self.chosen, "splits": splits, "findings": self.findings.to_dict()}

    def lines(self, *, listed: bool = False) -> list[str]:
        """The report as text; with `listed` every problem by itself."""
        found = [f"{self.source}: {self.chosen}"]
        for split in self.splits:
            found += ["", *_split_lines(split)]
        problems = self.findings.lines(listed=listed)
        return [*found, "", *(problems or ["no problems found"])]


def check(
    config: DataConfig, *, anchors: AnchorConfig | None = None, size: Resize | None = None, seed: int = 0
) -> Report:
    """What a data set holds and what is odd about it. Opens every picture's header, decodes none.

    Looked at are the splits for training, validation and testing. `anchors` are measured on P3…P7 with pictures resized
    by `size` (the paper's short side 800 where it is None); None leaves that out. Pictures that cannot be read and
    boxes that training would refuse are listed as errors.

    Raises:
        DataError: annotations that cannot be read at all.
        ConfigError: no data is named.
    """
    parts = _roles(find_parts(config))
    indexes = open_parts(config, parts, lenient=True)
    findings = Findings()
    for index in indexes.values():
        findings.extend(index.findings)
        _note_oddities(index, findings)
    _note_repeated_pictures(list(indexes.values()), findings)
    resize = size or Resize()
    splits = tuple(_describe(index, anchors, resize) for index in indexes.values())
    source = config.path or config.train or config.val or config.test
    return Report(str(source), splits, _chosen(parts, seed), findings)


def _roles(parts: dict[str, Part]) -> dict[str, Part]:
    """One part for each role, so that VOC's `trainval` is no duplicate of its `train`; all where no role is known."""
    chosen = [next((name for name in names if name in parts), None) for names in (TRAIN_NAMES, VAL_NAMES, TEST_NAMES)]
    return {name: parts[name] for name in chosen if name} or parts


def _chosen(parts: dict[str, Part], seed: int) -> str:
    names = ", ".join(f'"{name}"' for name in parts)
    if any(name in parts for name in VAL_NAMES) or not any(name in parts for name in TRAIN_NAMES):
        return f"splits {names}"
    return f"splits {names}; none for validation, so training would hold out a tenth, drawn with seed {seed}"


def _describe(index: Index, anchors: AnchorConfig | None, resize: Resize) -> SplitReport:
    counted = index.flags == 0
    numbers = index.labels[counted].long().bincount(minlength=len(index.classes)).tolist()
    stated = index.areas[counted]
    small, large = int((stated < SMALL_AREA).sum()), int((stated >= MEDIUM_AREA).sum())
    present = [number for number in numbers if number]
    return SplitReport(
        name=index.name,
        images=len(index),
        background_images=int((index.offsets.diff() == 0).sum()),
        boxes=len(index.boxes),
        ignored=int((~counted).sum()),
        boxes_per_class=_by_class(index.classes.names, numbers),
        sizes={"small": small, "medium": len(stated) - small - large, "large": large},
        imbalance=max(present) / min(present) if present else 1.0,
        anchors=_fit(index, anchors, resize) if anchors and present else None,
    )


def _by_class(names: tuple[str, ...], numbers: list[int]) -> dict[str, int]:
    """Counts by class name; two classes of one name are told apart by their label."""
    return {name if names.count(name) == 1 else f"{name} ({label})": numbers[label] for label, name in enumerate(names)}


def _fit(index: Index, anchors: AnchorConfig, resize: Resize) -> AnchorReport:
    boxes, images = resized_boxes(index, resize)
    good = best_overlaps(boxes, images, anchors) >= FOREGROUND_IOU
    shares = good.double().mean(0).tolist()
    smallest = smallest_area(anchors)
    return AnchorReport(
        resize=str(resize),
        covered=float(good.any(1).double().mean()),
        covered_per_level={f"stride {stride}": share for stride, share in zip(STRIDES_PX, shares, strict=True)},
        too_small=int((areas(boxes) < FOREGROUND_IOU * smallest).sum()),
        smallest_anchor_px=smallest**0.5,
    )


def _note_oddities(index: Index, findings: Findings) -> None:
    """Classes and images without boxes, and boxes that stand there twice."""
    where = f'split "{index.name}"'
    present = set(index.labels.tolist())
    for label, name in enumerate(index.classes.names):
        if label not in present:
            findings.add(Problem("note", "class without boxes", f'"{name}" has no box', str(index.root), where))
    if not len(index.boxes):
        findings.add(Problem("warning", "no boxes", "no image has a box", str(index.root), where))
    owners = torch.arange(len(index)).repeat_interleave(index.offsets.diff())
    rows = torch.cat([owners[:, None].double(), index.labels[:, None].double(), index.boxes], 1)
    _, inverse = torch.unique(rows, dim=0, return_inverse=True)
    seen: set[int] = set()
    for row, group in enumerate(inverse.tolist()):
        if group in seen:
            place = f"box {[round(value, 2) for value in index.boxes[row].tolist()]}"
            findings.add(
                Problem(
                    "warning", "box twice", "the same box and class again", str(index.path(int(owners[row]))), place
                )
            )
        seen.add(group)


def _note_repeated_pictures(indexes: list[Index], findings: Findings) -> None:
    """Files of equal content, in one split or across splits. Only files of equal length are read."""
    lengths: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for index in indexes:
        for path in dict.fromkeys(index.path(i) for i in range(len(index))):
            lengths[path.stat().st_size].append((index.name, path))
    contents: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for group in lengths.values():
        for split, path in group if len(group) > 1 else ():
            contents[_digest(path)].append((split, path))
    for (first, original), *copies in contents.values():
        for split, path in copies:
            kind = "picture twice" if split == first else "picture in two splits"
            message = f'the same picture as {original} of split "{first}"'
            findings.add(Problem("warning", kind, message, str(path), f'split "{split}"'))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split_lines(split: SplitReport) -> list[str]:
    total = max(1, split.boxes - split.ignored)
    width = max(map(len, split.boxes_per_class), default=0)
    sizes = ", ".join(f"{name} {number} ({number / total:.0%})" for name, number in split.sizes.items())
    found = [
        f'split "{split.name}": {split.images} images ({split.background_images} without boxes), '
        f"{split.boxes} boxes ({split.ignored} ignored)",
        f"  sizes: {sizes}; imbalance {split.imbalance:.1f} : 1",
    ]
    if split.anchors is not None:
        levels = ", ".join(f"{level} {share:.0%}" for level, share in split.anchors.covered_per_level.items())
        fit = split.anchors
        found += [
            f"  anchors at {fit.resize}: {fit.covered:.1%} of the boxes reach IoU 0.5 with one ({levels})",
            f"  too small for the smallest anchor ({fit.smallest_anchor_px:.0f} px): {fit.too_small} boxes",
        ]
    return found + [f"  {name:<{width}}  {number:>8}" for name, number in split.boxes_per_class.items()]
