"""Numbers for objects that are seen in successive frames.

The association is ByteTrack's (Zhang et al. 2022, arXiv:2110.06864): first the detections of high scores are matched to
the tracks, then those of low scores to the tracks that are left. Boxes move with constant velocity between frames,
pairs are taken in the order of their IoU, and a track keeps its class.

Axes: T tracks, D detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from focaldet.errors import ConfigError
from focaldet.types import Detections

HIGH_IOU, LOW_IOU = 0.2, 0.5  # ByteTrack's thresholds of the two rounds
LOST_FRAMES = 30
INERTIA = 0.5  # how much of a track's velocity stays when it is seen again


@dataclass(slots=True, eq=False)
class Track:
    """One object: its number, class, last box (xyxy pixels), velocity in pixels a frame, and when it was last seen."""

    number: int
    label: int
    box: Float[Tensor, " 4"]
    velocity: Float[Tensor, " 4"]
    frame: int

    def predict_box(self, frame: int) -> Float[Tensor, " 4"]:
        """Where the object is expected in a later frame."""
        return self.box + self.velocity * (frame - self.frame)

    def update(self, box: Float[Tensor, " 4"], frame: int) -> None:
        """Take what was seen in a later frame."""
        step = (box - self.box) / max(1, frame - self.frame)
        self.velocity = INERTIA * self.velocity + (1 - INERTIA) * step
        self.box, self.frame = box, frame


class Tracker:
    """Gives detections of the same object the same number, frame after frame.

    Args:
        score: detections from this score on begin tracks; or a score for each label.
        low_score: detections from this score on still continue them.
        max_lost_frames: a track that was not seen for longer is over.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self, *, score: float | Sequence[float], low_score: float = 0.1, max_lost_frames: int = LOST_FRAMES
    ) -> None:
        scores = [score] if isinstance(score, int | float) else [*score]
        if not all(0 <= each <= 1 for each in (*scores, low_score)) or not scores or max_lost_frames < 0:
            raise ConfigError("tracker: scores must be in 0…1 and max_lost_frames at least 0")
        self.low_score, self.max_lost_frames = low_score, max_lost_frames
        self._scores = torch.tensor(scores, dtype=torch.float32)
        self._tracks: list[Track] = []
        self._next = 1

    def update(self, detections: Detections, *, frame: int) -> tuple[Detections, list[int]]:
        """The detections that belong to tracks, and the number of each; numbers begin at 1 and are not used again.

        Args:
            detections: those of one frame, best first, also those of low scores.
            frame: its number, larger than that of the frame before.
        """
        self._tracks = [track for track in self._tracks if frame - track.frame <= self.max_lost_frames]
        high = detections.scores >= (self._scores if len(self._scores) == 1 else self._scores[detections.labels])
        low = (detections.scores >= self.low_score) & ~high
        waiting = list(self._tracks)
        numbers: dict[int, int] = {}
        for chosen, least_iou in ((high, HIGH_IOU), (low, LOW_IOU)):
            rows = chosen.nonzero()[:, 0].tolist()
            pairs = match_greedily(_track_iou(waiting, detections[rows], frame), least=least_iou)
            for index, column in pairs:
                waiting[index].update(detections.boxes[rows[column]], frame)
                numbers[rows[column]] = waiting[index].number
            seen = {index for index, _ in pairs}
            waiting = [track for index, track in enumerate(waiting) if index not in seen]
        for row in high.nonzero()[:, 0].tolist():
            if row not in numbers:
                numbers[row] = self._begin_track(detections, row, frame)
        rows = sorted(numbers)
        return detections[rows], [numbers[row] for row in rows]

    def _begin_track(self, detections: Detections, row: int, frame: int) -> int:
        track = Track(self._next, int(detections.labels[row]), detections.boxes[row], torch.zeros(4), frame)
        self._tracks.append(track)
        self._next += 1
        return track.number


def match_greedily(values: Float[Tensor, "T D"], *, least: float) -> list[tuple[int, int]]:
    """Pairs of row and column, those of the largest values first, none below `least`, each row and column once."""
    pairs: list[tuple[int, int]] = []
    order = values.flatten().argsort(descending=True, stable=True).tolist()
    rows, columns = set[int](), set[int]()
    for flat in order:
        row, column = divmod(flat, values.shape[1])
        if values[row, column] < least:
            break
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            pairs.append((row, column))
    return pairs


def _track_iou(tracks: Sequence[Track], detections: Detections, frame: int) -> Float[Tensor, "T D"]:
    """IoU of where tracks are expected in a frame with its detections; 0 where the classes differ."""
    if not tracks:
        return torch.zeros(0, len(detections))
    iou: Tensor = box_iou(torch.stack([track.predict_box(frame) for track in tracks]), detections.boxes)
    labels = torch.tensor([track.label for track in tracks])
    return iou * (labels[:, None] == detections.labels[None, :])
