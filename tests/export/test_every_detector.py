"""One small detector of every kind in every format: the file answers as the detector, at two batch and image sizes."""

import json
import sys

import pytest
import torch
from PIL import Image

from benchmarks import export_presets
from benchmarks.export_presets import measure, open_images, pick_variants
from focaldet.export.proof import LIMITS
from focaldet.models import PRESETS
from tests.every_detector.test_plain_torch import DETECTORS
from tests.export.conftest import unchecked_shapes

FORMATS = ["onnx", "openvino", "torch"]


@pytest.mark.prove
@pytest.mark.parametrize("name", DETECTORS)
def test_files_of_every_detector_answer_as_it_does(name):
    with unchecked_shapes():
        rows = [*measure(name, DETECTORS[name], pick_variants(FORMATS, ["fp32"]), source=open_images(None))]
    assert [row["format"] for row in rows] == FORMATS
    for row in rows:
        assert row["num_detections"] > 100
        assert row["unmatched"] <= LIMITS["fp32"].unmatched * 2 * row["num_detections"]
        assert row["largest_score"] <= LIMITS["fp32"].score
        assert row["largest_px"] <= LIMITS["fp32"].px


def test_the_images_of_a_folder_are_taken(tmp_path):
    for number in range(25):
        Image.new("RGB", (40 + number, 30), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    source = open_images(tmp_path)
    assert len(source.dataset) == 20
    image, target = source.load(19, epoch=0)
    assert (image.shape, len(target)) == (torch.Size((3, 30, 63)), 0)


def test_rows_that_are_in_the_results_are_not_made_again(tmp_path, monkeypatch):
    results, asked = tmp_path / "rows.json", []

    def note(name, architecture, variants, **settings):
        asked.append((name, variants, settings["size"]))
        if name == "yolov2":
            raise RuntimeError("cannot be built\nat all")
        return [{"preset": name, "format": kind, "precision": precision} for kind, precision in variants]

    def run(*words):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["export_presets.py", "--results", str(results), *words])
        export_presets.main()
        return [*asked]

    monkeypatch.setattr(export_presets, "measure", note)
    names = ["retinanet_r50_fpn", "yolov2"]
    assert [name for name, *_ in run(*names)] == names
    assert run(*names) == []
    words = [*names[:1], "--formats", "onnx", "openvino", "--precision", "fp32", "int8", "--size", "320"]
    assert run(*words) == [("retinanet_r50_fpn", [("openvino", "int8")], 320)]
    rows = json.loads(results.read_text())
    assert [row["error"] for row in rows if row["preset"] == "yolov2"] == ["RuntimeError: cannot be built"] * 2
    assert {name for name, *_ in run()} == PRESETS.keys() - {*names}


def test_rows_are_kept_where_a_later_one_fails_and_none_is_begun_after_the_time(tmp_path, monkeypatch, capsys):
    results = tmp_path / "rows.json"

    def fail_late(name, architecture, variants, **_):
        yield {"preset": name, "format": "onnx", "precision": "fp32"}
        assert len(json.loads(results.read_text())) == 1
        raise MemoryError("of all that there was")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["export_presets.py", "--results", str(results), *words])
        export_presets.main()

    monkeypatch.setattr(export_presets, "measure", fail_late)
    run("yolov2")
    errors = [row.get("error") for row in json.loads(results.read_text())]
    assert errors == [None, "MemoryError: of all that there was"]
    run("ssd_r18", "--core-minutes", "0")
    assert len(json.loads(results.read_text())) == 2
    assert "--core-minutes are over: ssd_r18" in capsys.readouterr().err
