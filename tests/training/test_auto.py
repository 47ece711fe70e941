"""Settings that are `auto`: what is decided, what wins over it, and what a file or an earlier run says instead."""

import dataclasses
from pathlib import Path

import pytest

from focaldet import config as configs
from focaldet.check import advice
from focaldet.data.splits import open_splits
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import build, find_preset
from focaldet.training.auto import decide_settings, without_auto
from focaldet.training.config import AUTO_SETTINGS, RunConfig
from focaldet.weights import load_into, save_detector


def decide(data, *, defaults=True, **values):
    return decide_settings(
        {"data": {"path": str(data), "val": str(data / "instances_test.json")}, **values}, defaults=defaults
    )


def chosen(decided):
    return {choice.setting: choice.value for choice in decided.choices}


def test_without_settings_model_size_and_epochs_are_decided(demo_data):
    decided = decide(demo_data)
    assert [*chosen(decided)] == ["model", "size", "epochs"]
    config = decided.config
    assert (config.model, config.size, config.epochs) == tuple(chosen(decided).values())
    assert config.epochs == 100 and config.size == 320
    assert (
        dataclasses.replace(config, model=RunConfig.model, size=None, epochs=24)
        == decide(demo_data, defaults=False).config
    )


def test_what_is_said_is_not_decided(demo_data):
    assert [*chosen(decide(demo_data, size=96, epochs=3))] == ["model"]
    assert [*chosen(decide(demo_data, short_side=96, minutes=2.0))] == ["model"]
    assert [*chosen(decide(demo_data, overfit=4))] == ["model", "size"]
    paper = decide(demo_data, model="retinanet_r50_fpn")
    assert [*chosen(paper)] == ["epochs"] and paper.config.size is None, "its own size"
    assert "size" in chosen(decide(demo_data, model="retinanet_r50_fpn", size="auto"))
    assert "size" in chosen(decide(demo_data, model="retinanet_mobilenet_v2_fpn"))


def test_everything_can_be_auto_and_what_depends_comes_last(demo_data):
    values = {"model": "auto", "size": "auto", "batch_size": "auto", "epochs": "auto", "sampling": "auto"}
    decided = decide(demo_data, defaults=False, augment={"preset": "auto", "hue": 0.1}, **values)
    assert [*chosen(decided)] == list(AUTO_SETTINGS)
    config = decided.config
    assert (config.batch_size, config.augment.preset, config.augment.hue) == (4, "light", 0.1)
    assert "each seen 100 times" in decided.choices[4].reason
    assert without_auto({"size": "auto", "model": "x", "augment": {"preset": "auto"}}) == {"model": "x", "augment": {}}


def test_what_cannot_be_auto_is_refused(demo_data):
    with pytest.raises(ConfigError, match="learning_rate"):
        decide(demo_data, learning_rate="auto")
    with pytest.raises(ConfigError, match="epochs: auto is for a run without phases"):
        decide(demo_data, epochs="auto", phases=[{"epochs": 1}])


def test_a_run_that_is_resumed_keeps_what_was_decided(demo_data, tmp_path):
    begun = RunConfig(model="ssd_r18", size=96, epochs=7)
    configs.save(begun, tmp_path / "config.yaml")
    decided = decide(demo_data, out=str(tmp_path), resume=True)
    assert (decided.config.model, decided.config.size, decided.config.epochs) == ("ssd_r18", 96, 7)
    assert "with which the run began" in decided.choices[0].reason


def test_the_model_has_the_settings_of_the_architecture(demo_data):
    assert decide(demo_data, architecture={"loss": {"gamma": 1.0}}).config.model.startswith("retinanet_")
    assert decide(demo_data, architecture={"width": 64}).config.model.startswith("faster_rcnn_")


def test_weights_of_ones_own_detector_choose_it_and_not_another_with_its_backbone(demo_data, tmp_path):
    path = tmp_path / "cells.safetensors"
    save_detector(path, build("retinanet_efficientnet_lite0_fpn", class_names=("a", "b")))
    decided = decide(demo_data, weights=str(path))
    assert decided.config.model == "retinanet_efficientnet_lite0_fpn"
    assert decided.choices[0].reason == "the detector of the weights that are given"


