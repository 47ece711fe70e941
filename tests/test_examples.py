"""The examples run as they stand, with little data and few steps; the recipes are settings that load."""

import ast
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import focaldet
from focaldet import config as configs
from focaldet.errors import CheckpointError
from focaldet.models import PRESETS, find_preset, named_config
from focaldet.training.config import RunConfig
from focaldet.training.phases import check_phases

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example with arguments; what it printed."""

    def ran(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(REPOSITORY / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return ran


def test_every_example_is_run_here():
    here = Path(__file__).read_text()
    for example in (REPOSITORY / "examples").glob("*.py"):
        assert f'"{example.name}"' in here


def test_predict(run, tiny_run, demo_data, tmp_path):
    pictures = sorted((demo_data / "images").glob("*.png"))[:2]
    printed = run("01_predict.py", tiny_run, *pictures, "--out", tmp_path, "--score", 0)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in pictures}
    assert re.match(r"\S+\.png: \d 0\.\d\d at \[", printed)


def test_train_on_your_data(run, demo_data, tmp_path):
    out = tmp_path / "run"
    printed = run("02_train_on_your_data.py", demo_data, "--epochs", 1, "--size", 64, "--out", out)
    assert re.search(r"^train +12 ", printed, re.MULTILINE)
    assert "boxes, AP" in printed
    assert (out / "weights" / "best.safetensors").exists()


# Each command in a fork of one process that has imported what they need, as if it had been started anew.
FORKS = """
import json, os, runpy, sys
import focaldet.cli.data, focaldet.cli.evaluate, focaldet.cli.predict, focaldet.cli.train
import hotcoco, lightning_fabric, matplotlib.pyplot
folder, program, commands = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for name, words in commands.items():
    if not os.fork():
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}.{stream}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv = [program, *words]
        runpy.run_path(program, run_name="__main__")
        raise SystemExit(99)  # the program itself exits
    print(name, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.mark.prove
def test_new_detector(demo_data, tmp_path):
    """Every command takes it, in processes of their own: its name must not stay registered for the other tests."""
    out, image = tmp_path / "run", next((demo_data / "images").glob("*.png"))
    commands = {
        "check": ("check", demo_data, "--model", "center_net"),
        "train": ("train", demo_data, "--model", "center_net", "--epochs", 1, "--size", 64, "--out", out),
        "eval": ("eval", out),
        "predict": ("predict", out, image, "--out", tmp_path / "drawn", "--score", 0),
    }
    typed = json.dumps({name: [*map(str, words)] for name, words in commands.items()})
    program = [sys.executable, "-c", FORKS, tmp_path, REPOSITORY / "examples" / "03_new_detector.py", typed]
    ended = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    status = {name: int(code) for name, code in map(str.split, ended.stdout.splitlines())}
    printed, errors = (
        {name: (tmp_path / f"{name}.{stream}").read_text() for name in commands} for stream in ("out", "err")
    )
    assert status["check"] in (0, 1) and "train" in printed["check"], errors["check"]
    assert status["train"] == 0, errors["train"]
    assert status["eval"] == 0 and "AP50" in printed["eval"], errors["eval"]
    assert status["predict"] == 0, errors["predict"]
    with pytest.raises(CheckpointError, match=r"'CenterNetConfig' is unknown.*; focaldet\.register one of your own"):
        focaldet.load(out)


def test_a_new_detector_takes_less_than_60_lines():
    code = (REPOSITORY / "examples" / "03_new_detector.py").read_text()
    documentation = {
        line
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = [line for number, line in enumerate(code.splitlines(), start=1) if number not in documentation]
    assert sum(bool(line.strip()) and not line.startswith(("import ", "from ")) for line in lines) < 60


def test_imbalanced_classifier(run):
    """Thirty lines, without a detector; both losses find most of the eights."""
    printed = run("04_imbalanced_classifier.py")
    precisions = [float(number) for number in re.findall(r"precision (\S+)", printed)]
    assert len(precisions) == 2 and min(precisions) > 0.6
    code = (REPOSITORY / "examples" / "04_imbalanced_classifier.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in code) <= 34


def test_own_loop(run, tmp_path):
    """RetinaNet in a plain loop of about thirty lines; its file is opened as any other."""
    printed = run("05_own_loop.py", "--steps", 2, "--out", tmp_path / "w.safetensors")
    assert re.match(r"0 \{'class': \d.*, 'box': \d", printed) and printed.count("drawn: ") == 8
    assert focaldet.load(tmp_path / "w.safetensors", device="cpu").class_names == ("black", "white")
    code = (REPOSITORY / "examples" / "05_own_loop.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in code) <= 44


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_says_what_to_expect(path):
    config = configs.from_dict(RunConfig, configs.read_mapping(path))
    check_phases(config)
    for phase in config.phase_configs:
        named_config(config.model, architecture=phase.architecture)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith(("# paper ", "# expected ")) for line in header)
    assert any(line.startswith("# cost ") for line in header)
    assert f"--config recipes/{path.name} " in "\n".join(header)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.published])
def test_each_row_of_the_papers_table_has_a_recipe_with_its_figures(name):
    row = find_preset(name).published
    expected = (
        f"AP {row.ap}, AP50 {row.ap50}, AP75 {row.ap75}, APs {row.ap_small}, APm {row.ap_medium}, APl {row.ap_large}"
    )
    own = [path for path in RECIPES if configs.from_dict(RunConfig, configs.read_mapping(path)).model == name]
    assert len([path for path in own if expected in path.read_text()]) == 1


def test_the_papers_schedule_is_ninety_thousand_updates_at_its_rates():
    config = configs.from_dict(RunConfig, configs.read_mapping(REPOSITORY / "recipes" / "retinanet_r50_fpn_1x.yaml"))
    assert config.scaled_learning_rate == pytest.approx(0.01)
    assert config.epochs * 117_266 / config.batch_size == pytest.approx(90_000, rel=0.03)
    assert (config.momentum, config.weight_decay, config.schedule) == (0.9, 1e-4, "step")
