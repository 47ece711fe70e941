"""One update: what it changes, what it refuses, and that its randomness follows from seed and step."""

import dataclasses

import pytest
import torch

from focaldet.errors import NonFiniteLossError
from focaldet.models import LossContext
from focaldet.training.config import RunConfig
from focaldet.training.signals import StopSignal
from tests.training.tiny import TinyDetector, all_finite, batch_of, same_weights, stepper, weights_of

CONFIG = RunConfig(optimizer="sgd", batch_size=8, clip_norm=None, ema=None, precision="fp32", weight_decay=0.0)


def fresh(config=CONFIG, *, dropout=0.0, **more):
    torch.manual_seed(5)
    detector = TinyDetector(dropout=dropout)
    return detector, *stepper(detector, config, **more)


def test_losses_fall():
    _, _, step = fresh()
    batch = batch_of([0, 1, 2, 3])
    losses = [sum(step([batch], rate=0.05)[0].values()) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_result_says_what_happened():
    context = LossContext(images_seen=100)
    detector, state, step = fresh(context=context)
    batch = batch_of([0, 1, 2])
    with torch.no_grad():
        expected = detector.losses(detector(batch.images, batch.sizes), batch.targets, context)
    losses, norm, stopping = step([batch])
    assert losses == pytest.approx({name: float(value) for name, value in expected.items()})
    norms = torch.cat([parameter.grad.flatten() for parameter in detector.parameters()])
    assert norm == pytest.approx(float(norms.norm()))
    assert context.images_seen == 103 and state.step == 1 and not stopping


def test_parts_add_up_to_the_whole():
    whole, _, whole_step = fresh()
    parts, _, parts_step = fresh()
    halves = [batch_of([0, 1], seed=1), batch_of([2, 3], seed=2)]
    joined = dataclasses.replace(
        batch_of([0, 1, 2, 3]),
        images=torch.cat([half.images for half in halves]),
        targets=halves[0].targets + halves[1].targets,
    )
    first, *_ = whole_step([joined])
    second, *_ = parts_step(halves)
    assert first == pytest.approx(second)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name])


def test_clipping_shortens_the_step():
    plain, _, step = fresh()
    before = weights_of(plain)
    _, norm, _ = step([batch_of([5, 9])])
    long = (plain.head.weight.detach() - before["head.weight"]).norm()
    clipped, _, step = fresh(dataclasses.replace(CONFIG, clip_norm=norm / 4))
    assert step([batch_of([5, 9])])[1] == pytest.approx(norm)
    short = (clipped.head.weight.detach() - before["head.weight"]).norm()
    assert float(short) == pytest.approx(float(long) / 4, rel=1e-4)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_changes_nothing(spoil):
    detector, state, step = fresh(dataclasses.replace(CONFIG, optimizer="adamw", ema=0.9))
    step([batch_of([1, 2])])
    before, average = weights_of(detector), weights_of(state.ema)
    detector.spoil = spoil
    with pytest.raises(
        NonFiniteLossError, match=r"step 2: .*count (nan|inf), size .*no update.*cells/a\.jpg, cells/b\.jpg"
    ):
        step([batch_of([1, 2], names=("cells/a.jpg", "cells/b.jpg"))])
    assert same_weights(weights_of(detector), before)
    assert same_weights(weights_of(state.ema), average)


def test_bad_part_stops_the_whole_update():
    detector, _, step = fresh()
    before = weights_of(detector)
    sound = detector.losses

    def losses(outputs, targets, context):
        values = sound(outputs, targets, context)
        return {name: loss * float("nan") if len(targets) == 1 else loss for name, loss in values.items()}

    detector.losses = losses
    with pytest.raises(NonFiniteLossError, match=r"batch: bad\.jpg\. Look"):
        step([batch_of([1, 0]), batch_of([1], names=("bad.jpg",))])
    assert same_weights(weights_of(detector), before)


def test_gradient_that_is_not_finite_changes_nothing():
    """sqrt has an infinite slope at 0 while its value is sound."""
    detector, _, step = fresh()
    before = weights_of(detector)
    detector.losses = lambda outputs, targets, context: {"root": (outputs * 0).sqrt().sum()}
    with pytest.raises(NonFiniteLossError, match=r"gradient is not finite .*0\.jpg, 1\.jpg"):
        step([batch_of([1, 1])])
    assert same_weights(weights_of(detector), before)


def test_dropout_follows_from_seed_and_step():
    """What a resumed run draws does not depend on what was drawn before it."""
    first, _, first_step = fresh(dropout=0.5)
    second, _, second_step = fresh(dropout=0.5)
    batch = batch_of([0, 1, 2, 3])
    first_step([batch], step=7)
    torch.manual_seed(99)
    torch.rand(17)
    second_step([batch], step=7)
    assert same_weights(weights_of(first), weights_of(second))
    third, _, third_step = fresh(dropout=0.5)
    third_step([batch], step=8)
    assert not same_weights(weights_of(first), weights_of(third))
    fourth, _, fourth_step = fresh(dropout=0.5, rank=1)
    fourth_step([batch], step=7)
    assert not same_weights(weights_of(first), weights_of(fourth))


def test_half_precision_skips_steps_that_overflow():
    detector, state, step = fresh(dataclasses.replace(CONFIG, precision="fp16"))
    before = weights_of(detector)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    state.autocast = dataclasses.replace(state.autocast, scaler=scaler)
    step([batch_of([1, 2])])
    assert same_weights(weights_of(detector), before)
    assert scaler.get_scale() == pytest.approx(5e37)
    scaler.update(1024.0)
    step([batch_of([1, 2])])
    assert not same_weights(weights_of(detector), before) and all_finite(detector)


def test_bfloat16_keeps_weights_and_losses_in_full_precision():
    detector, _, step = fresh(dataclasses.replace(CONFIG, precision="bf16"))
    seen = []
    losses = detector.losses
    detector.losses = lambda outputs, targets, context: seen.append(outputs.dtype) or losses(outputs, targets, context)
    step([batch_of([1, 2])])
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in detector.parameters()} == {torch.float32}


def test_frozen_parameters_stay():
    torch.manual_seed(5)
    detector = TinyDetector()
    detector.backbone.requires_grad_(False)
    before = weights_of(detector)
    _, step = stepper(detector, CONFIG)
    step([batch_of([1, 2])])
    assert torch.equal(detector.backbone.weight, before["backbone.weight"])
    assert not torch.equal(detector.head.weight, before["head.weight"])


def test_a_request_to_stop_is_passed_on():
    stop = StopSignal()
    _, _, step = fresh(stop=stop)
    assert not step([batch_of([1])])[2]
    stop.signal_name = "SIGTERM"
    assert step([batch_of([1])])[2]
