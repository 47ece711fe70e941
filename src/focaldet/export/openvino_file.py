"""A model of ONNX as one of OpenVINO: `.xml`, and the numbers beside it in a `.bin` of the same name."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focaldet.errors import CheckpointError
from focaldet.export.graph import explain_failure
from focaldet.weights.checkpoint import Metadata
from focaldet.weights.exported.graphs import import_library
from focaldet.weights.formats.files import write_atomically

RESIZE_TYPES = {"warp": "standard", "letterbox": "fit_to_window_letterbox"}
"""How OpenVINO's ModelAPI calls rules of resizing; all others keep the aspect ratio."""


def convert_openvino(model: Any) -> Any:
    """The model of ONNX in OpenVINO's own form, simplified: a scale behind a convolution is part of its weights.

    Raises:
        ConfigError: openvino is not installed, or cannot read the model.
    """
    openvino = import_library("openvino", extra="openvino")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_atomically(path, model.SerializeToString())
        with explain_failure("openvino cannot convert the model"):
            return openvino.convert_model(path).clone()


def write_openvino(model: Any, path: Path, *, half: bool, statements: Mapping[str, str]) -> None:
    """Write `.xml` and `.bin`, the weights in fp16 where `half`, with `statements` by dotted name.

    Raises:
        CheckpointError: the files cannot be written.
    """
    openvino = import_library("openvino", extra="openvino")
    for key, value in statements.items():
        model.set_rt_info(value, key.split("."))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, path, compress_to_fp16=half)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None


def model_info(metadata: Metadata) -> dict[str, str]:
    """What describes a detector in the words of OpenVINO's ModelAPI, under `model_info`, for people and programs.

    ModelAPI's own wrapper cannot run it: that wants one input, and boxes, labels and scores in outputs of other shapes.

    Means and scales are those of an identity: normalization is in the graph, which takes RGB bytes.
    """
    preprocessing = metadata.preprocessing
    names = metadata.class_names or tuple(map(str, range(metadata.config.get("num_classes", 0))))
    values = {
        "model_name": metadata.model or metadata.architecture,
        "model_type": "detection",
        "task_type": "detection",
        "labels": " ".join(name.replace(" ", "_") for name in names),
        "confidence_threshold": metadata.extra.get("score_threshold", "0.0"),
        "iou_threshold": metadata.extra.get("nms_iou", "0.5"),
        "resize_type": RESIZE_TYPES.get(preprocessing.resize.mode, "fit_to_window"),
        "pad_value": str(round(preprocessing.rgb_padding[0])),
        "reverse_input_channels": "False",
        "mean_values": "0.0 0.0 0.0",
        "scale_values": "1.0 1.0 1.0",
    }
    return {f"model_info.{key}": value for key, value in values.items()}
