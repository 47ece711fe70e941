"""`focaldet predict`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from focaldet import draw
from focaldet.cli.flags import Options
from focaldet.cli.output import CLEAN, FAILED, print_error, progress, say
from focaldet.data.formats.text import quantity
from focaldet.errors import ConfigError
from focaldet.evaluation.writers import PredictionFormat
from focaldet.prediction import Predictor, load, predict_files
from focaldet.video.predict_video import predict_video, video_names
from focaldet.video.reading import is_video


def predict_command(
    run: str,
    /,
    *images: Annotated[str, Parameter(help="Images, folders, patterns, .txt lists of paths; or videos and camera:0.")],
    out: Path = Path("drawn"),
    score: float | None = None,
    formats: Annotated[tuple[PredictionFormat, ...], Parameter(show_default="json")] = ("json",),
    drawn: bool = True,
    like: Path | None = None,
    weights: str | None = None,
    every: int = 1,
    track: bool = False,
    fps: float | None = None,
    options: Options = None,
) -> int:
    """Detect objects in images and draw them.

    Of a video or camera, and of a folder with --every, --track or --fps, the frames are drawn as <name>.mp4, and
    <name>.jsonl has a line for each.

    Args:
        run: Run folder, weights file, exported file (.onnx, .xml, .pt2), or a name such as torchvision:coco_v1.
        out: Folder for the drawn images and the files beside them.
        score: Detections below it are dropped. By default the scores with the largest F1, by class, that the weights
            file keeps; .3 where it keeps none.
        formats: Files to write: json, coco, yolo, csv.
        drawn: Write the images with their boxes.
        like: COCO file that lists the images of an evaluation server; with --formats coco the results have its ids.
        weights: Weights for `run` where that is the name of a detector.
        every: Of a video, look at every N-th frame only.
        track: Of a video, give objects numbers that they keep from frame to frame.
        fps: Frames a second of a folder of frames; 25 by default.
    """
    if not images:
        raise ConfigError("predict: say which images, folders or patterns")
    is_moving = {image: is_video(image) for image in images}
    if every != 1 or track or fps is not None:
        is_moving |= {image: True for image in images if Path(image).is_dir()}
        if still := [image for image, moving in is_moving.items() if not moving]:
            raise ConfigError(f"--every, --track and --fps are for videos, cameras and folders; {still[0]} is none")
    if any(is_moving.values()):
        if not all(is_moving.values()) or like is not None or formats != ("json",):
            raise ConfigError("predict: videos are a call of their own, without images, --formats and --like")
        predictor = load(run, weights=weights, **(options or {}))
        settings = {"score": score, "every": every, "track": track, "fps": fps, "drawn": drawn}
        named = list(zip(images, video_names(images), strict=True))
        return max([_predict_video(predictor, image, out, settings | {"name": name}) for image, name in named])
    predictor = load(run, weights=weights, **(options or {}))
    with progress("predict") as seen:
        result = predict_files(
            predictor, images, out, score=score, formats=formats, drawn=drawn, like=like, progress=seen
        )
    for note in result.notes:
        say(note)
    for error in result.failed:
        print_error(error)
    unreadable = f", {len(result.failed)} of them unreadable" if result.failed else ""
    if drawn and (undrawn := draw.undrawable_names(predictor.class_names)):
        names = ", ".join(f"#{label} is {name}" for label, name in undrawn.items())
        say(f"no font of this system has the letters of some class names: in the drawings {names}")
    if result.skipped:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(result.skipped.items()))
        say(f"not images, passed over: {kinds}")
    counts = f"{quantity(result.num_images, 'image')}{unreadable}, {quantity(result.num_detections, 'detection')}"
    say(f"{counts}; look at  {result.out}")
    return FAILED if result.failed else CLEAN


def _predict_video(predictor: Predictor, source: str, out: Path, settings: Mapping[str, Any]) -> int:
    """Detect in one video and say what came of it."""
    with progress("frames") as seen:
        result = predict_video(predictor, source, out, progress=seen, **settings)
    for note in result.notes:
        say(note)
    tracks = "" if result.num_tracks is None else f", {quantity(result.num_tracks, 'track')}"
    counts = f"{quantity(result.num_frames, 'frame')}, {quantity(result.num_detections, 'detection')}{tracks}"
    say(f"{counts}; look at  {result.video or result.lines}")
    if result.num_damaged:
        damaged = quantity(result.num_damaged, "frame or packet", "frames or packets")
        print_error(f"{source}: {damaged} could not be read")
    return FAILED if result.num_damaged or not result.num_frames else CLEAN
