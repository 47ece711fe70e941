"""The hard-example explorer: which objects of your own images are easy for a detector and which are hard.

Every object and every false positive gets its loss under the trained detector; a page shows them from green (easy) to
red (hard), and lists suspected errors in the annotations.
"""

import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch

from focaldet import draw
from focaldet.config import make_folder, write_csv
from focaldet.data.augment.geometry import resize_image
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Dataset, FileSource
from focaldet.data.images import read_image
from focaldet.errors import ConfigError
from focaldet.evaluation.error_kinds import MIN_PROBABILITY, OUTCOME_KINDS, Outcome, OutcomeKind, classify_outcomes
from focaldet.evaluation.evaluate import (
    EvaluationSetup,
    describe_folder,
    detect_all,
    evaluation_folder,
    read_run_settings,
    relabel_detections,
    set_up_evaluation,
)
from focaldet.evaluation.inference import InferenceFields, InferenceOptions
from focaldet.files import write_bytes
from focaldet.models import Detector
from focaldet.report.charts import Chart, Curve, write_chart, write_curves
from focaldet.runtime import Progress, join_processes, pick_device
from focaldet.study.hard_page import IMAGE_FOLDER, write_hard_page
from focaldet.study.suspects import Suspect, find_suspects, image_name, write_suspects
from focaldet.types import Detections, Resize, Target

HARD_OUT = Path("runs/study/hard")  # for weights without a run folder
DEFAULT_HARD_SCORE = 0.3  # where the weights keep no better one
IMAGE_PX = 640
IMAGE_QUALITY = 80
MOST_CURVES = 6
OUTCOME_COLUMNS = (
    *("file", "image_id", "kind", "class", "x1", "y1", "x2", "y2"),
    *("p_t", "class_loss", "box_loss", "loss"),
)


@dataclass(frozen=True, slots=True)
class HardStudy:
    """What `study_hard` computed and wrote: the outcomes of each image, the suspected label errors, and the page.

    Only detections of at least `score` count.
    """

    page: Path
    outcomes: tuple[tuple[Outcome, ...], ...]
    suspects: tuple[Suspect, ...]
    notes: tuple[str, ...]
    score: float

    @property
    def counts(self) -> dict[OutcomeKind, tuple[int, int]]:
        """The number of objects and of false positives of each kind."""
        counts = Counter((one.kind, one.index is None) for several in self.outcomes for one in several)
        return {kind: (counts[kind, False], counts[kind, True]) for kind in OUTCOME_KINDS}


def study_hard(
    run: str | Path,
    data: DataConfig | str | Path | None = None,
    *,
    split: str = "val",
    out: Path | None = None,
    score: float | None = None,
    image_px: int = IMAGE_PX,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    progress: Progress | None = None,
    **fields: Unpack[InferenceFields],
) -> HardStudy:
    """Compute the loss of every object and false positive of a split, and write the explorer into the folder `out`.

    `index.html` with its folder of images is the explorer, offline; `examples.csv` has a row per object or detection,
    `suspects.csv` and `suspects_coco.json` the suspected label errors, `easiness.svg`, `.png` and `curves.csv` the
    distribution of the objects of each class from hard to easy. Under `torchrun` every process takes a part of the
    images and the first one writes.

    Args:
        run: a run folder (its best weights), a weights file, or a name such as `torchvision:coco_v1`.
        data: the images and annotations; those of the run by default.
        split: train, val, test, or a split's own name in the data; a single annotation file is taken whole.
        out: the folder; `hard-<split>` in the run folder by default, else `runs/study/hard`.
        score: only detections of at least this score count, as detections of objects and as false positives; by default
            the one with the largest F1 that the weights file keeps, .3 where it keeps none.
        image_px: long side of the page's images, which are never larger than the originals.
        options: size, device, precision and so on.
        progress: called with the images done and the images there are, for detecting and then for writing.
        fields: fields of `InferenceOptions` by keyword, which replace those of `options`.

    Raises:
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
        ConfigError: a setting out of range, no class in common between detector and data, or `out` cannot be made.
    """
    if score is not None and not 0 < score < 1:
        raise ConfigError(f"score: must be above 0 and below 1, got {score}")
    if image_px < 1:
        raise ConfigError(f"image_px: must be at least 1, got {image_px}")
    options = replace(options, **fields)
    opened = set_up_evaluation(run, data, split=split, options=options)
    folder = evaluation_folder(run, opened.dataset, data, split=split, out=out, kind="hard") or HARD_OUT
    about_folder = describe_folder(run, folder, out=out or (None if Path(run).is_dir() else folder), split=split)
    if score is None:
        score = DEFAULT_HARD_SCORE if opened.thresholds is None else opened.thresholds.overall.score
    images = make_folder(folder / IMAGE_FOLDER)
    with join_processes(pick_device(options.device)) as ranks:
        detected = detect_all(
            lower_threshold(opened.detector).to(ranks.device),
            FileSource(opened.dataset),
            options=options,
            fabric=ranks,
            progress=progress,
        )
        outcomes = find_outcomes(opened, detected.detections, score=score)
        suspects = find_suspects(outcomes, num_classes=len(opened.dataset.classes), score=score)
        notes = (*opened.class_match.notes, *filter(None, [about_folder]))
        study = HardStudy(folder / "index.html", outcomes, suspects, notes, score)
        if ranks.global_rank == 0:
            model = str(read_run_settings(run).get("model", run))
            write_hard_page(study.page, opened.dataset, outcomes, suspects, score=score, model=model)
            _write_tables(opened.dataset, study)
            _write_images(opened.dataset, images, longest_px=image_px, progress=progress)
    return study


