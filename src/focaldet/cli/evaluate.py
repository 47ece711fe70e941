"""`focaldet eval`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet.cli import Switch, flag_name
from focaldet.cli.flags import SPLIT_HELP, Data, DataParts, Options, data_config, optional_data_config
from focaldet.cli.output import is_first, print_json, print_metrics, progress, say
from focaldet.config import make_folder
from focaldet.data.dataset import FileSource
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.evaluate import Evaluation, run_evaluation
from focaldet.evaluation.evaluator import MAX_DETECTIONS
from focaldet.evaluation.inference import InferenceOptions
from focaldet.evaluation.result_files import evaluate_files
from focaldet.files import write_json
from focaldet.outputs import begin_call
from focaldet.report.run_report import write_report


def evaluate_command(
    run: str | None = None,
    /,
    *,
    data: Data = None,
    parts: DataParts = None,
    predictions: Path | None = None,
    out: Path | None = None,
    split: Annotated[str, Parameter(help=SPLIT_HELP)] = "val",
    max_detections: int = MAX_DETECTIONS,
    options: Options = None,
    json: Switch = False,
) -> None:
    """Evaluate a detector, or a COCO result file of any program, with the 12 COCO numbers.

    Args:
        run: Run folder, weights file, exported file (.onnx, .xml, .pt2), or a name such as torchvision:coco_v1.
        predictions: COCO result file to score against the ground truth `--data`, instead of a detector.
        max_detections: How many detections of each image and class count, the best ones; COCO's numbers are with 100.
            A detector that answers with fewer is let answer with so many.
        out: Folder for metrics.json, predictions.json and report.html; by default one within the run, with the name of
            the data where they are others than those of the run. With --predictions only metrics.json is written.
        json: Print JSON.
    """
    if (run is None) == (predictions is None):
        raise ConfigError("eval: give either a run folder, weights file or name, or --predictions RESULTS.json")
    if predictions is not None:
        for name in options or {}:
            text = "is for a detector; it changes nothing in a file of --predictions"
            raise ConfigError(f"eval: --{flag_name(name)} {text}")
        folder, earlier = None if out is None else make_folder(out), None
        metrics = evaluate_files(predictions, data_config(data, parts), split=split, max_detections=max_detections)
        if folder is not None:
            earlier = begin_call(folder, "eval", ["metrics.json"], keep={predictions.resolve()})
            write_json(folder / "metrics.json", metrics.to_dict())
        notes = () if earlier is None else (f"{earlier} in {folder}",)
        _print_result(metrics, notes=notes, page=None if folder is None else folder / "metrics.json", json=json)
        return
    with progress("evaluate") as seen:
        done = run_evaluation(
            str(run),
            optional_data_config(data, parts),
            split=split,
            out=out,
            max_detections=max_detections,
            options=InferenceOptions(**(options or {})),
            progress=seen,
        )
    page = _write_page(str(run), done) if is_first() else None
    _print_result(done.metrics, notes=done.notes, page=page, json=json)


def _write_page(run: str, done: Evaluation) -> Path | None:
    """The page of an evaluation beside its files; None where none were written."""
    folder = done.folder
    if folder is None:
        return None
    return write_report(
        Path(run) if Path(run).is_dir() else folder,
        FileSource(done.dataset),
        metrics=done.metrics,
        predictions=folder / "predictions.json",
        out=folder / "report.html",
    )


def _print_result(metrics: Metrics, *, notes: Sequence[str], page: Path | None, json: bool) -> None:
    """The numbers, for people or for programs, and where the rest is."""
    if json:
        print_json(metrics.to_dict())
        return
    print_metrics(metrics)
    for note in notes:
        say(f"note: {note}")
    if page is not None:
        say(f"look at  {page}")
