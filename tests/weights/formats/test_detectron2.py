"""detectron2's files: written from the committed lists of its tensors, read, and compared with an oracle."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from focaldet.errors import CheckpointError
from focaldet.models import build, find_preset
from focaldet.prediction import load
from focaldet.types import Preprocessing
from focaldet.weights import load_detector, load_into, save_detector
from focaldet.weights.formats.detector_weights import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from focaldet.weights.formats.detectron2 import read_detectron2
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.normalization import with_input
from focaldet.weights.sources import WeightsSource
from focaldet.weights.tensor_names import build_on_meta, shapes_of
from tests.weights.formats import peer_oracle as oracle
from tests.weights.formats.peer_comparison import noise_image, require_equal_outputs

PARAMETERS = {
    "retinanet_r50": 37_915_572,
    "retinanet_r101": 56_855_476,
    "faster_rcnn_r50_fpn": 41_699_936,
    "faster_rcnn_r101_fpn": 60_639_840,
    "faster_rcnn_r101_c4": 52_731_548,
}
"""As detectron2 counts them; the last also in the plan, by hand."""
PRESET_NAMES = {"retinanet_r50": "retinanet_r50_fpn", "retinanet_r101": "retinanet_r101_fpn"}
RETINANET = {"stride_in_1x1": True, "anchors": {"order": "scale, ratio"}}
FASTER_RCNN = {**RETINANET, "background_box": False, "pooling": {"sampling_ratio": 0}}


@pytest.fixture(autouse=True)
def hollow_files_may_be_read(monkeypatch):
    """Their tensors repeat one number, which files may not do: here they stand for some hundred megabytes."""
    monkeypatch.setattr("focaldet.weights.formats.torch_files.judge_file", lambda path: None)


def hollow(name, **changes):
    """Tensors of the right shapes that hold nothing and cost nothing; None takes one away."""
    tensors = {key: torch.zeros(1).expand(shape) for key, shape in oracle.tensor_shapes(f"detectron2_{name}").items()}
    return {key: value for key, value in (tensors | changes).items() if value is not None}


@pytest.fixture
def file(tmp_path):
    """A file of such tensors, as detectron2 writes one in training."""

    def written(name, **changes):
        torch.save({"model": hollow(name, **changes), "iteration": 89_999}, tmp_path / "model_final.pth")
        return tmp_path / "model_final.pth"

    return written


def in_model_zoo(tensors, path):
    """Write a file as those of detectron2's model zoo."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


def differences(name, folder, *, size, top_k, keep, seed=1):
    tensors = oracle.lively_tensors(oracle.tensor_shapes(f"detectron2_{name}"), seed=seed)
    network, rgb = oracle.Network(tensors, oracle.Detectron2, top_k=top_k, keep=keep), noise_image(*size)
    with torch.no_grad():
        oracle.livened(network, rgb)
    detector = load_detector(in_model_zoo(tensors, folder / "model_final.pkl")).detector
    return require_equal_outputs(detector, network, rgb)


@pytest.mark.parametrize(
    "name", ["retinanet_r50", "faster_rcnn_r50_fpn", pytest.param("faster_rcnn_r101_c4", marks=pytest.mark.prove)]
)
def test_a_loaded_network_answers_as_detectron2(tmp_path, name):
    """Anchors, their order in the channels, the background, BGR, strides, RoIAlign and box weights are detectron2's."""
    differences(name, tmp_path, size=(100, 150), top_k=300, keep=40)


