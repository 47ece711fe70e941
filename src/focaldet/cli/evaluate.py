"""`focaldet eval`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet.cli import Switch, flag_name
from focaldet.cli.flags import SPLIT_HELP, Data, DataParts, Options, data_config, optional_data_config
from focaldet.cli.output import print_json, print_metrics, progress, say
from focaldet.config import make_folder
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import evaluate_files
from focaldet.evaluation.evaluate import evaluate, evaluation_folder
from focaldet.evaluation.evaluator import MAX_DETECTIONS
from focaldet.files import write_json
from focaldet.outputs import begin_call, earlier_call


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
        run: Run folder, weights file, or a name such as torchvision:coco_v1.
        predictions: COCO result file to score against the ground truth `--data`, instead of a detector.
        max_detections: How many detections of each image and class count, the best ones; COCO's numbers are with 100.
            A detector that answers with fewer is let answer with so many.
        out: Folder for metrics.json and predictions.json; by default a folder within the run.
        json: Print JSON.
    """
    if (run is None) == (predictions is None):
        raise ConfigError("eval: give either a run folder, weights file or name, or --predictions RESULTS.json")
    if predictions is None:
        folder: Path | None = evaluation_folder(str(run), split=split, out=out)
        earlier = None if folder is None else earlier_call(folder)
        chosen = optional_data_config(data, parts)
        with progress("evaluate") as seen:
            metrics = evaluate(
                str(run),
                chosen,
                split=split,
                out=out,
                max_detections=max_detections,
                progress=seen,
                **(options or {}),
            )
    else:
        for name in options or {}:
            text = "is for a detector; it changes nothing in a file of --predictions"
            raise ConfigError(f"eval: --{flag_name(name)} {text}")
        folder = None if out is None else make_folder(out)
        earlier = None if folder is None else begin_call(folder, "eval", ["metrics.json"])
        metrics = evaluate_files(predictions, data_config(data, parts), split=split, max_detections=max_detections)
        if folder is not None:
            write_json(folder / "metrics.json", metrics.to_dict())
    if json:
        print_json(metrics.to_dict())
        return
    print_metrics(metrics)
    if earlier is not None:
        say(f"note: {earlier} in {folder}")
    if folder is not None:
        say(f"look at  {folder}")
