"""The report of `check_data`, as values and as text."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from focaldet.check.anchor_fit import AnchorReport
from focaldet.check.findings import Exhibit
from focaldet.check.fit import Advice
from focaldet.data.formats.text import quantity
from focaldet.data.problems import Problems
from focaldet.text import align_columns

LISTED_CLASSES = 10  # at each end of the list, where not all are asked for


@dataclass(frozen=True, slots=True)
class SplitReport:
    """The contents of one split. Boxes per class and sizes are without `ignored` ones (crowds and difficult objects).

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
    """The report of `check_data`: the splits, all problems, images that show them by kind, and advice on the size."""

    source: str
    splits: tuple[SplitReport, ...]
    chosen: str
    problems: Problems = field(default_factory=Problems)
    exhibits: Mapping[str, Sequence[Exhibit]] = field(default_factory=dict)
    advice: Advice | None = None

    @property
    def findings(self) -> Problems:
        """The former name of `problems`."""
        warnings.warn("Report.findings is now called problems", DeprecationWarning, stacklevel=2)
        return self.problems

    @property
    def exit_code(self) -> int:
        """0 where training takes the data, 1 where there is an error."""
        return self.exit_status(strict=False)

    def exit_status(self, *, strict: bool) -> int:
        """1 where there is an error or, with `strict`, a warning; else 0. Notes are never wrong."""
        return 1 if self.problems.count("error", *(("warning",) if strict else ())) else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        splits = [asdict(split) for split in self.splits]
        advice = None if self.advice is None else self.advice.to_dict()
        problems = self.problems.to_dict()
        return {"source": self.source, "chosen": self.chosen, "splits": splits, "findings": problems, "advice": advice}

    def lines(self, *, listed: bool = False, all_classes: bool = False) -> list[str]:
        """The report as text; with `listed` every problem by itself, with `all_classes` every class."""
        problems = self.problems.lines(listed=listed)
        parts = [
            [f"{self.source}: {self.chosen}"],
            _split_lines(self.splits),
            _anchor_lines(self.splits),
            _class_lines(self.splits, all_classes=all_classes),
            problems or ["no problems found"],
        ]
        return "\n\n".join("\n".join(part) for part in parts if part).split("\n")


def _split_lines(splits: Sequence[SplitReport]) -> list[str]:
    """A row for each split: images, boxes, and the fractions of the sizes."""
    rows = [["SPLIT", "IMAGES", "WITHOUT BOXES", "BOXES", "IGNORED", "SMALL", "MEDIUM", "LARGE", "IMBALANCE"]]
    for split in splits:
        total = max(1, split.boxes - split.ignored)
        numbers = (split.images, split.background_images, split.boxes, split.ignored)
        fractions = [f"{split.sizes[name] / total:.0%}" for name in ("small", "medium", "large")]
        rows.append([split.name, *map(str, numbers), *fractions, f"{split.imbalance:.1f} : 1"])
    return align_columns(rows, left={0})


def _anchor_lines(splits: Sequence[SplitReport]) -> list[str]:
    """A row for each split: the fraction of the boxes that the anchors cover, at all and level by level."""
    fits = [(split.name, split.anchors) for split in splits if split.anchors is not None]
    if not fits:
        return []
    first = fits[0][1]
    rows = [["SPLIT", "COVERED", "MEAN IOU", *map(str.upper, first.covered_per_level), "TOO SMALL"]]
    for name, fit in fits:
        levels = [f"{fraction:.0%}" for fraction in fit.covered_per_level.values()]
        rows.append([name, f"{fit.covered:.1%}", f"{fit.average_iou:.2f}", *levels, str(fit.too_small)])
    too_small = "a cell of the finest map" if first.by_center else "half of the smallest anchor"
    return [
        f"anchors at {first.resize}; covered: boxes that {first.criterion}, at all and map by map",
        *align_columns(rows, left={0}),
        f"too small: boxes of less than {too_small} ({first.smallest_anchor_px:.0f} px)",
    ]


def _class_lines(splits: Sequence[SplitReport], *, all_classes: bool) -> list[str]:
    """A row for each class, the most frequent first, and a column for each split; the ends of a long list."""
    names = list(dict.fromkeys(name for split in splits for name in split.boxes_per_class))
    numbers = {name: [split.boxes_per_class.get(name, 0) for split in splits] for name in names}
    ranked = sorted(names, key=lambda name: -sum(numbers[name]))
    present = sum(any(numbers[name]) for name in ranked)
    header = ["CLASS", *(split.name for split in splits)]
    rows = [[name, *map(str, numbers[name])] for name in ranked]
    hidden = len(rows) - 2 * LISTED_CLASSES
    if all_classes or hidden <= 1:
        return align_columns([header, *rows], left={0}) if rows else []
    head = LISTED_CLASSES
    tail = max(present, 2 * LISTED_CLASSES)  # the rarest that have any box; the last line counts those without
    lines = align_columns([header, *rows[:head], *rows[tail - head : tail]], left={0})
    empty = f"; {quantity(len(rows) - present, 'class', 'classes')} without a box" if present < len(rows) else ""
    return [*lines[: head + 1], "…", *lines[head + 1 :], f"{hidden} more: --all{empty}"]
