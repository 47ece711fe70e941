"""Whether `focaldet study hard` finds errors of the annotations that were put in on purpose, by a seed.

    python benchmarks/planted_errors.py RUN --data DIR --split valid --remove 10 --shift 10 --look-at 40
    python benchmarks/planted_errors.py RUN --data DIR --split val --relabel 10 --look-at 30

RUN is a detector trained on another part of the data. A planted error counts as a hit when one of the first suspects
is about its box; for a removed box, when the proposed one fits it (IoU ≥ .5). With `--relabel` only suspects of the
problem "wrong class" are looked at. The real errors of the data compete with the planted ones.

Axes: M boxes of all images.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from measure import write_result
from torch import Tensor

from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset, FileSource, starts
from focaldet.evaluation.evaluate import detect_all, set_up_evaluation
from focaldet.ops.boxes import pairwise_iou
from focaldet.study.hard_examples import find_outcomes, lower_threshold
from focaldet.study.suspects import Suspect, find_suspects

FITS, SAME = 0.5, 0.99


@dataclass(frozen=True)
class Planted:
    """What was done to which box of which image; `box` is where a suspect must be about (xyxy pixels)."""

    kind: str
    image: int
    box: Tensor


def plant(dataset: Dataset, kinds: Sequence[str], *, seed: int) -> tuple[Dataset, list[Planted]]:
    """The dataset with one error of each of `kinds` at a box of its own, and what was done."""
    draws = random.Random(seed)
    rows = draws.sample((dataset.flags == 0).nonzero().squeeze(1).tolist(), len(kinds))
    images = torch.repeat_interleave(torch.arange(len(dataset)), dataset.offsets.diff())
    boxes, labels, keep = (
        dataset.boxes.clone(),
        dataset.labels.clone(),
        torch.ones(len(dataset.boxes), dtype=torch.bool),
    )
    done = []
    for kind, row in zip(kinds, rows, strict=True):
        image = int(images[row])
        if kind == "removed":
            keep[row] = False
        elif kind == "shifted":
            half = (boxes[row, 2] - boxes[row, 0]) / 2
            has_room = boxes[row, 2] + half <= dataset.size(image).width
            boxes[row, [0, 2]] += half if has_room else -half
            boxes[row] = boxes[row].clamp(min=0)
        else:
            others = [label for label in range(len(dataset.classes)) if label != int(labels[row])]
            labels[row] = draws.choice(others)
        done.append(Planted(kind, image, boxes[row].float()))
    counts = torch.bincount(images[keep], minlength=len(dataset))
    changed = replace(
        dataset,
        boxes=boxes[keep],
        labels=labels[keep],
        flags=dataset.flags[keep],
        areas=dataset.areas[keep],
        offsets=starts(counts),
        side_remainders=None,
    )
    return changed, done


def is_found(error: Planted, looked_at: Sequence[Suspect]) -> bool:
    """Whether a suspect is about the box of this error."""
    least = FITS if error.kind == "removed" else SAME
    for one in looked_at:
        labeled = one.proposed if error.kind == "removed" else one.annotated
        if one.image == error.image and labeled is not None:
            overlap = pairwise_iou(torch.tensor([labeled.box]), error.box[None]).item()
            if overlap >= least:
                return True
    return False


def main() -> None:
    """Plant, look, count, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--remove", type=int, default=0)
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--relabel", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--score", type=float, default=0.3)
    parser.add_argument("--look-at", type=int, default=40)
    parser.add_argument("--name", default="planted_errors")
    chosen = parser.parse_args()
    opened = set_up_evaluation(chosen.run, DataConfig(path=chosen.data), split=chosen.split)
    detections = detect_all(lower_threshold(opened.detector), FileSource(opened.dataset)).detections
    kinds = ["removed"] * chosen.remove + ["shifted"] * chosen.shift + ["relabelled"] * chosen.relabel
    results = []
    for seed in chosen.seeds:
        dataset, errors = plant(opened.dataset, kinds, seed=seed)
        outcomes = find_outcomes(replace(opened, dataset=dataset), detections, score=chosen.score)
        suspected = find_suspects(outcomes, num_classes=len(dataset.classes), score=chosen.score)
        relevant = [one for one in suspected if not chosen.relabel or one.problem == "wrong class"]
        hits = [(error.kind, is_found(error, relevant[: chosen.look_at])) for error in errors]
        counts = {kind: sum(hit for other, hit in hits if other == kind) for kind in dict.fromkeys(kinds)}
        results.append({"seed": seed, "hits": counts, "suspects": len(relevant)})
        said = ", ".join(f"{kind} {count} of {kinds.count(kind)}" for kind, count in counts.items())
        print(f"seed {seed}: {said} among the first {chosen.look_at} of {len(relevant)} suspects")
    settings = {"split": opened.dataset.name, "look_at": chosen.look_at, "score": chosen.score}
    planted = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    print(write_result(chosen.name, {"settings": settings, "planted": planted, "results": results}))


if __name__ == "__main__":
    main()
