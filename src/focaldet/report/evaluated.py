"""What a page knows of the detector whose detections it shows: how it is named, and what its weights keep."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.data.config import DataConfig
from focaldet.errors import CheckpointError, ConfigError
from focaldet.weights import read_metadata
from focaldet.weights.sources import find_weights
from focaldet.weights.thresholds import ScoreThresholds, read_thresholds


@dataclass(frozen=True, slots=True)
class EvaluatedDetector:
    """A detector and the images that it was evaluated on, as the command line names them.

    Attributes:
        spec: a run folder, a weights file, an exported file or a name.
        data: the images and annotations that were named; None for those of the run.
        split: which part of them.
        thresholds: the scores that the weights keep, which `predict` uses; None where they keep none or are not known.
        image_limit: the most objects of an image that it answers with, where that is known.
    """

    spec: str
    data: DataConfig | None = None
    split: str = "val"
    thresholds: ScoreThresholds | None = None
    image_limit: int | None = None

    def study_command(self) -> str:
        """The command that looks at every object and error of the same images, as a shell takes it."""
        split = [] if self.split == "val" else ["--split", self.split]
        return shlex.join(["focaldet", "study", "hard", self.spec, *_data_flags(self.data), *split])


def describe_run(run: Path, *, data: DataConfig | str | Path | None = None, split: str = "val") -> EvaluatedDetector:
    """The detector of a run folder; what its weights keep is left out where they cannot be read."""
    named = DataConfig(path=Path(data)) if isinstance(data, str | Path) else data
    try:
        source = find_weights(run)
        metadata = read_metadata(source.path)
        thresholds = read_thresholds(metadata.extra, source=source.label)
    except (CheckpointError, ConfigError):
        return EvaluatedDetector(str(run), named, split)
    detect = metadata.config.get("detect")
    limit = detect.get("max_detections") if isinstance(detect, dict) else None
    return EvaluatedDetector(str(run), named, split, thresholds, limit if type(limit) is int else None)


def _data_flags(data: DataConfig | None) -> list[str]:
    """The flags that name these data; those of settings that are as usual are left out."""
    if data is None:
        return []
    usual, words = configs.to_dict(DataConfig()), list[str]()
    for name, value in configs.to_dict(data).items():
        if value != usual[name]:
            words += ["--data" if name == "path" else f"--data.{name.replace('_', '-')}", *_flag_values(value)]
    return words


def _flag_values(value: Any) -> list[str]:
    """What stands behind a flag; nothing behind one that is a switch."""
    if value is True:
        return []
    return [str(member) for member in value] if isinstance(value, list) else [str(value)]
