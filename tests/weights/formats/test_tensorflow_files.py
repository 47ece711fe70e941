"""TensorFlow's frozen graphs and checkpoints, whole and damaged, and its two detectors beside literal oracles."""

import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from focaldet.errors import CheckpointError, FocaldetError
from focaldet.models import PRESETS, build, find_preset
from focaldet.nets.inception_resnet import INCEPTION_RESNETS, InceptionResNetShape
from focaldet.nets.regions import RPNHeadConfig
from focaldet.ops.boxes import decode
from focaldet.ops.proposals import ProposalLimits
from focaldet.types import ImageSize
from focaldet.weights import load_detector, load_into
from focaldet.weights.convert import convert
from focaldet.weights.formats.detector_weights import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from focaldet.weights.formats.files import TensorFile, read_tensors
from focaldet.weights.formats.tensorflow import read_tensorflow
from focaldet.weights.sources import WeightsSource
from focaldet.weights.tensor_names import build_on_meta, require_fit, shapes_of
from tests.weights.formats import grmi_oracle, tensorflow_oracle
from tests.weights.formats import tensorflow_files as files
from tests.weights.formats.peer_oracle import tensor_shapes

SMALL = {"a/weights": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "a/biases": np.array([1.5], np.float32)}
SSD, GRMI, ATROUS = "ssd_mobilenet_v2_tf", "faster_rcnn_inception_resnet_v2", "faster_rcnn_inception_resnet_v2_atrous"


def equal(tensors, arrays):
    return tensors.keys() == arrays.keys() and all(np.array_equal(tensors[name], arrays[name]) for name in arrays)


# --- files


def test_constants_of_a_graph(tmp_path):
    graph_pb2 = pytest.importorskip("tensorboard.compat.proto.graph_pb2")
    path = files.write_graph(tmp_path / "any name", SMALL, stride=2)
    graph = graph_pb2.GraphDef.FromString(path.read_bytes())
    files.add_constant(graph, "half", np.array([0.5, 2.0], np.float16))
    files.add_constant(graph, "double", np.array(0.25))
    files.add_constant(graph, "shape", np.array([1, 2], np.int32))
    for name, values, count in (("filled", [7.0], 5), ("one by one", [1.0, 2.0, 3.0], 3), ("empty", [], 2)):
        proto = files.add_constant(graph, name, np.zeros(count, np.float32))
        proto.ClearField("tensor_content")
        proto.float_val.extend(values)
    path.write_bytes(graph.SerializeToString())
    file = read_tensors(path)
    more = {"half": [0.5, 2.0], "double": 0.25, "filled": [7.0] * 5, "one by one": [1, 2, 3], "empty": [0, 0]}
    assert equal(file.tensors, SMALL | {name: np.array(value) for name, value in more.items()})
    assert file.statements["graph"].endswith('Mixed_6a/Branch_0/Conv2d_1a_3x3/Conv2D": 2}, "epsilons": [0.001]}')


def node(*fields, operation=b"Const"):
    """A GraphDef of one node whose value is a tensor of these fields."""
    value = files.message((1, b"value"), (2, files.message((8, files.message(*fields)))))
    return files.message((1, files.message((1, b"a/weights"), (2, operation), (5, value))))


def shape(*sides):
    return (2, files.message(*((2, files.message((1, side))) for side in sides)))


FLOAT, VALUES = (1, 1), (4, bytes(24))
BAD_GRAPHS = {
    "more than there is": (node(FLOAT, shape(2, 3), VALUES)[:-3], "claims 69 bytes where 66 are left"),
    "other bytes": (
        node(FLOAT, shape(2, 4), VALUES),
        r"a/weights: a tensor of shape \(2, 4\) has 32 bytes, 24 are there",
    ),
    "huge": (node(FLOAT, shape(2**20, 2**19)), "a tensor of 2199023255552 bytes has none in the file"),
    "absurd": (node(FLOAT, shape(2**62, 2**62, 0)), "a tensor of shape"),
    "unknown": (node(FLOAT, shape(2**64 - 1)), r"a tensor of shape \(-1,\)"),
    "axes": (node(FLOAT, shape(*[1] * 9)), "more than 8 axes"),
    "half": (node((1, 19), shape(2), (13, 3)), "16-bit numbers are kept one by one"),
    "twice": (node(FLOAT, shape(2, 3), VALUES) * 2, "two nodes have this name"),
    "no value": (files.message((1, files.message((1, b"a"), (2, b"Const")))), "a constant without a value"),
    "no name": (files.message((1, files.message((1, b""), (2, b"Const")))), "a node without a name"),
    "control": (files.message((1, files.message((1, b"a\x1b[2J")))), "a name has control characters"),
    "variables": (node(operation=b"VariableV2"), "a graph that is not frozen"),
    "number for a node": (files.message((1, files.message((1, b"a"))), (1, 7)), "a number stands where"),
    "group": (files.message((1, files.message((1, b"a")))) + b"\x0b", "of kind 3, which does not exist"),
    "endless": (files.message((1, files.message((1, b"a")))) + b"\xff" * 20, "a number does not end"),
}


