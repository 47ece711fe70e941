"""From which score on the detections of a detector are best taken, as its weights file says it.

The score with the largest F1 on the images that the detector was evaluated on, over all classes and for each class.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from focaldet import config as configs
from focaldet.errors import CheckpointError, ConfigError

THRESHOLDS_KEY = "score_thresholds"
"""The name of the thresholds among the texts of a weights file (`Metadata.extra`)."""
LEAST_BOXES = 10  # a class with fewer has no threshold of its own: it would be fitted to chance


@dataclass(frozen=True, slots=True)
class ScoreThreshold:
    """A score in [0, 1], and what the detections of a class (all classes where `name` is None) from it on reach.

    `f1`, `precision` and `recall` are in [0, 1], at IoU .5; `num_boxes` is the number of objects they were measured on.
    """

    name: str | None
    score: float
    f1: float
    precision: float
    recall: float
    num_boxes: int


@dataclass(frozen=True, slots=True)
class ScoreThresholds:
    """The score with the largest F1 over all classes, and that of each class with a right detection.

    `data` is the split that they were measured on.
    """

    overall: ScoreThreshold
    per_class: tuple[ScoreThreshold, ...]
    data: str = ""

    def for_classes(self, names: Sequence[str]) -> tuple[float, ...]:
        """The score of each of these classes; that over all where a class has too few objects, or none."""
        overall = self.overall
        known = {each.name: each for each in self.per_class if each.num_boxes >= LEAST_BOXES}
        return tuple(known.get(name, overall).score for name in names)

    def describe(self, names: Sequence[str]) -> str:
        """One line for people, such as "score ≥ .41 (RBC), .35 (WBC): the largest F1 on val"."""
        scores = self.for_classes(names)
        listed = [f"{_short(score)} ({name})" for name, score in zip(names, scores, strict=True)]
        most = 6
        if len(set(scores)) <= 1 or not names:
            text = _short(scores[0] if scores else self.overall.score)
        elif len(listed) > most:
            text = f"{_short(min(scores))} to {_short(max(scores))}, by class"
        else:
            text = ", ".join(listed)
        return f"score ≥ {text}: the largest F1 on {self.data or 'the images of its evaluation'}"

    def to_text(self) -> str:
        """One line of JSON, for a weights file; inverse of `read_thresholds`."""
        return configs.to_json(self)


def read_thresholds(extra: Mapping[str, str], *, source: str) -> ScoreThresholds | None:
    """The thresholds among the texts of a weights file; None where it has none, as files of older versions.

    Raises:
        CheckpointError: they are damaged; names `source`.
    """
    text = extra.get(THRESHOLDS_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise CheckpointError(f"{source}: {THRESHOLDS_KEY}: must be a mapping, got {type(values).__name__}")
        read = configs.from_dict(ScoreThresholds, values, source=f"{source}: {THRESHOLDS_KEY}", warn_renamed=False)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: {THRESHOLDS_KEY}: not valid JSON: {error}") from None
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not all(0 <= each.score <= 1 for each in (read.overall, *read.per_class)):
        raise CheckpointError(f"{source}: {THRESHOLDS_KEY}: every score must be in 0…1")
    return read


def _short(score: float) -> str:
    return f"{score:.2f}"
