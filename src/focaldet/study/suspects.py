"""Suspected label errors: where a confident detector and the annotations contradict each other.

What the detector is surest of comes first. It is a suspicion: the detector may be wrong, and so may the file.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from focaldet.data.dataset import Dataset
from focaldet.evaluation.error_kinds import Box, Outcome

Problem = Literal["missing box", "wrong class", "misplaced box", "nothing there"]
PROBLEMS: tuple[Problem, ...] = ("missing box", "wrong class", "misplaced box", "nothing there")
SILENCE = 0.5  # that a detector sees nothing at a box is a weaker hint than that it sees something else
COLUMNS = ("file", "image_id", "problem", "suspicion", *("class", "x1", "y1", "x2", "y2"))
PROPOSED = ("proposed_class", "proposed_x1", "proposed_y1", "proposed_x2", "proposed_y2")


class Labelled(NamedTuple):
    """A class and a box in xyxy pixels of the image."""

    label: int
    box: Box


@dataclass(frozen=True, slots=True)
class Suspect:
    """One suspicion: what the file says, None where a box seems missing; what the detector says, None for nothing.

    `image` is the image's position in the dataset; `suspicion` is in [0, 1].
    """

    image: int
    problem: Problem
    suspicion: float
    annotated: Labelled | None
    proposed: Labelled | None

    @property
    def boxes(self) -> tuple[Labelled, ...]:
        """What the detector proposes and what the file has, of them what is there: at least one."""
        return tuple(one for one in (self.proposed, self.annotated) if one is not None)


def suspects(examples: Sequence[Sequence[Outcome]], *, num_classes: int, score: float) -> list[Suspect]:
    """All suspicions about the images' annotations, the strongest first.

    - `missing box`: a detection on what the file calls background; its score.
    - `wrong class`: a detection of another class on an object; its score times 1 − p_t of the object.
    - `misplaced box`: a detection of the same class beside an object (IoU .1 to .5); the same, times 1 − IoU.
    - `nothing there`: an object that is not detected; 1 − p_t times half the share of its class that is found, since
      of a class that is often missed a missed object says little.

    Args:
        examples: those of each image (`evaluate.errors.classify_outcomes`), by its position.
        num_classes: K, the number of classes.
        score: from here on a detection is the detector's answer, so a reason to suspect the file.
    """
    shares = _shares_found(examples, num_classes)
    found = [
        suspect
        for image, several in enumerate(examples)
        for one in several
        if (suspect := _suspect(image, one, share_found=shares[one.label], score=score)) is not None
    ]
    return sorted(found, key=lambda one: -one.suspicion)


def _suspect(image: int, one: Outcome, *, share_found: float, score: float) -> Suspect | None:
    doubt = 1.0 - one.probability
    annotated = None if one.index is None else Labelled(one.label, one.box)
    proposed = None if one.detection is None else Labelled(one.detection.label, one.detection.box)
    if annotated is None:
        is_answer = one.kind == "background" and doubt >= score
        return Suspect(image, "missing box", doubt, None, proposed) if is_answer else None
    if one.kind == "missed":
        return Suspect(image, "nothing there", SILENCE * share_found * doubt, annotated, None)
    if one.detection is None or one.kind == "found":
        return None
    if one.kind == "wrong class":
        return Suspect(image, "wrong class", doubt * one.detection.score, annotated, proposed)
    suspicion = doubt * one.detection.score * (1.0 - one.detection.iou)
    return Suspect(image, "misplaced box", suspicion, annotated, proposed)


def _shares_found(examples: Sequence[Sequence[Outcome]], num_classes: int) -> list[float]:
    """By class the share of its objects that are found; 0 for a class without objects."""
    found, objects = [0] * num_classes, [0] * num_classes
    for several in examples:
        for one in several:
            if one.index is not None:
                objects[one.label] += 1
                found[one.label] += one.kind == "found"
    return [hits / max(1, count) for hits, count in zip(found, objects, strict=True)]


def write_suspects(found: Sequence[Suspect], dataset: Dataset, *, table: Path, coco: Path) -> None:
    """Write the suspicions as CSV, and as a COCO data set of the proposed boxes for a labelling tool.

    An annotation of the COCO file is what the detector proposes, for `nothing there` the box in doubt; `problem`,
    `suspicion` and `annotated` (class id and xywh box in the file, null where a box is missing) stand beside it.
    """
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*COLUMNS, *PROPOSED])
        for one in found:
            where = _file_name(dataset, one.image), int(dataset.image_ids[one.image])
            said = (*_cells(dataset, one.annotated), *_cells(dataset, one.proposed))
            rows.writerow([*where, one.problem, f"{one.suspicion:.4f}", *said])
    coco.write_text(json.dumps(_coco(found, dataset), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _cells(dataset: Dataset, labelled: Labelled | None) -> list[str]:
    if labelled is None:
        return [""] * 5
    return [dataset.classes.names[labelled.label], *(f"{side:.2f}" for side in labelled.box)]


def _coco(found: Sequence[Suspect], dataset: Dataset) -> dict[str, Any]:
    images = [
        {"id": int(dataset.image_ids[image]), "file_name": _file_name(dataset, image)} | dataset.size(image)._asdict()
        for image in sorted({one.image for one in found})
    ]
    classes = zip(dataset.classes.category_ids, dataset.classes.names, strict=True)
    return {
        "images": images,
        "categories": [{"id": category_id, "name": name} for category_id, name in classes],
        "annotations": [_annotation(number, one, dataset) for number, one in enumerate(found, start=1)],
    }


def _annotation(number: int, one: Suspect, dataset: Dataset) -> dict[str, Any]:
    shown = one.boxes[0]
    x1, y1, x2, y2 = shown.box
    return {
        "id": number,
        "image_id": int(dataset.image_ids[one.image]),
        **_category(dataset, shown),
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "problem": one.problem,
        "suspicion": one.suspicion,
        "annotated": None if one.annotated is None else _category(dataset, one.annotated),
    }


def _category(dataset: Dataset, labelled: Labelled) -> dict[str, Any]:
    x1, y1, x2, y2 = labelled.box
    return {"category_id": dataset.classes.category_ids[labelled.label], "bbox": [x1, y1, x2 - x1, y2 - y1]}


def _file_name(dataset: Dataset, image: int) -> str:
    """The path below the root of the data set."""
    return dataset.path(image).relative_to(dataset.root).as_posix()
