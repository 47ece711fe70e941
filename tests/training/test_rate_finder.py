"""The learning-rate finder: the rule on curves made by hand, and a search that leaves nothing behind."""

import dataclasses

import pytest

from focaldet.cli.output import print_rates
from focaldet.data.augment.config import AugmentConfig
from focaldet.errors import ConfigError, DataError
from focaldet.training import rate_finder
from focaldet.training.rate_finder import RateTrial, find_rate, rates_to_try, suggest_rate
from tests.training.squares import small_run, squares


def curve(losses):
    return [RateTrial(rate, loss, loss) for rate, loss in zip(rates_to_try(len(losses)), losses, strict=True)]


def test_the_suggestion_is_a_third_of_the_rate_at_the_smallest_loss():
    assert rates_to_try(6) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert suggest_rate(curve([5, 4, 3, 2, 9, 50])) == 3e-3
    assert suggest_rate(curve([1, 2, 3, 4, 5, 6])) is None
    assert suggest_rate(curve([2, 1])) is None


def test_a_search_writes_nothing_and_prints_its_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = squares(8)
    config = small_run(tmp_path / "run", optimizer="sgd", accumulate=2)
    found = find_rate(config, sources=(data, data), num_rates=12)
    assert list(tmp_path.iterdir()) == []
    assert 3 <= len(found.trials) <= 12
    assert found.trials[0].smooth == pytest.approx(found.trials[0].loss, rel=1e-12)
    print_rates(found)
    printed = capsys.readouterr().out
    assert printed.count("█") > len(found.trials) and ("take     --learning-rate" in printed or "no rate" in printed)
    assert find_rate(config, sources=(data, data), num_rates=12) == found, "the same again"


def test_a_search_says_what_it_starts_from_and_how_far_it_is(tmp_path):
    data, lines, steps = squares(8), [], []
    found = find_rate(
        small_run(tmp_path),
        sources=(data, data),
        num_rates=4,
        log=lines.append,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert any(line.startswith("no weights given: starts from random ones") for line in lines)
    assert lines[-1] == "up to 4 steps, each with a larger learning rate"
    assert steps == [(number, 4) for number in range(1, len(found.trials) + 1)]


def test_a_search_sees_the_images_that_training_sees(tmp_path, monkeypatch):
    """Several sizes as they are set; with overfit the images as they are."""
    data, batches, plain = squares(8), [], rate_finder.train_step

    def note_batches(state, group, **named):
        batches.extend(group)
        return plain(state, group, **named)

    monkeypatch.setattr(rate_finder, "train_step", note_batches)
    config = small_run(tmp_path, multi_scale=(96, 96), augment=AugmentConfig(preset="strong"))
    find_rate(config, sources=(data, data), num_rates=3)
    assert {batch.images.shape[-1] for batch in batches} == {96}
    batches.clear()
    find_rate(dataclasses.replace(config, overfit=2), sources=(data, data), num_rates=3)
    images = {image.numpy().tobytes() for batch in batches for image in batch.images}
    assert images == {image.numpy().tobytes() for image in data.images[:2]}


@pytest.mark.parametrize(
    ("data", "changes", "error", "message"),
    [
        (squares(3, empty=(0, 1, 2)), {}, DataError, "nothing to train on: no box in 3 images"),
        (squares(2), {"batch_size": 1, "size": 32}, ConfigError, "batch_size: BatchNorm has one value per channel"),
        (squares(2), {"size": 100_000}, ConfigError, "at once need at least"),
    ],
)
def test_what_training_refuses_a_search_refuses_too(tmp_path, data, changes, error, message):
    with pytest.raises(error, match=message):
        find_rate(small_run(tmp_path, **changes), sources=(data, data))
