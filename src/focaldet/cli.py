"""The command line. Each command is one call into the library; its flags are the fields of the library's own settings.

A user's mistake is one line on stderr and exit status 2. `focaldet <command> --help` tells the other statuses.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from cyclopts import App, ArgumentCollection, CycloptsError, Parameter

from focaldet import __version__
from focaldet import config as configs
from focaldet.data.check import check as check_data
from focaldet.data.index import DataConfig
from focaldet.errors import ConfigError, DataError, FocaldetError
from focaldet.evaluate.coco import HEADLINES, Metrics, evaluate_files
from focaldet.evaluate.formats import PredictionFormat
from focaldet.evaluate.inference import Precision, resize_asked
from focaldet.evaluate.processes import is_first_process
from focaldet.evaluate.run import evaluate, evaluation_folder
from focaldet.models import named_config
from focaldet.predict import load, predict_files
from focaldet.study.demo import run_demo
from focaldet.study.loss_curves import study_losses
from focaldet.study.published import detector_rows
from focaldet.train.config import RunConfig
from focaldet.train.engine import train as train_detector
from focaldet.types import Resize

CLEAN, FAILED, USAGE, UNREADABLE, INTERRUPTED = 0, 1, 2, 3, 130


class TypedFlags:
    """The flags of the present call that were typed: only these overrule a `--config` file.

    `paths` are the names of the fields. `architecture` holds what `--architecture.<name>` gave: which names there are
    is known only when the model is, so cyclopts cannot read it.
    """

    def __init__(self) -> None:
        self.paths: list[tuple[str, ...]] = []
        self.architecture: dict[str, Any] = {}

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Take note; cyclopts calls this between reading the flags and using them."""
        del app, commands
        self.paths, self.architecture = [], {}
        for argument in arguments:
            if argument.keys == ("architecture",):
                for token in argument.tokens:
                    names = [name.replace("-", "_") for name in token.keys]
                    self.architecture = configs.merged(self.architecture, nested(names, read_value(token.value)))
                argument.tokens = []
            elif argument.keys and argument.tokens:
                self.paths.append(argument.keys)


TYPED = TypedFlags()


def flag_name(field: str) -> str:
    """The flag of a field: `bad_boxes` is `bad-boxes`; the input of weights reads as a part of them."""
    return {"weights_input": "weights.input"}.get(field, field.replace("_", "-"))


app = App(
    name="focaldet",
    help="Train, compare and ship object detectors.",
    version=__version__,
    config=TYPED,
    default_parameter=Parameter(name_transform=flag_name, consume_multiple=True),
    suppress_keyboard_interrupt=False,
)

study = App(name="study", help="Look at the losses and at one's own data as the paper does.")
app.command(study)

