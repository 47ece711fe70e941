"""Eight-bit integers for the convolutions and matrix products of an OpenVINO model, by NNCF.

What turns raw outputs into detections (decoding, sigmoid, selection, NMS) stays in fp32: there the eighth bit is pixels
and whole objects.
"""

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any

import torch

from focaldet.data.dataset import FileSource, ImageSource
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.evaluate import ClassMatch, open_loader, relabel_detections
from focaldet.evaluation.inference import InferenceOptions, to_original
from focaldet.export.graph import explain_failure
from focaldet.export.images import ExportImages, pick_evenly
from focaldet.models import Detector
from focaldet.runtime import Process
from focaldet.types import Batch, Detections
from focaldet.weights.exported.detector import round_to_bytes
from focaldet.weights.exported.graphs import GRAPH_OUTPUTS, count_graph_threads, import_library

FP32_DEPTHS = (1, 3, 9, 27)
"""How many layers from the image on stay in fp32: these numbers are tried in turn."""
VALIDATION_IMAGES = 300
"""At most so many images tell whether more layers must stay in fp32; a model that seems good is measured on all."""
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

    The first layer stays in fp32. Where the images are labeled and the AP falls by more, so do the first few, and then
    more of them: an error that is made early passes through all that follows. Of these models the first that is good
    enough on all images is taken, else the one that is best on a sample of them.

    Raises:
        ConfigError: nncf is not installed, or cannot quantize the model.
    """
    labeled, match = images.labeled, images.class_match
    if labeled is None or match is None:
        return quantize_behind(model, FP32_DEPTHS[0], detector, images.calibration)
    every, measure = labeled.dataset, functools.partial(measure_compiled_ap, detector=detector, match=match)
    sources: list[ImageSource] = [FileSource(every.subset(pick_evenly(len(every), VALIDATION_IMAGES), every.name))]
    sources += [labeled] if len(every) > VALIDATION_IMAGES else []
    before = functools.cache(lambda index: measure(model, source=sources[index]))
    if before(0) is None:
        return quantize_behind(model, FP32_DEPTHS[0], detector, images.calibration)
    best, best_ap = None, -1.0
    for depth in FP32_DEPTHS:
        quantized = quantize_behind(model, depth, detector, images.calibration)
        for index, source in enumerate(sources):
            ap = measure(quantized, source=source) or 0.0
            if index == 0 and ap > best_ap:
                best, best_ap = quantized, ap
            if (before(index) or 0.0) - ap > max_drop:
                break
        else:
            return quantized
    return best


def quantize_behind(model: Any, depth: int, detector: Detector, calibration: ImageSource) -> Any:
    """The model with all weighted layers in int8 but those that have fewer than `depth` of them before them.

    Raises:
        ConfigError: nncf is not installed, or cannot quantize the model.
    """
    nncf = import_library("nncf", extra="int8")
    nncf.set_log_level("ERROR")
    names = [*postprocess_names(model), *(name for name, number in layer_depths(model).items() if number <= depth)]
    # NNCF draws its progress on stdout, where our results go.
    with contextlib.redirect_stdout(io.StringIO()), explain_failure("nncf cannot quantize the model"):
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(Batches(detector, calibration), feed_batch),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration.dataset),
            ignored_scope=nncf.IgnoredScope(names=names, validate=False),
        )


def layer_depths(model: Any) -> dict[str, int]:
    """Of each weighted layer, by name, how many there are on the longest way from the image to it, itself counted."""
    depths: dict[str, int] = {}
    layers = {}
    for node in model.get_ordered_ops():
        before = (depths[port.get_source_output().get_node().get_friendly_name()] for port in node.inputs())
        is_layer = node.get_type_name() in WEIGHTED
        depths[node.get_friendly_name()] = max(before, default=0) + is_layer
        if is_layer:
            layers[node.get_friendly_name()] = depths[node.get_friendly_name()]
    return layers


def measure_compiled_ap(model: Any, detector: Detector, source: ImageSource, match: ClassMatch) -> float | None:
    """COCO's AP of a model in [0, 1]; None where the images have no boxes."""
    detections: dict[int, Detections] = {}
    with explain_failure("openvino cannot run the model"):
        compiled = compile_model(model)
        for batch in Batches(detector, source):
            each = detect_compiled(compiled, batch, detector)
            detections[batch.indices[0]] = relabel_detections(each, match, source.dataset.classes)
    return evaluate_detections(source.dataset, detections).ap


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
    return {"images": round_to_bytes(batch.images).numpy(), "sizes": torch.tensor(batch.sizes).numpy()}


def compile_model(model: Any) -> Any:
    """The model ready to compute, in fp32 where it is not quantized."""
    openvino = import_library("openvino", extra="openvino")
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": count_graph_threads()}
    return openvino.Core().compile_model(model, "CPU", hints)


def detect_compiled(compiled: Any, batch: Batch, detector: Detector) -> Detections:
    """The detections of a batch of one image, in its own pixels."""
    results = compiled(feed_batch(batch))
    boxes, scores, labels, count = (torch.from_numpy(results[name].copy()) for name in GRAPH_OUTPUTS)
    rows = slice(int(count[0]))
    detections = Detections(boxes[0, rows], scores[0, rows], labels[0, rows], detector.class_names)
    (size,), (original,) = batch.sizes, batch.original_sizes
    return to_original(detections, detector.preprocessing.resize, size=size, original=original)
