"""The demonstration, shortened: what it leaves and in what form."""

import json
from pathlib import Path

import pytest
from PIL import Image

import focaldet
from focaldet.cli import main
from focaldet.study import demo


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    """One epoch of eight scenes with four test scenes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "NUM_TEST_SCENES", 4)
        patch.setattr(demo, "NUM_TRAINING_FILES", 2)
        yield demo.run_demo(tmp_path_factory.mktemp("demo") / "run", epochs=1, images_per_epoch=8)


def test_it_writes_a_run_a_report_and_drawings(shortened):
    assert shortened.metrics is not None
    assert shortened.metrics.num_images == 4
    assert (shortened.out / "weights" / "best.safetensors").exists()
    assert "<svg" in shortened.report.read_text()
    drawings = sorted(shortened.drawings.glob("*.jpg"))
    assert len(drawings) == 4
    with Image.open(drawings[0]) as drawing:
        assert drawing.size == (256, 192)


def test_its_data_are_on_disk_and_its_run_evaluates_on_them(shortened, capsys, tmp_path):
    truth = json.loads((shortened.data / "instances_test.json").read_text())
    assert len(truth["images"]) == 4
    assert main(["eval", str(shortened.out), "--json", "--out", str(tmp_path)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["num_images"] == 4
    assert again["ap"] == pytest.approx(shortened.metrics.ap, abs=1e-6)


def test_a_second_one_replaces_the_first(shortened, monkeypatch):
    monkeypatch.setattr(demo, "train", lambda config, sources: pytest.fail() if not config.overwrite else stopped())
    assert demo.run_demo(shortened.out).metrics is None


def stopped():
    return focaldet.TrainResult(Path("run"), None, None, epochs=0, seconds_training=0.0, interrupted=True)


def test_digits_are_never_mirrored():
    config = demo.demo_config(Path("runs/demo"), epochs=1, seed=0, device=None)
    changes = config.augment
    assert (changes.flip_horizontal, changes.flip_vertical) == (0, 0)


def test_the_command_says_where_to_look_and_what_comes_next(shortened, monkeypatch, capsys):
    monkeypatch.setattr("focaldet.cli.demo.run_demo", lambda out, **named: shortened)
    assert main(["demo", "--out", str(shortened.out)]) == 0
    printed = capsys.readouterr().out
    assert str(shortened.report) in printed
    assert "AP50" in printed
    assert "focaldet train --data YOUR_DATA" in printed


@pytest.mark.prove
def test_it_learns_to_read(tmp_path):
    """The whole demonstration on digits of other writers: AP50 of at least .90, and large ones no worse than others."""
    metrics = demo.run_demo(tmp_path / "run").metrics
    assert metrics.ap50 >= 0.90
    assert metrics.ap_large >= 0.75
