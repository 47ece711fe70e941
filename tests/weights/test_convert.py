"""Whole detectors of every other program, converted: the same detections, a report, and what is refused."""

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import detection, resnet18

import focaldet
from focaldet.cli import main
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import PRESETS, build, find_preset
from focaldet.nets.resnet import RESNETS
from focaldet.types import Preprocessing, Resize
from focaldet.weights import checkpoint, load_detector, read_metadata, save_detector
from focaldet.weights.convert import convert
from focaldet.weights.formats import torchvision as torchvision_format
from focaldet.weights.formats.darknet import write_darknet
from focaldet.weights.formats.detector_weights import COCO_CATEGORY_IDS, COCO_CLASS_NAMES, COCO_NAMES
from focaldet.weights.formats.files import TensorFile
from focaldet.weights.provenance import source_names, track_names
from tests.weights.formats import caffe_oracle, peer_oracle


@pytest.fixture
def folder(tmp_path):
    """A folder for files of hundreds of megabytes, which are gone afterwards."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def lively(shapes):
    return peer_oracle.lively_tensors({name: tuple(shape) for name, shape in shapes.items()}, seed=2)


def of_torchvision(folder, builder, **changes):
    """A state dict of torchvision's own model, its BatchNorm frozen as in the published files."""
    with torch.device("meta"):
        state = getattr(detection, builder)(weights=None, weights_backbone=None).state_dict()
    tensors = lively({name: value.shape for name, value in state.items() if value.ndim}) | changes
    torch.save(tensors, folder / "w.pth")
    return folder / "w.pth"


