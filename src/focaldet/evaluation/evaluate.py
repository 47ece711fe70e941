"""A detector over a whole split: everything it finds, the COCO numbers, and the files that keep them."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch

from focaldet import config as configs
from focaldet.data.dataset import Classes, DataConfig, Dataset, FileSource, ImageSource
from focaldet.data.formats.text import list_names
from focaldet.data.loading.loader import Loader, explained_worker_death
from focaldet.data.splits import find_parts, open_parts, open_split
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import Metrics, evaluate_detections
from focaldet.evaluation.inference import InferenceFields, InferenceOptions, apply_options, detect_batch
from focaldet.evaluation.results import write_results
from focaldet.models import Detector
from focaldet.runtime import Progress, Ranks, eval_mode, gather_objects, join_processes, pick_device, pick_precision
from focaldet.types import Detections, Target
from focaldet.weights import load_detector


@dataclass(frozen=True, slots=True)
class ClassMatch:
    """The label of the data that each label of a detector stands for, and what a reader must know about the others."""

    labels: dict[int, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationSetup:
    """A detector, the images it is to be looked at on, and how its classes are those of the data."""

    detector: Detector
    dataset: Dataset
    class_match: ClassMatch


@dataclass(frozen=True, slots=True)
class TimedDetections:
    """What was found in each image of a source, in its order, and how long the network and `detect` took for one image.

    The time leaves out reading and resizing and, where there is more than one batch, the first, which warms up.
    """

    detections: list[Detections]
    milliseconds_per_image: float | None


def detect_all(
    detector: Detector,
    source: ImageSource,
    *,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    fabric: Ranks | None = None,
    progress: Progress | None = None,
    **fields: Unpack[InferenceFields],
) -> TimedDetections:
    """What the detector finds in every image of `source`, in its order, in pixels of the original images.

    Every rank of `fabric` takes a share of the batches and has the whole list in the end.

    Args:
        detector: used where it lies and as it is; the modes of its modules are the same afterwards.
        source: pictures; their targets are not looked at.
        options: of these `batch_size`, `precision` and `workers` are used.
        fabric: a launched `lightning.Fabric`, or None for one process.
        progress: called after each batch.
        fields: laid over `options`.
    """
    options = replace(options, **fields)
    device = next(detector.parameters()).device
    rank, num_ranks = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    loader = Loader(
        source,
        preprocessing=detector.preprocessing,
        batch_size=options.batch_size,
        seed=0,
        workers=options.workers,
        rank=rank,
        num_ranks=num_ranks,
    )
    total = sum(map(len, loader.picks(0)))
    found: dict[int, Detections] = {}
    timings: list[tuple[int, float]] = []
    with eval_mode(detector), explained_worker_death():
        for batch in loader.epoch(0):
            begin = time.perf_counter()
            batch_found = detect_batch(
                detector,
                batch.images,
                sizes=batch.sizes,
                original_sizes=batch.original_sizes,
                device=device,
                precision=pick_precision(options.precision, device=device),
            )
            timings.append((len(batch.indices), time.perf_counter() - begin))
            found.update(zip(batch.indices, batch_found, strict=True))
            if progress is not None and rank == 0:
                progress(len(found), total)
    parts = gather_objects((found, timings[1:] or timings), num_ranks=num_ranks)
    everything = {position: one for part, _ in parts for position, one in part.items()}
    measured = [timing for _, part in parts for timing in part]
    images, seconds = sum(count for count, _ in measured), sum(spent for _, spent in measured)
    return TimedDetections(
        [everything[place] for place in range(len(source.dataset))], 1e3 * seconds / images if images else None
    )


def evaluate(
    run: str | Path,
    data: DataConfig | str | Path | None = None,
    *,
    split: str = "val",
    out: Path | None = None,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    progress: Progress | None = None,
    **fields: Unpack[InferenceFields],
) -> Metrics:
    """The COCO numbers of a trained detector on a split, written to `out` together with all detections.

    `metrics.json` holds the numbers, `predictions.json` the detections as a COCO result file with the data's own
    image and category ids. Under `torchrun` every process takes a share of the images and gets the same numbers.

    Args:
        run: a run folder (its best weights), a weights file, or a name such as `torchvision:coco_v1`.
        data: the images and annotations; those of the run where it is left out.
        split: train, val, test, or a split's own name in the data; a single annotation file is taken whole.
        out: folder for the files; `eval-<split>` in the run folder by default. Weights without a run folder write none.
        options: size, device, precision and so on.
        progress: called with the images done and the images there are.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
        ConfigError: a setting out of range, no class in common between detector and data, or `out` cannot be made.
    """
    # Before the work, which takes long, and by every process: none waits for one that was refused.
    options = replace(options, **fields)
    opened = set_up_evaluation(run, data, split=split, options=options)
    folder = evaluation_folder(run, split=split, out=out)
    if folder is not None:
        configs.make_folder(folder)
    with join_processes(pick_device(options.device)) as ranks:
        detected = detect_all(
            opened.detector.to(ranks.device),
            FileSource(opened.dataset),
            options=options,
            fabric=ranks,
            progress=progress,
        )
        metrics, detections = score_detections(opened.dataset, detected, opened.class_match)
        if folder is not None and ranks.global_rank == 0:
            write_evaluation(folder, metrics, dataset=opened.dataset, detections=detections)
    return metrics


def set_up_evaluation(
    run: str | Path,
    data: DataConfig | str | Path | None,
    *,
    split: str,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
) -> EvaluationSetup:
    """The detector with its classes matched to those of the images called `split`; the arguments are `evaluate`'s.

    Raises:
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
        ConfigError: a setting out of range, or no class in common between detector and data.
    """
    detector = apply_options(load_detector(run).detector, options)
    settings = run_settings(run)
    dataset = evaluation_split(_data_config(data, settings), split, seed=settings.get("seed", 0))
    matched = match_classes(detector.class_names, dataset.classes, num_classes=detector.config.num_classes)
    if options.architecture:
        typed = ", ".join(f"{name} {value}" for name, value in configs.flatten(options.architecture).items())
        matched = replace(matched, notes=(*matched.notes, f"answers are not as trained, but with {typed}"))
    return EvaluationSetup(detector, dataset, matched)


def evaluation_folder(run: str | Path, *, split: str, out: Path | None, kind: str = "eval") -> Path | None:
    """Where `evaluate` writes: `out`, else `<kind>-<split>` in a run folder; None for weights without one."""
    return out or (Path(run) / f"{kind}-{split}" if Path(run).is_dir() else None)


def evaluation_split(data: DataConfig, split: str, *, seed: int) -> Dataset:
    """The images called `split`; all of them where `data.path` is one annotation file, whatever its name is.

    Training would take a tenth of such a file for validation, but who evaluates on a file means the file.
    """
    parts = find_parts(data)
    if data.path is not None and data.path.is_file() and len(parts) == 1:
        return next(iter(open_parts(data, parts).values()))
    return open_split(data, split, seed=seed)


def score_detections(
    dataset: Dataset, detected: TimedDetections, matched: ClassMatch
) -> tuple[Metrics, list[Detections]]:
    """The COCO numbers, and the detections with the labels and names of the data."""
    detections = [relabel_detections(found, matched, dataset.classes) for found in detected.detections]
    metrics = evaluate_detections(dataset, dict(enumerate(detections)))
    return replace(metrics, milliseconds_per_image=detected.milliseconds_per_image, notes=matched.notes), detections


def match_classes(detector_names: tuple[str, ...], classes: Classes, *, num_classes: int) -> ClassMatch:
    """Which label of the data each label of a detector stands for, by class name.

    A detector without names is taken to have the data's classes in their order. What has no partner is told in `notes`.

    Raises:
        ConfigError: no name in common, or no names and another number of classes.
    """
    if detector_names == classes.names:
        return ClassMatch({label: label for label in range(num_classes)}, ())
    if not detector_names:
        if num_classes != len(classes):
            raise ConfigError(
                f"the detector has {num_classes} classes without names, the data {len(classes)}: they cannot be matched"
            )
        return ClassMatch(
            {label: label for label in range(num_classes)},
            ("the detector has no class names: its classes are taken in the order of the data's",),
        )
    place = {name: label for label, name in enumerate(classes.names)}
    labels = {label: place[name] for label, name in enumerate(detector_names) if name in place}
    if not labels:
        raise ConfigError(
            f"detector and data have no class in common: the detector knows {list_names(detector_names)}; "
            f"the data have {list_names(classes.names)}"
        )
    unknown = [name for label, name in enumerate(classes.names) if label not in labels.values()]
    extra = [name for name in detector_names if name not in place]
    notes = (
        f"{len(unknown)} classes of the data are unknown to the detector, so never found: {list_names(unknown)}",
        f"{len(extra)} classes of the detector are not in the data, their detections are left out: {list_names(extra)}",
    )
    return ClassMatch(labels, tuple(note for note, names in zip(notes, (unknown, extra), strict=True) if names))


def relabel_detections(found: Detections, matched: ClassMatch, classes: Classes) -> Detections:
    """The detections of the matched classes with the labels and names of the data."""
    kept = [place for place, label in enumerate(found.labels.tolist()) if label in matched.labels]
    labels = [matched.labels[label] for label in found.labels[kept].tolist()]
    return Detections(
        found.boxes[kept], found.scores[kept], torch.tensor(labels, dtype=torch.int64), class_names=classes.names
    )


def relabel_target(target: Target, matched: ClassMatch) -> Target:
    """The boxes of an image with the labels of the detector; those of a class it does not know are `ignored`.

    Of twin names of the detector the first is taken. Boxes and their order stay.
    """
    own_label = {label: own for own, label in reversed(matched.labels.items())}
    labels = target.labels.tolist()
    unknown = torch.tensor([label not in own_label for label in labels], dtype=torch.bool)
    own = torch.tensor([own_label.get(label, 0) for label in labels], dtype=torch.int64)
    return Target(target.boxes, own, target.ignored | unknown)


def write_evaluation(folder: Path, metrics: Metrics, *, dataset: Dataset, detections: list[Detections]) -> None:
    """Write `metrics.json` and `predictions.json` into `folder`, which is there."""
    write_results(folder / "predictions.json", dataset, dict(enumerate(detections)))
    text = json.dumps({"split": dataset.name} | metrics.to_dict(), ensure_ascii=False, indent=1)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")


def run_settings(run: str | Path) -> dict[str, Any]:
    """The settings of a run folder; nothing for weights without one.

    Raises:
        ConfigError: its `config.yaml` cannot be read.
    """
    path = Path(run) / "config.yaml"
    return configs.read_mapping(path) if path.is_file() else {}


def _data_config(data: DataConfig | str | Path | None, settings: dict[str, Any]) -> DataConfig:
    if isinstance(data, DataConfig):
        return data
    if data is not None:
        return DataConfig(path=Path(data))
    if "data" not in settings:
        raise ConfigError(
            "data: say which images and annotations to evaluate on; the weights come without a run folder"
        )
    return configs.from_dict(DataConfig, settings["data"], source="config.yaml of the run: data")
