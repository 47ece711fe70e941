"""mmdetection's files: written from the committed lists of its tensors, read, and compared with an oracle."""

import pickle
import sys
import types
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from focaldet.errors import CheckpointError
from focaldet.models import build, find_preset
from focaldet.types import Preprocessing, Resize
from focaldet.weights import load_detector, load_into, save_detector
from focaldet.weights.formats.detector_weights import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.formats.mmdetection import read_mmdetection
from focaldet.weights.sources import WeightsSource
from focaldet.weights.tensor_names import COUNTER, build_on_meta, shapes_of
from tests.weights.formats import peer_oracle as oracle
from tests.weights.formats.peer_comparison import noise_image, require_equal_outputs

PARAMETERS = {
    "retinanet_r50": 37_968_692,
    "retinanet_r101": 56_960_820,
    "faster_rcnn_r50_fpn": 41_753_056,
    "faster_rcnn_r101_fpn": 60_745_184,
    "faster_rcnn_r101_c4": 52_836_892,
}
"""As mmdetection counts them."""
STYLES = {"pytorch": oracle.MMDetection, "caffe": oracle.MMDetectionCaffe}
FASTER_RCNN = {"background_box": False, "pooling": {"sampling_ratio": 0}}
RESIZE = Resize(antialias=False)
CAFFE = Preprocessing("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), resize=RESIZE)
CONFIGS = {
    3: """
model = dict(
    backbone=dict(depth=50, norm_cfg=dict(requires_grad=False, type='BN'), style='caffe', type='ResNet'),
    data_preprocessor=dict(
        bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], pad_size_divisor=32, std=[1.0, 1.0, 1.0]),
    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])),
        bbox_roi_extractor=dict(roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'))),
    rpn_head=dict(anchor_generator=dict(ratios=[0.5, 1.0, 2.0], scales=[8], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(target_stds=[1.0, 1.0, 1.0, 1.0])))
train_pipeline = [dict(keep_ratio=True, scales=[(1333, 640), (1333, 800)], type='RandomChoiceResize')]
""",
    2: """
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(type='FasterRCNN', backbone=dict(type='ResNet', depth=50, style="pytorch"))
""",
}


@pytest.fixture(autouse=True)
def hollow_files_may_be_read(monkeypatch):
    """Their tensors repeat one number, which files may not do: here they stand for some hundred megabytes."""
    monkeypatch.setattr("focaldet.weights.formats.torch_files.judge_file", lambda path: None)


def hollow(name, **changes):
    """Tensors of the right shapes that hold nothing and cost nothing; None takes one away."""
    tensors = {
        key: torch.zeros(1).expand(shape) if shape else torch.tensor(7)
        for key, shape in oracle.tensor_shapes(f"mmdetection_{name}").items()
    }
    return {key: value for key, value in (tensors | changes).items() if value is not None}


@pytest.fixture
def file(tmp_path):
    """A file of such tensors, as mmdetection writes one."""

    def written(name="faster_rcnn_r50_fpn", *, meta=None, **changes):
        content = {"state_dict": hollow(name, **changes), "meta": meta or {}, "optimizer": {"param_groups": []}}
        torch.save(content, tmp_path / "epoch_12.pth")
        return tmp_path / "epoch_12.pth"

    return written


def differences(name, folder, style, *, size, top_k, keep, seed=1):
    tensors = oracle.lively_tensors(oracle.tensor_shapes(f"mmdetection_{name}"), seed=seed)
    network, rgb = oracle.Network(tensors, STYLES[style], top_k=top_k, keep=keep), noise_image(*size)
    with torch.no_grad():
        oracle.livened(network, rgb)
    path = folder / "epoch_12.pth"
    torch.save({"state_dict": tensors, "meta": {"cfg": f"backbone=dict(style='{style}')"}}, path)
    return require_equal_outputs(load_detector(path).detector, network, rgb)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("retinanet_r50", "pytorch"),
        ("faster_rcnn_r50_fpn", "pytorch"),
        ("faster_rcnn_r50_fpn", "caffe"),
        pytest.param("faster_rcnn_r101_c4", "caffe", marks=pytest.mark.prove),
    ],
)
def test_a_loaded_network_answers_as_mmdetection(tmp_path, name, style):
    """Anchors, their order in the channels, the background, input, strides, RoIAlign and box weights are its own."""
    differences(name, tmp_path, style, size=(100, 150), top_k=300, keep=40)