@pytest.mark.parametrize("kind", BAD_GRAPHS)
def test_bad_graphs_give_one_line(tmp_path, kind):
    content, words = BAD_GRAPHS[kind]
    (tmp_path / "x.pb").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"x\.pb: damaged, or not a frozen graph of TensorFlow: .*{words}"
    ) as caught:
        read_tensors(tmp_path / "x.pb")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_checkpoint(tmp_path):
    arrays = {f"layer_{n}/weights": np.full((n + 1, 2), n, np.float32) for n in range(50)}
    arrays |= SMALL | {"global_step": np.array(7), "layer_3/weights/Momentum": np.ones(2, np.float32)}
    index = files.write_checkpoint(tmp_path / "model.ckpt-7", arrays, block_size=20)
    assert equal(read_tensors(index).tensors, arrays)
    with pytest.raises(CheckpointError, match=r"model\.ckpt-7: not a detector that focaldet knows"):
        load_detector(tmp_path / "model.ckpt-7")  # as TensorFlow calls it


def changed(number, value):
    return lambda name, fields: [(key, value if key == number else old) for key, old in fields]


BAD_CHECKPOINTS = {
    "behind the end": (changed(4, 10**9), r"a/biases: 4 bytes at 1000000000 are not within the 100 of the data"),
    "too large": (changed(5, 2**40), "1099511627776 bytes at 0 are not within the 100"),
    "other shape": (changed(2, files.message((2, files.message((1, 2**30))))), "has 4294967296 bytes, 4 are there"),
    "type": (changed(1, 8), "numbers of TensorFlow's type 8, which is not read"),
    "parts": (lambda name, fields: [*fields, (7, b"")], "a variable in several parts, which is not read"),
    "overlap": (
        lambda name, fields: [*fields[:1], (2, shape(25)[1]), (4, 0), (5, 100)],
        "not within the 100 of the data",
    ),
    "file": (lambda name, fields: [*fields, (3, 9)], "it is in file 9 of 1"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_bad_entries_of_a_checkpoint_give_one_line(tmp_path, kind):
    spoil, words = BAD_CHECKPOINTS[kind]
    index = files.write_checkpoint(tmp_path / "m", SMALL, entry=spoil)
    with pytest.raises(CheckpointError, match=rf"m\.index: damaged, or not a checkpoint .*{words}") as caught:
        read_tensors(index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compression": 1}, r"its index is compressed \(Snappy\), which is not read"),
        ({"endian": 1}, "it is big-endian, which is not read"),
    ],
)
def test_checkpoints_that_are_not_read(tmp_path, settings, words):
    with pytest.raises(CheckpointError, match=words):
        read_tensors(files.write_checkpoint(tmp_path / "m", SMALL, **settings))


def test_a_checkpoint_without_its_data(tmp_path):
    index = files.write_checkpoint(tmp_path / "m", SMALL)
    (tmp_path / "m.data-00000-of-00001").unlink()
    with pytest.raises(CheckpointError, match=r"m\.data-00000-of-00001, which must lie beside it, is missing"):
        read_tensors(index)


def read_mutations(path, number, *, seed):
    """Read damaged forms of a file; how many were refused. No read takes more than four times the file, and a spare."""
    whole, beside = path.read_bytes(), sum(other.stat().st_size for other in path.parent.iterdir())
    refused = 0
    for step in range(number):
        draw = random.Random(f"{seed} {step}")
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 4))):
            content[draw.randrange(len(content))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        if draw.random() < 0.2:
            del content[draw.randrange(len(content)) :]
        path.write_bytes(content)
        tracemalloc.start()
        try:
            read_tensors(path)
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
            refused += 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 4 * beside + 2**21, step
    path.write_bytes(whole)
    return refused


def test_a_few_mutations(tmp_path):
    graph = node(FLOAT, shape(2, 3), VALUES) + node(FLOAT, shape(9), (5, bytes(4))).replace(b"a/weights", b"b/weights")
    (tmp_path / "x.pb").write_bytes(graph)
    assert 40 < read_mutations(tmp_path / "x.pb", 150, seed=1) < 150
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert 40 < read_mutations(files.write_checkpoint(folder / "m", SMALL), 150, seed=2) < 150


@pytest.mark.prove
def test_many_mutations(tmp_path):
    pytest.importorskip("tensorboard")
    graph = files.write_graph(tmp_path / "x.pb", SMALL)
    assert read_mutations(graph, 20_000, seed=3) > 5_000
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert read_mutations(files.write_checkpoint(folder / "m", SMALL), 20_000, seed=4) > 5_000


# --- SSD with MobileNetV2, the published file


def test_every_variable_of_the_published_ssd_has_its_place():
    """By the list of their names and shapes, without a number; 16.9 M of them."""
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in tensor_shapes(files.SSD).items()}
        weights = read_tensorflow(TensorFile(tensors, {}), WeightsSource("list", Path("list")), None, None)
    assert (len(tensors), sum(tensor.numel() for tensor in tensors.values())) == (344, 16_876_287)
    assert weights.config == find_preset(SSD).config and weights.skipped == ()
    shapes = shapes_of(build_on_meta(weights.config), counters=False)
    require_fit(shapes, {name: tuple(value.shape) for name, value in weights.tensors.items()}, source="list")


