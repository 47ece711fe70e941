"""The images that an export is proven and calibrated on: the user's, else the embedded ones; never noise."""

from dataclasses import dataclass
from pathlib import Path

from focaldet.data.config import DataConfig
from focaldet.data.dataset import FileSource, ImageSource
from focaldet.data.demo.dataset import DemoScenes
from focaldet.data.formats.text import quantity
from focaldet.data.splits import find_parts, open_split
from focaldet.errors import ConfigError, DataError, FocaldetError
from focaldet.evaluation.evaluate import (
    ClassMatch,
    match_classes,
    open_evaluation_split,
    read_run_settings,
    run_data_config,
)
from focaldet.models import Detector

PROOF_IMAGES = 20
CALIBRATION_IMAGES = 300


@dataclass(frozen=True, slots=True)
class ExportImages:
    """Images to compare on, others to calibrate int8 on, and, where an AP is asked for, which classes they have.

    `embedded_because` says why they are embedded ones; it is empty where they are the user's.
    """

    proof: ImageSource
    calibration: ImageSource
    description: str
    labeled: ImageSource | None = None
    class_match: ClassMatch | None = None
    embedded_because: str = ""


def open_export_images(
    run: str | Path, detector: Detector, *, data: DataConfig | str | Path | None, split: str, needs_ap: bool = False
) -> ExportImages:
    """The images of `data`, with their boxes; without it those of the run's own data, else embedded scenes of digits.

    Those of the run's own data have their boxes only where an AP is needed, since measuring it takes its time.

    Raises:
        DataError: `data` cannot be read.
        ConfigError: no class of `data` is one of the detector's.
    """
    settings = read_run_settings(run)
    seed = settings.get("seed", 0)
    if data is not None:
        return _open_files(run_data_config(data, settings), detector, split=split, seed=seed, labeled=True)
    if "data" in settings:
        try:
            return _open_files(run_data_config(None, settings), detector, split=split, seed=seed, labeled=needs_ap)
        except FocaldetError as error:  # they have moved, or are not on this machine
            problem = error.problem if isinstance(error, DataError) else "its settings name them wrongly"
            reason = f"the data of the run cannot be read: {problem}"
    else:
        reason = "the weights are not in a run folder, which names its data"
    proof = DemoScenes("test", num_scenes=PROOF_IMAGES, seed=0)
    calibration = DemoScenes("train", num_scenes=CALIBRATION_IMAGES, seed=0)
    return ExportImages(proof, calibration, f"{PROOF_IMAGES} embedded scenes", embedded_because=reason)


def require_calibration(images: ExportImages) -> None:
    """Refuse to calibrate int8 on embedded images, whose values say nothing about those that a detector will see.

    Raises:
        ConfigError: there are no others.
    """
    if images.embedded_because:
        raise ConfigError(
            f"precision: int8 is calibrated on images of the data, and {images.embedded_because}; name them with --data"
        )


def require_ap(images: ExportImages) -> None:
    """Refuse a limit on the fall of the AP where no AP can be measured.

    Raises:
        ConfigError: the images have no boxes that count.
    """
    if images.labeled is None:
        raise ConfigError(f"max_drop: AP cannot be measured, since {images.embedded_because}; name images with --data")
    if not bool((images.labeled.dataset.flags == 0).any()):
        raise ConfigError(f"max_drop: AP cannot be measured, since {images.labeled.dataset.name} has no boxes")


def _open_files(config: DataConfig, detector: Detector, *, split: str, seed: int, labeled: bool) -> ExportImages:
    dataset = open_evaluation_split(config, split, seed=seed)
    proof = FileSource(dataset.subset(pick_evenly(len(dataset), PROOF_IMAGES), dataset.name))
    has_training = split != "train" and "train" in find_parts(config)
    training = open_split(config, "train", seed=seed) if has_training else dataset
    calibration = FileSource(training.subset(pick_evenly(len(training), CALIBRATION_IMAGES), training.name))
    description = f"{quantity(len(proof.dataset), 'image')} of {dataset.name}"
    if not labeled:
        return ExportImages(proof, calibration, description)
    match = match_classes(detector.class_names, dataset.classes, num_classes=detector.config.num_classes)
    return ExportImages(proof, calibration, description, FileSource(dataset), match)


def pick_evenly(number: int, most: int) -> list[int]:
    """At most `most` indices below `number`, evenly spread."""
    count = min(number, most)
    return [index * number // count for index in range(count)]