@pytest.mark.prove
@pytest.mark.parametrize("name", list(PARAMETERS))
def test_at_full_size(tmp_path, name, capsys):
    is_c4 = name.endswith("c4")
    style, top_k = ("caffe", 6000) if is_c4 else ("pytorch", 1000)
    largest = differences(name, tmp_path, style, size=(600, 800), top_k=top_k, keep=300)
    with capsys.disabled():
        print(f"\nmmdetection {name}: {', '.join(f'{key} {value:.1e}' for key, value in largest.items())}")


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_every_tensor_of_the_lists_finds_its_place(name):
    tensors = hollow(name)
    weights = read_mmdetection(TensorFile(tensors, {}), WeightsSource("file", Path("file")), None, None)
    shapes = {key: tuple(value.shape) for key, value in weights.tensors.items() if not key.endswith(COUNTER)}
    assert shapes == shapes_of(build_on_meta(weights.config), counters=False) and weights.skipped == ()
    counted = [key for key in tensors if not key.endswith(("running_mean", "running_var", COUNTER))]
    assert sum(tensors[key].numel() for key in counted) == PARAMETERS[name]


def test_the_file_says_what_it_is(file):
    trained = load_detector(file())
    base = find_preset("faster_rcnn_r50_fpn").config
    pooling = replace(base.pooling, sampling_ratio=0)
    assert trained.detector.config == replace(base, background_box=False, pooling=pooling)
    assert trained.detector.class_names == COCO_CLASS_NAMES and trained.category_ids == COCO_CATEGORY_IDS
    assert trained.detector.preprocessing == Preprocessing(resize=RESIZE)


def test_c4_is_of_caffes_style_and_has_the_ratios_outside(file):
    detector = load_detector(file("faster_rcnn_r101_c4")).detector
    assert (detector.config.stride_in_1x1, detector.config.anchors.order) == (True, "ratio, scale")
    assert detector.config.backbone == "resnet101" and detector.preprocessing == CAFFE


def test_the_config_in_a_file_tells_style_and_input(file):
    caffe = load_detector(file(meta={"cfg": CONFIGS[3], "mmdet_version": "3.3.0"})).detector
    assert caffe.config.stride_in_1x1 and caffe.preprocessing == CAFFE
    pytorch = load_detector(file(meta={"config": CONFIGS[2], "mmdet_version": "2.25.0"})).detector
    assert not pytorch.config.stride_in_1x1 and pytorch.preprocessing == Preprocessing(resize=RESIZE)
    strange = CONFIGS[3].replace("std=[1.0, 1.0, 1.0]", "std=[0.0, 1.0, 1.0]")
    assert load_detector(file(meta={"cfg": strange})).detector.preprocessing == CAFFE, "the default of its style"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("scales=[8]", "scales=[4]", r"epoch_12.pth: its config has scales 4, must be 8 or 2, 4, 8, 16, 32$"),
        ("[0.5, 1.0, 2.0]", "[0.5, 1.0]", r"its config has ratios 0.5,1.0, must be 0.5, 1, 2$"),
        ("[0.1, 0.1, 0.2, 0.2]", "[0.05, 0.05, 0.1, 0.1]", r"its config has target_stds 0.05,0.05,0.1,0.1, must be"),
        ("sampling_ratio=0", "sampling_ratio=2", r"its config has sampling_ratio 2, must be 0$"),
    ],
)
def test_a_config_with_other_numbers_is_refused(file, old, new, words):
    with pytest.raises(CheckpointError, match=words):
        load_detector(file(meta={"cfg": CONFIGS[3].replace(old, new)}))


def test_retinanet_has_no_p7_relu_unless_its_config_says_so(file):
    retinanet = load_detector(file("retinanet_r50")).detector
    assert retinanet.config == replace(find_preset("retinanet_r50_fpn").config, p7_relu=False)
    text = "neck=dict(add_extra_convs='on_input', relu_before_extra_convs=True, type='FPN')"
    assert (
        load_detector(file("retinanet_r50", meta={"cfg": text})).detector.config
        == find_preset("retinanet_r50_fpn").config
    )
    words = "p7_relu is False in the file, True here"
    with pytest.raises(CheckpointError, match=words):
        load_into(build("retinanet_r50_fpn"), file("retinanet_r50"))


def test_without_a_config_a_named_input_or_the_detector_tells_the_style(file):
    path = file()
    detector = load_detector(path, input="detectron2").detector
    assert detector.config.stride_in_1x1 and detector.preprocessing == CAFFE
    assert not load_detector(path, input="symmetric").detector.config.stride_in_1x1
    caffe = build("faster_rcnn_r50_fpn", architecture={**FASTER_RCNN, "stride_in_1x1": True})
    assert load_into(caffe, path).preprocessing == replace(CAFFE, resize=Resize())
    with pytest.raises(CheckpointError, match="stride_in_1x1 is False in the file, True here"):
        load_into(caffe, path, input="imagenet")


