"""One update: what it changes, what it refuses, and that its randomness follows from seed and step."""

import dataclasses

import pytest
import torch

from focaldet.errors import NonFiniteLossError
from focaldet.models import LossContext
from focaldet.training.config import RunConfig
from tests.training.tiny import TinyDetector, all_finite, batch_of, same_weights, update_of, weights_of

CONFIG = RunConfig(optimizer="sgd", batch_size=8, clip_norm=None, ema=None, precision="fp32", weight_decay=0.0)


def fresh(config=CONFIG, *, dropout=0.0, **more):
    torch.manual_seed(5)
    detector = TinyDetector(dropout=dropout)
    return detector, update_of(detector, config, **more)


def test_losses_fall():
    _, update = fresh()
    batch = batch_of([0, 1, 2, 3])
    losses = [sum(update([batch], step=step, rate=0.05).losses.values()) for step in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_result_says_what_happened():
    context = LossContext(images_seen=100)
    detector, update = fresh(context=context)
    batch = batch_of([0, 1, 2])
    with torch.no_grad():
        expected = detector.losses(detector(batch.images, batch.sizes), batch.targets, context)
    result = update([batch], step=0, rate=0.1)
    assert result.losses == pytest.approx({name: float(value) for name, value in expected.items()})
    norms = torch.cat([parameter.grad.flatten() for parameter in detector.parameters()])
    assert result.gradient_norm == pytest.approx(float(norms.norm()))
    assert result.num_images == 3 and context.images_seen == 103 and not result.stop


def test_parts_add_up_to_the_whole():
    whole, whole_update = fresh()
    parts, parts_update = fresh()
    halves = [batch_of([0, 1], seed=1), batch_of([2, 3], seed=2)]
    joined = dataclasses.replace(
        batch_of([0, 1, 2, 3]),
        images=torch.cat([half.images for half in halves]),
        targets=halves[0].targets + halves[1].targets,
    )
    first = whole_update([joined], step=0, rate=0.1)
    second = parts_update(halves, step=0, rate=0.1)
    assert first.losses == pytest.approx(second.losses)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, parts.state_dict()[name])


def test_clipping_shortens_the_step():
    plain, update = fresh()
    before = weights_of(plain)
    norm = update([batch_of([5, 9])], step=0, rate=0.1).gradient_norm
    long = (plain.head.weight.detach() - before["head.weight"]).norm()
    clipped, update = fresh(dataclasses.replace(CONFIG, clip_norm=norm / 4))
    assert update([batch_of([5, 9])], step=0, rate=0.1).gradient_norm == pytest.approx(norm)
    short = (clipped.head.weight.detach() - before["head.weight"]).norm()
    assert float(short) == pytest.approx(float(long) / 4, rel=1e-4)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_changes_nothing(spoil):
    detector, update = fresh(dataclasses.replace(CONFIG, optimizer="adamw", ema=0.9))
    update([batch_of([1, 2])], step=0, rate=0.1)
    before, average = weights_of(detector), weights_of(update.learner.ema.detector)
    detector.spoil = spoil
    with pytest.raises(
        NonFiniteLossError, match=r"step 2: .*count (nan|inf), size .*no update.*cells/a\.jpg, cells/b\.jpg"
    ):
        update([batch_of([1, 2], names=("cells/a.jpg", "cells/b.jpg"))], step=1, rate=0.1)
    assert same_weights(weights_of(detector), before)
    assert same_weights(weights_of(update.learner.ema.detector), average)


def test_bad_part_stops_the_whole_update():
    detector, update = fresh()
    before = weights_of(detector)
    sound = detector.losses

    def losses(outputs, targets, context):
        found = sound(outputs, targets, context)
        return {name: loss * float("nan") if len(targets) == 1 else loss for name, loss in found.items()}

    detector.losses = losses
    with pytest.raises(NonFiniteLossError, match=r"batch: bad\.jpg\. Look"):
        update([batch_of([1, 0]), batch_of([1], names=("bad.jpg",))], step=0, rate=0.1)
    assert same_weights(weights_of(detector), before)


def test_gradient_that_is_not_finite_changes_nothing():
    """sqrt has an infinite slope at 0 while its value is sound."""
    detector, update = fresh()
    before = weights_of(detector)
    detector.losses = lambda outputs, targets, context: {"root": (outputs * 0).sqrt().sum()}
    with pytest.raises(NonFiniteLossError, match=r"gradient is not finite .*0\.jpg, 1\.jpg"):
        update([batch_of([1, 1])], step=0, rate=0.1)
    assert same_weights(weights_of(detector), before)


def test_dropout_follows_from_seed_and_step():
    """What a resumed run draws does not depend on what was drawn before it."""
    first, first_update = fresh(dropout=0.5)
    second, second_update = fresh(dropout=0.5)
    batch = batch_of([0, 1, 2, 3])
    first_update([batch], step=7, rate=0.1)
    torch.manual_seed(99)
    torch.rand(17)
    second_update([batch], step=7, rate=0.1)
    assert same_weights(weights_of(first), weights_of(second))
    third, third_update = fresh(dropout=0.5)
    third_update([batch], step=8, rate=0.1)
    assert not same_weights(weights_of(first), weights_of(third))
    fourth, fourth_update = fresh(dropout=0.5, rank=1)
    fourth_update([batch], step=7, rate=0.1)
    assert not same_weights(weights_of(first), weights_of(fourth))


def test_half_precision_leaves_out_steps_that_overflow():
    detector, update = fresh(dataclasses.replace(CONFIG, precision="fp16"))
    before = weights_of(detector)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    update.learner.autocast = dataclasses.replace(update.learner.autocast, scaler=scaler)
    update([batch_of([1, 2])], step=0, rate=0.1)
    assert same_weights(weights_of(detector), before)
    assert scaler.get_scale() == pytest.approx(5e37)
    scaler.update(1024.0)
    update([batch_of([1, 2])], step=1, rate=0.1)
    assert not same_weights(weights_of(detector), before) and all_finite(detector)


def test_bfloat16_keeps_weights_and_losses_in_full_precision():
    detector, update = fresh(dataclasses.replace(CONFIG, precision="bf16"))
    seen = []
    losses = detector.losses
    detector.losses = lambda outputs, targets, context: seen.append(outputs.dtype) or losses(outputs, targets, context)
    update([batch_of([1, 2])], step=0, rate=0.1)
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in detector.parameters()} == {torch.float32}


def test_frozen_parameters_stay():
    torch.manual_seed(5)
    detector = TinyDetector()
    detector.backbone.requires_grad_(False)
    before = weights_of(detector)
    update_of(detector, CONFIG)([batch_of([1, 2])], step=0, rate=0.1)
    assert torch.equal(detector.backbone.weight, before["backbone.weight"])
    assert not torch.equal(detector.head.weight, before["head.weight"])


def test_wish_to_stop_is_passed_on():
    _, update = fresh(stop_asked=lambda: True)
    assert update([batch_of([1])], step=0, rate=0.1).stop