Data = Annotated[Path | None, Parameter(help="Folder, or json, yaml or csv file; --data.train … name parts of it.")]
DataParts = Annotated[DataConfig, Parameter(name="--data")]


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
    model: str = RunConfig.model,
    size: int | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    listed: Annotated[bool, Parameter(name="--list", negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Tell what is in a data set and what is wrong with it. Exit status: 0 clean, 1 findings, 2 usage, 3 unreadable.

    Args:
        model: detector whose anchors are measured against the boxes.
        size: long side in pixels of the image that the anchors meet.
        short_side: short side in pixels, the paper's form.
        max_side: limit of the long side with --short-side.
        listed: list every problem, not only how many there are of each kind.
        json: print JSON.
    """
    resize = resize_asked(Resize(), size=size, short_side=short_side, max_side=max_side)
    try:
        report = check_data(joined(data, parts), anchors=named_config(model).anchors, size=resize)
    except DataError as error:
        print_error(error)
        return UNREADABLE
    if json:
        print_json(report.to_dict())
    else:
        print(*report.lines(listed=listed), sep="\n")
        print(f"\nanchors are those of {model}; others: --model, --size")
    return report.exit_code


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
    split: str = "val",
    out: Path | None = None,
    size: int | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    precision: Precision | None = None,
    workers: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Give a detector, or anybody's COCO result file, the 12 COCO numbers.

    Args:
        run: run folder, weights file, or a name such as torchvision:coco_v1.
        predictions: COCO result file to score against the ground truth file `--data`, instead of a detector.
        split: train, val, test, or a split's own name in the data.
        out: folder for metrics.json and predictions.json; a folder within the run by default.
        size: long side of the resized image in pixels, instead of what the detector was trained with.
        short_side: short side in pixels, the paper's form.
        max_side: limit of the long side with --short-side.
        batch_size: images per batch.
        device: such as cpu or cuda:1; the best there is by default.
        precision: type of the network's products; bf16 where the hardware has it by default.
        workers: processes that load images.
        json: print JSON.
    """
    if (run is None) == (predictions is None):
        raise ConfigError("eval: give either a run folder, weights file or name, or --predictions RESULTS.json")
    config = joined(data, parts)
    if predictions is not None:
        metrics = evaluate_files(predictions, config, split=split)
    else:
        with progress("evaluate") as seen:
            metrics = evaluate(
                str(run),
                None if config == DataConfig() else config,
                split=split,
                out=out,
                batch_size=batch_size,
                size=size,
                short_side=short_side,
                max_side=max_side,
                device=device,
                precision=precision,
                workers=workers,
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
    size: int | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    precision: Precision | None = None,
) -> int:
    """Find objects in pictures and draw them. Exit status: 0 done, 1 some pictures could not be read, 2 usage.

    Args:
        run: run folder, weights file, or a name such as torchvision:coco_v1.
        out: folder for the drawn pictures and the files beside them.
        score: detections below it are left out.
        formats: files to write: json, coco, yolo, csv.
        drawn: write the pictures with their boxes.
        weights: weights for `run` where that is the name of a detector.
        size: long side of the resized picture in pixels, instead of what the detector was trained with.
        short_side: short side in pixels, the paper's form.
        max_side: limit of the long side with --short-side.
        batch_size: pictures per batch.
        device: such as cpu or cuda:1; the best there is by default.
        precision: type of the network's products; bf16 where the hardware has it by default.
    """
    if not images:
        raise ConfigError("predict: say which pictures, folders or patterns")
    sides = {"size": size, "short_side": short_side, "max_side": max_side}
    predictor = load(run, weights=weights, device=device, precision=precision, **sides)
    with progress("predict") as seen:
        result = predict_files(
            predictor, images, out, score=score, formats=formats, drawn=drawn, batch_size=batch_size, progress=seen
        )
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
        "         focaldet train --data YOUR_DATA --model retinanet_mobilenet_v2_fpn --size 320 --out runs/mine"
    )
    return CLEAN


@study.command(name="losses")
def study_losses_command(*, out: Path = Path("runs/study/losses")) -> None:
    """Draw the paper's figures of the losses (1, 5, 6) and the α-balance, and tell worked examples.

    Args:
        out: folder for pictures (svg, png), tables (csv, json) and the page that shows them.
    """
    print(f"look at  {study_losses(out).page}")


def joined(path: Path | None, parts: DataConfig) -> DataConfig:
    """`parts` with the path that stands by itself on the command line."""
    return parts if path is None else dataclasses.replace(parts, path=path)


def settings(run: RunConfig, *, file: Path | None, data: Path | None) -> RunConfig:
    """The settings of `file` with the flags laid over them that were typed.

    Raises:
        ConfigError: the file is unreadable or has an unknown or bad setting; names the file and the nearest valid one.
    """
    typed: dict[str, Any] = {"architecture": TYPED.architecture} if TYPED.architecture else {}
    for path in TYPED.paths:
        value: Any = run
        for name in path:
            value = getattr(value, name)
        typed = configs.merged(typed, nested(path, value))
    if data is not None:
        typed = configs.merged(typed, nested(("data", "path"), data))
    values = configs.read_mapping(file) if file is not None else {}
    # Two steps, so that a mistake in the file is told as one of the file.
    if file is not None:
        configs.from_dict(RunConfig, values, source=str(file))
    return configs.from_dict(RunConfig, configs.merged(values, typed), source="settings")


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """`value` inside one mapping per name of `path`; without a name it is itself a mapping."""
    for name in reversed(path):
        value = {name: value}
    if not isinstance(value, dict):
        raise ConfigError(f"--architecture: name the setting, as in --architecture.loss.gamma {value}")
    return value


def read_value(text: str) -> Any:
    """What YAML reads in `text`: a number, list, true, null; all else stays text."""
    try:
        return yaml.safe_load(text)
    except configs.NOT_YAML:
        return text


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """Something to call with (done, all): a bar on the terminal, nothing where stderr is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Of the processes that `torchrun` or SLURM started, only the first one writes to stdout."""
    if is_first_process():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def print_error(error: Exception) -> None:
    """One line on stderr."""
    text = str(error)
    if isinstance(error.__cause__, pydantic.ValidationError):  # of a flag's range; its own text takes four lines
        text = f"{text.partition('. ')[0]}: {error.__cause__.errors()[0]['msg']}"
    print("focaldet:", " ".join(text.split()), file=sys.stderr)


def print_json(value: Any) -> None:
    """`value` on stdout for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=1))


def print_metrics(metrics: Metrics) -> None:
    """The 12 numbers in percent, then a line per class."""
    lines = [[name, percent(getattr(metrics, field)), meaning] for field, (name, meaning) in HEADLINES.items()]
    print_table(lines, left={0, 2})
    classes = [[row.name, str(row.num_boxes), *map(percent, (row.ap, row.ap50, row.ap75))] for row in metrics.per_class]
    if len(classes) > 1:
        print()
        print_table([["CLASS", "BOXES", "AP", "AP50", "AP75"], *classes], left={0})
    speed = "" if metrics.milliseconds_per_image is None else f", {metrics.milliseconds_per_image:.1f} ms per image"
    print(f"\n{metrics.num_images} images, {metrics.num_boxes} boxes, {metrics.num_detections} detections{speed}")
    for note in metrics.notes:
        print(f"note: {note}")


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def print_table(rows: Sequence[Sequence[str]], *, left: set[int]) -> None:
    """Columns two spaces apart; those in `left` start at the left, numbers end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