def test_the_license_and_the_classes_go_into_a_file_of_focaldet(tmp_path, file):
    names = tuple(f"class {number}" for number in range(80))
    detector = build("faster_rcnn_r50_fpn", architecture=FASTER_RCNN)
    report = load_into(detector, file(meta={"dataset_meta": {"classes": names}}))
    assert (report.kind, report.reset, report.skipped) == ("detector", (), ()) and "Apache-2.0" in report.license
    assert any("imagenet (RGB)" in line for line in report.sentences())
    assert any("configs for COCO" in line for line in report.sentences())
    save_detector(tmp_path / "own.safetensors", detector, license=report.license)
    assert load_detector(tmp_path / "own.safetensors").detector.class_names == names
    assert load_detector(file(meta={"CLASSES": names})).category_ids == (), "not COCO's classes"


def test_classes_of_another_number(file):
    layers = {"fc_cls": 3, "fc_reg": 8}
    rows = {f"roi_head.bbox_head.{layer}.weight": torch.zeros(count, 1024) for layer, count in layers.items()}
    rows |= {f"roi_head.bbox_head.{layer}.bias": torch.zeros(count) for layer, count in layers.items()}
    detector = load_detector(file(meta={"CLASSES": ("a", "b")}, **rows)).detector
    assert (detector.config.num_classes, detector.class_names) == (2, ("a", "b"))
    assert load_detector(file(meta={"CLASSES": ("a",)}, **rows)).detector.class_names == (), "as many as none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rpn_head.rpn_cls.bias": None}, "missing rpn_head.objectness.bias$"),
        ({"neck.fpn_convs.3.conv.weight": None}, "missing pyramid.output.3.weight$"),
        ({"backbone.layer3.5.bn2.running_var": None}, "missing backbone.layer3.5.bn2.running_var$"),
        ({"backbone.layer3.5.conv1.weight": None}, r"has 3 \+ 4 \+ 5 \+ 3 blocks"),
        ({"neck.fpn_convs.0.bn.weight": torch.zeros(256)}, "left over neck.fpn_convs.0.bn.weight$"),
        ({"roi_head.mask_head.conv_logits.bias": torch.zeros(80)}, "left over roi_head.mask_head.conv_logits.bias$"),
        ({"ema_backbone_conv1_weight": torch.zeros(1)}, "left over ema_backbone_conv1_weight$"),
        (
            {"roi_head.bbox_head.fc_reg.bias": torch.zeros(324)},
            r"predictor.boxes.bias has shape \(324,\) in the file, \(320,\) in the network",
        ),
        ({"roi_head.bbox_head.fc_cls.weight": torch.zeros(1, 1024)}, "not of a whole number of classes"),
    ],
)
def test_wrong_files_give_one_clear_error(file, changes, words):
    path = file(**changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_detector(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_old_versions_are_refused(file):
    with pytest.raises(
        CheckpointError, match=r"is of mmdetection 1\.2\.0, whose classes and boxes are counted otherwise"
    ):
        load_detector(file(meta={"mmdet_version": "1.2.0"}))


class HistoryBuffer:
    """What mmengine keeps in a training checkpoint is of a class like this one."""

    def __init__(self):
        self.max_length = 1_000_000
        self._log_history = numpy.array([0.5, 0.25])
        self._count_history = numpy.array([1, 1])


def test_training_checkpoints_of_mmengine_are_read_without_it(tmp_path, monkeypatch):
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = type("HistoryBuffer", (HistoryBuffer,), {"__module__": module.__name__})
    hub = {
        "log_scalars": OrderedDict({"train/loss": module.HistoryBuffer()}),
        "runtime_info": OrderedDict({"epoch": 12, "loss": numpy.float64(0.5)}),
    }
    path = tmp_path / "epoch_12.pth"
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        torch.save({"state_dict": hollow("faster_rcnn_r50_fpn"), "message_hub": hub, "meta": {"epoch": 12}}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert load_detector(path).detector.config.backbone == "resnet50"
    torch.save({"state_dict": hollow("faster_rcnn_r50_fpn") | {"neck.array": numpy.zeros(3)}}, path)
    with pytest.raises(CheckpointError, match=r"neck\.array: must be a tensor, got IgnoredObject"):
        load_detector(path)


def test_code_beside_the_weights_is_named(tmp_path):
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": hollow("faster_rcnn_r50_fpn"), "message_hub": HistoryBuffer()}, path)
    with pytest.raises(CheckpointError, match=r"it holds code \([\w.]*HistoryBuffer\), which is never run"):
        load_detector(path)