@pytest.fixture(scope="session")
def ssd_file(real_weights: Path) -> Path:
    pytest.importorskip("tensorboard")
    return real_weights / "ssd_mobilenet_v2_coco.pb"


@torch.no_grad()
def test_the_published_ssd_answers_as_its_graph(ssd_file, real_data):
    trained = load_detector(ssd_file)
    detector = trained.detector.eval()
    assert (trained.category_ids, detector.class_names) == (COCO_CATEGORY_IDS, COCO_CLASS_NAMES)
    assert detector.config == find_preset(SSD).config
    graph, columns = tensorflow_oracle.read_proto(ssd_file), np.array(COCO_CATEGORY_IDS) - 1
    best = []
    for path in sorted((real_data / "coco_mini" / "val2017").glob("*.jpg"))[:2]:
        rgb = np.array(Image.open(path).convert("RGB").resize((300, 300)))
        fed = {"Preprocessor/map/TensorArrayStack/TensorArrayGatherV3": rgb[None].astype(np.float32)}
        evaluate = tensorflow_oracle.Evaluator(graph, fed)
        scores, boxes = evaluate("Postprocessor/Slice")[0], evaluate("Postprocessor/ExpandDims_1")[0, :, 0]
        outputs = detector(torch.from_numpy(rgb).permute(2, 0, 1)[None], [ImageSize(300, 300)])
        assert outputs.logits.shape == (1, 1917, 80)
        np.testing.assert_allclose(outputs.logits[0].sigmoid(), scores[:, columns], atol=1e-5)
        decoded = decode(outputs.deltas[0] * torch.tensor(detector.config.variances), outputs.anchors)
        np.testing.assert_allclose(decoded, boxes[:, [1, 0, 3, 2]] * 300, atol=2e-3)
        assert np.delete(scores, columns, 1).max() < 0.01, "what is left out never speaks"
        best.append(float(outputs.logits.sigmoid().max()))
    assert max(best) > 0.5, "it sees something"


def test_a_training_starts_from_the_published_ssd(ssd_file):
    detector = build(SSD, class_names=("a", "b", "c"))
    report = load_into(detector, ssd_file)
    assert (report.kind, len(report.reset), len(report.loaded)) == ("detector", 12, 332)
    assert "class layer reset" in report.sentences()[-1] and "80 classes (person, bicycle" in report.sentences()[-1]


