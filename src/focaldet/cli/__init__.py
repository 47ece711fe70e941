"""The command line. Each command is one call into the library; its flags are the fields of the library's own settings.

A user's mistake is one line on stderr and exit status 2. `focaldet <command> --help` tells the other statuses.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from focaldet import __version__
from focaldet.check.anchor_clusters import anchor_shapes
from focaldet.check.check import check_data
from focaldet.cli.convert import convert_command
from focaldet.cli.flags import (
    TYPED,
    Data,
    DataParts,
    ModelFlags,
    ModelParts,
    Options,
    flag_name,
    joined,
    named_data,
    settings,
    typed_options,
)
from focaldet.cli.output import (
    CLEAN,
    FAILED,
    INTERRUPTED,
    UNREADABLE,
    USAGE,
    print_error,
    print_json,
    print_metrics,
    print_table,
    progress,
    quiet_unless_first,
)
from focaldet.cli.study import study
from focaldet.data.dataset import DataConfig
from focaldet.data.splits import open_split
from focaldet.errors import ConfigError, DataError, FocaldetError
from focaldet.evaluation.coco import evaluate_files
from focaldet.evaluation.evaluate import evaluate, evaluation_folder
from focaldet.evaluation.inference import InferenceOptions
from focaldet.evaluation.writers import PredictionFormat
from focaldet.models import PREPROCESSING
from focaldet.models.published import detector_rows
from focaldet.prediction import load, predict_files
from focaldet.study.demo import run_demo
from focaldet.training.config import RunConfig
from focaldet.training.trainer import train as train_detector
from focaldet.types import Preprocessing, Resize

app = App(
    name="focaldet",
    help="Train, compare and ship object detectors.",
    version=__version__,
    config=TYPED,
    default_parameter=Parameter(name_transform=flag_name, consume_multiple=True),
    suppress_keyboard_interrupt=False,
)
app.command(study)
app.command(convert_command, name="convert")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    try:
        with quiet_unless_first():
            status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
        return status or CLEAN
    except (FocaldetError, CycloptsError) as error:
        print_error(error)
        return USAGE
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE
    except KeyboardInterrupt:
        print("focaldet: interrupted", file=sys.stderr)
        return INTERRUPTED


@app.command
def models(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the detectors: backbone, parameters, published COCO AP where the paper's table 2 has it, input.

    Args:
        json: print JSON.
    """
    rows = detector_rows()
    if json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    columns = ["NAME", "BACKBONE", "CLASSES", "PARAMETERS", "AP", "AP50", "AP75", "APS", "APM", "APL", "INPUT"]
    print_table([columns, *(row.cells() for row in rows)], left={0, 1, 10})
    print("AP: percent on COCO test-dev, as Lin et al. 2017 print it in table 2")
    print("any backbone of timm: --architecture.backbone timm:NAME")


