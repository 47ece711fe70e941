"""The guard on what RetinaNet learns: its bars, its scenes, and when it fails, without the trainings themselves."""

import importlib.util
import statistics
from pathlib import Path

import pytest

from focaldet.data.config import DataConfig
from focaldet.data.splits import open_splits

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "guard.py"


@pytest.fixture
def guard():
    """The program as a module of its own."""
    spec = importlib.util.spec_from_file_location("guard", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train_to(guard, monkeypatch):
    """Let the trainings of seeds 0, 1, … end with these AP; the calls that were made."""

    def fake(*aps):
        calls = []
        monkeypatch.setattr(
            guard, "train_once", lambda images, flags, out, *, seed: calls.append((images, flags)) or aps[seed]
        )
        return calls

    return fake


def test_a_bar_lies_four_deviations_below_the_mean_of_ten_seeds(guard):
    aps = guard.MEASURED["bccd"]
    assert len(aps) == 10 and guard.compute_bar(aps) == pytest.approx(statistics.mean(aps) - 4 * statistics.stdev(aps))
    assert guard.compute_bar([30.0] * 9 + [40.0]) == pytest.approx(31 - 4 * 10**0.5)
    assert guard.compute_bar(aps[:9]) is None and guard.compute_bar(()) is None
    assert set(guard.MEASURED) == set(guard.FLAGS)


def test_below_the_bar_the_guard_fails(guard, train_to, tmp_path):
    bar = guard.compute_bar(guard.MEASURED["bccd"])
    calls = train_to(bar + 0.1)
    guard.main(["--data", str(tmp_path)])
    assert calls == [(["--data", str(tmp_path)], guard.FLAGS["bccd"])]
    train_to(bar - 0.1)
    with pytest.raises(SystemExit, match=rf"learns less than it did: AP {bar - 0.1:.1f}, the bar is {bar:.1f}"):
        guard.main(["--data", str(tmp_path)])


def test_without_data_it_trains_on_digits_and_fails_only_where_ten_seeds_were_measured(
    guard, train_to, monkeypatch, capsys
):
    monkeypatch.setattr(guard, "NUM_SCENES", {"num_train": 3, "num_test": 2})
    monkeypatch.setitem(guard.MEASURED, "digits", ())
    calls = train_to(0.0)
    guard.main([])
    images, flags = calls[0]
    assert flags == guard.FLAGS["digits"] and images[0] == "--data" and images[3].endswith("instances_test.json")
    assert "no bar: ten seeds were not measured" in capsys.readouterr().out
    monkeypatch.setitem(guard.MEASURED, "digits", (20.0, 22.0) * 5)
    with pytest.raises(SystemExit, match="learns less"):
        guard.main([])


def test_several_seeds_give_the_bar_that_they_would_set(guard, train_to, monkeypatch, capsys):
    monkeypatch.setattr(guard, "NUM_SCENES", {"num_train": 1, "num_test": 1})
    train_to(1.0, 2.0, 3.0)
    guard.main(["--measure", "2", "--first-seed", "1"])
    assert "(2.0, 3.0): mean 2.5, deviation 0.71, bar -0.3" in capsys.readouterr().out


def test_the_scenes_are_the_same_on_every_call(guard, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "NUM_SCENES", {"num_train": 4, "num_test": 3})
    splits = []
    for name in ("one", "two"):
        _, path, _, val = guard.data_flags(None, tmp_path / name)
        splits.append(open_splits(DataConfig(path=Path(path), val=Path(val)), seed=0))
    assert [len(splits[0].train), len(splits[0].val)] == [4, 3]
    first, second = ([each.boxes.tolist() for each in (split.train, split.val)] for split in splits)
    assert first == second
    images = [sorted((tmp_path / name / "images").iterdir()) for name in ("one", "two")]
    assert [one.read_bytes() for one in images[0]] == [other.read_bytes() for other in images[1]]
