"""A traced detector as one ONNX file of opset 18."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from focaldet.export.graph import explain_failure
from focaldet.ops import padded  # noqa: F401  registers focaldet::nms_mask
from focaldet.weights.exported.graphs import GRAPH_INPUTS, GRAPH_OUTPUTS, import_library
from focaldet.weights.formats.files import write_atomically

OPSET = 18
INT32 = 6  # onnx.TensorProto.INT32


def convert_onnx(program: ExportedProgram) -> Any:
    """The model of ONNX that computes what the program does.

    Raises:
        ConfigError: onnx or onnxscript is not installed, or it cannot be said in ONNX.
    """
    for name in ("onnx", "onnxscript"):
        import_library(name, extra="onnx")
    with warnings.catch_warnings(), explain_failure("torch.onnx cannot translate the graph"):
        warnings.simplefilter("ignore")  # of the exporter about itself and about torch
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(GRAPH_INPUTS),
            output_names=list(GRAPH_OUTPUTS),
            custom_translation_table={
                torch.ops.focaldet.nms_mask.default: translate_nms_mask,
                torch.ops.torchvision.roi_pool.default: translate_roi_pool,
            },
            verbose=False,
        )
    model = exported.model_proto
    remove_traces(model)
    return model


def write_onnx(model: Any, path: Path, *, statements: Mapping[str, str]) -> None:
    """Write the model to `path`, with `statements` as its metadata.

    Raises:
        CheckpointError: the file cannot be written.
    """
    del model.metadata_props[:]
    for key, value in statements.items():
        model.metadata_props.add(key=key, value=value)
    write_atomically(path, model.SerializeToString())


def translate_nms_mask(boxes: Any, scores: Any, iou: float, least_score: float, most: int) -> Any:
    """`ops.padded.nms_mask` in operations of ONNX: the indices that suppression leaves, written into a mask."""
    op = import_library("onnxscript", extra="onnx").opset18
    selected = op.NonMaxSuppression(
        boxes,
        scores,
        op.Constant(value_ints=[most]),
        op.Constant(value_floats=[iou]),
        op.Constant(value_floats=[least_score]),
    )
    shape = op.Slice(op.Shape(selected), op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    ones = op.Expand(op.Constant(value_floats=[1.0]), shape)
    zeros = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
    return op.Greater(op.ScatterND(zeros, selected, ones), op.Constant(value_float=0.5))


def translate_roi_pool(features: Any, rows: Any, scale: float, height: int, width: int) -> Any:
    """torchvision's RoIPool, which onnxscript knows with other arguments.

    Where each maximum lies, its second answer, is asked for by gradients alone: something of its type stands there.
    """
    op = import_library("onnxscript", extra="onnx").opset18
    pooled = op.MaxRoiPool(features, rows, pooled_shape=[height, width], spatial_scale=scale)
    return pooled, op.Cast(pooled, to=INT32)


def remove_traces(model: Any) -> None:
    """Drop what the exporter notes of each operation: files and lines of the machine it ran on."""
    for part in (model.graph, *model.functions):
        for node in part.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in part.value_info:
            del value.metadata_props[:]
    for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
