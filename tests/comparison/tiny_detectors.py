"""Detectors of a few filters under names of their own, and a comparison of them on the demo's scenes."""

import contextlib
import json
from dataclasses import replace

import numpy
import onnx
import pytest

from focaldet.comparison.config import CompareConfig
from focaldet.data.augment.config import AugmentConfig
from focaldet.data.config import DataConfig
from focaldet.models import PRESETS, find_preset, named_config
from focaldet.models.base import Preset
from focaldet.training.config import RunConfig
from tests.training.squares import ARCHITECTURE

ONE, TWO, BROKEN = "retinanet_tiny", "retinanet_tiny_wide", "retinanet_tiny_broken"


@contextlib.contextmanager
def tiny_presets():
    """The three names inside; the last one has a backbone that nobody knows."""
    base = find_preset("retinanet_mobilenet_v2_fpn").preprocessing
    tiny = named_config(
        "retinanet_mobilenet_v2_fpn", architecture={**ARCHITECTURE, "detect": {"score_threshold": 0.01}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, ONE, Preset(tiny, base))
        patch.setitem(PRESETS, TWO, Preset(replace(tiny, width=24), base))
        patch.setitem(PRESETS, BROKEN, Preset(replace(tiny, backbone="resnet_unheard_of"), base))
        patch.setattr("focaldet.comparison.timing.measure_peak_memory", lambda *_, **__: 123.0)
        yield


def tiny_settings(data, out, **changes):
    """Settings of trainings of three steps."""
    settings = {
        "data": DataConfig(path=data, val=data / "instances_test.json"),
        "size": 64,
        "epochs": 1,
        "batch_size": 4,
        "weights": None,
        "precision": "fp32",
        "device": "cpu",
        "augment": AugmentConfig(preset="none"),
        "save_steps": 1,
    }
    return RunConfig(out=out, **{**settings, **changes})


def tiny_comparison(**changes):
    """Two detectors with one seed each, timed in two rounds on two images."""
    settings = {"models": (ONE, TWO), "seeds": 1, "rounds": 2, "timed_images": 2, "resamples": 100}
    return CompareConfig(**{**settings, **changes})


def write_exported(path, **said):
    """A file of ONNX that sees a 0 in the upper left quarter of every image, and says this about itself."""
    make, kinds = onnx.helper.make_node, onnx.TensorProto
    numbers = {"quarter": numpy.float32([[0, 0, 0, 0.5], [0, 0, 0.5, 0]]), "one": [1], "two": [2], "sure": [[0.9]]}
    numbers |= {"nothing": [[0.0]], "single": [1.0]}
    nodes = [
        make("Cast", ["sizes"], ["floats"], to=kinds.FLOAT),
        make("MatMul", ["floats", "quarter"], ["corners"]),
        make("Unsqueeze", ["corners", "one"], ["boxes"]),
        make("ReduceMax", ["boxes", "two"], ["sides"], keepdims=0),
        make("Mul", ["sides", "nothing"], ["zeros"]),
        make("Add", ["zeros", "sure"], ["scores"]),
        make("Cast", ["zeros"], ["labels"], to=kinds.INT64),
        make("Squeeze", ["zeros", "one"], ["no"]),
        make("Add", ["no", "single"], ["some"]),
        make("Cast", ["some"], ["count"], to=kinds.INT64),
    ]
    arrays = [numpy.array(value) for value in numbers.values()]
    weights = [
        onnx.numpy_helper.from_array(each.astype("float32") if each.dtype.kind == "f" else each, name)
        for name, each in zip(numbers, arrays, strict=True)
    ]
    given = [("images", kinds.UINT8, ["b", 3, "h", "w"]), ("sizes", kinds.INT64, ["b", 2])]
    answered = [("boxes", kinds.FLOAT, ["b", 1, 4]), ("scores", kinds.FLOAT, ["b", 1])]
    answered += [("labels", kinds.INT64, ["b", 1]), ("count", kinds.INT64, ["b"])]
    ports = [[onnx.helper.make_tensor_value_info(*port) for port in ports] for ports in (given, answered)]
    graph = onnx.helper.make_graph(nodes, "quarter", *ports, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    about = {"architecture": "RetinaNetConfig", "config": {"num_classes": 1}, "class_names": ["0"], "version": 2}
    about |= {"category_ids": [1], "preprocessing": {}, **said}
    onnx.helper.set_model_props(model, {"focaldet": json.dumps(about)})
    path.write_bytes(model.SerializeToString())
    return path