@pytest.mark.prove
@pytest.mark.parametrize("name", list(PARAMETERS))
def test_at_full_size(tmp_path, name, capsys):
    largest = differences(name, tmp_path, size=(600, 800), top_k=6000 if name.endswith("c4") else 1000, keep=300)
    with capsys.disabled():
        print(f"\ndetectron2 {name}: {', '.join(f'{key} {value:.1e}' for key, value in largest.items())}")


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_every_tensor_of_the_lists_finds_its_place(name):
    weights = read_detectron2(TensorFile(hollow(name), {}), WeightsSource("file", Path("file")), None, None)
    shapes = {key: tuple(value.shape) for key, value in weights.tensors.items()}
    assert shapes == shapes_of(build_on_meta(weights.config)) and weights.skipped == ()
    layers = {key.rpartition(".")[0] for key in shapes if key.endswith("running_var")}
    counted = [key for key in shapes if key.rpartition(".")[0] not in layers]
    assert sum(torch.Size(shapes[key]).numel() for key in counted) == PARAMETERS[name]


@pytest.mark.parametrize(
    "name", ["retinanet_r50", "faster_rcnn_r101_fpn", pytest.param("faster_rcnn_r101_c4", marks=pytest.mark.prove)]
)
def test_the_file_says_what_it_is(file, name):
    trained = load_detector(file(name))
    detector, base = trained.detector, find_preset(PRESET_NAMES.get(name, name)).config
    expected = replace(base, stride_in_1x1=True, anchors=replace(base.anchors, order="scale, ratio"))
    if name.startswith("retinanet"):
        expected = replace(expected, detect=replace(base.detect, clip_first=False))
    else:
        expected = replace(expected, background_box=False, pooling=replace(base.pooling, sampling_ratio=0))
    assert detector.config == expected and detector.config.num_classes == 80
    assert detector.class_names == COCO_CLASS_NAMES and trained.category_ids == COCO_CATEGORY_IDS
    divisor = 1 if name.endswith("c4") else 32
    pixels = Preprocessing("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), size_divisor=divisor)
    assert detector.preprocessing == pixels


def test_the_license_and_the_classes_go_into_a_file_of_focaldet(tmp_path, file):
    detector = build("retinanet_r50_fpn", architecture=RETINANET)
    report = load_into(detector, file("retinanet_r50"))
    assert (report.kind, report.reset, report.skipped) == ("detector", (), ()) and "CC BY-SA 3.0" in report.license
    assert any("detectron2 (BGR)" in line for line in report.sentences())
    assert any("configs for COCO" in line for line in report.sentences())
    save_detector(tmp_path / "own.safetensors", detector, license=report.license)
    again = load_detector(tmp_path / "own.safetensors").detector
    assert again.config == detector.config and again.preprocessing == detector.preprocessing
    assert again.class_names == COCO_CLASS_NAMES


def test_other_classes_keep_everything_but_the_class_layers(file):
    detector = build("faster_rcnn_r50_fpn", class_names=("a", "b"), architecture=FASTER_RCNN)
    report = load_into(detector, file("faster_rcnn_r50_fpn"))
    layers = [f"predictor.{layer}.{part}" for layer in ("classes", "boxes") for part in ("weight", "bias")]
    assert sorted(report.reset) == sorted(layers) and len(report.loaded) == 295 - 4
    assert detector.class_names == ("a", "b") and not detector.roi_head.fc6.weight.any()


def test_a_network_of_other_depth_and_classes(file):
    """RetinaNet with five classes: no names, no category ids."""
    rows = {"head.cls_score.weight": torch.zeros(45, 256, 3, 3), "head.cls_score.bias": torch.zeros(45)}
    trained = load_detector(file("retinanet_r101", **rows))
    assert (trained.detector.config.num_classes, trained.detector.config.backbone) == (5, "resnet101")
    assert trained.detector.class_names == () and trained.category_ids == ()


def test_resnext_has_its_strides_and_its_input_elsewhere():
    tensors = hollow("faster_rcnn_r101_fpn")
    for key, tensor in tensors.items():
        if ".res" in key and "shortcut" not in key and not key.endswith("conv3.norm.weight"):
            rows, *rest = tensor.shape
            inner = "conv3" not in key
            columns = rest and (rest[0] // 8 if "conv2" in key else rest[0] * 4 if "conv3" in key else rest[0])
            if "conv2.weight" in key:
                columns = 8 * rows // 64
            shape = (rows * 4 if inner else rows, *([columns, *rest[1:]] if rest else []))
            tensors[key] = torch.zeros(1).expand(shape)
    weights = read_detectron2(TensorFile(tensors, {}), WeightsSource("file", Path("file")), None, None)
    assert (weights.config.backbone, weights.config.stride_in_1x1) == ("resnext101_32x8d", False)
    assert weights.preprocessing.std == (57.375, 57.12, 58.395) and weights.preprocessing.channels == "BGR"
    shapes = {key: tuple(value.shape) for key, value in weights.tensors.items()}
    assert shapes == shapes_of(build_on_meta(weights.config))


def stated_anchors(sizes):
    """The anchors of a cell as detectron2's older files hold them."""
    shapes = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in oracle.RATIOS]
    return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in shapes])


