"""The course of the learning rate against torch and by hand; the groups of parameters; clipping."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from focaldet import config as configs
from focaldet.models import build
from focaldet.training.config import RunConfig
from focaldet.training.optim import build_optimizer, clip_gradients, parameter_groups, rate_factor, set_rate
from tests.training.squares import ARCHITECTURE
from tests.training.tiny import TinyDetector

RECIPES = Path(__file__).parents[2] / "recipes"
DEFAULT = RunConfig()


def factor(step, *, total_steps, warmup_steps=0.0, **settings):
    """The factor in a run whose epochs have one step each."""
    config = RunConfig(epochs=total_steps, warmup_epochs=warmup_steps, **settings)
    return rate_factor(step, config, total_steps=total_steps)


def factors(schedule, *, total_steps, **named):
    return [factor(step, total_steps=total_steps, schedule=schedule, **named) for step in range(total_steps)]


@pytest.mark.parametrize("total_steps", [10, 37, 600])
def test_one_cycle_is_that_of_torch(total_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total_steps, cycle_momentum=False)
    rates = []
    for _ in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < total_steps:
            peer.step()
    assert factors("one_cycle", total_steps=total_steps) == pytest.approx(rates, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_one_cycle_of_hardly_any_steps_only_falls(total_steps):
    rates = factors("one_cycle", total_steps=total_steps)
    assert rates[0] == 1 and rates == sorted(rates, reverse=True) and min(rates) > 0


def test_cosine_by_hand():
    assert factors("cosine", total_steps=4) == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )


def test_step_schedule_of_the_paper():
    """90 000 steps, divided by ten at 60 000 and again at 80 000 (section 4.1)."""
    at = {
        step: factor(step, total_steps=90_000, warmup_steps=500.0, schedule="step")
        for step in (0, 499, 59_999, 60_000, 79_999, 80_000, 89_999)
    }
    expected = {0: 1 / 500, 499: 1, 59_999: 1, 60_000: 0.1, 79_999: 0.1, 80_000: 0.01, 89_999: 0.01}
    assert at == pytest.approx(expected)


def test_constant_warms_up_and_stays():
    assert factors("constant", total_steps=6, warmup_steps=4.0) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert factor(10**9, total_steps=6, warmup_steps=4.0, schedule="constant") == 1


def test_the_rate_of_darknets_cfg():
    """yolov2.cfg: 500 200 updates, burn_in=1000 with power 4, a tenth at 400 000 and 450 000; its batch t is our t - 1.

    get_current_rate of src/network.c, with the fractions that the recipe has.
    """

    def darknet(batch):
        if batch < 1000:
            return (batch / 1000) ** 4
        return 0.1 ** sum(milestone <= batch for milestone in (400_000, 450_000))

    law = {"schedule": "step", "total_steps": 500_200, "warmup_steps": 1000.0, "warmup_power": 4.0}
    recipe = configs.from_dict(RunConfig, configs.read_mapping(RECIPES / "yolov2_coco.yaml"))
    assert (recipe.schedule, recipe.warmup_power, recipe.step_at) == ("step", 4.0, (0.79968, 0.89964))
    for batch in (1, 10, 500, 999, 1000, 1001, 399_990, 400_010, 449_990, 450_010, 500_200):
        rate = factor(batch - 1, **law, step_at=recipe.step_at)
        assert rate == pytest.approx(darknet(batch), rel=1e-12), batch


def test_ssds_rate_falls_where_its_authors_let_it():
    """130 000 and 210 000 of 250 000 updates."""
    recipe = configs.from_dict(RunConfig, configs.read_mapping(RECIPES / "ssd513_r101.yaml"))
    law = {"schedule": recipe.schedule, "total_steps": 250_000, "step_at": recipe.step_at}
    at = {step: factor(step, **law) for step in (129_999, 130_000, 209_999, 210_000)}
    assert at == pytest.approx({129_999: 1, 130_000: 0.1, 209_999: 0.1, 210_000: 0.01})


def test_step_without_milestones_is_constant():
    assert factors("step", total_steps=5, step_at=()) == [1.0] * 5


def test_the_power_bends_every_linear_warm_up():
    for schedule in ("constant", "cosine", "step"):
        one, square = (factors(schedule, total_steps=8, warmup_steps=4.0, warmup_power=p) for p in (1.0, 2.0))
        warmup = [0.25, 0.5, 0.75, *[1.0] * 5]
        assert square == pytest.approx([factor * rise for factor, rise in zip(one, warmup, strict=True)])
    assert factors("one_cycle", total_steps=8, warmup_power=2.0) == factors("one_cycle", total_steps=8)


def test_groups_hold_every_trained_parameter_once():
    detector = build("retinanet_mobilenet_v2_fpn", num_classes=2, architecture=ARCHITECTURE)
    groups = parameter_groups(detector, backbone_factor=0.3, weight_decay=0.05)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in detector.parameters() if p.requires_grad)
    assert len(set(grouped)) == len(grouped)


def test_groups_by_decay_and_rate():
    detector = TinyDetector()
    groups = parameter_groups(detector, backbone_factor=0.3, weight_decay=0.05)
    law = {id(p): (g["rate_factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert law[id(detector.backbone.weight)] == (0.3, 0.05)
    assert law[id(detector.backbone.bias)] == (0.3, 0.0)
    assert law[id(detector.head.weight)] == (1.0, 0.05)
    assert law[id(detector.norm.weight)] == law[id(detector.norm.bias)] == law[id(detector.head.bias)] == (1.0, 0.0)


def test_frozen_parameters_are_in_no_group():
    detector = TinyDetector()
    detector.backbone.requires_grad_(False)
    groups = parameter_groups(detector, backbone_factor=0.3, weight_decay=0.05)
    assert {g["rate_factor"] for g in groups} == {1.0}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_rate_reaches_every_group(name, kind):
    optimizer = build_optimizer(TinyDetector(), RunConfig(optimizer=name, backbone_factor=0.5))
    set_rate(optimizer, 0.2)
    assert isinstance(optimizer, kind)
    assert {group["rate_factor"]: group["lr"] for group in optimizer.param_groups} == {0.5: 0.1, 1.0: 0.2}


def test_clipping_by_hand():
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, max_norm=None) == 5
    assert clip_gradients(parameters, max_norm=10.0) == 5
    assert parameters[1].grad == 4
    assert clip_gradients(parameters, max_norm=1.0) == 5
    torch.testing.assert_close(torch.cat([parameters[0].grad, parameters[1].grad]), torch.tensor([0.6, 0.8]))
