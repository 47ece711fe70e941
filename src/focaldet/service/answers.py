"""What `POST /predict` answers, and which detections a client asks for."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

from focaldet.prediction import DEFAULT_SCORE, Predictor, score_filter
from focaldet.service.pipeline import ImageResult
from focaldet.service.refusals import RefusalError
from focaldet.types import Detections

CORNERS = ("x1", "y1", "x2", "y2")
SCORE_TEXT = (
    "Detections below it are left out. By default those below the scores of the largest F1, which the weights keep for "
    f"each class; {DEFAULT_SCORE:g} where they keep none."
)


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


def read_selection(fields: Mapping[str, Sequence[str]], predictor: Predictor) -> Selection:
    """The selection that the fields `score` and `classes` of a query or form describe.

    Without `score` it is what `focaldet predict` takes: the scores that the weights keep, else .3. `classes` may be
    repeated, or hold several names with commas between them.

    Raises:
        RefusalError: a field is unknown or its value not allowed; names it.
    """
    if unknown := sorted({*fields} - {"score", "classes"}):
        raise RefusalError(422, f"{unknown[0][:40]!r} is unknown; allowed are file, score and classes")
    scores = fields.get("score", ())
    keep_scores, _ = score_filter(predictor, _read_score(scores[-1]) if scores else None)
    labels = _read_labels(fields["classes"], predictor.class_names) if "classes" in fields else None
    return Selection(keep_scores, labels)


def _read_score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise RefusalError(422, f"score must be a number in 0…1, got {text[:40]!r}")
    return score


def _read_labels(texts: Iterable[str], class_names: Sequence[str]) -> frozenset[int]:
    labels = {name: label for label, name in enumerate(class_names)} or _Numbers()
    chosen: set[int] = set()
    for text in texts:
        for name in [text] if text in labels else [part.strip() for part in text.split(",") if part.strip()]:
            if name not in labels:
                shown = ", ".join(class_names[:20]) + (", …" if len(class_names) > 20 else "")
                raise RefusalError(422, f"classes: {name[:40]!r} is unknown; allowed are {shown or 'numbers'}")
            chosen.add(labels[name])
    return frozenset(chosen)


class _Numbers(dict[str, int]):
    """The labels of a detector without class names, which are its numbers."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 10

    def __missing__(self, name: str) -> int:
        return int(name)


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
