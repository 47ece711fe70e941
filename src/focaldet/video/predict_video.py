"""Detect in a video, a camera or a folder of frames, and write what was detected."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from focaldet import draw
from focaldet.config import make_folder
from focaldet.data.inputs import output_names, resolve_links
from focaldet.errors import ConfigError
from focaldet.files import to_json_text
from focaldet.prediction import DEFAULT_SCORE, Predictor, score_filter
from focaldet.runtime import Progress, num_processes
from focaldet.types import Detections
from focaldet.video.reading import CAMERA, Frame, FrameSource, open_source
from focaldet.video.tracking import LOST_FRAMES, Tracker
from focaldet.video.writing import VideoWriter

Select = Callable[[Detections, int], tuple[Detections, list[int] | None]]
"""From the detections of a frame and its number: those to be written, and the numbers of their tracks if there are."""


@dataclass(frozen=True, slots=True)
class VideoResult:
    """What `predict_video` did: the file of lines, the video if one was drawn, and counts.

    `num_damaged` are frames or packets that could not be read.
    """

    lines: Path
    video: Path | None
    num_frames: int
    num_detections: int
    num_tracks: int | None
    num_damaged: int
    notes: tuple[str, ...] = ()


def predict_video(
    predictor: Predictor,
    source: str | Path,
    out: Path,
    *,
    score: float | None = None,
    every: int = 1,
    track: bool = False,
    fps: float | None = None,
    drawn: bool = True,
    batch_size: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> VideoResult:
    """Detect in the frames of a video; write `<name>.mp4` with the boxes and `<name>.jsonl`, a line a frame.

    A line has `frame` (its number in the source, from 0), `seconds`, `width`, `height`, `boxes` (xyxy pixels),
    `scores`, `labels`, `names` and with `track` also `tracks`, the numbers of the objects. Frames have the times that
    they have in the source, with `every` too. Interrupted, both files end with the last frame that was finished; that
    is how a camera is stopped.

    Args:
        predictor: the detector.
        source: a video file, `camera:0`, or a folder of images.
        out: a folder, made if it is missing; files of the same names are replaced, but never the video itself.
        score: as of `predict_files`; with `track`, detections from it on begin tracks, which those from .1 on continue.
        every: only every N-th frame is looked at, from the first on.
        track: give objects numbers (`video.tracking`).
        fps: frames a second of a folder; 25 by default.
        drawn: whether to write the video.
        batch_size: frames per batch; that of the predictor by default, 1 for a camera.
        name: the name of the files; that of the source by default (`video_names`).
        progress: called after each frame.

    Raises:
        DataError: the source cannot be read.
        ConfigError: a setting is out of range, `out` cannot be made, the video would replace itself, or several
            processes would write the same files.
    """
    _check_call(every)
    select, notes = _select_function(predictor, score=score, track=track, every=every)
    frames = open_source(str(source), fps=fps)
    name = name or frames.name
    video, lines = out / f"{name}.mp4", out / f"{name}.jsonl"
    if drawn and resolve_links(video) == resolve_links(Path(source)):
        raise ConfigError(f"out: the drawn video would replace {source}: choose another folder")
    make_folder(out)
    total = None if frames.num_frames is None else -(-frames.num_frames // every)
    num_frames = num_detections = 0
    numbers: set[int] = set()
    with ExitStack() as stack:
        file = stack.enter_context(lines.open("w", encoding="utf-8"))
        writer = stack.enter_context(closing(VideoWriter(video, fps=frames.fps / every))) if drawn else None
        try:
            for frame, every_detection in _detect_frames(predictor, frames, every=every, batch_size=batch_size):
                detections, tracks = select(every_detection, frame.index)
                file.write(to_json_text(_line(frame, detections, tracks)) + "\n")
                if writer is not None:
                    writer.add(_draw_frame(frame, detections, tracks), seconds=frame.seconds)
                num_frames, num_detections = num_frames + 1, num_detections + len(detections)
                numbers.update(tracks or ())
                if progress is not None:
                    progress(num_frames, total)
        except KeyboardInterrupt:
            if not frames.is_live:
                raise
    num_tracks = len(numbers) if track else None
    return VideoResult(
        lines, video if drawn else None, num_frames, num_detections, num_tracks, frames.num_damaged, tuple(notes)
    )


def video_names(sources: Sequence[str]) -> list[str]:
    """A name for the files of each source of a call, no two of them equal: as `predict` names those of images."""
    paths = [Path(source) for source in sources]
    cameras = [CAMERA.fullmatch(source) for source in sources]
    # A folder is called by its whole name, of which a dot would end the stem.
    named = [
        path.with_name(f"camera_{camera[1]}")
        if camera
        else path.absolute().parent / f"{path.absolute().name}.mp4"
        if path.is_dir()
        else path
        for path, camera in zip(paths, cameras, strict=True)
    ]
    return output_names(named)


def _check_call(every: int) -> None:
    """Refuse a step below 1, and several processes, which would write the same files."""
    if num_processes() > 1:
        raise ConfigError("a video is written by one process; start it without torchrun or SLURM tasks")
    if every < 1:
        raise ConfigError(f"every: must be at least 1, got {every}")


def _select_function(predictor: Predictor, *, score: float | None, track: bool, every: int) -> tuple[Select, list[str]]:
    """Which detections of a frame are written, and notes on it."""
    choose, notes = score_filter(predictor, score)
    if not track:
        return (lambda detections, _: (choose(detections), None)), notes
    scores: float | Sequence[float] = DEFAULT_SCORE if score is None else score
    if score is None and predictor.thresholds is not None:
        names = predictor.class_names or [""] * predictor.detector.config.num_classes
        scores = predictor.thresholds.for_classes(names)
    tracker = Tracker(score=scores, max_lost_frames=LOST_FRAMES * every)
    return (lambda detections, index: tracker.update(detections, frame=index)), notes


def _detect_frames(
    predictor: Predictor, source: FrameSource, *, every: int, batch_size: int | None
) -> Iterator[tuple[Frame, Detections]]:
    """Every frame with all its detections, in order."""
    waiting: deque[Frame] = deque()

    def note_frames() -> Iterator[object]:
        for frame in source.frames(every=every):
            waiting.append(frame)
            yield frame.pixels

    most = 1 if source.is_live else batch_size
    # Frames have one size and are held whole until they are drawn.
    for detections in predictor.predict_stream(note_frames(), batch_size=most, window_batches=1):
        yield waiting.popleft(), detections


def _line(frame: Frame, detections: Detections, tracks: list[int] | None) -> dict[str, object]:
    height, width = frame.pixels.shape[:2]
    line = {"frame": frame.index, "seconds": round(frame.seconds, 4), "width": width, "height": height}
    return line | detections.to_dict() | ({} if tracks is None else {"tracks": tracks})


def _draw_frame(frame: Frame, detections: Detections, tracks: list[int] | None) -> Image.Image:
    """The frame with its boxes; the number of a track follows the name."""
    names = None
    if tracks is not None:
        names = [f"{name} #{number}" for name, number in zip(detections.names, tracks, strict=True)]
    return draw.boxes(frame.pixels, detections, names=names)