def test_older_files_state_anchors_and_input(file):
    """They are skipped and named, after a comparison with the config's."""
    anchors = {
        f"anchor_generator.cell_anchors.{level}": stated_anchors([32 * 2 ** (level + third / 3) for third in range(3)])
        for level in range(5)
    }
    pixels = {"pixel_mean": torch.tensor([[[103.53]], [[116.28]], [[123.675]]]), "pixel_std": torch.ones(3, 1, 1)}
    report = load_into(build("retinanet_r50_fpn", architecture=RETINANET), file("retinanet_r50", **anchors, **pixels))
    assert set(report.skipped) == {*anchors, *pixels}
    name = "proposal_generator.anchor_generator.cell_anchors.0"
    assert load_detector(file("faster_rcnn_r101_c4", **{name: stated_anchors([32, 64, 128, 256, 512])}))
    with pytest.raises(CheckpointError, match=f"{name}: has other anchors than detectron2's configs for COCO"):
        load_detector(file("faster_rcnn_r101_c4", **{name: stated_anchors([16, 32, 64, 128, 256])}))
    wrong = (torch.zeros(3, 4), torch.full((3, 4), torch.nan), torch.zeros(3, 4, dtype=torch.bool))
    for level, rows in ((0, stated_anchors([32, 64])), (5, stated_anchors([1024])), *((0, rows) for rows in wrong)):
        with pytest.raises(CheckpointError, match=r"has other anchors|has NaN"):
            load_detector(file("faster_rcnn_r50_fpn", **{name[:-1] + str(level): rows}))


def test_the_input_that_a_file_states_counts_unless_another_is_named(file):
    stated = {"pixel_mean": torch.tensor([102.9801, 115.9465, 122.7717]), "pixel_std": torch.ones(3)}
    path = file("retinanet_r50", **{name: tensor.reshape(3, 1, 1) for name, tensor in stated.items()})
    with pytest.raises(CheckpointError, match="an input without a name: say with"):
        load_detector(path)
    assert load_detector(path, input="caffe").detector.preprocessing.mean == (102.9801, 115.9465, 122.7717)
    x101 = {"pixel_mean": torch.tensor([103.53, 116.28, 123.675]), "pixel_std": torch.tensor([57.375, 57.12, 58.395])}
    detector = load_detector(file("retinanet_r50", **x101)).detector
    assert detector.preprocessing == with_input(Preprocessing(), "detectron2_x101", source="")


