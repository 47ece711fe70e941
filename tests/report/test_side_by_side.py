"""Several runs on a page, and the page of one made anew."""

import json
import re

import pytest

from focaldet.data.config import DataConfig
from focaldet.data.dataset import FileSource
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.report.kept_detections import open_kept_detections
from focaldet.report.report_runs import report_runs
from focaldet.report.run_details import NUM_WORST_OF_RUN
from focaldet.report.side_by_side import MOST_RUNS, name_runs, write_side_by_side
from tests.report.runs import detect, evaluate_run, make_run, write_coco


def test_one_run_gets_its_page_anew(data, tmp_path):
    run = make_run(tmp_path / "runs" / "one", data)
    assert report_runs([run]) == run / "report.html"
    assert "100.0" in (run / "report.html").read_text()
    assert report_runs([run], out=tmp_path / "else" / "page.html") == tmp_path / "else" / "page.html"


def test_the_page_of_another_split_leaves_that_of_the_run(data, tmp_path):
    write_coco(data, "test", range(21, 24))
    run = make_run(tmp_path / "runs" / "one", data)
    evaluate_run(run, data, "eval-test", split="test")
    assert report_runs([run], split="test") == run / "eval-test" / "report.html"
    assert not (run / "report.html").exists()


def test_runs_stand_side_by_side(data, tmp_path):
    good = make_run(tmp_path / "runs" / "good", data)
    poor = make_run(tmp_path / "runs" / "poor", data, shift=5, model="m2")
    path = report_runs([good, poor])
    page = path.read_text()
    assert path == tmp_path / "runs" / "report.html"
    dataset = open_evaluation_split(DataConfig(path=data), "val", seed=0)
    ap = 100 * evaluate_detections(dataset, detect(dataset, shift=5)).ap
    assert "<td><b>100.0</b></td>" in page and f"<td>{ap:.1f}</td>" in page
    assert f"<td>{ap - 100:+.1f}</td>" in page and "lower" in page
    assert '<th scope="row" class="text">model</th><td class="text"><code>m1</code></td>' in page
    assert '<th scope="row" class="text">seed</th>' not in page  # the same in both
    assert page.count("<img") == 3 * 6 and "null" not in re.sub('base64,[^"]*', "", page)


def test_runs_are_told_apart_by_as_many_folders_as_it_takes(tmp_path):
    assert name_runs([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    assert name_runs([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_what_cannot_be_reported_is_named(data, tmp_path):
    run = make_run(tmp_path / "runs" / "one", data)
    with pytest.raises(ConfigError, match="name at least one run"):
        report_runs([])
    with pytest.raises(ConfigError, match="a run is named twice"):
        report_runs([run, run / "."])
    with pytest.raises(ConfigError, match="nowhere is not a run folder"):
        report_runs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="has no detections on test: say focaldet eval"):
        report_runs([run], split="test")
    with pytest.raises(ConfigError, match=f"at most {MOST_RUNS} runs"):
        kept = open_kept_detections(run, split="val")
        write_side_by_side([kept] * (MOST_RUNS + 1), FileSource(kept.dataset), tmp_path / "p.html")
    records = json.loads((run / "predictions.json").read_text())
    (run / "predictions.json").write_text(json.dumps([{**records[0], "image_id": 99}]))
    with pytest.raises(DataError, match="is not an image of the ground truth"):
        report_runs([run])


def sections_of(page):
    """The HTML of each part of a page by its heading."""
    return dict(re.findall(r"<section[^>]*><h2>([^<]*)</h2>(.*?)</section>", page, re.DOTALL))


def test_a_page_of_several_runs_has_what_that_of_each_has(data, tmp_path):
    """Of the second run every box is wrong, and it has an explorer."""
    good = make_run(tmp_path / "runs" / "good", data)
    poor = make_run(tmp_path / "runs" / "poor", data, shift=30)
    (poor / "hard-val").mkdir()
    (poor / "hard-val" / "index.html").write_text("")
    parts = sections_of(report_runs([good, poor]).read_text())
    assert "Differences on these images" in parts and not any("real" in heading for heading in parts)
    assert "<figcaption>Learning rate</figcaption>" in parts["Curves"]
    folded = {name: re.findall("<summary>([^<]*)</summary>", html) for name, html in parts.items() if "<det" in html}
    assert folded == {
        "From which score on": ["good"],
        "Which class is taken for which": ["good", "poor"],
        "Errors that come together": ["poor"],
        "The worst images": ["good", "poor"],
        "Environment": ["good", "poor"],
    }
    assert ">cell</th>" in parts["From which score on"]
    assert parts["The worst images"].count("<figcaption>") == NUM_WORST_OF_RUN
    assert f"focaldet study hard {good}" in parts["The worst images"]
    assert '<a href="poor/hard-val/index.html">hard-val</a>' in parts["The worst images"]
    assert "torch" in parts["Environment"]
