"""What `POST /predict` answers, and which detections a client asks for."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic_core
from pydantic import BaseModel, Field

from focaldet.files import to_json_text
from focaldet.prediction import DEFAULT_SCORE, Predictor, score_filter
from focaldet.service.pipeline import ImageResult
from focaldet.service.refusals import RefusalError
from focaldet.types import Detections

CORNERS = ("x1", "y1", "x2", "y2")
SCORE_TEXT = (
    "Detections below it are left out. By default those below the scores of the largest F1, which the weights keep for "
    f"each class; {DEFAULT_SCORE:g} where they keep none."
)
SCORE_NAMES = {"conf", "conf_thres", "confidence", "min_score", "score_threshold", "threshold"}
"""What other services call the field `score`."""


class BoxAnswer(BaseModel):
    """Corners in pixels of the image, the origin at its top left."""

    x1: float
    y1: float
    x2: float
    y2: float


class Prediction(BaseModel):
    """One detected object."""

    box: BoxAnswer
    name: str = Field(description="Name of the class.")
    label: int = Field(alias="class", description="Index of the class, from 0.")
    confidence: float = Field(description="Score in 0…1.")


class Size(BaseModel):
    """Size of the upright image in pixels."""

    width: int
    height: int


class Answer(BaseModel):
    """The objects that were detected in an image, best first."""

    image: Size
    predictions: list[Prediction]
    time_ms: dict[str, float] = Field(description="Milliseconds for decode, wait, detect, and total.")


class ErrorAnswer(BaseModel):
    """Why a request was not answered."""

    error: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The detections that a client asks for: those that `keep_scores` leaves, and of these labels (None for all)."""

    keep_scores: Callable[[Detections], Detections]
    labels: frozenset[int] | None = None

    def select(self, detections: Detections) -> Detections:
        """Those of the detections that are asked for, in their order."""
        chosen = self.keep_scores(detections)
        if self.labels is None:
            return chosen
        return chosen[[row for row, label in enumerate(chosen.labels.tolist()) if label in self.labels]]


class SelectionReader:
    """Reads which detections of one predictor clients ask for."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._keep_default, _ = score_filter(predictor, None)
        named: dict[str, set[int]] = defaultdict(set)
        for label, name in enumerate(predictor.class_names):
            named[name].add(label)
        self._labels: Mapping[str, Iterable[int]] = dict(named) or _Numbers()

    def read(self, fields: Mapping[str, Sequence[str]]) -> Selection:
        """The selection that the fields `score` and `classes` of a query or form describe.

        Without `score` it is what `focaldet predict` takes: the scores that the weights keep, else .3. `classes` may be
        repeated, or hold several names with commas between them; one that several labels share stands for all of them,
        and without any name every label is taken.

        Raises:
            RefusalError: a field is unknown or its value not allowed; names it.
        """
        if unknown := sorted({*fields} - {"score", "classes"}):
            hint = ": it is called score here" if unknown[0].lower() in SCORE_NAMES else ""
            raise RefusalError(422, f"{unknown[0][:40]!r} is unknown{hint}; allowed are file, score and classes")
        scores = fields.get("score", ())
        keep = score_filter(self.predictor, _read_score(scores[-1]))[0] if scores else self._keep_default
        return Selection(keep, self._read_labels(fields.get("classes", ())) or None)

    def _read_labels(self, texts: Iterable[str]) -> frozenset[int]:
        chosen: set[int] = set()
        for text in texts:
            whole = text in self._labels
            for name in [text] if whole else [part.strip() for part in text.split(",") if part.strip()]:
                if name not in self._labels:
                    names = self.predictor.class_names
                    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
                    raise RefusalError(422, f"classes: {name[:40]!r} is unknown; allowed are {shown or 'numbers'}")
                chosen.update(self._labels[name])
        return frozenset(chosen)


def _read_score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise RefusalError(422, f"score must be a number in 0…1, got {text[:40]!r}")
    return score


class _Numbers(dict[str, Iterable[int]]):
    """The labels of a detector without class names, which are its numbers."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 10

    def __missing__(self, name: str) -> Iterable[int]:
        return (int(name),)


def encode_json(value: Any) -> bytes:
    """`value` as JSON in UTF-8, in a fraction of the time of the standard library's."""
    try:
        return pydantic_core.to_json(value)
    except pydantic_core.PydanticSerializationError:  # names that are no Unicode
        return to_json_text(value).encode()


def build_answer(result: ImageResult, selection: Selection, *, started: float) -> dict[str, Any]:
    """The JSON of an `Answer` for an image; `started` is when its request came, by `time.perf_counter`."""
    predictions = [
        {"box": dict(zip(CORNERS, box, strict=True)), "name": name, "class": label, "confidence": score}
        for box, score, label, name in selection.select(result.detections)
    ]
    seconds = {
        "decode": result.decode_seconds,
        "wait": result.wait_seconds,
        "detect": result.detect_seconds,
        "total": time.perf_counter() - started,
    }
    time_ms = {name: round(1000 * value, 2) for name, value in seconds.items()}
    size = {"width": result.size.width, "height": result.size.height}
    return {"image": size, "predictions": predictions, "time_ms": time_ms}
