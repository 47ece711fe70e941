"""The hard-example explorer: which objects of one's own images are easy for a detector and which are hard.

Every object and every false positive gets its loss under the trained detector; a page shows them from green (easy) to
red (hard), and lists what looks like an error of the annotations.
"""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch

from focaldet import draw
from focaldet.config import make_folder
from focaldet.data.augment.geometry import resize_image
from focaldet.data.dataset import DataConfig, Dataset, FileSource
from focaldet.data.images import read_image
from focaldet.errors import ConfigError
from focaldet.evaluation.error_kinds import MIN_PROBABILITY, OUTCOME_KINDS, Outcome, OutcomeKind, classify_outcomes
from focaldet.evaluation.evaluate import (
    EvaluationSetup,
    detect_all,
    evaluation_folder,
    read_run_settings,
    relabel_detections,
    set_up_evaluation,
)
from focaldet.evaluation.inference import InferenceFields, InferenceOptions
from focaldet.models import Detector
from focaldet.runtime import Progress, join_processes, pick_device
from focaldet.study.hard_page import hard_page
from focaldet.study.plots import Curve, Plot, write_curves, write_plot
from focaldet.study.suspects import Suspect, suspects, write_suspects
from focaldet.types import Detections, Resize, Target

ELSEWHERE = Path("runs/study/hard")  # of weights without a run folder
FALSE_POSITIVE_SHARE = 2 / 3  # of `score`: below it a false positive is not worth a look
PICTURE_PX = 640
JPEG_QUALITY = 80
MOST_CURVES = 6
COLUMNS = ("file", "image_id", "kind", "class", "x1", "y1", "x2", "y2", "p_t", "class_loss", "box_loss", "loss")


@dataclass(frozen=True, slots=True)
class HardStudy:
    """What `study_hard` found and left: the examples of each image, the suspected label errors, and the page."""

    page: Path
    examples: tuple[tuple[Outcome, ...], ...]
    suspects: tuple[Suspect, ...]
    notes: tuple[str, ...]

    @property
    def counts(self) -> dict[OutcomeKind, tuple[int, int]]:
        """How many objects and how many false positives there are of each kind."""
        counted = Counter((one.kind, one.index is None) for several in self.examples for one in several)
        return {kind: (counted[kind, False], counted[kind, True]) for kind in OUTCOME_KINDS}


def study_hard(
    run: str | Path,
    data: DataConfig | str | Path | None = None,
    *,
    split: str = "val",
    out: Path | None = None,
    score: float = 0.3,
    picture_px: int = PICTURE_PX,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    progress: Progress | None = None,
    **fields: Unpack[InferenceFields],
) -> HardStudy:
    """Look at every object and false positive of a split, and write the explorer into the folder `out`.

    `index.html` with `pictures/` is the explorer, offline; `examples.csv` has a row per object and false positive,
    `suspects.csv` and `suspects_coco.json` the suspected label errors, `easiness.svg`, `.png` and `curves.csv` how the
    objects of each class spread from hard to easy. Under `torchrun` every process takes a share of the images and the
    first one writes.

    Args:
        run: a run folder (its best weights), a weights file, or a name such as `torchvision:coco_v1`.
        data: the images and annotations; those of the run where it is left out.
        split: train, val, test, or a split's own name in the data; a single annotation file is taken whole.
        out: the folder; `hard-<split>` in the run folder by default, else `runs/study/hard`.
        score: from here on a detection is the detector's answer; false positives are told from two thirds of it
            on.
        picture_px: long side of the page's pictures, which are never larger than the originals.
        options: size, device, precision and so on.
        progress: called with the images done and the images there are, once for detecting and once for the pictures.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
        ConfigError: a setting out of range, no class in common between detector and data, or `out` cannot be made.
    """
    if not 0 < score < 1:
        raise ConfigError(f"score: must be above 0 and below 1, found {score}")
    if picture_px < 1:
        raise ConfigError(f"picture_px: must be at least 1, found {picture_px}")
    options = replace(options, **fields)
    opened = set_up_evaluation(run, data, split=split, options=options)
    folder = evaluation_folder(run, split=split, out=out, kind="hard") or ELSEWHERE
    make_folder(folder / "pictures")
    with join_processes(pick_device(options.device)) as ranks:
        detected = detect_all(
            telling_more(opened.detector).to(ranks.device),
            FileSource(opened.dataset),
            options=options,
            fabric=ranks,
            progress=progress,
        )
        examples = examples_on(opened, detected.detections, score=score)
        found = suspects(examples, num_classes=len(opened.dataset.classes), score=score)
        study = HardStudy(folder / "index.html", examples, tuple(found), opened.class_match.notes)
        if ranks.global_rank == 0:
            model = str(read_run_settings(run).get("model", run))
            page = hard_page(opened.dataset, examples, found, score=score, model=model)
            study.page.write_text(page, encoding="utf-8")
            _write_tables(opened.dataset, study)
            _write_pictures(opened.dataset, folder / "pictures", longest_px=picture_px, progress=progress)
    return study


