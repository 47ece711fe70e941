"""The COCO metrics of a result file of any program."""

from pathlib import Path

from focaldet.data.config import DataConfig
from focaldet.data.formats.split_names import ALIASES, pick
from focaldet.data.splits import find_parts
from focaldet.evaluation.coco import Metrics, compute_metrics
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.evaluator import MAX_DETECTIONS, ground_truth_of, read_ground_truth
from focaldet.evaluation.results import read_results

READING_SETTINGS = ("bad_boxes", "missing", "classes", "other_classes", "strict")
"""Settings of `DataConfig` that change which boxes count."""


def evaluate_files(
    predictions: Path, ground_truth: Path | DataConfig, *, split: str = "val", max_detections: int = MAX_DETECTIONS
) -> Metrics:
    """The COCO metrics of a COCO result file, of any program, against annotations in any format that can be read.

    Args:
        predictions: a JSON list of records with `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`.
        ground_truth: a COCO annotation file, or a folder with one for the split: its boxes count exactly as stated, and
            no image need be there; or data of another format, whose boxes count as in training (clipped to their
            images). Settings that change which boxes count, such as `classes`, make those of a COCO file count as in
            training too.
        split: which part of a folder; a single annotation file is taken whole.
        max_detections: how many detections of each image and class count.

    Raises:
        DataError: a record is malformed or names an image or category that the ground truth lacks.
        ConfigError: see `evaluate_detections`.
    """
    data = ground_truth if isinstance(ground_truth, DataConfig) else DataConfig(path=ground_truth)
    file = _coco_file(data, split)
    truth = ground_truth_of(open_evaluation_split(data, split, seed=0)) if file is None else read_ground_truth(file)
    rows = read_results(predictions, image_ids=truth.image_ids.tolist(), classes=truth.classes)
    return compute_metrics(truth, rows, max_detections=max_detections, data=split)


def _coco_file(data: DataConfig, split: str) -> Path | None:
    """The COCO file of a split, to be taken as it is; None where there is none, or the settings change its boxes."""
    usual = DataConfig()
    if any(getattr(data, name) != getattr(usual, name) for name in READING_SETTINGS):
        return None
    is_alone = data.train is data.val is data.test is None
    if is_alone and data.path is not None and data.path.is_file() and data.path.suffix.lower() == ".json":
        return data.path
    parts = find_parts(data)
    role = next((role for role in ALIASES if role == split), None)
    part = parts.get(split) or (parts.get(pick(parts, role) or "") if role else None)
    return part.layout.splits[part.name][0] if part is not None and part.layout.format == "coco" else None
