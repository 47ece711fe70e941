"""Eight-bit integers for the convolutions and matrix products of an OpenVINO model, by NNCF.

What turns raw outputs into detections (decoding, sigmoid, selection, NMS) stays in fp32: there the eighth bit is pixels
and whole objects.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from focaldet.data.dataset import ImageSource
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.evaluate import open_loader, relabel_detections
from focaldet.evaluation.inference import InferenceOptions, to_original
from focaldet.export.images import ExportImages
from focaldet.models import Detector
from focaldet.runtime import Process
from focaldet.types import Batch, Detections
from focaldet.weights.exported.graphs import GRAPH_OUTPUTS, import_library

WEIGHTED = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"}
FEATURES_FIRST = {
    *("ROIAlign", "ROIPooling", "GridSample", "Reshape", "Transpose", "Interpolate", "Slice", "StridedSlice"),
    *("Pad", "Squeeze", "Unsqueeze", "Gather", "Broadcast", "ReduceMean", "Split", "VariadicSplit"),
}
"""Operations whose first input alone are features; the others say where and how."""
SELECTS = {"Select"}
"""Operations whose first input says which of the others is taken."""


def quantize_model(model: Any, detector: Detector, images: ExportImages, *, max_drop: float) -> Any:
    """The model with int8 weights and activations, calibrated on images; its AP falls by at most `max_drop` if it can.

    Where the images are labeled and the AP falls by more, layers go back to fp32 one by one, as NNCF's accuracy
    control does it.

    Raises:
        ConfigError: nncf is not installed.
    """
    nncf = import_library("nncf", extra="openvino")
    nncf.set_log_level("ERROR")
    settings = {
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(images.calibration.dataset),
        "ignored_scope": nncf.IgnoredScope(names=postprocess_names(model), validate=False),
    }
    batches = nncf.Dataset(Batches(detector, images.calibration), feed_batch)
    quantized = nncf.quantize(model.clone(), batches, **settings)
    labeled, match = images.labeled, images.class_match
    if labeled is None or match is None:
        return quantized

    def validate(compiled: Any, samples: Iterable[Batch]) -> tuple[float, None]:
        detections: dict[int, Detections] = {}
        for batch in samples:
            each = detect_compiled(compiled, batch, detector)
            detections[batch.indices[0]] = relabel_detections(each, match, labeled.dataset.classes)
        return evaluate_detections(labeled.dataset, detections).ap or 0.0, None

    validation = Batches(detector, labeled)
    before, after = (validate(compile_model(each), validation)[0] for each in (model, quantized))
    if before - after <= max_drop:
        return quantized
    return nncf.quantize_with_accuracy_control(
        model.clone(),
        batches,
        nncf.Dataset(validation, lambda batch: batch),
        validation_fn=validate,
        max_drop=max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        **settings,
    )


def postprocess_names(model: Any) -> list[str]:
    """The names of all operations that no weighted layer takes features from: everything behind the network, and in a
    detector with two stages the proposals between them.
    """
    network: set[str] = set()
    waiting = [node for node in model.get_ordered_ops() if node.get_type_name() in WEIGHTED]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in network:
            continue
        network.add(node.get_friendly_name())
        inputs = [port.get_source_output().get_node() for port in node.inputs()]
        kind = node.get_type_name()
        waiting += inputs[:1] if kind in FEATURES_FIRST else inputs[1:] if kind in SELECTS else inputs
    skipped = {"Constant", "Parameter", "Result"}
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_friendly_name() not in network and node.get_type_name() not in skipped
    ]


class Batches:
    """The images of a source one by one, each as a batch; read anew in every iteration."""

    def __init__(self, detector: Detector, source: ImageSource) -> None:
        ranks = Process(0, 1, torch.device("cpu"))
        self._loader = open_loader(detector, source, options=InferenceOptions(batch_size=1), ranks=ranks)

    def __iter__(self) -> Iterator[Batch]:
        return self._loader.epoch(0)

    def __len__(self) -> int:
        return len(self._loader)


def feed_batch(batch: Batch) -> dict[str, Any]:
    """What the model takes of a batch."""
    return {"images": batch.images.numpy(), "sizes": torch.tensor(batch.sizes).numpy()}


def compile_model(model: Any) -> Any:
    """The model ready to compute, in fp32 where it is not quantized."""
    openvino = import_library("openvino", extra="openvino")
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def detect_compiled(compiled: Any, batch: Batch, detector: Detector) -> Detections:
    """The detections of a batch of one image, in its own pixels."""
    results = compiled(feed_batch(batch))
    boxes, scores, labels, count = (torch.from_numpy(results[name].copy()) for name in GRAPH_OUTPUTS)
    rows = slice(int(count[0]))
    detections = Detections(boxes[0, rows], scores[0, rows], labels[0, rows], detector.class_names)
    (size,), (original,) = batch.sizes, batch.original_sizes
    return to_original(detections, detector.preprocessing.resize, size=size, original=original)