def _write_tables(dataset: Dataset, study: HardStudy) -> None:
    """The files beside the page, without the images."""
    folder = study.page.parent
    rows = (_outcome_row(dataset, index, one) for index, several in enumerate(study.outcomes) for one in several)
    write_csv(folder / "examples.csv", OUTCOME_COLUMNS, rows)
    write_suspects(study.suspects, dataset, table=folder / "suspects.csv", coco=folder / "suspects_coco.json")
    chart = _easiness_chart(dataset, study.outcomes)
    write_chart(chart, folder / "easiness")
    write_curves({"easiness": chart}, folder / "curves.csv")


def lower_threshold(detector: Detector) -> Detector:
    """The detector with a score threshold of at most `MIN_PROBABILITY`, where its config has one."""
    config = detector.config
    if config.detect is not None:
        lower = min(MIN_PROBABILITY, config.detect.score_threshold)
        detector.config = config.replace(detect=replace(config.detect, score_threshold=lower))
    return detector


def find_outcomes(
    opened: EvaluationSetup, detections: Sequence[Detections], *, score: float
) -> tuple[tuple[Outcome, ...], ...]:
    """The outcomes of each image, with the labels of the data; boxes of classes unknown to the detector are ignored."""
    dataset, known = opened.dataset, torch.tensor(sorted(opened.class_match.labels.values()))
    outcomes = []
    for index, of_image in enumerate(detections):
        target = dataset.target(index)
        target = Target(target.boxes, target.labels, target.ignored | ~torch.isin(target.labels, known))
        in_data_labels = relabel_detections(of_image, opened.class_match, dataset.classes)
        outcomes.append(tuple(classify_outcomes(in_data_labels, target, score=score, least_score=score)))
    return tuple(outcomes)


def _write_images(dataset: Dataset, folder: Path, *, longest_px: int, progress: Progress | None) -> None:
    """A JPEG of every image, `<index>.jpg`, upright, the long side at most `longest_px`."""
    for index in range(len(dataset)):
        pixels = read_image(dataset.path(index))
        resize = Resize(mode="long", size=min(longest_px, max(pixels.shape[1:])))
        buffer = io.BytesIO()
        draw.to_image(resize_image(pixels, resize)).save(buffer, "JPEG", quality=IMAGE_QUALITY)
        write_bytes(folder / f"{index}.jpg", buffer.getvalue())
        if progress is not None:
            progress(index + 1, len(dataset))


def _outcome_row(dataset: Dataset, index: int, outcome: Outcome) -> list[Any]:
    """A row of `examples.csv`: an outcome of the image with this index."""
    box = [f"{side:.2f}" for side in outcome.box]
    numbers = [f"{n:.4f}" for n in (outcome.probability, outcome.class_loss, outcome.box_loss, outcome.loss)]
    kind = outcome.kind if outcome.index is not None else f"false positive: {outcome.kind}"
    image = image_name(dataset, index), int(dataset.image_ids[index])
    return [*image, kind, dataset.classes.names[outcome.label], *box, *numbers]


def _easiness_chart(dataset: Dataset, outcomes: Sequence[Sequence[Outcome]]) -> Chart:
    """The distribution of the objects of all classes, and of the most frequent ones, between hard and easy."""
    by_class: dict[int, list[float]] = {}
    for one in itertools.chain.from_iterable(outcomes):
        if one.index is not None:
            by_class.setdefault(one.label, []).append(easiness(one))
    frequent = sorted(by_class, key=lambda label: -len(by_class[label]))[: MOST_CURVES - 1]
    groups = {"all objects": [value for values in by_class.values() for value in values]}
    if len(by_class) > 1:
        groups |= {f"{dataset.classes.names[label]} ({len(by_class[label])})": by_class[label] for label in frequent}
    return Chart(
        "How easy the objects are",
        [_distribution_curve(name, sorted(values)) for name, values in groups.items()],
        x_label="easiness exp(−loss)",
        y_label="fraction of objects that are harder",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


def easiness(outcome: Outcome) -> float:
    """exp(−loss), in (0, 1]: 1 is easy and green, 0 hard and red."""
    return math.exp(-outcome.loss)


def _distribution_curve(name: str, values: Sequence[float]) -> Curve:
    """The fraction of the values up to each of them; `values` are sorted."""
    fractions = [(rank + 1) / len(values) for rank in range(len(values))]
    return Curve(name, [0.0, *values, 1.0], [0.0, *fractions, 1.0])
