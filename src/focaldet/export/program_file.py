"""A traced detector as a `.pt2` file, which torch and torchvision alone can run."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from focaldet.export.graph import explain_failure
from focaldet.ops.padded import mark_survivors
from focaldet.weights.formats.files import write_atomically


def convert_program(program: ExportedProgram) -> ExportedProgram:
    """The program without operations of focaldet's: its NMS is torchvision's.

    Raises:
        ConfigError: torch cannot take it apart.
    """
    with warnings.catch_warnings(), explain_failure("torch.export cannot simplify the program"):
        warnings.simplefilter("ignore")  # of torchvision about torch
        plain: ExportedProgram = program.run_decompositions({torch.ops.focaldet.nms_mask.default: mark_survivors})
    return plain


def write_program(program: ExportedProgram, path: Path, *, statements: Mapping[str, str]) -> None:
    """Write the program to `path`, with `statements` as texts beside it.

    Raises:
        CheckpointError: the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(statements))
    write_atomically(path, buffer.getvalue())
