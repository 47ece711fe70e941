"""`focaldet convert`: a detector of another program as one of focaldet."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet.cli import Switch
from focaldet.cli.output import print_json, print_table, progress, say
from focaldet.weights.convert import convert


def convert_command(
    source: str,
    /,
    *,
    out: Path,
    layout: Annotated[str | None, Parameter(name="--from")] = None,
    model: str | None = None,
    weights_input: str | None = None,
    license: str | None = None,  # noqa: A002
    overwrite: Switch = False,
    verbose: Switch = False,
    json: Switch = False,
) -> None:
    """Write the detector in another program's weights file as one of focaldet, and report what it consists of.

    Args:
        source: Weights file, or a name such as torchvision:coco_v1.
        out: File to write; ends in .safetensors.
        layout: Program that the file must come from: detectron2, mmdetection, torchvision, caffe or darknet.
        model: Entry of the table of detectors that the file must fit; darknet's files need it.
        weights_input: What the weights were trained to see, such as imagenet, where the file does not state it.
        license: License of the weights, instead of the one that the source is known by.
        overwrite: Replace the file at --out.
        verbose: List every tensor with those of the file it was made of.
        json: Print JSON, the list of tensors included.
    """
    with progress("download") as seen:
        done = convert(
            source,
            out,
            layout=layout,
            model=model,
            input=weights_input,
            license=license,
            overwrite=overwrite,
            progress=seen,
        )
    if json:
        print_json(done.to_dict())
        return
    if verbose:
        rows = [
            [tensor.name, "×".join(map(str, tensor.shape)) or "1", " + ".join(tensor.made_of)]
            for tensor in done.tensors
        ]
        print_table([["TENSOR", "SHAPE", "FROM"], *rows], left={0, 1, 2})
        say()
    print_table(done.rows(), left={0, 1})
