"""The anchors that a check says training will fit: those that it does fit, and how many boxes they reach."""

import json
from dataclasses import replace

import pytest

from focaldet.check.check import check_data
from focaldet.check.fit import FittedAnchors, advise, choose_anchor_model
from focaldet.cli import main
from focaldet.data.config import DataConfig
from focaldet.data.splits import inspect_splits, open_splits
from focaldet.models import PRESETS, find_preset, named_config
from focaldet.training.auto import decide_settings
from tests.check.test_advice import boxes_of
from tests.data.datasets import write_voc

RETINANET, FASTER = "retinanet_efficientnet_lite0_fpn", "faster_rcnn_efficientnet_lite0_fpn"
SCALE = "architecture.anchors.base_scale"


def advice_for(dataset, name, **architecture):
    return advise(dataset, named_config(name, architecture=architecture), find_preset(name).preprocessing)


@pytest.mark.parametrize("is_held_out", [False, True])
def test_training_fits_the_anchors_that_a_check_announces(demo_data, is_held_out):
    """Also where it holds out a tenth of the images, whose boxes it does not see."""
    data = DataConfig(path=demo_data, val=None if is_held_out else demo_data / "instances_test.json")
    preset = find_preset(FASTER)
    report = check_data(data, detector=preset.config, preprocessing=preset.preprocessing, decode=False)
    told = report.advice.anchors
    nested = {"path": str(demo_data)} | ({} if is_held_out else {"val": str(data.val)})
    values = {"data": nested, "model": told.model, "size": report.advice.used}
    choices = decide_settings(values, defaults=True).choices
    assert told.model == RETINANET
    assert told.base_scale == next(choice.value for choice in choices if choice.setting == SCALE)


def test_a_check_takes_the_images_that_training_would_train_on(tmp_path, demo_data):
    whole = DataConfig(path=demo_data, train=demo_data / "instances_train.json")
    for config in (whole, replace(whole, split_seed=7), replace(whole, val=demo_data / "instances_test.json")):
        train = inspect_splits(config, seed=3).train
        assert train.fingerprint() == open_splits(config, seed=3).train.fingerprint()
    write_voc(tmp_path)
    assert inspect_splits(DataConfig(test=tmp_path), seed=0).train is None


def test_coverage_before_and_after_by_hand():
    """Boxes of 32 px at 320 px: anchors of 64 px reach IoU 1/4 at most, those of 32 px more than 1/2."""
    anchors = advice_for(boxes_of([64] * 8), RETINANET).anchors
    line = (
        f"{RETINANET}: at long side 320 px training gives it anchors from 32 px on, as wide as the smaller objects; "
        "100% of the boxes reach IoU 0.5 with an anchor (mean 1.00), 0% (0.25) with those from 64 px on that it has by "
        "itself"
    )
    assert anchors == FittedAnchors(RETINANET, "long side 320 px", 4.0, 32.0, 64.0, 1.0, 0.0, 1.0, 0.25)
    assert anchors.line() == line
    # A box in four of 32 px, the others of 160: anchors of 32 px, whose fourth map has 256 and whose third 128.
    mixed = advice_for(boxes_of([64] * 3 + [320] * 5), RETINANET).anchors
    assert (mixed.base_scale, mixed.covered, mixed.covered_before) == (4.0, 1.0, pytest.approx(5 / 8))


def test_wide_objects_leave_the_anchors_as_they_are():
    anchors = advice_for(boxes_of([200] * 8), RETINANET).anchors
    assert anchors.base_scale == 8.0 and anchors.covered == anchors.covered_before > 0
    assert ", as they are; " in anchors.line() and "by itself" not in anchors.line()


def test_the_size_is_that_of_the_advised_command():
    small = advice_for(boxes_of([20] * 8), FASTER)
    assert not small.is_fine and small.used == 512
    assert small.anchors.resize == "long side 512 px" and small.anchors.base_scale == 2.0
    assert small.lines()[-1] == small.anchors.line()


def test_only_detectors_that_a_beginner_meets_have_the_line():
    assert choose_anchor_model(named_config(RETINANET)) == RETINANET
    assert choose_anchor_model(named_config("retinanet_mobilenet_v2_fpn")) == "retinanet_mobilenet_v2_fpn"
    assert choose_anchor_model(named_config("faster_rcnn_mobilenet_v2_fpn")) == RETINANET
    assert choose_anchor_model(named_config(RETINANET, architecture={"width": 64})) == RETINANET
    for typed in ({"anchors": {"base_scale": 4.0}}, {"matching": {"rule": "iou"}}):
        assert choose_anchor_model(named_config(RETINANET, architecture=typed)) is None, "then training fits nothing"
    others = {name for name, preset in PRESETS.items() if choose_anchor_model(preset.config) is None}
    assert {"retinanet_r50_fpn", "faster_rcnn_r50_fpn", "yolov2"} <= others
    assert advice_for(boxes_of([64] * 8), "retinanet_r18_fpn").anchors is None


def test_the_command_says_it_in_words_and_in_json(capsys, demo_data):
    assert main(["check", str(demo_data), "--model", RETINANET, "--size", "320"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"{RETINANET}: at long side 320 px training gives it anchors") for line in lines) == 1
    assert main(["check", str(demo_data), "--model", RETINANET, "--size", "320", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["advice"]["anchors"]
    assert set(told) == set(FittedAnchors.__dataclass_fields__) and 2 <= told["base_scale"] <= 8
    assert FittedAnchors(**told).line() in lines


def test_many_images_are_sized_by_all_of_them_as_in_training(monkeypatch):
    """Coverage is measured on a sample of the images, what training decides by on all."""
    monkeypatch.setattr("focaldet.check.fit.MOST_IMAGES", 1)
    data = boxes_of([20] * 3 + [200] * 5)
    advice = advice_for(data, RETINANET)
    assert advice.size == 512
    assert advice.anchors.smallest_px == pytest.approx(16)
