"""Several runs on a page, the page of one made anew, and a run that is watched while it is trained."""

import io
import json
import re

import pytest
from PIL import Image
from rich.console import Console

from focaldet.data.config import DataConfig
from focaldet.data.dataset import FileSource
from focaldet.errors import ConfigError, DataError
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.evaluation.results import write_results
from focaldet.report.monitor import PAGE, RunMonitor, draw_blocks, watch_run
from focaldet.report.report_runs import report_runs
from focaldet.report.side_by_side import MOST_RUNS, name_runs, write_side_by_side
from tests.evaluation.cases import make_detections, make_image

BOX = [8, 8, 24, 40]
METRICS = "kind,epoch,step,learning_rate,images_per_second,loss,class_loss,ap,ap50,ap75\n"
STEPS = (
    "".join(f"step,1,{step},0.01,5.0,{2 / step},1.0,,,\n" for step in range(1, 9)) + "evaluation,1,8,,,,,0.25,0.5,\n"
)


@pytest.fixture
def data(tmp_path):
    """Ten images with one bright box each, as COCO."""
    folder = tmp_path / "data"
    (folder / "val").mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, 11):
        pixels = make_image().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        annotations.append({"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [8, 8, 16, 32]})
    names = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dog"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": names})
    (folder / "instances_val.json").write_text(text)
    return folder


def make_run(folder, data, *, shift=0, model="m1", events=()):
    """A run folder whose detections are moved by `shift` pixels."""
    folder.mkdir(parents=True)
    file = data / "instances_val.json"
    (folder / "config.yaml").write_text(f"model: {model}\nseed: 0\nsize: null\ndata: {{path: {file}}}\n")
    (folder / "metrics.csv").write_text(METRICS + STEPS)
    records = [{"event": "started"}, {"event": "epoch", "seconds": {"loading": 1.0, "update": 3.0}}, *events]
    (folder / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    dataset = open_evaluation_split(DataConfig(path=file), "val", seed=0)
    box = [BOX[0] + shift, BOX[1], BOX[2] + shift, BOX[3]]
    write_results(
        folder / "predictions.json", dataset, {k: make_detections((box, 0.9, (k + 1) % 2)) for k in range(10)}
    )
    return folder


def test_one_run_gets_its_page_anew(data, tmp_path):
    run = make_run(tmp_path / "runs" / "one", data)
    assert report_runs([run]) == run / "report.html"
    assert "100.0" in (run / "report.html").read_text()
    assert report_runs([run], out=tmp_path / "else" / "page.html") == tmp_path / "else" / "page.html"


def test_the_page_of_another_split_leaves_that_of_the_run(data, tmp_path):
    run = make_run(tmp_path / "runs" / "one", data)
    (run / "eval-test").mkdir()
    (run / "predictions.json").rename(run / "eval-test" / "predictions.json")
    assert report_runs([run], split="test") == run / "eval-test" / "report.html"
    assert not (run / "report.html").exists()


def test_runs_stand_side_by_side(data, tmp_path):
    good = make_run(tmp_path / "runs" / "good", data)
    poor = make_run(tmp_path / "runs" / "poor", data, shift=5, model="m2")
    path = report_runs([good, poor])
    page = path.read_text()
    assert path == tmp_path / "runs" / "report.html"
    dataset = open_evaluation_split(DataConfig(path=data / "instances_val.json"), "val", seed=0)
    moved = {k: make_detections(([13, 8, 29, 40], 0.9, (k + 1) % 2)) for k in range(10)}
    ap = 100 * evaluate_detections(dataset, moved).ap
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
        source = FileSource(open_evaluation_split(DataConfig(path=data / "instances_val.json"), "val", seed=0))
        write_side_by_side([(run, run)] * (MOST_RUNS + 1), source, tmp_path / "p.html")
    records = json.loads((run / "predictions.json").read_text())
    (run / "predictions.json").write_text(json.dumps([{**records[0], "image_id": 99}]))
    with pytest.raises(DataError, match="is not an image of the ground truth"):
        report_runs([run])


def test_a_run_is_watched_until_it_ends(data, tmp_path):
    """The second look sees the end that was written while the program slept."""
    run = make_run(tmp_path / "run", data)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        assert '<meta http-equiv="refresh" content="3">' in (run / PAGE).read_text()
        with (run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": "finished", "text": "finished after 1 epoch"}) + "\n")

    for is_terminal in (False, True):
        make_unfinished(run)
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=is_terminal, width=120)
        assert watch_run(run, seconds=3.0, console=console, sleep=sleep) == run / PAGE
        assert slept == [3.0]
        slept.clear()
        assert "refresh" not in (run / PAGE).read_text()
        for text in ("finished", "best AP 25.0", "loading 25 %", "learning rate 1.00e-02", "25.0"):
            assert text in shown.getvalue()
    page = (run / PAGE).read_text()
    for text in ("Training loss", "The twelve COCO numbers", "finished after 1 epoch", "Where the time went"):
        assert text in page


def make_unfinished(run):
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("".join(line + "\n" for line in lines if "finished" not in line))


def test_one_look_is_enough_where_that_is_asked_for(data, tmp_path):
    run = make_run(tmp_path / "run", data)
    console = Console(file=io.StringIO())
    watch_run(run, once=True, console=console, sleep=pytest.fail)
    assert "in training" in (run / PAGE).read_text()
    assert "The worst images" not in (run / PAGE).read_text()  # nothing is wrong


def test_a_run_that_has_only_begun_is_shown(tmp_path):
    """No step, no evaluation, no detections, no data on this machine."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: m1\ndata: {path: /nowhere}\n")
    watch_run(run, once=True, console=Console(file=io.StringIO()))
    assert "in training" in (run / PAGE).read_text()
    (run / "predictions.json").write_text("[")
    watch_run(run, once=True, console=Console(file=io.StringIO()))
    assert 'class="note"' in (run / PAGE).read_text()


def test_the_detections_are_read_again_only_where_they_are_new(data, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", data)
    monitor = RunMonitor(run)
    monitor.write_page(seconds=1.0)
    monkeypatch.setattr("focaldet.report.monitor.evaluation_sections", pytest.fail)
    monitor.write_page(seconds=1.0)
    assert "The twelve COCO numbers" in (run / PAGE).read_text()


def test_what_cannot_be_watched_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        watch_run(tmp_path)
    with pytest.raises(ConfigError, match="seconds: must be above 0"):
        watch_run(make_run(tmp_path / "run", data), seconds=0.0)


def test_blocks_follow_the_values():
    assert draw_blocks([0.0, 3.5, 7.0, 7.0]) == "▁▄██"
    assert draw_blocks([8.0, 4.0, 0.0])[-1] == "▁"
    assert len(draw_blocks([1.0] * 1000)) == 48
