"""`focaldet convert`: a detector of another program as a file of ours."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet.cli.output import print_json, print_table, progress
from focaldet.weights.convert import convert


def convert_command(
    source: str,
    /,
    *,
    out: Path,
    layout: Annotated[str | None, Parameter(name="--from")] = None,
    model: str | None = None,
    weights_input: str | None = None,
    license: Annotated[str | None, Parameter(name=("--license", "--licence"))] = None,  # noqa: A002
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    verbose: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write the detector in another program's weights file as a file of focaldet's, and say what became of it.

    Args:
        source: weights file, or a name such as torchvision:coco_v1.
        out: file to write; ends in .safetensors.
        layout: program that the file must come from: detectron2, mmdetection, torchvision, caffe or darknet.
        model: entry of the table of detectors that the file must fit; darknet's files need it.
        weights_input: what the weights were trained to see, such as imagenet, where the file does not state it.
        license: license of the weights, instead of the one that the source is known by.
        overwrite: replace the file at --out.
        verbose: list every tensor with those of the file it was made of.
        json: print JSON, the list of tensors included.
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
        rows = [[one.name, "×".join(map(str, one.shape)) or "1", " + ".join(one.made_of)] for one in done.tensors]
        print_table([["TENSOR", "SHAPE", "FROM"], *rows], left={0, 1, 2})
        print()
    print_table(done.rows(), left={0, 1})
