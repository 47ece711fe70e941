"""darknet's `.weights`, written here byte by byte in the order of the cfg, and read, trained from and written again."""

import struct

import numpy as np
import pytest
import torch

from focaldet.cli import main
from focaldet.errors import CheckpointError
from focaldet.models import build
from focaldet.prediction import load
from focaldet.weights import load_detector, load_into
from focaldet.weights.formats.darknet import read_darknet, write_darknet
from focaldet.weights.formats.detector_weights import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from tests.batches import full_sizes
from tests.models import darknet_oracle as oracle

FACTOR, ANCHORS = 0.25, 5


def layers_of(classes):
    return oracle.yolov2_layers(ANCHORS * (5 + classes), factor=FACTOR, width=256, passthrough=16)


def content_of(convolutions, *, version=(0, 2, 0), seen=32_013_312):
    """The bytes of a file: header, then everything as float32."""
    count = struct.pack("<q" if version[0] * 10 + version[1] >= 2 else "<i", seen)
    return struct.pack("<3i", *version) + count + oracle.flat_floats(convolutions).tobytes()


@pytest.fixture(scope="module")
def convolutions():
    """Random weights of `yolov2_tiny` with 80 classes."""
    return oracle.lively_weights(oracle.conv_shapes(layers_of(80)), seed=11)


@pytest.fixture
def file(tmp_path, convolutions):
    path = tmp_path / "tiny.weights"
    path.write_bytes(content_of(convolutions))
    return path


@pytest.mark.parametrize(("version", "header"), [((0, 1, 0), 16), ((0, 2, 0), 20), ((0, 2, 5), 20)])
def test_both_headers(tmp_path, version, header):
    path = tmp_path / "two.weights"
    path.write_bytes(content_of([[np.array([1.5, -2.0], np.float32), None]], version=version, seen=77))
    content = read_darknet(path)
    assert path.stat().st_size == header + 8
    assert (content.version, content.images_seen, content.numbers.tolist()) == (version, 77, [1.5, -2.0])


