"""The series of growth are measured and drawn; under `prove` the memory of many predictions stays flat."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def growth(monkeypatch):
    """The script as a module; what it imports from its folder is forgotten afterwards."""
    before, threads = {*sys.modules}, torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("growth")
    torch.set_num_threads(threads)
    for name in {*sys.modules} - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture
def run(growth, tmp_path, monkeypatch, capsys):
    """What the script prints and writes."""

    def run_series(*arguments):
        monkeypatch.setattr(sys, "argv", ["growth.py", "--out", str(tmp_path), *arguments])
        growth.main()
        return capsys.readouterr().out, json.loads((tmp_path / "growth.json").read_text())["series"]

    return run_series


def test_the_exponent_is_that_of_the_upper_half(growth):
    x = [1, 10, 100, 1000]
    assert growth.exponent(x, [5, 5, 300, 30_000]) == pytest.approx(2)
    assert growth.exponent(x, [1, 1, 7, 7]) == pytest.approx(0)
    assert growth.exponent([1, 2, 4, 8, 16], [9, 9, 1, 2, 4]) == pytest.approx(1)
    assert growth.exponent([10], [1]) is None


def test_series_are_in_the_table_the_file_and_the_drawing(tmp_path, run):
    printed, series = run("--small", "--rounds", "1", "--series", "classes", "index")
    assert series["classes"].keys() == {"sizes", "seconds", "exponents"}
    assert series["index"].keys() == {"sizes", "seconds", "peak_mb", "exponents"}
    for row in series.values():
        assert len(row["sizes"]) == len(row["seconds"]) == 2 and min(row["seconds"]) > 0
    assert series["index"]["peak_mb"][0] > 50
    rows = [line for line in printed.splitlines() if line.startswith(("| training", "| reading"))]
    assert len(rows) == 3 and "100 · 300 | peak_mb" in rows[2]
    assert (tmp_path / "growth.svg").read_text().count('id="axes_') == 3


def test_the_images_are_files_of_their_own_that_can_be_read(growth, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "MOST_LINKS", 2)
    assert growth.link_images(tmp_path / "images", 5) == [f"{index}.jpg" for index in range(5)]
    files = [path.stat() for path in sorted((tmp_path / "images").iterdir())]
    assert len({file.st_ino for file in files}) == 3
    dataset = growth.index_reading(5, tmp_path / "more")()
    assert (len(dataset), len(dataset.boxes), len(dataset.problems.counts)) == (5, 35, 0)


def test_no_series_is_longer_than_asked_for(growth):
    series = growth.build_series(small=False, most=1000)
    assert max(size for each in series.values() for size in each.sizes) == 1000
    whole = growth.build_series(small=False, most=None)
    assert {whole[name].sizes[-1] for name in ("predict", "index")} == {10_000}


@pytest.mark.prove
def test_the_memory_of_ten_times_as_many_predictions_is_the_same(run):
    _, series = run("--series", "predict", "--most", "3000")
    assert series["predict"]["sizes"] == [100, 300, 1000, 3000]
    assert series["predict"]["peak_mb"][-1] < 1.05 * series["predict"]["peak_mb"][1]


@pytest.mark.prove
def test_every_series_is_measured(run):
    _, series = run("--small", "--rounds", "1")
    assert [*series] == ["boxes", "classes", "side", "predict", "evaluate", "index"]