@pytest.mark.parametrize(
    "name", ["retinanet_r50", "faster_rcnn_r50_fpn", pytest.param("faster_rcnn_r101_c4", marks=pytest.mark.prove)]
)
def test_strides_are_where_the_input_says(file, name):
    """MSRA's ResNets take BGR that is not scaled; torchvision's, as convert-torchvision-to-d2.py has them, do not."""
    scaled = {"pixel_mean": torch.tensor([123.675, 116.28, 103.53]), "pixel_std": torch.tensor([58.395, 57.12, 57.375])}
    detector = load_detector(file(name, **scaled)).detector
    assert (detector.config.stride_in_1x1, detector.preprocessing.channels) == (False, "RGB")
    assert not load_detector(file(name), input="imagenet").detector.config.stride_in_1x1
    assert load_detector(file(name), input="caffe").detector.config.stride_in_1x1
    assert load_detector(file(name, **scaled), input="detectron2").detector.config.stride_in_1x1


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("retinanet_r50", {"head.bbox_pred.bias": None}, "missing box_subnet.predict.bias$"),
        ("retinanet_r50", {"head.bbox_pred.weight": None}, "missing box_subnet.predict.weight; "),
        ("retinanet_r50", {"head.cls_score.weight": torch.tensor(1.0)}, "not of a whole number of classes"),
        ("retinanet_r50", {"backbone.top_block.p6.bias": None}, "missing pyramid.p6.bias$"),
        ("retinanet_r50", {"backbone.bottom_up.res4.5.conv2.norm.bias": None}, "missing backbone.layer3.5.bn2.bias$"),
        ("retinanet_r50", {"backbone.bottom_up.res4.6.conv1.weight": torch.zeros(1)}, "has 3 \\+ 4 \\+ 7 \\+ 3 blocks"),
        (
            "retinanet_r50",
            {"backbone.fpn_lateral3.norm.weight": torch.zeros(256)},
            "left over backbone.fpn_lateral3.no",
        ),
        (
            "faster_rcnn_r50_fpn",
            {"roi_heads.mask_head.predictor.bias": torch.zeros(80)},
            "left over roi_heads.mask_hea",
        ),
        ("faster_rcnn_r50_fpn", {"roi_heads.box_head.fc3.bias": torch.zeros(1024)}, "left over roi_heads.box_head.fc3"),
        (
            "faster_rcnn_r50_fpn",
            {"roi_heads.box_predictor.bbox_pred.weight": torch.zeros(4, 1024)},
            r"predictor.boxes.weight has shape \(4, 1024\) in the file, \(320, 1024\) in the network",
        ),
        ("faster_rcnn_r101_c4", {"roi_heads.res5.2.conv3.weight": None}, "missing roi_head.tail.2.conv3.weight$"),
        (
            "faster_rcnn_r101_c4",
            {"backbone.bottom_up.stem.conv1.weight": torch.zeros(1)},
            "another tensor for backbone",
        ),
        (
            "faster_rcnn_r101_c4",
            {"proposal_generator.rpn_head.conv.bias": torch.zeros(1024, dtype=torch.int64)},
            "rpn_head.tower.0.bias: is torch.int64, must be floating-point numbers",
        ),
    ],
)
def test_wrong_files_give_one_clear_error(file, name, changes, words):
    path = file(name, **changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_detector(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_pickle_with_a_wrong_tensor_names_it(tmp_path):
    tensors = {name: tensor[..., :0] for name, tensor in hollow("retinanet_r50").items()}
    with pytest.raises(CheckpointError, match=r"model\.pkl: made for another network: backbone"):
        load_detector(in_model_zoo(tensors, tmp_path / "model.pkl"))


def test_another_network_is_refused_with_the_settings_that_differ(file):
    path = file("retinanet_r50")
    with pytest.raises(CheckpointError, match=r"stride_in_1x1 is True .* anchors.order is 'scale, ratio'"):
        load_into(build("retinanet_r50_fpn"), path)
    with pytest.raises(CheckpointError, match="backbone is 'resnet50' in the file, 'resnet101' here"):
        load_into(build("retinanet_r101_fpn", architecture=RETINANET), path)
    with pytest.raises(CheckpointError, match="RetinaNetConfig, not FasterRCNNConfig"):
        load_into(build("faster_rcnn_r50_fpn"), path)


def test_load_takes_the_file_alone(file):
    predictor = load(file("retinanet_r50"), device="cpu", precision="fp32")
    assert predictor.class_names == COCO_CLASS_NAMES and predictor.category_ids == COCO_CATEGORY_IDS
