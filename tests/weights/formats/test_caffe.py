"""Caffe's SSD and DSSD: files written from the committed lists of their layers, read, and compared with an oracle."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from focaldet.errors import CheckpointError
from focaldet.models import PRESETS, build, find_preset
from focaldet.nets.resnet import RESNETS
from focaldet.ops.boxes import decode
from focaldet.ops.priors import all_priors
from focaldet.prediction import load
from focaldet.types import ImageSize
from focaldet.weights import load_detector, load_into, save_detector
from focaldet.weights.formats.caffe import background_last
from focaldet.weights.formats.detector_weights import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from tests.batches import full_sizes
from tests.weights.formats import caffe_oracle as oracle

NAMES = ("ssd321", "dssd321", "ssd513", "dssd513")


@pytest.fixture(autouse=True)
def thin(request, monkeypatch):
    """The four detectors with a 16th of the channels, but in long proofs."""
    if request.node.get_closest_marker("prove"):
        return
    monkeypatch.setitem(RESNETS, "resnet101", replace(RESNETS["resnet101"], width_per_group=64 // oracle.THIN))
    for name in NAMES:
        config = find_preset(f"{name}_r101").config
        decoder = config.decoder and replace(
            config.decoder, width=32, inter_width=config.decoder.inter_width and 512 // oracle.THIN
        )
        widths = tuple(width // oracle.THIN for width in config.module_widths)
        thinner = replace(config, extra_width=1024 // oracle.THIN, module_widths=widths, decoder=decoder)
        monkeypatch.setitem(PRESETS, f"{name}_r101", replace(find_preset(f"{name}_r101"), config=thinner))


@pytest.fixture(scope="module")
def blobs():
    """Random blobs of the thin networks."""
    return {name: oracle.lively_blobs(oracle.thinned(oracle.listed_layers(name)), seed=7) for name in NAMES}


@pytest.fixture
def files(tmp_path, blobs):
    """The same as .npz files."""

    def file(name, **changes):
        arrays = oracle.arrays_of(blobs[name])
        for key, value in changes.items():
            arrays.pop(key) if value is None else arrays.__setitem__(key, value)
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return tmp_path / f"{name}.npz"

    return file


def noise_image(side):
    return torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


@torch.no_grad()
def largest_differences(detector, blobs, side):
    """Of logits and of boxes, as shares of the largest number, between a loaded detector and the oracle."""
    image = noise_image(side)
    outputs = detector.eval()(image, full_sizes(image))
    bgr = image.flip(1).float() - torch.tensor(oracle.MEAN_BGR)[:, None, None]
    conf, loc = oracle.Network(blobs).outputs(bgr)
    assert float(conf.std()) > 0.05 and float(loc.std()) > 0.05, "a dead network proves nothing"
    expected = torch.cat([conf[:, 1:], conf[:, :1]], dim=1)
    logits = (outputs.logits[0] - expected).abs().max() / expected.abs().max()
    boxes = decode(outputs.deltas[0] * torch.tensor(detector.config.variances), outputs.anchors)
    assert float(loc.abs().max()) < 20, "there our decoding limits the growth of boxes, Caffe's does not"
    truth = torch.from_numpy(oracle.decode(loc.double().numpy(), oracle.prior_boxes(side))) * side
    return float(logits), float((boxes - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("name", ["ssd321", "dssd321"])
def test_a_loaded_network_answers_as_caffe(files, blobs, name):
    detector = load(f"{name}_r101", weights=files(name), device="cpu", precision="fp32").detector
    assert (detector.config.num_classes, detector.class_names) == (20, ())
    logits, boxes = largest_differences(detector, blobs[name], 321)
    assert logits < 1e-4 and boxes < 1e-4


@pytest.mark.prove
@pytest.mark.parametrize("name", ["ssd513", "dssd513"])
def test_at_full_size(tmp_path, name, capsys):
    drawn = oracle.lively_blobs(oracle.listed_layers(name), seed=7)
    path = tmp_path / f"{name}.npz"
    np.savez(path, **oracle.arrays_of(drawn))
    detector = load_detector(path).detector
    path.unlink()  # up to a gigabyte
    differences = largest_differences(detector, drawn, 513)
    with capsys.disabled():
        print(f"\n{name}: largest relative difference of logits {differences[0]:.1e}, of boxes {differences[1]:.1e}")
    assert max(differences) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_array_finds_its_place_and_the_file_says_what_it_is(files, blobs, name):
    trained = load_detector(files(name))
    detector = trained.detector
    is_coco = name.endswith("513")
    assert detector.class_names == (COCO_CLASS_NAMES if is_coco else ())
    assert trained.category_ids == (COCO_CATEGORY_IDS if is_coco else ())
    assert detector.config == replace(find_preset(f"{name}_r101").config, num_classes=80 if is_coco else 20)
    assert (detector.preprocessing.channels, detector.preprocessing.mean) == ("BGR", (104.0, 117.0, 123.0))
    assert detector.preprocessing.std == (1.0, 1.0, 1.0)
    count = sum(tensor.numel() for key, tensor in detector.state_dict().items() if "num_batches" not in key)
    factors = sum(len(parts) == 3 for parts in blobs[name].values())
    assert count == sum(part.size for parts in blobs[name].values() for part in parts) - factors


@pytest.mark.parametrize("name", ["ssd513", "dssd513"])
def test_the_lists_are_those_of_the_published_networks(name):
    """173,145,304 and 254,983,896 parameters; a mean, a variance and a factor for every BatchNorm besides."""
    layers = oracle.listed_layers(name)
    trained = [shapes for shapes in layers.values() if len(shapes) != 3]
    assert (
        sum(np.prod(shape) for shapes in trained for shape in shapes) == {"s": 173_145_304, "d": 254_983_896}[name[0]]
    )


def test_safetensors_are_read_too_and_may_state_license_and_input(tmp_path, blobs):
    path = tmp_path / "ssd.safetensors"
    statements = {"license": "CC0", "input": "x/255, RGB"}
    save_file(oracle.arrays_of(blobs["ssd321"]), path, metadata=statements)
    detector = build("ssd321_r101", num_classes=20)
    report = load_into(detector, path)
    assert (report.kind, report.license, report.skipped, report.reset) == ("detector", "CC0", (), ())
    assert (detector.preprocessing.channels, detector.preprocessing.std) == ("RGB", (255.0, 255.0, 255.0))
    load_into(detector, path, input="caffe_ssd")
    assert (detector.preprocessing.channels, detector.preprocessing.mean) == ("BGR", (104.0, 117.0, 123.0))


def test_the_way_into_a_file_of_focaldet(tmp_path, files):
    detector = build("ssd321_r101", num_classes=20)
    report = load_into(detector, files("ssd321"))
    save_detector(tmp_path / "own.safetensors", detector, license=report.license)
    again = load_detector(tmp_path / "own.safetensors").detector
    state = detector.state_dict()
    assert again.config == detector.config and again.preprocessing == detector.preprocessing
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.state_dict().items())
    assert any("neither priors" in line for line in report.sentences())
    assert any("caffe_ssd (BGR)" in line for line in report.sentences())


def test_statistics_are_sums_over_a_factor(files, blobs):
    """A factor of 0, before any training, leaves zeros, as in Caffe."""
    mean, variance, factor = blobs["ssd321"]["bn2a_branch2a"]
    detector = build("ssd321_r101", num_classes=20)
    load_into(detector, files("ssd321", **{"bn2b_branch2a.2": np.zeros(1, np.float32)}))
    first, second = (block.bn1 for block in detector.backbone.layer1[:2])
    np.testing.assert_allclose(first.running_mean, mean / factor, rtol=1e-6)
    np.testing.assert_allclose(first.running_var, variance / factor, rtol=1e-6)
    assert not second.running_mean.any() and not second.running_var.any() and second.weight.any()


def test_the_background_of_every_prior_goes_behind():
    rows = torch.arange(6.0)[:, None]  # two priors: background, first class, second class
    assert background_last(rows, 3)[:, 0].tolist() == [1, 2, 0, 4, 5, 3]


@pytest.mark.parametrize("side", [321, 513])
def test_centres_by_the_word_of_the_released_program(files, side):
    """One setting of the architecture, also with foreign weights."""
    name = f"ssd{side}"
    settings = {"priors": {"centers": "offset"}}
    detector = build(f"{name}_r101", num_classes=20 if side == 321 else 80, architecture=settings)
    assert load_into(detector, files(name)).kind == "detector"
    config = detector.config
    cells = tuple((count, count) for count in oracle.CELLS[side])
    priors = all_priors(config.priors, strides_px=config.strides_px, cells=cells, image=(side, side))
    expected = oracle.prior_boxes(side, literal=True) * side
    np.testing.assert_allclose(priors.numpy(), expected, rtol=1e-5, atol=1e-3)


def test_other_classes_keep_everything_but_the_class_layers(files):
    detector = build("dssd321_r101", class_names=("a", "b"))
    fresh = {key: value.clone() for key, value in detector.state_dict().items()}
    report = load_into(detector, files("dssd321"))
    assert report.reset == tuple(f"predictors.{n}.classes.{part}" for n in range(6) for part in ("weight", "bias"))
    state = detector.state_dict()
    assert all(torch.equal(state[key], fresh[key]) for key in report.reset)
    assert not torch.equal(state["predictors.0.boxes.weight"], fresh["predictors.0.boxes.weight"])
    assert any("class layer reset" in line for line in report.sentences())


def test_a_dssd_starts_from_the_encoder_of_an_ssd(files, blobs):
    """As the authors' script does. In training, BatchNorm of the encoder stays frozen."""
    settings = {"norm": "frozen", "extra_norm": "frozen", "decoder": {"norm": "batch", "frozen_encoder": True}}
    detector = build("dssd513_r101", class_names=("a",), architecture=settings)
    report = load_into(detector, files("ssd513"))
    assert report.kind == "encoder" and {name.split(".")[0] for name in report.loaded} == {"backbone", "extras"}
    assert np.array_equal(detector.extras[4].project.weight.detach(), blobs["ssd513"]["res10_branch1"][0])


