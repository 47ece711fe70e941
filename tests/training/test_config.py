"""Settings of a run: what is refused, what is scaled, and that a run folder can hold them."""

import ast
import dataclasses
import inspect
from dataclasses import replace
from pathlib import Path

import pytest

from focaldet import config as configs
from focaldet.data.config import DataConfig
from focaldet.errors import ConfigError
from focaldet.models import PRESETS, Preset, find_preset
from focaldet.training import config as module
from focaldet.training.config import FREE_ON_RESUME, RunConfig, check_processes
from focaldet.training.state import initial_architecture, initial_weights
from focaldet.training.trainer import train
from tests.training.squares import small_run, squares


def test_a_config_is_validated_once_and_each_phase_once(monkeypatch, tmp_path):
    """Where it is written; training it, saving it and checking its phases validate nothing again."""
    validated = []
    plain = RunConfig.__post_init__

    def counted(self):
        validated.append(self)
        plain(self)

    monkeypatch.setattr(RunConfig, "__post_init__", counted)
    config = small_run(tmp_path, phases=({"epochs": 1}, {"epochs": 1, "learning_rate": 1e-4}))
    assert len(validated) == 3
    data = squares(4)
    train(config, sources=(data, data))
    assert len(validated) == 3 and {id(one) for one in validated} == {id(config), *map(id, config.phase_configs)}


def test_survives_yaml(tmp_path):
    config = RunConfig(
        data=DataConfig(path=Path("cells")), architecture={"anchors": {"base_scale": 2.0}}, loggers=("wandb",), ema=None
    )
    configs.save(config, tmp_path / "config.yaml")
    assert configs.from_dict(RunConfig, configs.read_mapping(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"ema": 1.0}, "ema"),
        ({"seed": -1}, "seed"),
        ({"resume": True, "overwrite": True}, "resume and overwrite"),
        ({"patience": 3, "evaluate_every": None}, "patience"),
        ({"warmup_power": 0.0}, "warmup_power"),
        ({"step_at": (0.5, 1.5)}, "step_at"),
        ({"step_at": (0.9, 0.8)}, "step_at: fractions must rise"),
        ({"step_at": (0.5, 0.5)}, "step_at: fractions must rise"),
        ({"multi_scale": (32, 64), "multi_scale_end": 2.0}, "multi_scale_end"),
        ({"multi_scale_end": 0.5}, "multi_scale_end: needs multi_scale"),
        ({"batch_size": 8, "accumulate": 3}, "allowed: a multiple of 3"),
    ],
)
def test_refuses(changes, named):
    with pytest.raises(ConfigError, match=named):
        RunConfig(**changes)


def test_refuses_a_batch_that_processes_cannot_divide():
    check_processes(RunConfig(batch_size=8, accumulate=2), num_processes=4)
    with pytest.raises(ConfigError, match="cannot be divided among 3 processes"):
        check_processes(RunConfig(batch_size=8), num_processes=3)


def test_names_the_nearest_setting():
    with pytest.raises(ConfigError, match='did you mean "epochs"'):
        configs.from_dict(RunConfig, {"epoch": 3})


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "expected"),
    [("sgd", 16, 2e-3), ("sgd", 8, 1e-3), ("adamw", 32, 2e-3), ("adamw", 2, 5e-4)],
)
def test_scales_the_rate_to_the_batch(optimizer, batch_size, expected):
    config = RunConfig(optimizer=optimizer, batch_size=batch_size, learning_rate=1e-3)
    assert config.scaled_learning_rate == pytest.approx(expected)


def test_what_is_free_on_resume_exists():
    assert {field.name for field in dataclasses.fields(RunConfig)} >= FREE_ON_RESUME


def test_every_setting_is_explained():
    """The command line shows the text below each field; none may be forgotten."""
    (run_config,) = [
        node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == "RunConfig"
    ]
    body = [node for node in run_config.body if not isinstance(node, ast.FunctionDef)]
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{ast.unparse(node.target)} has no explanation"


def test_an_equivalent_preset_made_for_other_statistics_trains_from_random_weights():
    """torchvision's frozen BatchNorm has no epsilon; a batch's own deviation may be 0."""
    settings = initial_architecture(RunConfig(model="retinanet_r50_fpn_tv"))
    assert settings == {"norm": "batch", "frozen_stages": 0, "norm_eps": 1e-5}
    assert initial_architecture(RunConfig(model="retinanet_r50_fpn_tv", weights="some")) == {}


def test_the_weights_that_a_run_starts_from():
    """Those that come with focaldet where nothing is said; `weights: null` in older run folders means random ones."""
    lite0 = {"model": "retinanet_efficientnet_lite0_fpn"}
    assert initial_weights(RunConfig(**lite0)) == "embedded:efficientnet_lite0"
    assert initial_architecture(RunConfig(**lite0)) == {}
    assert initial_weights(RunConfig(**lite0, weights="some")) == "some"
    for nothing in (None, "none"):
        config = RunConfig(**lite0, weights=nothing)
        assert (config.weights, initial_weights(config)) == (None, None)
        assert initial_architecture(config) == {"norm": "batch", "frozen_stages": 0, "norm_eps": 1e-3}
    assert initial_weights(RunConfig()) is None
    other = RunConfig(architecture={"backbone": "efficientnet_lite0"})
    assert initial_weights(other) == "embedded:efficientnet_lite0"
    assert initial_weights(RunConfig(**lite0, architecture={"backbone": "resnet18"})) is None


def test_a_norm_that_needs_no_statistics_is_kept_from_random_weights(monkeypatch):
    grouped = replace(find_preset("faster_rcnn_r18_c4").config, norm="group")
    monkeypatch.setitem(PRESETS, "grouped", Preset(grouped))
    assert initial_architecture(RunConfig(model="grouped")) == {"frozen_stages": 0, "norm_eps": 1e-5}
