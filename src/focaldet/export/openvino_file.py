"""A model of ONNX as one of OpenVINO: `.xml`, and the numbers beside it in a `.bin` of the same name."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from focaldet.errors import CheckpointError
from focaldet.export.graph import explain_failure
from focaldet.types import ImageSize
from focaldet.weights.checkpoint import Metadata
from focaldet.weights.exported.graphs import import_library, summarize_error
from focaldet.weights.formats.files import write_atomically

RESIZE_TYPES = {"warp": "standard", "letterbox": "fit_to_window_letterbox"}
"""How OpenVINO's ModelAPI calls rules of resizing; all others keep the aspect ratio."""
MODEL_API_TYPE, MODEL_API_BOXES = "SSD", "bboxes"
"""The wrapper of ModelAPI for detectors with a fixed size, and the output that it reads."""


def convert_openvino(model: Any, *, size: ImageSize | None = None) -> Any:
    """The model of ONNX in OpenVINO's own form, simplified: a scale behind a convolution is part of its weights.

    With the fixed `size` of its images ModelAPI can run it, too.

    Raises:
        ConfigError: openvino is not installed, or cannot read the model.
    """
    openvino = import_library("openvino", extra="openvino")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_atomically(path, model.SerializeToString())
        with explain_failure("openvino cannot convert the model"):
            network = openvino.convert_model(path).clone()
            if size is not None:
                fit_model_api(network, size)
            return network


def fit_model_api(network: Any, size: ImageSize) -> None:
    """Change a network with images of a fixed size so that ModelAPI's wrapper for SSD runs it; all others run it as
    before.

    The wrapper writes (height, width, 1) into `sizes`, of which the third number is dropped, and reads boxes in 0…1.
    """
    openvino = import_library("openvino", extra="openvino")
    ops = openvino.opset13
    (given,) = (each for each in network.get_parameters() if "sizes" in each.output(0).get_names())
    readers = given.output(0).get_target_inputs()
    first_two = ops.slice(given.output(0), *(numpy.array([number]) for number in (0, 2, 1, 1)))
    for reader in readers:
        reader.replace_source_output(first_two.output(0))
    given.set_partial_shape(openvino.PartialShape([openvino.Dimension(), openvino.Dimension(2, 3)]))
    boxes = network.output("boxes").get_node().input_value(0)
    fractions = ops.divide(boxes, numpy.array([size.width, size.height] * 2, dtype=numpy.float32))
    fractions.output(0).set_names({MODEL_API_BOXES})
    network.add_outputs(fractions.output(0))
    network.validate_nodes_and_infer_types()


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
        reason = error.strerror if isinstance(error, OSError) else None
        raise CheckpointError(f"{path}: cannot be written: {reason or summarize_error(error)}") from None


def model_info(metadata: Metadata) -> dict[str, str]:
    """What describes a detector in the words of OpenVINO's ModelAPI, under `model_info`, for people and programs.

    ModelAPI runs files whose images have a fixed size: these alone name a wrapper, `model_type`. Means and scales are
    those of an identity, since normalization is in the graph. That takes RGB, ModelAPI images as OpenCV reads them.
    """
    preprocessing = metadata.preprocessing
    names = metadata.class_names or tuple(map(str, range(metadata.config.get("num_classes", 0))))
    values = {
        "model_name": metadata.model or metadata.architecture,
        "task_type": "detection",
        "labels": " ".join(name.replace(" ", "_") for name in names),
        "confidence_threshold": metadata.extra.get("score_threshold", "0.0"),
        "iou_threshold": metadata.extra.get("nms_iou", "0.5"),
        "resize_type": RESIZE_TYPES.get(preprocessing.resize.mode, "fit_to_window"),
        "pad_value": str(round(preprocessing.rgb_padding[0])),
        "reverse_input_channels": "True",
        "mean_values": "0.0 0.0 0.0",
        "scale_values": "1.0 1.0 1.0",
    }
    if metadata.extra.get("input_size"):
        values["model_type"] = MODEL_API_TYPE
    return {f"model_info.{key}": value for key, value in values.items()}