def of_detectron2(folder, name):
    arrays = {key: value.numpy() for key, value in lively(peer_oracle.tensor_shapes(f"detectron2_{name}")).items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    (folder / "w.pkl").write_bytes(pickle.dumps(content, 4))
    return folder / "w.pkl"


def of_mmdetection(folder, name):
    tensors = lively(peer_oracle.tensor_shapes(f"mmdetection_{name}"))
    torch.save(
        {"state_dict": tensors, "meta": {"mmdet_version": "3.3.0"}, "optimizer": {"state": {}}}, folder / "w.pth"
    )
    return folder / "w.pth"


def of_darknet(folder):
    torch.manual_seed(4)
    detector = build("yolov2_tiny")
    detector.predict.bias.data.fill_(1.0)
    write_darknet(folder / "w.weights", detector)
    return folder / "w.weights"


def of_caffe(folder):
    blobs = caffe_oracle.lively_blobs(caffe_oracle.thinned(caffe_oracle.listed_layers("ssd321")), seed=7)
    np.savez(folder / "w.npz", **caffe_oracle.arrays_of(blobs))
    return folder / "w.npz"


@pytest.fixture
def thin(monkeypatch):
    """SSD321 with a 16th of the channels."""
    width = 64 // caffe_oracle.THIN
    monkeypatch.setitem(RESNETS, "resnet101", replace(RESNETS["resnet101"], width_per_group=width))
    thinner = replace(find_preset("ssd321_r101").config, extra_width=1024 // caffe_oracle.THIN, module_widths=(16,))
    monkeypatch.setitem(PRESETS, "ssd321_r101", replace(find_preset("ssd321_r101"), config=thinner))


def detect(trained, size):
    """The detections of a detector in an image of noise."""
    detector = trained.detector
    if size is not None:
        detector.preprocessing = replace(detector.preprocessing, resize=Resize("long", size))
    image = torch.randint(0, 256, (3, 60, 80), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    detections = focaldet.Predictor(
        detector, category_ids=trained.category_ids, device="cpu", precision="fp32"
    ).predict(image)
    assert len(detections.scores) > 0, "an empty result proves nothing"
    return detections


def require_same(path, out, *, model=None, size=None):
    """The converted file holds what the foreign file gives, and detect bit for bit alike."""
    direct, converted = load_detector(path, model=model), load_detector(out)
    left, right = (trained.detector for trained in (direct, converted))
    assert left.config == right.config and left.preprocessing == right.preprocessing
    assert (left.class_names, direct.category_ids) == (right.class_names, converted.category_ids)
    state = right.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in left.state_dict().items())
    expected, actual = detect(direct, size), detect(converted, size)
    for field in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(actual, field), getattr(expected, field))
    assert actual.names == expected.names


@pytest.mark.parametrize(
    ("builder", "model", "background", "ids", "parts"),
    [
        (
            "retinanet_resnet50_fpn",
            "retinanet_r50_fpn_tv",
            "none, each class is decided by itself",
            tuple(range(91)),
            {"backbone": 265, "pyramid": 16, "class_subnet": 10, "box_subnet": 10},
        ),
        pytest.param(
            "fasterrcnn_resnet50_fpn",
            "faster_rcnn_r50_fpn_tv",
            "first in the file, last here",
            tuple(range(1, 91)),
            {"backbone": 265, "pyramid": 16, "rpn_head": 6, "roi_head": 4, "predictor": 4},
            marks=pytest.mark.prove,
        ),
    ],
)
def test_torchvision(folder, builder, model, background, ids, parts):
    path, out = of_torchvision(folder, builder), folder / "new folder" / "w.safetensors"
    done = convert(path, out, layout="torchvision", model=model)
    assert (done.layout, done.model, done.background, done.skipped) == ("torchvision", model, background, ())
    assert (done.class_names, done.category_ids) == (tuple(COCO_NAMES[label] for label in ids), ids)
    assert {part: count for part, (count, _) in done.parts().items()} == parts
    assert done.anchors["flavor"] == "torchvision" and done.anchors["order"] == "ratio, scale"
    assert all(len(one.made_of) == 1 for one in done.tensors)
    made_of = {one.name: one.made_of[0] for one in done.tensors}
    assert made_of["pyramid.output.2.bias"] == "backbone.fpn.layer_blocks.2.0.bias"
    described = read_metadata(out)
    assert described.license == done.license == "torchvision (its published weights: BSD-3-Clause)"
    assert (described.model, described.category_ids) == (model, ids)
    assert described.extra["converted_from"] == "w.pth" and len(described.extra["source_sha256"]) == 64
    require_same(path, out, size=64)


@pytest.mark.parametrize(
    ("written", "name", "layout", "model", "anchors", "background", "terms"),
    [
        pytest.param(
            of_detectron2,
            "retinanet_r50",
            "detectron2",
            "retinanet_r50_fpn",
            "scale, ratio",
            "none, each",
            "CC BY-SA 3.0",
            marks=pytest.mark.prove,
        ),
        (
            of_mmdetection,
            "faster_rcnn_r50_fpn",
            "mmdetection",
            "faster_rcnn_r50_fpn",
            "ratio, scale",
            "last in the file",
            "Apache-2.0",
        ),
    ],
)
def test_detectron2_and_mmdetection(folder, written, name, layout, model, anchors, background, terms):
    path, out = written(folder, name), folder / "w.safetensors"
    done = convert(path, out, layout="mmdet" if layout == "mmdetection" else None)
    assert (done.layout, done.model, done.class_names) == (layout, model, COCO_CLASS_NAMES)
    own = {
        "detectron2": ("stride_in_1x1 True", "anchors.order scale, ratio"),
        "mmdetection": ("pooling.sampling_ratio 0", "background_box False"),
    }[layout]
    assert done.conventions == own and list(done.to_dict()["conventions"]) == list(own)
    assert ["conventions", ", ".join(own)] in done.rows()
    again = convert(path, out, model=model, overwrite=True)
    assert again.model == model
    with pytest.raises(CheckpointError, match=f"model yolov2 was asked for; it fits {model}"):
        convert(path, folder / "no.safetensors", model="yolov2")
    assert done.anchors["order"] == anchors and done.background.startswith(background)
    assert terms in read_metadata(out).license
    read = set(peer_oracle.tensor_shapes(f"{layout}_{name}"))
    assert {origin for one in done.tensors for origin in one.made_of} == read - set(done.skipped)
    assert all(re.search(r"cell_anchors\.\d$|num_batches_tracked$|pixel_(mean|std)$", name) for name in done.skipped)
    require_same(path, out, size=64)


@pytest.mark.usefixtures("thin")
def test_caffe(folder):
    done = convert(of_caffe(folder), folder / "w.safetensors")
    assert (done.layout, done.model, done.skipped) == ("caffe", "ssd321_r101", ())
    assert (done.num_classes, done.class_names, done.background) == (20, (), "first in the file, last here")
    assert done.license == checkpoint.NO_LICENSE
    made_of = {one.name: one.made_of for one in done.tensors}
    assert made_of["backbone.bn1.running_var"] == ("bn_conv1.2", "bn_conv1.1"), "a sum and the factor it is divided by"
    assert made_of["backbone.conv1.weight"] == ("conv1.0",)
    assert all(made_of.values())
    require_same(folder / "w.npz", folder / "w.safetensors")


def test_darknet_there_and_back(folder):
    path, out = of_darknet(folder), folder / "w.safetensors"
    done = convert(path, out, model="yolov2_tiny")
    assert (done.layout, done.model, done.boxes) == ("darknet", "yolov2_tiny", "x, y, width, height, objectness")
    assert (done.class_names, done.category_ids) == (COCO_CLASS_NAMES, COCO_CATEGORY_IDS)
    assert done.background == "none, the objectness decides"
    assert "public domain" in read_metadata(out).license
    made_of = {one.name: one.made_of for one in done.tensors}
    last = (path.stat().st_size - 20) // 4
    assert made_of["backbone.blocks.0.0.norm.bias"] == ("numbers 1…8",)
    assert made_of["predict.weight"][0].endswith(f"…{last}")
    require_same(path, out, model="yolov2_tiny")
    write_darknet(folder / "again.weights", load_detector(out).detector)
    assert (folder / "again.weights").read_bytes() == path.read_bytes()


def test_what_the_user_states_goes_over_what_is_known(folder):
    path, out = of_darknet(folder), folder / "w.safetensors"
    convert(path, out, model="yolov2_tiny", license="MIT", input="x/127.5-1, BGR")
    described = read_metadata(out)
    assert (described.license, described.preprocessing.channels) == ("MIT", "BGR")
    assert described.preprocessing.std == (127.5, 127.5, 127.5)


def test_what_the_file_states_goes_over_what_is_known(folder):
    tensors = torch.load(of_torchvision(folder, "retinanet_resnet50_fpn"), weights_only=True)
    counter = {"backbone.body.bn1.num_batches_tracked": torch.tensor(7)}
    save_file(tensors | counter, folder / "in.safetensors", metadata={"licence": "CC0-1.0", "input": "unit"})
    done = convert(folder / "in.safetensors", folder / "w.safetensors", model="retinanet_r50_fpn_tv")
    assert (done.license, done.preprocessing.std, done.notes) == ("CC0-1.0", (255.0, 255.0, 255.0), ())
    assert done.skipped == tuple(counter), "BatchNorm's counters are named, not dropped silently"
    assert load_detector(folder / "w.safetensors").detector.config.norm_eps == 1e-5, "its BatchNorm was an ordinary one"
    with pytest.warns(DeprecationWarning, match="now called license"):
        old = convert(folder / "in.safetensors", folder / "w.safetensors", licence="CC-BY-4.0", overwrite=True)
    assert old.license == "CC-BY-4.0"
    with pytest.warns(DeprecationWarning, match="is now called skipped"):
        assert old.left_out == old.skipped
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = old.colour
    stated = {"license": "MIT", "input": "caffe", "overwrite": True}
    convert(folder / "in.safetensors", folder / "w.safetensors", **stated)
    described = read_metadata(folder / "w.safetensors")
    assert (described.license, described.preprocessing.channels) == ("MIT", "BGR"), (
        "the user's word goes over the file's"
    )


class TestCommand:
    """What the command line prints, and its refusals: one line, status 2, nothing written."""

    @pytest.fixture
    def file(self, folder):
        return of_darknet(folder)

    def test_a_table_for_people(self, capsys, file, folder):
        line = ["convert", str(file), "--out", str(folder / "w.safetensors"), "--model", "yolov2_tiny"]
        assert not main(line)
        text = capsys.readouterr().out
        rows = [row.split(maxsplit=1) for row in text.splitlines()]
        assert rows[0] == ["read", f"{file} (darknet)"]
        assert rows[1] == ["detector", "yolov2_tiny (YOLOv2Config)"]
        assert {"tensors", "classes", "background", "boxes", "anchors", "input", "license", "written"} < {
            row[0] for row in rows
        }
        assert "80: person, bicycle, car, motorcycle and 76 more" in text and "1…90" in text
        assert "anchors       [[" in text and "unit (RGB), long side 320 px" in text
        assert "skipped       nothing" in text
        assert not main([*line, "--overwrite", "--verbose"])
        text = capsys.readouterr().out
        assert text.startswith("TENSOR ") and "backbone.blocks.0.0.norm.bias" in text and "numbers 1…8" in text

    def test_json_for_programs(self, capsys, file, folder):
        out = folder / "w.safetensors"
        assert not main(["convert", str(file), "--out", str(out), "--model", "yolov2_tiny", "--json"])
        text = json.loads(capsys.readouterr().out)
        assert (text["layout"], text["model"], text["num_classes"]) == ("darknet", "yolov2_tiny", 80)
        assert text["tensors"]["predict.bias"]["shape"] == [425]
        assert sum(part["tensors"] for part in text["parts"].values()) == len(text["tensors"])
        assert sum(part["numbers"] for part in text["parts"].values()) == (file.stat().st_size - 20) // 4
        assert text["preprocessing"]["resize"]["size"] == 320 and text["out"] == str(out)

    def refuses(self, capsys, folder, *words, text):
        before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert main(["convert", *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("focaldet: ") and captured.err.count("\n") == 1
        assert text in captured.err and "Traceback" not in captured.err
        assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before

    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            ([], "w.weights: a darknet file does not state its network: name one"),
            (["--model", "yolov3"], "unknown detector 'yolov3'"),
            (["--model", "retinanet_r18_fpn"], "are of YOLOv2 with DarkNet-19, not RetinaNetConfig"),
            (["--model", "yolov2"], "made for another network: 3,276,385 numbers"),
            (["--model", "yolov2_tiny", "--from", "torchvision"], "is laid out by darknet, not by torchvision"),
            (["--model", "yolov2_tiny", "--from", "darknot"], '(did you mean "darknet"?)'),
            (["--from", "timm"], "a backbone alone needs no conversion"),
            (["--license", "MIT\udcff"], "license: must be one line of text, got 'MIT"),
            (["--model", "yolov2_tiny", "--weights.input", "the usual"], "weights.input: 'the usual' is neither"),
        ],
    )
    def test_flags_that_do_not_fit_the_file(self, capsys, file, folder, flags, text):
        self.refuses(capsys, folder, file, "--out", folder / "w.safetensors", *flags, text=text)

    def test_a_place_that_is_taken_or_wrong(self, capsys, file, folder, monkeypatch):
        (folder / "taken.safetensors").write_bytes(b"precious")
        rest = (file, "--model", "yolov2_tiny", "--out")
        self.refuses(
            capsys, folder, *rest, folder / "taken.safetensors", text="is there already; --overwrite replaces it"
        )
        self.refuses(capsys, folder, *rest, folder / "w.pth", text="w.pth: must end in .safetensors")
        self.refuses(capsys, folder, *rest, file / "w.safetensors", text="cannot be written")
        (folder / "folder.safetensors").mkdir()
        self.refuses(capsys, folder, *rest, folder / "folder.safetensors", "--overwrite", text="cannot be written")
        self.refuses(
            capsys, folder, folder / "none.pth", "--out", folder / "w.safetensors", text="no file or run folder"
        )

    def test_a_file_of_focaldet_is_converted_already(self, capsys, folder):
        path = folder / "own.safetensors"
        save_detector(path, build("yolov2_tiny", num_classes=1))
        self.refuses(capsys, folder, path, "--out", folder / "w.safetensors", text="is a file of focaldet already")
        self.refuses(capsys, folder, path, "--out", path, "--overwrite", text="is the file that would be read")

    def test_what_is_not_a_whole_detector(self, capsys, folder):
        for tensors, text in (
            (resnet18(weights=None).state_dict(), "not a detector that focaldet knows (a backbone alone"),
            ({"encoder.weight": torch.zeros(2)}, "not a detector that focaldet knows"),
        ):
            torch.save(tensors, folder / "w.pth")
            self.refuses(capsys, folder, folder / "w.pth", "--out", folder / "w.safetensors", text=text)
        line = (folder / "w.pth", "--from", "caffe", "--out", folder / "w.safetensors")
        self.refuses(capsys, folder, *line, text="by a program that focaldet does not know, not by caffe")

    def test_tensors_left_over_and_another_entry(self, capsys, folder):
        path = of_torchvision(folder, "retinanet_resnet50_fpn", **{"head.mask.weight": torch.zeros(2)})
        line = (path, "--out", folder / "w.safetensors")
        self.refuses(capsys, folder, *line, text="left over head.mask.weight")
        path = of_torchvision(folder, "retinanet_resnet50_fpn")
        text = "p6_from is 'P5' in the file, 'C5' here; head_norm is False in the file, True here; model "
        text += "retinanet_r50_fpn_v2_tv was asked for; it fits retinanet_r50_fpn_tv"
        self.refuses(capsys, folder, *line, "--model", "retinanet_r50_fpn_v2_tv", text=text)
        self.refuses(capsys, folder, *line, "--model", "retinanet_r5_fpn", text="unknown detector 'retinanet_r5")
        text = "RetinaNetConfig, not SSDConfig; model ssd_r18 was asked for; it fits retinanet_r50_fpn_tv"
        self.refuses(capsys, folder, *line, "--model", "ssd_r18", text=text)

    def test_code_in_a_file_is_never_run(self, capsys, folder):
        class Call:
            def __reduce__(self):
                return (Path.mkdir, (folder / "trace",))

        (folder / "w.pkl").write_bytes(pickle.dumps({"model": {"a": Call()}}))
        line = (folder / "w.pkl", "--out", folder / "w.safetensors")
        self.refuses(capsys, folder, *line, text="w.pkl: refused: it holds code (pathlib")
        torch.save({"model": {"a": Call()}}, folder / "w.pth")
        self.refuses(capsys, folder, folder / "w.pth", *line[1:], text="w.pth: refused: it holds code (")
        assert not (folder / "trace").exists()


def test_what_nobody_names_and_nothing_uses_is_an_error(folder, monkeypatch):
    """A reader that loses a tensor is noticed, though every tensor of the detector was filled."""
    rename = torchvision_format.rename_torchvision_tensors

    def losing(tensors):
        return rename({name: value for name, value in tensors.items() if name != "lost"})

    of_torchvision(folder, "retinanet_resnet50_fpn", lost=torch.zeros(1))
    monkeypatch.setattr(torchvision_format, "rename_torchvision_tensors", losing)
    with pytest.raises(CheckpointError, match=r"w\.pth: left over lost"):
        convert(folder / "w.pth", folder / "out.safetensors")
    assert not (folder / "out.safetensors").exists()


def test_a_reader_that_leaves_torch_is_followed_no_further(folder, monkeypatch):
    rename = torchvision_format.rename_torchvision_tensors

    def through_numpy(tensors):
        result = rename(tensors)
        return result | {"pyramid.p6.bias": torch.from_numpy(result["pyramid.p6.bias"].detach().numpy().copy())}

    path = of_torchvision(folder, "retinanet_resnet50_fpn")
    monkeypatch.setattr(torchvision_format, "rename_torchvision_tensors", through_numpy)
    done = convert(path, folder / "out.safetensors")
    assert [one.name for one in done.tensors if not one.made_of] == ["pyramid.p6.bias"] and done.skipped == ()


def test_tracked_tensors_know_their_names():
    a, b, c = torch.rand(4, 3), torch.rand(4, 3), torch.rand(2)
    file = track_names(TensorFile({"a": a, "b": b, "c": c}, {"x": "y"}))
    assert file.statements == {"x": "y"}
    one, two, three = file.tensors.values()
    results = {
        "rolled": torch.roll(one, 1, 0),
        "sum": one + two,
        "same twice": one * 2 - one.t().t(),
        "parts": torch.cat([two[:2], one[1:]])[0],
        "split": three.split(1)[1],
        "none": torch.zeros(1),
    }
    expected = [("a",), ("a", "b"), ("a",), ("b", "a"), ("c",), ()]
    assert source_names(results) == dict(zip(results, expected, strict=True))
    assert one.data_ptr() == a.data_ptr() and torch.equal(results["sum"], a + b)


def test_the_public_call(folder):
    with pytest.raises(ConfigError, match="must end in"):
        focaldet.convert(of_darknet(folder), folder / "w.pth", model="yolov2_tiny")
    done = focaldet.convert(str(folder / "w.weights"), str(folder / "w.safetensors"), model="yolov2_tiny")
    assert isinstance(done, focaldet.Conversion) and isinstance(done.preprocessing, Preprocessing)