def test_the_reason_says_what_the_detector_starts_from(demo_data):
    assert decide(demo_data).choices[0].reason == "small, with ImageNet weights that come with focaldet"
    assert decide(demo_data, weights=None).choices[0].reason == "small, with random weights"
    gamma = decide(demo_data, weights=None, architecture={"loss": {"gamma": 1.0}})
    assert gamma.choices[0].reason == "the first that fits what is given, with random weights"


def test_the_anchors_of_a_small_retinanet_follow_the_objects(demo_data, tmp_path):
    name = "architecture.anchors.base_scale"
    decided = decide(demo_data, model="retinanet_efficientnet_lite0_fpn", size=320)
    objects = advice.object_sides(
        open_splits(decided.config.data, seed=0).train, find_preset(decided.config.model).preprocessing.resize
    )
    smaller = float(objects.sort().values[int(0.25 * (len(objects) - 1))])
    assert chosen(decided)[name] == pytest.approx(min(max(smaller / 8, 2), 8), abs=0.051)
    assert decided.config.architecture["anchors"]["base_scale"] == chosen(decided)[name]
    assert "25% of the objects are smaller than" in decided.choices[-1].reason
    typed = {"anchors": {"base_scale": 4.0}}
    assert name not in chosen(decide(demo_data, model="retinanet_efficientnet_lite0_fpn", architecture=typed))
    assert name not in chosen(decide(demo_data, model="retinanet_r50_fpn"))
    path = tmp_path / "cells.safetensors"
    save_detector(path, build("retinanet_efficientnet_lite0_fpn", class_names=("a", "b")))
    again = decide(demo_data, weights=str(path))
    assert chosen(again)[name] == 8.0 and again.choices[-1].reason == "as in the weights"
    fitted = build(
        "retinanet_efficientnet_lite0_fpn", class_names=("a", "b"), architecture={"anchors": {"base_scale": 5.8}}
    )
    save_detector(path, fitted)
    for values in ({}, {"model": "retinanet_efficientnet_lite0_fpn"}):
        further = decide(demo_data, weights=str(path), **values).config
        assert further.model == "retinanet_efficientnet_lite0_fpn"
        assert further.architecture["anchors"]["base_scale"] == 5.8, "what was trained goes on"
        detector = build(further.model, class_names=("c",), architecture=further.architecture)
        assert load_into(detector, path).kind == "detector"
    save_detector(path, build("faster_rcnn_efficientnet_lite0_fpn", class_names=("a", "b")))
    other = decide(demo_data, weights=str(path), model="retinanet_efficientnet_lite0_fpn", size=320)
    assert chosen(other) == {name: chosen(decided)[name], "epochs": 100}, "a backbone has no anchors"


def test_without_data_the_defaults_hold():
    assert decide_settings({}, defaults=True) == (RunConfig(), ())


def test_the_model_fits_the_initial_weights(demo_data, tmp_path):
    path = tmp_path / "start.safetensors"
    save_detector(path, build("faster_rcnn_mobilenet_v2_fpn", num_classes=3))
    assert decide(demo_data, weights=str(path)).config.model == "faster_rcnn_mobilenet_v2_fpn"
    save_detector(path, build("ssd_r18", num_classes=3))
    assert decide(demo_data, weights=str(path)).config.model == "ssd_r18"
    with pytest.raises((ConfigError, CheckpointError), match="auto knows no detector for these settings; name one"):
        decide(demo_data, weights=str(path), architecture={"width": 64})
    save_detector(path, build("ssd_mobilenet_v2_tf", num_classes=3))
    decided = decide(demo_data, weights=str(path))
    assert (decided.config.model, decided.config.size) == ("ssd_mobilenet_v2_tf", None), "its own size"
    with pytest.raises(CheckpointError, match="nowhere"):
        decide(demo_data, weights=str(Path("nowhere")))
