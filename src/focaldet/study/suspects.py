"""Suspected label errors: where a confident detector and the annotations disagree, most confident first.

Either may be wrong: the detector or the annotation.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from focaldet.config import write_csv, write_json
from focaldet.data.dataset import Dataset
from focaldet.evaluation.error_kinds import DETECTED, Box, Outcome
from focaldet.ops.boxes import pairwise_iou

SuspectKind = Literal["missing box", "wrong class", "misplaced box", "nothing there"]
SUSPECT_KINDS: tuple[SuspectKind, ...] = ("missing box", "wrong class", "misplaced box", "nothing there")
MISS_WEIGHT = 0.5  # that a detector detects nothing at a box is weaker evidence than that it detects something else
DUPLICATE_IOU = 0.5
BOX_COLUMNS = ("class", "x1", "y1", "x2", "y2")
PROPOSED_COLUMNS = tuple(f"proposed_{name}" for name in BOX_COLUMNS)


class LabeledBox(NamedTuple):
    """A class label and a box in xyxy pixels of the image."""

    label: int
    box: Box


@dataclass(frozen=True, slots=True)
class Suspect:
    """A suspected label error.

    Attributes:
        image: index of the image in the dataset.
        problem: what seems to be wrong.
        suspicion: how strongly, in [0, 1].
        annotated: the class and box of the file; None where a box seems to be missing.
        proposed: the class and box of the detector; None where it detects nothing.
    """

    image: int
    problem: SuspectKind
    suspicion: float
    annotated: LabeledBox | None
    proposed: LabeledBox | None

    @property
    def boxes(self) -> tuple[LabeledBox, ...]:
        """The proposed and the annotated box, as far as there are such: at least one."""
        return tuple(one for one in (self.proposed, self.annotated) if one is not None)


def find_suspects(outcomes: Sequence[Sequence[Outcome]], *, num_classes: int, score: float) -> tuple[Suspect, ...]:
    """All suspected errors in the annotations of some images, the strongest suspicion first, one for each spot.

    - `missing box`: a detection on what the file calls background; its score.
    - `wrong class`: a detection of another class on an object; its score times 1 − p_t of the object.
    - `misplaced box`: a detection of the same class beside an object (IoU .1 to .5); the same, times 1 − IoU.
    - `nothing there`: an object that is not detected; 1 − p_t times half the recall of its class, since a missed object
      of a class that is often missed says little.

    Args:
        outcomes: those of each image (`evaluation.error_kinds.classify_outcomes`), in the dataset's order.
        num_classes: K, the number of classes.
        score: only detections of at least this score are evidence.
    """
    recalls = _class_recalls(outcomes, num_classes)
    suspects = [
        suspect
        for image, several in enumerate(outcomes)
        for outcome in several
        if (suspect := _suspect_outcome(image, outcome, recall=recalls[outcome.label], score=score)) is not None
    ]
    return keep_strongest(sorted(suspects, key=lambda suspect: -suspect.suspicion))


def keep_strongest(suspects: Sequence[Suspect]) -> tuple[Suspect, ...]:
    """Of several suspects about one spot only the first; they are in the order of falling suspicion.

    One spot is: a box of the one overlaps a box of the other in the same image by an IoU of at least `DUPLICATE_IOU`.
    """
    kept: list[Suspect] = []
    boxes: dict[int, list[Box]] = {}
    for suspect in suspects:
        known, own = boxes.setdefault(suspect.image, []), [labeled.box for labeled in suspect.boxes]
        if known and bool((pairwise_iou(torch.tensor(own), torch.tensor(known)) >= DUPLICATE_IOU).any()):
            continue
        kept.append(suspect)
        known.extend(own)
    return tuple(kept)


def _suspect_outcome(image: int, outcome: Outcome, *, recall: float, score: float) -> Suspect | None:
    """The suspicion that an outcome gives rise to; None where file and detector agree."""
    doubt = 1.0 - outcome.probability
    annotated = None if outcome.index is None else LabeledBox(outcome.label, outcome.box)
    detection = outcome.detection
    proposed = None if detection is None else LabeledBox(detection.label, detection.box)
    if annotated is None:
        is_confident = outcome.kind == "background" and doubt >= score
        return Suspect(image, "missing box", doubt, None, proposed) if is_confident else None
    if outcome.kind == "missed":
        return Suspect(image, "nothing there", MISS_WEIGHT * recall * doubt, annotated, None)
    if detection is None or outcome.kind == DETECTED:
        return None
    if outcome.kind == "wrong class":
        return Suspect(image, "wrong class", doubt * detection.score, annotated, proposed)
    return Suspect(image, "misplaced box", doubt * detection.score * (1.0 - detection.iou), annotated, proposed)


def _class_recalls(outcomes: Sequence[Sequence[Outcome]], num_classes: int) -> list[float]:
    """The fraction of the objects of each class that are detected; 0 for a class without objects."""
    objects = [one for several in outcomes for one in several if one.index is not None]
    counts = Counter(one.label for one in objects)
    detected = Counter(one.label for one in objects if one.kind == DETECTED)
    return [detected[label] / max(1, counts[label]) for label in range(num_classes)]


def write_suspects(suspects: Sequence[Suspect], dataset: Dataset, *, table: Path, coco: Path) -> None:
    """Write the suspects as CSV, and as a COCO dataset of the proposed boxes for a labeling tool.

    An annotation of the COCO file is the box that the detector proposes, for `nothing there` the box in doubt, with
    `problem`, `suspicion` and `annotated` (class id and xywh box in the file, null where a box is missing).
    """
    rows = []
    for one in suspects:
        image = image_name(dataset, one.image), int(dataset.image_ids[one.image])
        boxes = (*_box_cells(dataset, one.annotated), *_box_cells(dataset, one.proposed))
        rows.append([*image, one.problem, f"{one.suspicion:.4f}", *boxes])
    write_csv(table, ["file", "image_id", "problem", "suspicion", *BOX_COLUMNS, *PROPOSED_COLUMNS], rows)
    write_json(coco, _suspects_as_coco(suspects, dataset))


def image_name(dataset: Dataset, index: int) -> str:
    """The path of an image below the folder of the dataset."""
    return dataset.path(index).relative_to(dataset.root).as_posix()


def _box_cells(dataset: Dataset, labeled: LabeledBox | None) -> list[str]:
    if labeled is None:
        return [""] * len(BOX_COLUMNS)
    return [dataset.classes.names[labeled.label], *(f"{side:.2f}" for side in labeled.box)]


def _suspects_as_coco(suspects: Sequence[Suspect], dataset: Dataset) -> dict[str, Any]:
    images = [
        {"id": int(dataset.image_ids[image]), "file_name": image_name(dataset, image)} | dataset.size(image)._asdict()
        for image in sorted({one.image for one in suspects})
    ]
    classes = zip(dataset.classes.category_ids, dataset.classes.names, strict=True)
    return {
        "images": images,
        "categories": [{"id": category_id, "name": name} for category_id, name in classes],
        "annotations": [_suspect_annotation(number, one, dataset) for number, one in enumerate(suspects, start=1)],
    }


def _suspect_annotation(number: int, suspect: Suspect, dataset: Dataset) -> dict[str, Any]:
    box = suspect.boxes[0]
    x1, y1, x2, y2 = box.box
    return {
        "id": number,
        "image_id": int(dataset.image_ids[suspect.image]),
        **_coco_box(dataset, box),
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "problem": suspect.problem,
        "suspicion": suspect.suspicion,
        "annotated": None if suspect.annotated is None else _coco_box(dataset, suspect.annotated),
    }


def _coco_box(dataset: Dataset, labeled: LabeledBox) -> dict[str, Any]:
    x1, y1, x2, y2 = labeled.box
    return {"category_id": dataset.classes.category_ids[labeled.label], "bbox": [x1, y1, x2 - x1, y2 - y1]}