def test_one_that_is_loaded_detects(files):
    predictor = load("ssd321_r101", weights=files("ssd321"), device="cpu", precision="fp32")
    sizes = [ImageSize(321, 321)]
    with torch.no_grad():
        (detections,) = predictor.detector.detect(predictor.detector(noise_image(321), sizes), sizes)
    assert len(detections.boxes) and int(detections.labels.max()) < 20


def spoilt(arrays, **changes):
    return {key: value for key, value in (arrays | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"res4b22_branch2b.0": None}, "missing res4b22_branch2b.0$"),
        *(
            pytest.param(*row, marks=pytest.mark.prove)
            for row in (
                ({"bn_conv1.2": None}, "missing bn_conv1.2$"),
                ({"conv1.1": np.zeros(64, np.float32)}, "left over conv1.1$"),
                ({"conv4_3_norm.0": np.zeros(512, np.float32)}, "left over conv4_3_norm.0$"),
            )
        ),
        ({"res6_branch1.0": np.zeros((64, 2048, 3, 3), np.float32)}, r"res6_branch1.0 has shape \(64, 2048, 3, 3\) in"),
        (
            {"scale2c_branch2c.1": np.zeros(1, np.float32)},
            r"scale2c_branch2c.1 has shape \(1,\) in the file, \(256,\) in",
        ),
        ({"conv1.0": np.zeros((64, 3, 7, 7), np.int64)}, "conv1.0: is torch.int64, must be floating-point numbers"),
        (
            {"conv1.0": np.array([{"a": 1}], object)},
            r"conv1\.0.*: refused: it holds pickled objects, which are never read",
        ),
        ({"conv1.0": np.array(["text"])}, r"conv1\.0.*: refused: "),
    ],
)
def test_bad_arrays_give_one_clear_error(files, changes, words):
    path = files("ssd321", **changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_into(build("ssd321_r101", num_classes=20), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_outputs_that_are_not_a_whole_number_of_classes(files):
    layer = "resres3b3_relu_inter16_mbox_conf"
    path = files("ssd321", **{f"{layer}.0": np.zeros((170, 64, 5, 5), np.float32)})
    with pytest.raises(CheckpointError, match=rf"{layer}.0 has shape \(170, 64, 5, 5\) in the file, \(168, 64, 5, 5\)"):
        load_into(build("ssd321_r101", num_classes=20), path)


@pytest.mark.parametrize(
    "spoil",
    [lambda content: b"layer { name: 'conv1' }\n" * 99, lambda content: content[:-300], lambda content: content[:9]],
    ids=["text", "cut", "beginning"],
)
def test_bad_files_give_one_clear_error(files, spoil):
    path = files("ssd321")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged, or no weights file") as caught:
        load_into(build("ssd321_r101", num_classes=20), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_array_is_named(files):
    path = files("ssd321")
    content = bytearray(path.read_bytes())
    content[content.index(b"conv1.0.npy") + 400] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ssd321.npz: conv1.0.*: refused: damaged: Bad CRC"):
        load_into(build("ssd321_r101", num_classes=20), path)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ssd321_r101", {"stride_in_1x1": False}, "stride_in_1x1 is True in the file, False here"),
        *(
            pytest.param(*row, marks=pytest.mark.prove)
            for row in (
                ("ssd321_r101", {"ceil_pool": False}, "ceil_pool is True in the file, False here"),
                ("ssd321_r101", {"dilated_c5": False}, "dilated_c5 is True"),
                ("ssd321_r101", {"module_widths": (8,)}, r"module_widths is .* in the file, .*8.* here"),
                ("ssd321_r101", {"extra_norm": "group"}, "every norm must be batch or frozen"),
            )
        ),
        ("ssd321_r101", {"backbone": "resnet50"}, "are of SSD and DSSD with resnet101, not SSDConfig with resnet50"),
        ("retinanet_r18_fpn", {}, "not RetinaNetConfig with resnet18"),
        ("ssd513_r101", {}, "missing res10_branch1.0"),
    ],
)
def test_another_network_is_refused(files, name, settings, words):
    with pytest.raises(CheckpointError, match=words):
        load_into(build(name, num_classes=20, architecture=settings), files("ssd321"))


def test_outputs_without_a_convolution_before_them_are_told(files):
    settings = {"decoder": {"inter_width": 32}}
    with pytest.raises(
        CheckpointError, match=r"decoder.inter_width is None in the file, 32 here \(it fits dssd321_r101\)"
    ):
        load_into(build("dssd321_r101", num_classes=20, architecture=settings), files("dssd321"))


def test_a_dssd_does_not_fit_an_ssd(files):
    with pytest.raises(CheckpointError, match=r"it is a DSSD, this network has no decoder \(it fits dssd321_r101\)"):
        load_into(build("ssd321_r101", num_classes=20), files("dssd321"))
