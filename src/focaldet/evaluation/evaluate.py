"""A trained detector on a whole split: its detections, the COCO numbers, and the files that keep both."""

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch

from focaldet import config as configs
from focaldet.data.config import DataConfig
from focaldet.data.dataset import Classes, Dataset, FileSource, ImageSource
from focaldet.data.formats.text import list_names, quantity
from focaldet.data.loading.loader import Loader, explain_worker_death
from focaldet.data.splits import find_parts, open_parts, open_split
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import Metrics, check_max_detections, evaluate_detections
from focaldet.evaluation.evaluator import MAX_DETECTIONS
from focaldet.evaluation.inference import InferenceFields, InferenceOptions, apply_options, detect_batch
from focaldet.evaluation.limits import answer_limit, raise_limit
from focaldet.evaluation.results import write_results
from focaldet.models import Detector
from focaldet.outputs import begin_call
from focaldet.runtime import (
    Process,
    Progress,
    Ranks,
    eval_mode,
    gather_objects,
    is_first_process,
    join_processes,
    pick_device,
    pick_precision,
    require_memory,
    shared_cores,
)
from focaldet.types import Detections, ImageSize, Target
from focaldet.weights import load_detector
from focaldet.weights.thresholds import ScoreThresholds

RESULT_FILES, PAGE_FILE = ("predictions.json", "metrics.json"), "report.html"
FINGERPRINT = "data"  # the name in metrics.json of what tells data from all others
EVALUATION_KINDS = ("eval", "hard", "imbalance")  # what the names of the folders in a run folder begin with
PATH_SETTINGS = ("path", "train", "val", "test", "images")  # of the data
UNNAMED_NOTE = "the detector has no class names: its classes are taken in the order of the data's"


