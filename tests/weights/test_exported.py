"""What an exported file says about itself: taken where it can be true, refused by name where it cannot."""

import json
from types import SimpleNamespace

import onnx
import pytest
import torch

import focaldet
from focaldet.errors import CheckpointError, ConfigError
from focaldet.evaluation.limits import raise_limit
from focaldet.service.pipeline import count_lanes
from focaldet.weights import load_detector
from focaldet.weights.exported.graphs import OpenVinoGraph
from tests.fuzz.optional_doors import DESCRIBED, onnx_graph


@pytest.fixture
def file_of(tmp_path):
    """A file of two operations of ONNX that says this about itself."""

    def write(**changes):
        model = onnx.load_from_string(onnx_graph(tmp_path)[0])
        onnx.helper.set_model_props(model, {"focaldet": json.dumps(json.loads(DESCRIBED) | changes)})
        path = tmp_path / "cells.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


def test_the_size_of_a_fixed_square_is_read(file_of):
    assert load_detector(file_of(extra={"input_size": "96x128"})).detector.input_size == (96, 128)
    assert load_detector(file_of()).detector.input_size is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": {"input_size": "abc"}}, "metadata: input_size: must be height and width such as 320x480, got 'abc'"),
        ({"extra": {"input_size": "12"}}, "metadata: input_size"),
        ({"extra": {"input_size": "0x32"}}, "metadata: input_size"),
        ({"extra": {"input_size": "32x32x3"}}, "metadata: input_size"),
        ({"extra": {"input_size": "99999x32"}}, "metadata: input_size"),
        ({"class_names": ["a", "b"]}, "class_names: 2 entries for 1 classes"),
        ({"category_ids": [1, 2, 3]}, "category_ids: 3 entries for 1 classes"),
        ({"preprocessing": {"resize": {"size": 20_000}}}, "preprocessing.resize.size: must be at most 16384 px"),
        ({"config": {"num_classes": -1}}, "metadata: .*num_classes"),
        ({"config": {"num_classes": "many"}}, "metadata: .*num_classes"),
    ],
)
def test_what_cannot_be_true_is_refused_as_of_weights_files(file_of, changes, message):
    with pytest.raises(CheckpointError, match=rf"cells\.onnx: {message}") as caught:
        focaldet.load(file_of(**changes))
    assert "\n" not in str(caught.value)


def test_the_precision_that_is_shown_is_that_of_the_file(file_of, monkeypatch):
    """Also where torch would compute in bf16, which touches no exported file."""
    monkeypatch.setattr("focaldet.runtime.has_native_bf16", lambda _: True)
    predictor = focaldet.load(file_of(extra={"precision": "int8"}), device="cpu")
    assert predictor.precision == "fp32"
    assert repr(predictor).endswith(", int8)")


def test_more_detections_than_the_graph_gives_are_refused(file_of):
    detector = load_detector(file_of(extra={"max_detections": "100"})).detector
    raise_limit(detector, 50)
    raise_limit(detector, 100)
    with pytest.raises(ConfigError, match="max_detections: the file answers with at most 100 objects an image"):
        raise_limit(detector, 500)
    raise_limit(load_detector(file_of()).detector, 500)  # which says nothing of it


def test_a_library_takes_no_more_threads_than_the_container_has_cores(file_of, monkeypatch):
    monkeypatch.setattr("focaldet.weights.exported.graphs.usable_cores", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    session = load_detector(file_of()).detector.graph._session
    assert session.get_session_options().intra_op_num_threads == 1


def test_a_library_that_computes_in_turn_has_one_lane_in_the_service(file_of):
    detector = load_detector(file_of()).detector
    predictor = SimpleNamespace(detector=detector, device=torch.device("cpu"))
    assert (count_lanes(predictor, 4), OpenVinoGraph.runs_in_turn) == (4, True)
    detector.graph.runs_in_turn = True
    assert count_lanes(predictor, 4) == 1
