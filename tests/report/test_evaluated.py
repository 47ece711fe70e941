"""What a page says of the detector: the command for its errors, and the scores that `predict` uses."""

import re
import shlex

import pytest

from focaldet.cli import main
from focaldet.data.config import DataConfig
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.score_curves import measure_curves
from focaldet.models import build
from focaldet.report.evaluated import EvaluatedDetector, describe_run
from focaldet.report.report_runs import report_runs
from focaldet.weights import save_detector
from focaldet.weights.thresholds import THRESHOLDS_KEY, ScoreThreshold, ScoreThresholds
from tests.evaluation.oracle import columns
from tests.report.runs import detect, evaluate_run, make_run, write_coco

KEPT = ScoreThresholds(ScoreThreshold(None, 0.4, 0.8, 0.75, 0.85, 50), (), "val")
"""What the weights of `keep_weights` keep; the detections of `make_run` have their best score at .9."""


def keep_weights(run, thresholds):
    """Weights of a small detector in a run folder."""
    (run / "weights").mkdir()
    architecture = {"width": 16, "head_depth": 1, "detect": {"max_detections": 7}}
    detector = build("retinanet_mobilenet_v2_fpn", class_names=("cell", "dog"), architecture=architecture)
    extra = {} if thresholds is None else {THRESHOLDS_KEY: thresholds.to_text()}
    save_detector(run / "weights" / "best.safetensors", detector, extra=extra)


def text_of(page):
    return re.sub("<[^>]*>", "", page.read_text())


class TestTheScoresThatPredictUses:
    def best(self, data):
        """The best scores of the detections of `make_run`, as the weights of a training keep them."""
        dataset = open_evaluation_split(DataConfig(path=data), "val", seed=0)
        truth, rows, evaluator = columns(dataset, detect(dataset))
        return measure_curves(evaluator, truth, rows).thresholds("val")

    def test_those_of_the_page_where_the_weights_keep_them(self, data, tmp_path):
        run = make_run(tmp_path / "run", data)
        keep_weights(run, self.best(data))
        assert "The weights keep these scores, and focaldet predict uses them" in text_of(report_runs([run]))

    def test_others_where_the_page_is_of_other_images(self, data, tmp_path):
        write_coco(data, "test", range(21, 24))
        run = make_run(tmp_path / "run", data)
        keep_weights(run, KEPT)
        evaluate_run(run, data, "eval-test", split="test")
        text = text_of(report_runs([run], split="test"))
        assert "focaldet predict uses others, which the weights keep: score ≥ 0.40: the largest F1 on val." in text
        assert "keep these scores" not in text

    @pytest.mark.parametrize("has_weights", [False, True])
    def test_none_where_the_weights_keep_none_or_are_not_there(self, data, tmp_path, has_weights):
        run = make_run(tmp_path / "run", data)
        if has_weights:
            keep_weights(run, None)
        best = self.best(data).overall.score
        text = text_of(report_runs([run]))
        assert f"focaldet predict --score {best:.2f} takes it." in text and "weights keep" not in text


def test_what_the_weights_of_a_run_say(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    assert describe_run(run) == EvaluatedDetector(str(run))
    keep_weights(run, KEPT)
    known = describe_run(run, data="other", split="test")
    assert known == EvaluatedDetector(str(run), DataConfig(path="other"), "test", KEPT, image_limit=7)
    (run / "weights" / "best.safetensors").write_bytes(b"damaged")
    assert describe_run(run) == EvaluatedDetector(str(run))


def test_a_page_made_anew_says_what_the_detector_cannot_reach(tmp_path):
    """As the page that the training wrote."""
    data = write_coco(tmp_path / "data", "train", range(11, 13))
    write_coco(data, "val", range(1, 11))
    text = (data / "instances_val.json").read_text()
    boxes = ", ".join(f'{{"id": {90 + n}, "image_id": 1, "category_id": 1, "bbox": [{n}, 1, 5, 5]}}' for n in range(8))
    (data / "instances_val.json").write_text(text.replace('"annotations": [', f'"annotations": [{boxes}, '))
    run = make_run(tmp_path / "run", data)
    keep_weights(run, None)
    assert "at most 7 objects an image: 1 image with more, 2 of 18 objects are out of reach" in text_of(
        report_runs([run])
    )


class TestTheCommandForAllErrors:
    @pytest.mark.parametrize(
        ("detector", "line"),
        [
            (EvaluatedDetector("runs/x"), "focaldet study hard runs/x"),
            (EvaluatedDetector("a b.onnx", DataConfig(path="d")), "focaldet study hard 'a b.onnx' --data d"),
            (
                EvaluatedDetector("x", DataConfig(val="v.json", follow_links=True, split_seed=3), "my test"),
                "focaldet study hard x --data.val v.json --data.follow-links --data.split-seed 3 --split 'my test'",
            ),
            (
                EvaluatedDetector("x", DataConfig(path="d", classes=("red cell", "b"), bad_boxes="drop"), "test"),
                "focaldet study hard x --data d --data.bad-boxes drop --data.classes 'red cell' b --split test",
            ),
        ],
    )
    def test_it_means_the_same_detector_and_images(self, detector, line, monkeypatch):
        """Read again by the command line itself."""
        assert detector.study_command() == line
        calls = []

        def study(run, data, *, split, **_):
            calls.append((run, data, split))
            raise KeyboardInterrupt

        monkeypatch.setattr("focaldet.cli.study.study_hard", study)
        main(shlex.split(line)[1:])
        assert calls == [(detector.spec, detector.data, detector.split)]

    def test_pages_name_the_data_that_were_named(self, data, tmp_path):
        runs = [make_run(tmp_path / name, data, shift=30) for name in "ab"]
        assert f"<code>focaldet study hard {runs[0]}</code>" in report_runs(runs[:1]).read_text()
        assert f"<code>focaldet study hard {runs[0]} --data {data}</code>" in report_runs(runs[:1], data).read_text()
        page = report_runs(runs, data).read_text()
        assert all(f"<code>focaldet study hard {run} --data {data}</code>" in page for run in runs)


def test_an_evaluation_of_a_weights_file_names_it(tiny_run, demo_data, tmp_path, capsys):
    weights, data = tiny_run / "weights" / "best.safetensors", demo_data / "instances_test.json"
    assert main(["eval", str(weights), "--data", str(data), "--split", "all", "--out", str(tmp_path / "e")]) == 0
    page = (tmp_path / "e" / "report.html").read_text()
    assert f"<code>focaldet study hard {weights} --data {data} --split all</code>" in page
    capsys.readouterr()
