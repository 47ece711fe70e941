"""The figures of the losses: their curves are the paper's, and the page shows them."""

import csv
import json
import math
import re

import pytest

from focaldet.cli import main
from focaldet.study.loss_curves import FIGURE_GAMMAS, study_losses, worked_examples


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study_losses(folder)
    return folder


@pytest.fixture(scope="module")
def curves(out):
    """{figure: {curve: {x: y}}} from the table."""
    curves = {}
    with (out / "curves.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points = curves.setdefault(row["figure"], {}).setdefault(row["curve"], {})
            points[float(row["x"])] = float(row["y"])
    return curves


def test_figure_1_is_the_formula_for_the_papers_gammas(curves):
    assert [float(name.split()[2]) for name in curves["focal_loss"]] == [0, 0.5, 1, 2, 5] == list(FIGURE_GAMMAS)
    for name, points in curves["focal_loss"].items():
        gamma = float(name.split()[2])
        for p, loss in points.items():
            assert loss == pytest.approx(-((1 - p) ** gamma) * math.log(p), rel=1e-9)


def test_figures_5_and_6_meet_the_appendix(curves):
    def nearest(points, x):
        return points[min(points, key=lambda other: abs(other - x))]

    values = {name: nearest(points, 2.0) for name, points in curves["star"].items()}
    slopes = {name: nearest(points, -2.0) for name, points in curves["star_slopes"].items()}
    assert list(values.values()) == pytest.approx([0.126928, 0.001804, 0.003358, 0.000084], abs=1e-6)
    assert list(slopes.values()) == pytest.approx([-0.880797, -1.076714, -0.952574, -0.999665], abs=1e-6)
    assert list(values) == ["CE", "FL, γ = 2", "FL*, γ = 2, β = 1", "FL*, γ = 4, β = 0"]


def test_worked_examples_of_the_text():
    """Section 3.2: at p_t = .9 a hundred times lower with γ = 2, at .968 a thousand, at most 4 times for p_t ≤ .5."""
    lower = {(one.p_t, one.gamma): one.times_smaller for one in worked_examples()}
    assert lower[0.9, 2.0] == pytest.approx(100)
    assert lower[0.968, 2.0] == pytest.approx(1000, rel=0.03)
    assert all(times <= 4 + 1e-9 for (p, gamma), times in lower.items() if p <= 0.5 and gamma == 2)
    for p in {p for p, _ in lower}:
        assert [lower[p, gamma] for gamma in FIGURE_GAMMAS] == sorted(lower[p, gamma] for gamma in FIGURE_GAMMAS)


def test_every_figure_is_there_twice_and_on_the_page(out):
    figures = ("focal_loss", "balance", "star", "star_slopes")
    for name in figures:
        assert (out / f"{name}.svg").read_text().lstrip().startswith("<?xml")
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "index.html").read_text()
    assert page.count("<svg") == len(figures) == page.count("aria-label=")
    assert not re.search(r"(src|href)=.?https?:", page)
    assert len(json.loads((out / "examples.json").read_text())) == len(worked_examples())


def test_the_same_again_gives_the_same_bytes(out, tmp_path):
    study_losses(tmp_path)
    for path in out.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_command(tmp_path, capsys):
    assert main(["study", "losses", "--out", str(tmp_path / "here")]) == 0
    assert str(tmp_path / "here" / "index.html") in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert main(["study", "losses", "--out", str(tmp_path / "file")]) == 2
    assert "out:" in capsys.readouterr().err
