"""The average of the best evaluations' weights: which are kept, and that it is the better one that stays."""

import csv
import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from focaldet.training import trainer
from focaldet.training.averaging import rank_evaluation
from focaldet.training.run_folder import RunFolder
from focaldet.training.trainer import train
from tests.training.squares import small_run, squares

EIGHT = squares(8)


def test_the_best_are_ranked_and_the_later_of_equals_first():
    ranking = []
    for epoch, ap in enumerate([0.1, 0.3, 0.2, 0.3, 0.05], start=1):
        ranking = rank_evaluation(ranking, ap=ap, epoch=epoch, most=3)
    assert ranking == [(0.3, 4), (0.3, 2), (0.2, 3)]
    assert rank_evaluation(ranking, ap=0.5, epoch=2, most=3) == [(0.5, 2), (0.3, 4), (0.2, 3)]


@pytest.mark.parametrize("average_ap", [0.9, 0.1])
def test_the_average_stays_where_it_evaluates_better(tmp_path, monkeypatch, capsys, average_ap):
    """AP is 0.2, 0.4, 0.3 after three epochs, and the average of the last two has another."""
    plain, values = trainer.evaluate_detections, iter([0.2, 0.4, 0.3, average_ap])
    monkeypatch.setattr(
        trainer,
        "evaluate_detections",
        lambda *args, **named: dataclasses.replace(plain(*args, **named), ap=next(values)),
    )
    config = small_run(tmp_path, epochs=3, evaluate_every=1, average_best=2)
    result = train(config, sources=(EIGHT, EIGHT))
    folder = RunFolder(tmp_path)
    files = sorted(folder.ranked.iterdir())
    assert [path.name for path in files] == ["epoch_2.safetensors", "epoch_3.safetensors"]
    second, third = map(load_file, files)
    best = load_file(folder.best)
    mean = {name: (second[name] + third[name]) / 2 for name in second if second[name].is_floating_point()}
    expected = mean if average_ap == 0.9 else second
    for name in mean:
        if "running" in name and average_ap == 0.9:
            continue  # BatchNorm is measured anew under the averaged weights
        torch.testing.assert_close(best[name], expected[name])
    assert result.best.ap == max(average_ap, 0.4)
    printed = capsys.readouterr().out
    assert "the average of the weights after epochs 2, 3: AP " in printed
    assert ("it is best.safetensors" in printed) == (average_ap == 0.9)
    again = train(dataclasses.replace(config, resume=True), sources=(EIGHT, EIGHT))
    assert again.best == result.best, "nothing is evaluated again"
    with folder.metrics.open() as file:
        assert sum(row["kind"] == "evaluation" for row in csv.DictReader(file)) == 3