@dataclass(frozen=True, slots=True)
class ClassMatch:
    """Which classes of the data the classes of a detector are.

    `labels` maps the labels of the detector to those of the data; `notes` describe classes that only one of both has.
    """

    labels: dict[int, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationSetup:
    """A detector, the images to evaluate it on, and which of their classes its classes are.

    `thresholds` are the scores from which on its detections are best taken, where its weights file says so.
    """

    detector: Detector
    dataset: Dataset
    class_match: ClassMatch
    thresholds: ScoreThresholds | None = None


@dataclass(frozen=True, slots=True)
class TimedDetections:
    """The detections of each image of a source, in its order, and the mean time of the network and `detect`.

    Reading and resizing are not counted, nor, where there is more than one batch, the first, which warms up.
    """

    detections: list[Detections]
    milliseconds_per_image: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `run_evaluation` computed: the metrics, the images, and the folder that was written, if one was.

    `notes` say where the files are if they are of other data than the run's own, what they replaced, and how it would
    have been faster beside other programs. `thresholds` are the scores that the weights keep, where they do.
    """

    metrics: Metrics
    dataset: Dataset
    folder: Path | None
    notes: tuple[str, ...]
    thresholds: ScoreThresholds | None = None


def detect_all(
    detector: Detector,
    source: ImageSource,
    *,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    fabric: Ranks | None = None,
    progress: Progress | None = None,
    **fields: Unpack[InferenceFields],
) -> TimedDetections:
    """The detections of every image of `source`, in its order, in pixels of the original images.

    Every rank of `fabric` takes a part of the batches and has the whole list in the end.

    Args:
        detector: used on its device and with its own settings; the modes of its modules are restored afterwards.
        source: the images; their targets are not used.
        options: of these `batch_size`, `precision` and `workers` are used.
        fabric: a launched `lightning_fabric.Fabric`, or None for one process.
        progress: called by rank 0 after each batch, with the number of its own images.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.
    """
    options = replace(options, **fields)
    device = detector.device
    ranks = fabric or Process(0, 1, device)
    precision = pick_precision(options.precision, device=device)
    loader = open_loader(detector, source, options=options, ranks=ranks)
    _require_room(detector, source.dataset, batch_size=options.batch_size, device=device)
    num_images = sum(map(len, loader.picks(0)))
    detections: dict[int, Detections] = {}
    timings: list[tuple[int, float]] = []
    with eval_mode(detector), explain_worker_death():
        for batch in loader.epoch(0):
            begin = time.perf_counter()
            sizes, originals = batch.sizes, batch.original_sizes
            batch_detections = detect_batch(
                detector, batch.images, sizes=sizes, original_sizes=originals, precision=precision
            )
            timings.append((len(batch.indices), time.perf_counter() - begin))
            detections.update(zip(batch.indices, batch_detections, strict=True))
            if progress is not None and ranks.global_rank == 0:
                progress(len(detections), num_images)
    parts = gather_objects((detections, timings[1:] or timings), num_ranks=ranks.world_size)
    detections = {index: each for part, _ in parts for index, each in part.items()}
    timings = [timing for _, part in parts for timing in part]
    num_images, seconds = sum(number for number, _ in timings), sum(spent for _, spent in timings)
    milliseconds = 1e3 * seconds / num_images if num_images else None
    return TimedDetections([detections[index] for index in range(len(detections))], milliseconds)


def _require_room(detector: Detector, dataset: Dataset, *, batch_size: int, device: torch.device) -> None:
    """Refuse batches that cannot fit in memory.

    Raises:
        ConfigError: gives the estimate.
    """
    preprocessing = detector.preprocessing
    resize = preprocessing.resize
    originals = (ImageSize(*size) for size in torch.unique(dataset.sizes, dim=0).tolist())
    sizes = [preprocessing.padded_size(resize.target(original)) for original in originals]
    if sizes:
        largest = max(sizes, key=lambda size: size.height * size.width)
        require_memory(min(batch_size, len(dataset)), largest, device=device)


def open_loader(detector: Detector, source: ImageSource, *, options: InferenceOptions, ranks: Ranks) -> Loader:
    """The batches of this process: with those of the other `ranks`, every image of `source` once."""
    return Loader(
        source,
        preprocessing=detector.preprocessing,
        batch_size=options.batch_size,
        seed=0,
        workers=options.workers,
        rank=ranks.global_rank,
        num_ranks=ranks.world_size,
    )


def evaluate(
    run: str | Path,
    data: DataConfig | str | Path | None = None,
    *,
    split: str = "val",
    out: Path | None = None,
    max_detections: int = MAX_DETECTIONS,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    progress: Progress | None = None,
    **fields: Unpack[InferenceFields],
) -> Metrics:
    """The COCO metrics of a trained detector on a split, written to `out` together with all detections.

    As `run_evaluation`, which also says where the files are.

    Args:
        run: a run folder (its best weights), a weights file, or a name such as `torchvision:coco_v1`.
        data: the images and annotations; by default those of the run.
        split: train, val, test, or a split's own name in the data; a single annotation file is taken whole.
        out: folder for the files; by default that of `evaluation_folder`. Weights without a run folder write none.
        max_detections: how many detections of each image and class count, the best ones; a detector that answers with
            fewer is let answer with so many.
        options: size, device, precision and so on.
        progress: called with the images done and the images there are.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
        ConfigError: a setting out of range, no class in common between detector and data, or `out` cannot be made.
    """
    return run_evaluation(
        run,
        data,
        split=split,
        out=out,
        max_detections=max_detections,
        options=replace(options, **fields),
        progress=progress,
    ).metrics


def run_evaluation(
    run: str | Path,
    data: DataConfig | str | Path | None,
    *,
    split: str,
    out: Path | None,
    max_detections: int = MAX_DETECTIONS,
    options: InferenceOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a trained detector on a split, and write its metrics and detections into a folder.

    `metrics.json` has the metrics, `predictions.json` the detections as a COCO result file with the image and category
    ids of the data. Under `torchrun` every process takes a part of the images and returns the same metrics.

    The arguments and the errors are those of `evaluate`.
    """
    # Checked before the long work, and by every process, so that none waits for another that stopped.
    check_max_detections(max_detections)
    setup = set_up_evaluation(run, data, split=split, options=options)
    raise_limit(setup.detector, max_detections)
    match, dataset = setup.class_match, setup.dataset
    folder = evaluation_folder(run, dataset, data, split=split, out=out)
    note = describe_folder(run, folder, out=out, split=split)
    earlier = None
    if folder is not None:
        configs.make_folder(folder)
        earlier = begin_call(folder, "eval", RESULT_FILES) if is_first_process() else None
        if earlier is not None:
            (folder / PAGE_FILE).unlink(missing_ok=True)  # it tells of what is replaced
    with join_processes(pick_device(options.device)) as ranks, shared_cores(ranks.device) as share:

        def count_batch(done: int, total: int | None) -> None:
            share()
            if progress is not None:
                progress(done, total)

        timed = detect_all(
            setup.detector.to(ranks.device), FileSource(dataset), options=options, fabric=ranks, progress=count_batch
        )
        relabeled = (relabel_detections(each, match, dataset.classes) for each in timed.detections)
        detections, limit = dict(enumerate(relabeled)), answer_limit(setup.detector)
        metrics = evaluate_detections(dataset, detections, max_detections=max_detections, image_limit=limit)
        notes = (*match.notes, *metrics.notes)
        metrics = replace(metrics, milliseconds_per_image=timed.milliseconds_per_image, notes=notes)
        if folder is not None and ranks.global_rank == 0:
            write_results(folder / "predictions.json", dataset, detections)
            about = {"split": dataset.name, FINGERPRINT: dataset.fingerprint()}
            configs.write_json(folder / "metrics.json", about | metrics.to_dict())
    replaced = None if earlier is None else f"{earlier} in {folder}"
    notes = tuple(each for each in (note, replaced, share.note) if each is not None)
    return Evaluation(metrics, dataset, folder, notes, setup.thresholds)


def set_up_evaluation(
    run: str | Path,
    data: DataConfig | str | Path | None,
    *,
    split: str,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
) -> EvaluationSetup:
    """A trained detector with `options` applied, the images called `split`, and how their classes match.

    The arguments are those of `evaluate`.

    Raises:
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
        ConfigError: a setting out of range, or no class in common between detector and data.
    """
    trained = load_detector(run, allow_nonfinite=options.allow_nonfinite)
    detector = apply_options(trained.detector, options)
    settings = read_run_settings(run)
    dataset = open_evaluation_split(run_data_config(data, settings), split, seed=settings.get("seed", 0))
    class_match = match_classes(detector.class_names, dataset.classes, num_classes=detector.config.num_classes)
    if options.architecture:
        overrides = ", ".join(f"{name} {value}" for name, value in configs.flatten(options.architecture).items())
        note = f"the detector was run with other settings than it was trained with: {overrides}"
        class_match = replace(class_match, notes=(*class_match.notes, note))
    return EvaluationSetup(detector, dataset, class_match, trained.thresholds)


def evaluation_folder(
    run: str | Path,
    dataset: Dataset,
    data: DataConfig | str | Path | None,
    *,
    split: str,
    out: Path | None,
    kind: str = "eval",
) -> Path | None:
    """The folder that `evaluate` writes to: `out`, else one in a run folder; None for other weights.

    For the data of the run itself it is `<kind>-<split>`; for other `data`, opened as `dataset`, it has their name too,
    so that they replace nothing of the run's own, and other data of the same name get a part of their fingerprint.
    """
    if out is not None or not Path(run).is_dir():
        return out
    if data is None or is_own_data(Path(run), dataset, data):
        return Path(run) / f"{kind}-{split}"
    folder = Path(run) / f"{kind}-{_data_name(data)}-{split}"
    written = folder / "metrics.json"
    known = configs.read_mapping(written).get(FINGERPRINT) if written.is_file() else None
    fingerprint = dataset.fingerprint()
    return folder if known in (None, fingerprint) else folder.with_name(f"{folder.name}-{fingerprint[:6]}")


def is_own_data(run: Path, dataset: Dataset, data: DataConfig | str | Path) -> bool:
    """Whether `data`, opened as `dataset`, are those that the run was trained and evaluated on, wherever they lie."""
    settings = read_run_settings(run)
    if "data" not in settings:
        return True
    own, given = (run_data_config(each, settings) for each in (None, data))
    if _absolute(own) == _absolute(given):
        return True
    environment = run / "environment.json"
    known = configs.read_mapping(environment).get("data") if environment.is_file() else None
    return isinstance(known, dict) and dataset.fingerprint() in known.values()


def describe_folder(run: str | Path, folder: Path | None, *, out: Path | None, split: str) -> str | None:
    """A sentence where the files are of other data than the run's own; None where that goes without saying."""
    if folder is None or out is not None or folder.name in {f"{kind}-{split}" for kind in EVALUATION_KINDS}:
        return None
    return f"these are not the data that {run} was trained with: the files are in {folder}, those of its own data stay"


def _absolute(config: DataConfig) -> dict[str, Any]:
    """The settings of data with absolute paths."""
    values = configs.to_dict(config)
    paths = {name: Path(values[name]).resolve() for name in PATH_SETTINGS if isinstance(values.get(name), str)}
    return {**values, **paths}


def _data_name(data: DataConfig | str | Path) -> str:
    """The name of the folder or file of the data, as a part of a file name."""
    config = data if isinstance(data, DataConfig) else DataConfig(path=Path(data))
    path = next((p for p in (config.path, config.val, config.test, config.train) if p is not None), Path("data"))
    return re.sub(r"[^\w.]+", "_", Path(path).resolve().stem) or "data"


def open_evaluation_split(data: DataConfig, split: str, *, seed: int) -> Dataset:
    """The dataset of the split called `split`; of a single annotation file the whole file, whatever its name is.

    Training would take a tenth of such a file for validation, but evaluating on a file means all of it.
    """
    parts = find_parts(data)
    if data.path is not None and data.path.is_file() and len(parts) == 1:
        return next(iter(open_parts(data, parts).values()))
    return open_split(data, split, seed=seed)


def match_classes(detector_names: tuple[str, ...], classes: Classes, *, num_classes: int) -> ClassMatch:
    """Which label of the data each label of a detector stands for, by class name.

    A detector without names is taken to have the classes of the data in their order.

    Raises:
        ConfigError: no name in common, or no names and another number of classes.
    """
    same_labels = {label: label for label in range(num_classes)}
    if detector_names == classes.names:
        return ClassMatch(same_labels, ())
    if not detector_names:
        if num_classes != len(classes):
            raise ConfigError(
                f"the detector has {quantity(num_classes, 'class', 'classes')} without names, the data have "
                f"{len(classes)}: they cannot be matched"
            )
        return ClassMatch(same_labels, (UNNAMED_NOTE,))
    data_labels = {name: label for label, name in enumerate(classes.names)}
    labels = {label: data_labels[name] for label, name in enumerate(detector_names) if name in data_labels}
    if not labels:
        raise ConfigError(
            f"detector and data have no class in common: the detector knows {list_names(detector_names)}; "
            f"the data have {list_names(classes.names)}"
        )
    unknown = [name for label, name in enumerate(classes.names) if label not in labels.values()]
    extra = [name for name in detector_names if name not in data_labels]
    notes = (
        f"{quantity(len(unknown), 'class', 'classes')} of the data unknown to the detector, never detected: "
        f"{list_names(unknown)}",
        f"{quantity(len(extra), 'class', 'classes')} of the detector not in the data, detections ignored: "
        f"{list_names(extra)}",
    )
    return ClassMatch(labels, tuple(note for note, names in zip(notes, (unknown, extra), strict=True) if names))


def relabel_detections(detections: Detections, match: ClassMatch, classes: Classes) -> Detections:
    """The detections of the matched classes with the labels and names of the data."""
    known = [index for index, label in enumerate(detections.labels.tolist()) if label in match.labels]
    labels = torch.tensor([match.labels[label] for label in detections.labels[known].tolist()], dtype=torch.int64)
    return Detections(detections.boxes[known], detections.scores[known], labels, class_names=classes.names)


def relabel_target(target: Target, match: ClassMatch) -> Target:
    """The boxes of an image with the labels of the detector; those of a class that it does not know are `ignored`.

    Where the detector has a name twice, the first label is taken. Boxes and their order stay.
    """
    detector_labels = {data_label: label for label, data_label in reversed(match.labels.items())}
    labels = target.labels.tolist()
    unknown = torch.tensor([label not in detector_labels for label in labels], dtype=torch.bool)
    relabeled = torch.tensor([detector_labels.get(label, 0) for label in labels], dtype=torch.int64)
    return Target(target.boxes, relabeled, target.ignored | unknown)


def read_run_settings(run: str | Path) -> dict[str, Any]:
    """The settings in the `config.yaml` of a run folder; an empty mapping for other weights.

    Raises:
        ConfigError: its `config.yaml` cannot be read.
    """
    path = Path(run) / "config.yaml"
    return configs.read_mapping(path) if path.is_file() else {}


def run_data_config(data: DataConfig | str | Path | None, settings: dict[str, Any]) -> DataConfig:
    """The data that were named, else those in the settings of a run.

    Named data are divided as the run divides its own: of data without a split for validation the same images are held
    out, which a run of `focaldet compare` decides by another seed than its own.

    Raises:
        ConfigError: none were named, and the settings name none or bad ones.
    """
    own = settings.get("data")
    if data is None:
        if own is None:
            raise ConfigError(
                "data: name the images and annotations to evaluate on; these weights are not in a run folder"
            )
        return configs.from_dict(DataConfig, own, source="config.yaml of the run: data")
    config = data if isinstance(data, DataConfig) else DataConfig(path=Path(data))
    split_seed = own.get("split_seed") if isinstance(own, dict) else None
    if config.split_seed is not None or split_seed is None:
        return config
    return configs.override(config, {"split_seed": split_seed}, source="config.yaml of the run: data")
