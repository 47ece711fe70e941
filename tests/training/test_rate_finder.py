"""The learning-rate finder: the rule on curves made by hand, and a search that leaves nothing behind."""

import pytest

from focaldet.cli.output import print_rates
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
