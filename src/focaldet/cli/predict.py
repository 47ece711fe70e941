"""`focaldet predict`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet import draw
from focaldet.cli.flags import Options
from focaldet.cli.output import CLEAN, FAILED, print_error, progress, say
from focaldet.data.formats.text import quantity
from focaldet.errors import ConfigError
from focaldet.evaluation.writers import PredictionFormat
from focaldet.prediction import load, predict_files


def predict_command(
    run: str,
    /,
    *images: Annotated[str, Parameter(help="Images, folders, patterns, and .txt lists of paths.")],
    out: Path = Path("drawn"),
    score: float | None = None,
    formats: Annotated[tuple[PredictionFormat, ...], Parameter(show_default="json")] = ("json",),
    drawn: bool = True,
    like: Path | None = None,
    weights: str | None = None,
    options: Options = None,
) -> int:
    """Detect objects in images and draw them.

    Args:
        run: Run folder, weights file, or a name such as torchvision:coco_v1.
        out: Folder for the drawn images and the files beside them.
        score: Detections below it are dropped. By default the scores with the largest F1, by class, that the weights
            file keeps; .3 where it keeps none.
        formats: Files to write: json, coco, yolo, csv.
        drawn: Write the images with their boxes.
        like: COCO file that lists the images of an evaluation server; with --formats coco the results have its ids.
        weights: Weights for `run` where that is the name of a detector.
    """
    if not images:
        raise ConfigError("predict: say which images, folders or patterns")
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