def test_a_loaded_network_answers_as_darknet(file, convolutions):
    """Through the file, against the float64 transcription, which has its weights from elsewhere."""
    detector = load("yolov2_tiny", weights=file, device="cpu", precision="fp32").detector.eval()
    image = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    raw = oracle.network(image[0].numpy() / 255.0, layers_of(80), convolutions).reshape(ANCHORS, 85, -1)
    with torch.no_grad():
        outputs = detector(image, full_sizes(image))
    together = torch.cat([outputs.deltas, outputs.objectness[..., None], outputs.logits], -1)[0]
    expected = raw.transpose(2, 0, 1).reshape(-1, 85)
    assert np.abs(together.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_80_classes_are_cocos(file):
    trained = load_detector(file, model="yolov2_tiny")
    assert trained.detector.class_names == COCO_CLASS_NAMES
    assert (len(COCO_CLASS_NAMES), COCO_CLASS_NAMES[0], COCO_CLASS_NAMES[-1]) == (80, "person", "toothbrush")
    assert trained.category_ids == COCO_CATEGORY_IDS
    assert (COCO_CATEGORY_IDS[0], COCO_CATEGORY_IDS[11], COCO_CATEGORY_IDS[-1]) == (1, 13, 90)


def test_other_classes_keep_everything_but_the_last_layer(file):
    detector = build("yolov2_tiny", class_names=("a", "b"))
    fresh = detector.predict.weight.detach().clone()
    report = load_into(detector, file)
    assert report.kind == "detector" and report.reset == ("predict.weight", "predict.bias")
    assert torch.equal(detector.predict.weight, fresh)
    assert detector.preprocessing.std == (255.0, 255.0, 255.0)
    assert any("states neither anchors nor classes" in line for line in report.sentences())


def test_a_file_with_another_number_of_classes_is_understood(tmp_path):
    drawn = oracle.lively_weights(oracle.conv_shapes(layers_of(7)), seed=1)
    (tmp_path / "seven.weights").write_bytes(content_of(drawn))
    trained = load_detector(tmp_path / "seven.weights", model="yolov2_tiny")
    assert trained.detector.config.num_classes == 7 and trained.category_ids == ()
    assert np.array_equal(trained.detector.predict.weight.detach().numpy(), drawn[-1][-1])


@pytest.mark.parametrize("classes", [0, 1000])
def test_a_classifier_gives_its_backbone(tmp_path, convolutions, classes):
    """darknet19.weights, and darknet19_448.conv.23, whose last layer was cut off."""
    rest = [[np.zeros(classes, np.float32), None, None, None, np.ones((classes, 256), np.float32)]] if classes else []
    path = tmp_path / ("darknet19.weights" if classes else "darknet19_448.conv.23")
    path.write_bytes(content_of([*convolutions[:18], *rest], version=(0, 1, 0)))
    for name, architecture in (("yolov2_tiny", {}), ("retinanet_r18_fpn", {"backbone": "darknet19_quarter"})):
        detector = build(name, class_names=("a",), architecture=architecture)
        report = load_into(detector, path)
        assert (report.kind, len(report.loaded)) == ("backbone", 18 * 5)
        assert report.skipped == (("the classifier",) if classes else ())
        last = detector.get_submodule("backbone.blocks.5.4")
        assert np.array_equal(last.conv.weight.detach().numpy(), convolutions[17][4])
        assert np.array_equal(last.norm.running_var.numpy(), convolutions[17][3])
    with pytest.raises(CheckpointError, match="is a classifier"):
        load_detector(path, model="yolov2_tiny")


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_what_is_written_is_what_was_read(tmp_path, file, convolutions, version):
    detector = load_detector(file, model="yolov2_tiny").detector
    write_darknet(tmp_path / "again.weights", detector, images_seen=5, version=version)
    expected = content_of(convolutions, version=(0, int(version[-1]), 0), seen=5)
    assert (tmp_path / "again.weights").read_bytes() == expected


@pytest.mark.prove
def test_the_released_file_has_203_934_260_bytes(tmp_path):
    write_darknet(tmp_path / "yolov2.weights", build("yolov2"), version="0.1")
    assert (tmp_path / "yolov2.weights").stat().st_size == 203_934_260
    assert load_detector(tmp_path / "yolov2.weights", model="yolov2").detector.config.num_classes == 80


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: content[:7], "7 bytes are less than its header"),
        (lambda content: content[:14], "damaged: 14 bytes"),
        (lambda content: content[:-2], "whole number of float32"),
        (lambda content: content[:-4], "numbers are too short: this one has 3,276,385 with 5 anchors, 80 classes"),
        (lambda content: content + b"\0" * 8, "numbers are too long"),
        (lambda content: struct.pack("<3i", 1, 2, 0) + content[12:], "its header says 1.2, known are 0.1 and 0.2"),
        (lambda content: struct.pack("<3i", 0, 2000, 0) + content[12:], "its header says 0.2000"),
        (lambda content: b"[net]\nwidth=608\nheight=608\n" * 40, "not a darknet file, or of an unknown version"),
        (lambda content: b"", "0 bytes are less than its header"),
        (lambda content: None, "is not a run folder with weights"),
    ],
)
def test_bad_files_give_one_clear_error(tmp_path, convolutions, spoil, words):
    path = tmp_path / "bad.weights"
    content = spoil(content_of(convolutions))
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_into(build("yolov2_tiny"), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


BAD_FILES = {
    "short": (lambda content: content[:-4], "made for another network"),
    "long": (lambda content: content + bytes(8), "made for another network"),
    "cut": (lambda content: content[:-2], "damaged"),
    "version": (
        lambda content: struct.pack("<3i", 1, 2, 0) + content[12:],
        "of an unknown version: its header says 1.2",
    ),
    "text": (lambda content: b"[net]\nwidth=608\n" * 40, "not a darknet file"),
    "empty": (lambda content: b"", "0 bytes are less than its header"),
    "folder": (None, "is not a run folder with weights"),
}


def refusal(capsys, demo_data, tmp_path, *flags):
    """What the command says in its one line before it gives up; it leaves no run."""
    out = tmp_path / "run"
    line = ["train", "--data", demo_data, "--data.val", demo_data / "instances_test.json", "--model", "yolov2_tiny"]
    line += ["--size", 64, "--epochs", 1, "--device", "cpu", "--out", out, *flags]
    assert main([str(word) for word in line]) == 2
    text = capsys.readouterr().err
    assert text.startswith("focaldet: ") and text.count("\n") == 1 and "Traceback" not in text
    assert not (out / "weights" / "last.safetensors").exists()
    return text


@pytest.mark.parametrize("name", BAD_FILES)
def test_the_command_tells_a_bad_file_in_one_line(capsys, demo_data, tmp_path, convolutions, name):
    spoil, words = BAD_FILES[name]
    path = tmp_path / f"{name}.weights"
    if spoil is None:
        path.mkdir()
    else:
        path.write_bytes(spoil(content_of(convolutions)))
    text = refusal(capsys, demo_data, tmp_path, "--weights", path)
    assert str(path) in text and words in text


@pytest.mark.parametrize(
    ("anchors", "words"),
    [
        ("[[1,2],[3,4]]", "with 2 anchors, 10 classes"),
        ("[[1,-2]]", "anchors.0.1: Input should be greater than 0, got -2"),
        ("[[0,2]]", "anchors.0.0: Input should be greater than 0, got 0"),
        ("[[1,.nan]]", "anchors.0.1: Input should be a finite number, got nan"),
        ("[[1,.inf]]", "anchors.0.1: Input should be a finite number, got inf"),
        ("[[1]]", "anchors.0.1: Field required, got [1]"),
        ("[[1,2,3]]", "anchors.0: Tuple should have at most 2 items"),
        ("[1,2]", "anchors.0: Input should be a list such as [1,2], got 1"),
        ("[]", "anchors: Tuple should have at least 1 item"),
        ("five", "anchors: Input should be a list such as [1,2], got 'five'"),
    ],
)
def test_the_command_tells_bad_anchors_in_one_line(capsys, demo_data, tmp_path, file, anchors, words):
    text = refusal(capsys, demo_data, tmp_path, "--weights", file, "--architecture.anchors", anchors)
    assert words in text and (str(file) in text or "architecture of yolov2_tiny" in text)


def test_what_is_not_a_darknet_network_is_refused(tmp_path, file):
    with pytest.raises(CheckpointError, match="does not state its network: name one"):
        load_detector(file)
    with pytest.raises(CheckpointError, match="are of YOLOv2 with DarkNet-19, not RetinaNetConfig with resnet18"):
        load_into(build("retinanet_r18_fpn"), file)
    with pytest.raises(CheckpointError, match="not YOLOv2Config with resnet18"):
        write_darknet(tmp_path / "x.weights", build("yolov2_tiny", architecture={"backbone": "resnet18"}))
    with pytest.raises(CheckpointError, match="norm must be batch or frozen"):
        load_into(build("yolov2_tiny", architecture={"norm": "group"}), file)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_darknet(tmp_path / "missing.weights")
