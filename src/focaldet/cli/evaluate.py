"""`focaldet eval`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet.cli import Switch, flag_name
from focaldet.cli.flags import SPLIT_HELP, Data, DataParts, Options, data_config, optional_data_config
from focaldet.cli.output import is_first, print_json, print_metrics, progress, say
from focaldet.config import make_folder
from focaldet.data.config import DataConfig
from focaldet.data.dataset import FileSource
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.evaluate import PAGE_FILE, Evaluation, run_evaluation
from focaldet.evaluation.evaluator import MAX_DETECTIONS
from focaldet.evaluation.inference import InferenceOptions
from focaldet.evaluation.result_files import evaluate_files
from focaldet.files import write_json
from focaldet.outputs import begin_call, earlier_call
from focaldet.report.evaluated import EvaluatedDetector
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
        _score_file(predictions, data_config(data, parts), out=out, split=split, most=max_detections, json=json)
        return
    chosen = optional_data_config(data, parts)
    with progress("evaluate") as seen:
        done = run_evaluation(
            str(run),
            chosen,
            split=split,
            out=out,
            max_detections=max_detections,
            options=InferenceOptions(**(options or {})),
            progress=seen,
        )
    detector = EvaluatedDetector(str(run), chosen, split, done.thresholds)
    page = _write_page(detector, done) if is_first() else None
    _print_result(done.metrics, notes=done.notes, page=page, json=json)


def _score_file(predictions: Path, data: DataConfig, *, out: Path | None, split: str, most: int, json: bool) -> None:
    """Score a result file, and write its metrics into the folder `out` where there is one.

    Raises:
        ConfigError: the folder has the detections of an evaluation, which are not those that are scored.
    """
    folder = None if out is None else make_folder(out)
    others = None if folder is None else folder / "predictions.json"
    if others is not None and others.exists() and others.resolve() != predictions.resolve():
        raise ConfigError(f"out: {others} has other detections than --predictions: name another folder")
    metrics = evaluate_files(predictions, data, split=split, max_detections=most)
    notes = [] if folder is None else _replace_metrics(folder, metrics)
    _print_result(metrics, notes=notes, page=None if folder is None else folder / "metrics.json", json=json)


def _replace_metrics(folder: Path, metrics: Metrics) -> list[str]:
    """Write the metrics of a result file beside what is there; sentences on what they replace.

    The page of the evaluation whose metrics they replace would show other numbers: it is removed.
    """
    file, page, before = folder / "metrics.json", folder / PAGE_FILE, earlier_call(folder)
    stay = [] if before is None else [path for path in before.files if path != file]
    is_stale = file.is_file() and page.is_file() and not (folder / "config.yaml").is_file()
    names = [path.relative_to(folder).as_posix() for path in (*stay, file)]
    earlier = begin_call(folder, "eval", names, keep={path.resolve() for path in stay})
    write_json(file, metrics.to_dict())
    notes = [] if earlier is None else [f"{earlier} in {folder}"]
    if is_stale:
        page.unlink()
        notes.append(f"removed {page}, which showed other metrics")
    return notes


def _write_page(detector: EvaluatedDetector, done: Evaluation) -> Path | None:
    """The page of an evaluation beside its files; None where none were written."""
    folder, run = done.folder, Path(detector.spec)
    if folder is None:
        return None
    return write_report(
        run if run.is_dir() else folder,
        FileSource(done.dataset),
        metrics=done.metrics,
        predictions=folder / "predictions.json",
        out=folder / PAGE_FILE,
        detector=detector,
    )


def _print_result(metrics: Metrics, *, notes: Sequence[str], page: Path | None, json: bool) -> None:
    """The numbers, for people or for programs, and where the rest is; beside JSON the notes go to stderr."""
    if json:
        print_json(metrics.to_dict())
    else:
        print_metrics(metrics)
    for note in notes if is_first() else ():
        say(f"note: {note}", file=sys.stderr if json else None)
    if page is not None and not json:
        say(f"look at  {page}")