def _write_tables(dataset: Dataset, study: HardStudy) -> None:
    """The files beside the page, without the pictures."""
    folder = study.page.parent
    _write_examples(dataset, study.examples, folder / "examples.csv")
    write_suspects(study.suspects, dataset, table=folder / "suspects.csv", coco=folder / "suspects_coco.json")
    plot = _easiness(dataset, study.examples)
    write_plot(plot, folder / "easiness")
    write_curves({"easiness": plot}, folder / "curves.csv")


def telling_more(detector: Detector) -> Detector:
    """The detector with the threshold of its detections at `MIN_PROBABILITY`, where its config has one."""
    config = detector.config
    if hasattr(config, "detect"):
        lower = min(MIN_PROBABILITY, config.detect.score_threshold)
        detector.config = replace(config, detect=replace(config.detect, score_threshold=lower))
    return detector


def examples_on(
    opened: EvaluationSetup, detections: Sequence[Detections], *, score: float
) -> tuple[tuple[Outcome, ...], ...]:
    """The examples of each image, with the labels of the data; boxes of classes unknown to the detector are ignored."""
    dataset, known = opened.dataset, torch.tensor(sorted(opened.class_match.labels.values()))
    found = []
    for image, one in enumerate(detections):
        target = dataset.target(image)
        target = Target(target.boxes, target.labels, target.ignored | ~torch.isin(target.labels, known))
        ours = relabel_detections(one, opened.class_match, dataset.classes)
        found.append(tuple(classify_outcomes(ours, target, score=score, least_score=score * FALSE_POSITIVE_SHARE)))
    return tuple(found)


def _write_pictures(dataset: Dataset, folder: Path, *, longest_px: int, progress: Progress | None) -> None:
    """A JPEG of every image, `<position>.jpg`, upright, the long side at most `longest_px`."""
    for image in range(len(dataset)):
        pixels = read_image(dataset.path(image))
        resize = Resize(mode="long", size=min(longest_px, max(pixels.shape[1:])))
        draw.to_image(resize_image(pixels, resize)).save(folder / f"{image}.jpg", quality=JPEG_QUALITY)
        if progress is not None:
            progress(image + 1, len(dataset))


def _write_examples(dataset: Dataset, examples: Sequence[Sequence[Outcome]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for image, several in enumerate(examples):
            name, image_id = str(dataset.path(image).relative_to(dataset.root)), int(dataset.image_ids[image])
            for one in several:
                box = [f"{side:.2f}" for side in one.box]
                numbers = [f"{n:.4f}" for n in (one.probability, one.class_loss, one.box_loss, one.loss)]
                role = one.kind if one.index is not None else f"false positive: {one.kind}"
                rows.writerow([name, image_id, role, dataset.classes.names[one.label], *box, *numbers])


def _easiness(dataset: Dataset, examples: Sequence[Sequence[Outcome]]) -> Plot:
    """How the objects of all classes, and of the most frequent, spread between hard and easy."""
    by_class: dict[int, list[float]] = {}
    for several in examples:
        for one in several:
            if one.index is not None:
                by_class.setdefault(one.label, []).append(easiness(one))
    frequent = sorted(by_class, key=lambda label: -len(by_class[label]))[: MOST_CURVES - 1]
    groups = {"all objects": [value for values in by_class.values() for value in values]}
    if len(by_class) > 1:
        groups |= {f"{dataset.classes.names[label]} ({len(by_class[label])})": by_class[label] for label in frequent}
    return Plot(
        "How easy the objects are",
        [_spread(name, sorted(values)) for name, values in groups.items()],
        x_label="easiness exp(−loss)",
        y_label="share of objects that are harder",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


def easiness(one: Outcome) -> float:
    """exp(−loss), in (0, 1]: 1 is easy and green, 0 hard and red."""
    return math.exp(-one.loss)


def _spread(name: str, values: Sequence[float]) -> Curve:
    """The share of the values below each of them; `values` rise."""
    shares = [(place + 1) / len(values) for place in range(len(values))]
    return Curve(name, [0.0, *values, 1.0], [0.0, *shares, 1.0])