@app.command
def check(
    data: Annotated[Path | None, Parameter(help="Folder, or json, yaml or csv file.")] = None,
    /,
    *,
    parts: DataParts = DataConfig(),  # noqa: B008  frozen
    which: ModelParts = ModelFlags(),  # noqa: B008  frozen
    size: int | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    all_classes: Annotated[bool, Parameter(name="--all", negative="")] = False,
    listed: Annotated[bool, Parameter(name="--list", negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Tell what is in a data set and what is wrong with it. Exit status: 0 clean, 1 findings, 2 usage, 3 unreadable.

    Args:
        size: long side in pixels of the image that the anchors meet, instead of the detector's own.
        short_side: short side in pixels, the paper's form.
        max_side: limit of the long side with --short-side.
        all_classes: count the boxes of every class, not only of the most and the least frequent.
        listed: list every problem, not only how many there are of each kind.
        json: print JSON.
    """
    detector, prepared = which.config(), PREPROCESSING.get(which.model, Preprocessing())
    resize = prepared.resize.with_sides(size=size, short_side=short_side, max_side=max_side)
    try:
        with progress("check") as seen:
            report = check_data(
                joined(data, parts),
                detector=detector,
                preprocessing=dataclasses.replace(prepared, resize=resize),
                progress=seen,
            )
    except DataError as error:
        print_error(error)
        return UNREADABLE
    if json:
        print_json(report.to_dict())
    else:
        print(*report.lines(listed=listed, all_classes=all_classes), sep="\n")
        print(f"\nanchors are those of {which.model}; others: --model, --size, --architecture")
    return report.exit_code


@app.command
def anchors(
    data: Annotated[Path | None, Parameter(help="Folder, or json, yaml or csv file.")] = None,
    /,
    *,
    parts: DataParts = DataConfig(),  # noqa: B008  frozen
    split: str = "train",
    clusters: int = 5,
    size: int = 416,
    short_side: int | None = None,
    max_side: int | None = None,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find the anchors for your boxes: k-means with the distance 1 - IoU, as YOLOv2's were found.

    Args:
        split: train, val, test, or a split's own name in the data.
        clusters: how many; YOLOv2 has 5.
        size: long side in pixels of the image that the anchors meet.
        short_side: short side in pixels, the paper's form.
        max_side: limit of the long side with --short-side.
        seed: of the starts.
        json: print JSON.
    """
    sides = {"size": None if short_side is not None else size, "short_side": short_side, "max_side": max_side}
    dataset = open_split(joined(data, parts), split, seed=seed)
    found = anchor_shapes(dataset, Resize().with_sides(**sides), num_clusters=clusters, seed=seed)
    if json:
        print_json(found.to_dict())
        return
    rows = [[f"{side:.2f}" for side in pixels] + [f"{side:.5g}" for side in cells] for pixels, cells in found.pairs()]
    print_table([["WIDTH PX", "HEIGHT PX", "WIDTH / 32", "HEIGHT / 32"], *rows], left=set())
    print(f'\naverage IoU {found.average_iou:.3f} of {found.num_boxes} boxes of "{found.split}" at {found.resize}')
    cells = ",".join(f"[{width:.5g},{height:.5g}]" for width, height in found.cells)
    print(f"for YOLOv2: --architecture.anchors [{cells}]")


@app.command
def train(
    *,
    data: Data = None,
    config: Path | None = None,
    run: Annotated[RunConfig, Parameter(name="*")] = RunConfig(),  # noqa: B008  frozen
) -> int:
    """Train a detector. Exit status: 0 finished, 2 usage, 130 interrupted (saved, go on with --resume).

    Args:
        config: YAML file of settings; flags that are typed overrule it. The run folder keeps one.
    """
    result = train_detector(settings(run, file=config, data=data))
    if result.interrupted:
        return INTERRUPTED
    if result.best is not None:
        print(f"look at  {result.out / 'report.html'}")
    print(f"next     focaldet predict {result.out} IMAGE --out drawn/")
    return CLEAN


@app.command(name="eval")
def evaluate_command(
    run: str | None = None,
    /,
    *,
    data: Data = None,
    parts: DataParts = DataConfig(),  # noqa: B008  frozen
    predictions: Path | None = None,
    out: Path | None = None,
    split: str = "val",
    options: Options = InferenceOptions(),  # noqa: B008  frozen
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Give a detector, or anybody's COCO result file, the 12 COCO numbers.

    Args:
        run: run folder, weights file, or a name such as torchvision:coco_v1.
        predictions: COCO result file to score against the ground truth file `--data`, instead of a detector.
        out: folder for metrics.json and predictions.json; a folder within the run by default.
        split: train, val, test, or a split's own name in the data.
        json: print JSON.
    """
    if (run is None) == (predictions is None):
        raise ConfigError("eval: give either a run folder, weights file or name, or --predictions RESULTS.json")
    if predictions is not None:
        if TYPED.architecture:
            raise ConfigError("eval: --architecture is for a detector; a file of --predictions has its answers already")
        metrics = evaluate_files(predictions, joined(data, parts), split=split)
    else:
        with progress("evaluate") as seen:
            metrics = evaluate(
                str(run),
                named_data(data, parts),
                split=split,
                out=out,
                options=typed_options(options),
                progress=seen,
            )
    if json:
        print_json(metrics.to_dict())
    else:
        print_metrics(metrics)
        if run is not None and (folder := evaluation_folder(run, split=split, out=out)) is not None:
            print(f"look at  {folder}")


@app.command
def predict(
    run: str,
    /,
    *images: Annotated[str, Parameter(help="Pictures, folders, patterns, and .txt lists of paths.")],
    out: Path = Path("drawn"),
    score: float = 0.3,
    formats: tuple[PredictionFormat, ...] = ("json",),
    drawn: bool = True,
    weights: str | None = None,
    options: Options = InferenceOptions(),  # noqa: B008  frozen
) -> int:
    """Find objects in pictures and draw them. Exit status: 0 done, 1 some pictures could not be read, 2 usage.

    Args:
        run: run folder, weights file, or a name such as torchvision:coco_v1.
        out: folder for the drawn pictures and the files beside them.
        score: detections below it are left out.
        formats: files to write: json, coco, yolo, csv.
        drawn: write the pictures with their boxes.
        weights: weights for `run` where that is the name of a detector.
    """
    if not images:
        raise ConfigError("predict: say which pictures, folders or patterns")
    predictor = load(run, weights=weights, options=typed_options(options))
    with progress("predict") as seen:
        result = predict_files(predictor, images, out, score=score, formats=formats, drawn=drawn, progress=seen)
    for error in result.failed:
        print_error(error)
    unreadable = f", {len(result.failed)} of them unreadable" if result.failed else ""
    print(f"{result.num_images} pictures{unreadable}, {result.num_detections} detections; look at  {result.out}")
    return FAILED if result.failed else CLEAN


@app.command
def demo(
    *,
    out: Path = Path("runs/demo"),
    epochs: int | None = None,
    images_per_epoch: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> int:
    """Train a small RetinaNet on the embedded handwriting, evaluate it, draw 12 pictures and write a report.

    Args:
        out: folder of the run; what an earlier demo left there is replaced.
        epochs: passes; fewer are quicker and worse.
        images_per_epoch: fresh scenes in a pass.
        seed: seed of scenes and weights.
        device: such as cpu or cuda:1; the best there is by default.
    """
    sizes = {"epochs": epochs, "images_per_epoch": images_per_epoch}
    given = {name: value for name, value in sizes.items() if value is not None}
    result = run_demo(out, seed=seed, device=device, **given)
    if result.metrics is None:
        print("the scenes are made as training goes on, so the demo cannot: `focaldet demo` begins again")
        return INTERRUPTED
    print_metrics(result.metrics)
    print(
        f"\nlook at  {result.report} and {result.pictures}\n"
        f"next     focaldet eval {out}\n"
        "         focaldet check YOUR_DATA\n"
        "         focaldet train --data YOUR_DATA --model retinanet_mobilenet_v2_fpn --size 320 --out runs/mine \\\n"
        "           --weights torchvision:imagenet_v1"
    )
    return CLEAN
