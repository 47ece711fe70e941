"""`focaldet export` and `focaldet benchmark`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from focaldet.cli import Switch
from focaldet.cli.flags import SPLIT_HELP, Data, DataParts, flags_of, optional_data_config
from focaldet.cli.output import CLEAN, FAILED, print_error, print_json, print_table, progress, say
from focaldet.evaluation.coco import percent
from focaldet.evaluation.inference import InferenceOptions
from focaldet.export.benchmark import ROUNDS, benchmark
from focaldet.export.export import MAX_DROP, ExportResult, export_detector

# What computes on the CPU in fp32 takes no other settings than those of the graph.
UNUSED = ("batch_size", "device", "precision", "workers", "allow_nonfinite")

if TYPE_CHECKING:
    GraphFields = dict[str, Any]
else:
    GraphFields = flags_of(InferenceOptions, group=Group("Inference", sort_key=2), skip=UNUSED)
GraphOptions = Annotated[GraphFields | None, Parameter(name="*")]


def export_command(
    run: str,
    /,
    *,
    out: Path,
    format: Literal["onnx", "openvino", "torch"] = "onnx",  # noqa: A002  as users write it
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    data: Data = None,
    parts: DataParts = None,
    split: Annotated[str, Parameter(help=SPLIT_HELP)] = "val",
    max_drop: Annotated[float | None, Parameter(show_default=f"{MAX_DROP:g}")] = None,
    options: GraphOptions = None,
    json: Switch = False,
) -> int:
    """Write a trained detector as a file for another program, and compare the two on real images.

    Args:
        run: Run folder, weights file, or a name such as torchvision:coco_v1.
        out: The file: .onnx, .xml (and .bin beside it) for openvino, .pt2 for torch.
        format: onnx, openvino or torch.
        precision: fp32; for openvino also fp16 and int8.
        max_drop: How far the AP of the file, 0 to 1, may lie below that of the detector. Typed, or for int8, the AP is
            measured without --data too, on the images of the run.
        json: Print JSON.
    """
    with progress("export") as seen:
        result = export_detector(
            run,
            out,
            format=format,
            precision=precision,
            data=optional_data_config(data, parts),
            split=split,
            max_drop=max_drop,
            options=InferenceOptions(**(options or {})),
            progress=seen,
        )
    if json:
        print_json(asdict(result) | {"path": str(result.path), "speed_ratio": result.speed_ratio})
    else:
        print_result(result)
    for reason in result.reasons:
        print_error(f"{result.path}: rejected: {reason}")
    return CLEAN if result.is_accepted else FAILED


def benchmark_command(
    run: str,
    /,
    *,
    data: Data = None,
    parts: DataParts = None,
    split: Annotated[str, Parameter(help=SPLIT_HELP)] = "val",
    rounds: int = ROUNDS,
    options: GraphOptions = None,
    json: Switch = False,
) -> None:
    """Measure AP and time of a trained detector in every format that is installed here.

    Args:
        run: Run folder, weights file, or a name such as torchvision:coco_v1.
        rounds: How often everything is timed; all formats take turns.
        json: Print JSON.
    """
    with progress("benchmark") as seen:
        rows = benchmark(
            run,
            data=optional_data_config(data, parts),
            split=split,
            rounds=rounds,
            options=InferenceOptions(**(options or {})),
            progress=seen,
        )
    if json:
        print_json([asdict(row) for row in rows])
        return
    eager = next(row.milliseconds_per_image or 0.0 for row in rows if row.name == "torch, eager")
    lines = [["FORMAT", "AP", "MS PER IMAGE", "× TORCH", ""]]
    for row in rows:
        spent = row.milliseconds_per_image
        ratio = [f"{spent:.1f}", f"{eager / spent:.2f}"] if spent else ["", ""]
        lines.append([row.name, "" if row.ap is None else percent(row.ap), *ratio, row.note])
    print_table(lines, left={0, 4})


def print_result(result: ExportResult) -> None:
    """The comparison as a table, then where the file is."""
    seen = result.comparison
    rows = [
        ["compared on", result.images],
        ["detections", f"{seen.num_detections}{least_score_text(seen.least_score)}"],
        ["matched", str(seen.matched)],
        ["unmatched, of both", f"{seen.unmatched} ({100 * seen.unmatched_fraction:.2f} %)"],
        ["largest difference", f"{seen.largest_px:.2g} px, {seen.largest_score:.1g} in score"],
    ]
    if result.ap is not None:
        rows.append(["AP of the detector", percent(result.ap)])
        rows.append(["AP of the file", percent(result.exported_ap)])
    if (ratio := result.speed_ratio) is not None:
        times = f"{result.milliseconds_per_image:.1f} and {result.exported_milliseconds_per_image:.1f} ms per image"
        rows.append(["speed", f"{ratio:.2f} × torch ({times})"])
    print_table(rows, left={0, 1})
    for note in result.notes:
        say(f"note: {note}")
    say(f"look at  {result.path}")


def least_score_text(least_score: float) -> str:
    """Which detections were compared, where it is not all of them."""
    return f" with a score of {least_score:g} and more" if least_score else ""