@pytest.mark.prove
def test_the_published_ssd_is_converted(ssd_file, tmp_path):
    conversion = convert(ssd_file, tmp_path / "ssd.safetensors")
    nothing = "none, each class is decided by itself"
    assert (conversion.model, conversion.layout, conversion.background) == (SSD, "tensorflow", nothing)
    assert all(
        name in ("Const", "add/y") or "Generator/" in name or "processor/" in name or name.endswith("/y")
        for name in conversion.skipped
    )
    first = next(tensor for tensor in conversion.tensors if tensor.name == "predictors.0.classes.weight")
    assert (first.made_of, first.shape) == (("BoxPredictor_0/ClassPredictor/weights",), (240, 576, 3, 3))
    again, whole = (load_detector(path).detector.state_dict() for path in (conversion.out, ssd_file))
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


# --- Faster R-CNN with Inception-ResNet-v2


@pytest.fixture
def thin(monkeypatch):
    """The preset with a quarter of the channels and few repeated blocks."""
    monkeypatch.setitem(INCEPTION_RESNETS, "inception_resnet_v2", InceptionResNetShape(1 / files.THIN, (1, 2, 1)))
    for name in (GRMI, ATROUS):
        preset = find_preset(name)
        config = preset.config.replace(rpn_head=RPNHeadConfig(width=512 // files.THIN, relu6=True, softmax=True))
        monkeypatch.setitem(PRESETS, name, replace(preset, config=config))


def test_the_list_is_that_of_the_published_network():
    """DETECTORS of the paper's row, without a scale of BatchNorm and with its statistics."""
    shapes = files.grmi_shapes(thin=False)
    statistics = sum(np.prod(shape) for name, shape in shapes.items() if "/moving_" in name)
    assert (len(shapes), sum(np.prod(shape) for shape in shapes.values()) - statistics) == (906, 60_020_331)
    with torch.device("meta"):
        detector = build(ATROUS, num_classes=90, architecture={"norm": "batch"})
    assert sum(parameter.numel() for parameter in detector.parameters()) == 60_020_331


@torch.no_grad()
def require_equal_detector(path, arrays, *, stride, size, keep):
    """Compare every output of a loaded detector with the oracle's; gives the largest differences."""
    trained = load_detector(path)
    detector, (height, width) = trained.detector.eval(), size
    config = detector.config
    assert config == find_preset(ATROUS if stride == 8 else GRMI).config.replace(num_classes=90)
    assert trained.category_ids == tuple(range(1, 91)) and detector.class_names[0] == "person"
    limits = replace(config.proposals, detect=ProposalLimits(config.proposals.detect.top_k, keep))
    detector.config = config.replace(proposals=limits)
    source = torch.Generator().manual_seed(3)
    spots = torch.rand(1, 3, height // 8, width // 8, generator=source)
    rgb = (255 * torch.nn.functional.interpolate(spots, size=size, mode="bilinear")).to(torch.uint8)
    outputs = detector(rgb, [ImageSize(*size)])
    oracle = grmi_oracle.FasterRCNNOracle(arrays, stride=stride)
    features = oracle.trunk(2 / 255 * rgb.float() - 1)
    values, boxes, regions = oracle.proposals(features, size, keep)
    flipped = [part.reshape(-1, 3, 4, part.shape[1])[:, ::-1].reshape(len(part), -1) for part in (values, boxes)]
    rpn = outputs.rpn
    decoded = decode(rpn.deltas[0] / torch.tensor(config.anchor_weights), rpn.anchors)
    logits, deltas = oracle.classify(features, outputs.regions[:, [1, 0, 3, 2]].double().numpy(), size)
    differences = {
        "objectness": np.abs(rpn.objectness[0].numpy() - (flipped[0][:, 1] - flipped[0][:, 0])).max(),
        "anchor boxes": np.abs(decoded.numpy() - flipped[1][:, [1, 0, 3, 2]]).max(),
        "regions": np.abs(outputs.regions.numpy() - regions[:, [1, 0, 3, 2]]).max(),
        "logits": np.abs(outputs.logits.numpy() - np.roll(logits, -1, 1)).max(),
        "boxes": np.abs(outputs.deltas.numpy() - deltas[..., [1, 0, 3, 2]]).max(),
    }
    (detections,) = detector.detect(outputs, [ImageSize(*size)])
    best, scores, ids = oracle.detections(*oracle.classify(features, regions, size), regions, size)
    assert detections.labels.tolist() == (ids - 1).tolist() and len(set(ids)) > 5
    differences["scores"] = np.abs(detections.scores.numpy() - scores).max()
    differences["detections"] = np.abs(detections.boxes.numpy() - best[:, [1, 0, 3, 2]]).max()
    assert logits.std() > 0.3 and values.std() > 0.3, "a dead network proves nothing"
    for name, value in differences.items():
        assert value < (5e-2 if name in ("anchor boxes", "regions", "detections") else 5e-3), differences
    return differences


@pytest.mark.parametrize("stride", [8, 16])
def test_the_faster_rcnn_of_a_graph_answers_as_written_out(tmp_path, thin, stride):
    pytest.importorskip("tensorboard")
    arrays = grmi_oracle.lively_arrays(files.grmi_shapes(thin=True), seed=5)
    scales = {
        "FirstStageFeatureExtractor/InceptionResnetV2/InceptionResnetV2/Conv2d_1a_3x3/BatchNorm/Const": np.ones(8)
    }
    path = files.write_graph(tmp_path / "frozen.pb", arrays | scales, stride=stride // 8)
    require_equal_detector(path, arrays, stride=stride, size=(64, 80), keep=12)


@pytest.mark.prove
def test_the_faster_rcnn_at_full_size(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    arrays = grmi_oracle.lively_arrays(files.grmi_shapes(thin=False), seed=5)
    path = files.write_graph(tmp_path / "frozen.pb", arrays)
    differences = require_equal_detector(path, arrays, stride=8, size=(96, 128), keep=10)
    path.unlink()
    with capsys.disabled():
        print(f"\n{GRMI}, atrous: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))


def test_a_checkpoint_of_the_faster_rcnn(tmp_path, thin):
    """No graph states its stride: it is the published one's, or that of the detector it goes into."""
    arrays = grmi_oracle.lively_arrays(files.grmi_shapes(thin=True), seed=5)
    files.write_checkpoint(
        tmp_path / "model.ckpt", arrays | {"global_step": np.array(3), "Conv/biases/Momentum": arrays["Conv/biases"]}
    )
    assert load_detector(tmp_path / "model.ckpt").detector.config.output_stride == 8
    detector = build(GRMI, class_names=("a",))
    report = load_into(detector, tmp_path / "model.ckpt")
    assert detector.config.output_stride == 16 and set(report.skipped) == {"global_step", "Conv/biases/Momentum"}
    assert report.reset == (
        "predictor.classes.weight",
        "predictor.classes.bias",
        "predictor.boxes.weight",
        "predictor.boxes.bias",
    )
    assert any("neither ε of BatchNorm nor strides" in note for note in report.notes)


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"Conv/weights": None}, {}, "missing rpn_head.tower.0.weight$"),
        ({"Conv_1/weights": np.zeros((1, 1, 8, 8))}, {}, "left over Conv_1/weights$"),
        (
            {"FirstStageBoxPredictor/ClassPredictor/biases": np.zeros(18)},
            {},
            r"objectness.bias has shape \(18,\), must have 24",
        ),
        ({"SecondStageBoxPredictor/ClassPredictor/biases": np.zeros(())}, {}, "is not of a whole number of classes"),
        ({"FirstStageFeatureExtractor/InceptionResnetV2/Conv2d_1a_3x3/weights": None}, {}, "this is another one"),
        ({"x/BatchNorm/batchnorm/add/y": np.array(0.01)}, {}, "its BatchNorms have ε of 0.001, 0.01"),
        (
            {"FirstStageFeatureExtractor/InceptionResnetV2/Mixed_6a/BatchNorm/Const": np.array([2.0])},
            {},
            "left over .*Const$",
        ),
        ({}, {"stride": 4}, "its trunk has a stride of 32, must be 8 or 16"),
    ],
)
def test_graphs_that_do_not_fit(tmp_path, thin, changes, settings, words):
    pytest.importorskip("tensorboard")
    arrays = grmi_oracle.lively_arrays(files.grmi_shapes(thin=True), seed=5) | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(FocaldetError, match=words) as caught:
        load_detector(files.write_graph(tmp_path / "frozen.pb", arrays, **settings))
    assert "frozen.pb" in str(caught.value) and "\n" not in str(caught.value)
