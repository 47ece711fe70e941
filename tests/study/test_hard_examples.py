"""The hard-example explorer: what it counts, the files it leaves, and its page in a real browser."""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from focaldet.cli import main
from focaldet.errors import ConfigError
from focaldet.evaluation import evaluate as evaluation
from focaldet.evaluation.error_kinds import classify_outcomes
from focaldet.evaluation.evaluate import EvaluationSetup, match_classes
from focaldet.models import build
from focaldet.study.hard_examples import easiness, find_outcomes, lower_threshold, study_hard
from focaldet.study.hard_page import write_hard_page
from focaldet.study.suspects import find_suspects
from focaldet.weights import Trained
from tests.chromium import open_chromium
from tests.evaluation.cases import BrightDetector, make_dataset, make_detections, make_image

BOX = (8, 8, 24, 40)
# Of each image what is bright (box, green) and what the file says of it (xywh, category id; 1 is the cell, 2 the dog).
SCENES = {
    "easy.png": [(BOX, 0), ([8, 8, 16, 32], 1)],
    "a dog called cell.png": [(BOX, 200), ([8, 8, 16, 32], 1)],
    "missing.png": [(BOX, 0), None],
    "moved.png": [(BOX, 0), ([16, 8, 16, 32], 1)],
    '<b>&".png': [((30, 20, 50, 40), 200), ([30, 20, 20, 20], 2)],
}


@pytest.fixture
def data(tmp_path):
    """A COCO dataset of five images, four of which have an error."""
    folder = tmp_path / "data"
    folder.mkdir()
    images, annotations = [], []
    for number, (name, (bright, truth)) in enumerate(SCENES.items(), start=1):
        box, green = bright
        Image.fromarray(make_image(box=box, green=green).permute(1, 2, 0).numpy()).save(folder / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 48})
        if truth is not None:
            xywh, category = truth
            annotations.append({"id": number, "image_id": number, "category_id": category, "bbox": xywh, "iscrowd": 0})
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dog"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "instances_val.json").write_text(text)
    return folder


@pytest.fixture
def study(data, tmp_path, monkeypatch):
    """The study of these images with a detector that detects what is bright."""
    monkeypatch.setattr(evaluation, "load_detector", lambda spec, **_: Trained(BrightDetector(), (1, 2), "bright"))
    return study_hard("bright", data / "instances_val.json", out=tmp_path / "out", precision="fp32", score=0.5)


def test_every_kind_of_error_is_counted(study):
    objects = {kind: numbers for kind, numbers in study.counts.items() if any(numbers)}
    assert objects == {"detected": (2, 0), "wrong class": (1, 1), "poor box": (1, 1), "background": (0, 1)}
    assert [(one.image, one.problem) for one in study.suspects] == [
        (1, "wrong class"),
        (2, "missing box"),
        (3, "misplaced box"),
    ]


def test_it_writes_tables_images_and_a_page(study):
    out = study.page.parent
    names = {path.name for path in out.iterdir()}
    assert names == {"index.html", "pictures", "examples.csv", "suspects.csv", "suspects_coco.json"} | {
        "easiness.svg",
        "easiness.png",
        "curves.csv",
    }
    with (out / "examples.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == [
        *("detected", "wrong class", "false positive: wrong class", "false positive: background"),
        *("poor box", "false positive: poor box", "detected"),
    ]
    assert all(
        float(row["loss"]) == pytest.approx(float(row["class_loss"]) + float(row["box_loss"]), abs=2e-4) for row in rows
    )
    with Image.open(out / "pictures" / "0.jpg") as shown:
        assert shown.size == (64, 48)  # never larger than the original


def test_the_page_asks_for_nothing_from_elsewhere(study):
    text = study.page.read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="?(https?:|//)', text) == []
    assert page_data(text)["images"][4][0] == '<b>&".png'


def page_data(page):
    """The data of a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_a_name_cannot_end_the_data_of_the_page(tmp_path):
    name = "</script><script>alert(1)</script><!--"
    dataset = make_dataset([[(BOX, 0, 0)]], names=(name, "dog"), name=name)
    several = [classify_outcomes(make_detections((BOX, 0.9, 0)), dataset.target(0), score=0.3)]
    write_hard_page(tmp_path / "index.html", dataset, several, [], score=0.3, model=name)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2  # of the data and of the program
    assert "<!--" not in text
    assert page_data(text)["classes"] == [name, "dog"]


def test_easy_is_one_and_hard_near_zero():
    easy = classify_outcomes(make_detections((BOX, 1.0, 0)), make_dataset([[(BOX, 0, 0)]]).target(0), score=0.3)[0]
    hard = classify_outcomes(make_detections(), make_dataset([[(BOX, 0, 0)]]).target(0), score=0.3)[0]
    assert easiness(easy) == pytest.approx(1.0)
    assert easiness(hard) < 0.01


def test_boxes_of_classes_that_the_detector_does_not_know_are_not_examples():
    dataset = make_dataset([[(BOX, 0, 0), ((30.0, 30.0, 40.0, 40.0), 2, 0)]], names=("cell", "dog", "cat"))
    detector = BrightDetector(names=("dog", "cell"))
    matched = match_classes(("dog", "cell"), dataset.classes, num_classes=2)
    on_split = EvaluationSetup(detector, dataset, matched)
    detections = [make_detections((BOX, 0.9, 1), ((30.0, 30.0, 40.0, 40.0), 0.8, 1), names=("dog", "cell"))]
    (several,) = find_outcomes(on_split, detections, score=0.3)
    assert [(one.kind, one.label, one.index) for one in several] == [("detected", 0, 0)]


def test_a_detector_is_asked_for_weak_detections_too():
    detector = build("retinanet_r18_fpn", num_classes=1, architecture={"width": 8, "head_depth": 0})
    assert lower_threshold(detector).config.detect.score_threshold == 0.01
    lower = replace(detector.config, detect=replace(detector.config.detect, score_threshold=0.001))
    detector.config = lower
    assert lower_threshold(detector).config == lower


@pytest.mark.parametrize(("setting", "value"), [("score", 0.0), ("score", 1.0), ("image_px", 0)])
def test_settings_out_of_range_are_refused_before_the_work(setting, value, tmp_path):
    with pytest.raises(ConfigError, match=setting):
        study_hard("nowhere", tmp_path, **{setting: value})


def test_the_command_prints_counts_and_where_to_look(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "load_detector", lambda spec, **_: Trained(BrightDetector(), (1, 2), "bright"))
    line = ["study", "hard", "bright", "--data", str(data / "instances_val.json"), "--out", str(tmp_path / "cells")]
    assert main([*line, "--precision", "fp32"]) == 0
    printed = capsys.readouterr().out
    assert "3 suspected label errors" in printed
    assert str(tmp_path / "cells" / "index.html") in printed


def test_a_set_without_boxes_or_findings_still_has_a_page(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "black.png")
    text = {"images": [{"id": 1, "file_name": "black.png", "width": 64, "height": 48}], "annotations": []}
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dog"}]
    (folder / "instances_val.json").write_text(json.dumps(text | {"categories": categories}))
    monkeypatch.setattr(evaluation, "load_detector", lambda spec, **_: Trained(BrightDetector(), (1, 2), "bright"))
    result = study_hard("bright", folder / "instances_val.json", out=tmp_path / "out", precision="fp32")
    assert (result.outcomes, result.suspects) == (((),), ())


@pytest.fixture
def browser():
    """Chromium, if there is one."""
    with open_chromium() as opened:
        yield opened


def open_page(browser, path, **settings):
    """A page and the list that its messages go to."""
    page, messages = browser.new_page(**settings), []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(path.as_uri())
    return page, messages


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_filters_steps_and_exports_in_a_real_browser(study, browser, scheme):
    page, messages = open_page(browser, study.page, color_scheme=scheme, accept_downloads=True)
    assert page.locator(".tile").count() == 5
    assert page.locator(".tile figcaption").first.inner_text().startswith("moved.png hardest 5.27")
    assert page.locator(".count").inner_text() == "5 of 5 images, 7 objects and false positives"
    page.get_by_label("detected (2)").uncheck()
    assert page.locator(".tile").count() == 3
    page.locator("[name=label]").select_option("dog")
    assert page.locator(".tile").count() == 1
    page.locator("[name=label]").select_option("all")
    page.locator("[name=order]").select_option("file name")
    assert page.locator(".tile figcaption").first.inner_text().startswith("a dog called cell.png")
    page.reload()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("dialog h2").inner_text().endswith("(2 of 5)")
    page.keyboard.press("j")
    assert page.locator("dialog h2").inner_text().endswith("(3 of 5)")
    assert page.locator("dialog tbody tr").count() >= 1
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Suspected label errors").click()
    assert page.locator(".tile").count() == 3
    page.locator("[name=problem]").select_option("misplaced box (1)")
    assert page.locator(".tile").count() == 1
    page.keyboard.press("Tab")
    page.locator("h1").click()
    page.keyboard.press("x")
    assert page.locator(".tile input").is_checked()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as COCO json").click()
    saved = json.loads(download.value.path().read_text())
    assert [one["problem"] for one in saved["annotations"]] == ["misplaced box"]
    assert saved["annotations"][0]["bbox"] == [8, 8, 16, 32]
    assert saved["annotations"][0]["annotated"]["bbox"] == [16, 8, 16, 32]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert len(download.value.path().read_text(encoding="utf-8").strip().splitlines()) == 2
    assert messages == []
    page.close()


def test_images_are_shown_and_the_page_fits_a_phone(study, browser):
    page, messages = open_page(browser, study.page, viewport={"width": 390, "height": 844})
    page.wait_for_load_state("networkidle")
    shown = page.evaluate(
        "Promise.all([...document.querySelectorAll('image')].map(({href}) => new Promise((done) => {"
        "const copy = new Image(); copy.onload = () => done(copy.naturalWidth); copy.onerror = () => done(0);"
        "copy.src = href.baseVal;})))"
    )
    assert shown == [64] * 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert messages == []
    page.close()


@pytest.mark.prove
def test_five_thousand_images_stay_quick(browser, tmp_path):
    """Reading, filtering and paging of 5 000 images with 100 000 examples, each within a second."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(15, 2, generator=generator) * 60
    rows = [((x, y, x + 20, y + 20), 0, 0) for x, y in corners.tolist()]
    dataset = make_dataset([rows] * 5000)
    shifted = [((x + 6, y, x + 26, y + 20), 0.9 - index / 20, 0) for index, (x, y) in enumerate(corners.tolist())]
    several = tuple(classify_outcomes(make_detections(*shifted), dataset.target(0), score=0.3))
    examples = [several] * 5000
    path = tmp_path / "index.html"
    suspects = find_suspects(examples, num_classes=2, score=0.3)
    write_hard_page(path, dataset, examples, suspects, score=0.3, model="m")
    page, _ = open_page(browser, path)
    assert page.locator(".tile").count() == 24
    milliseconds = page.evaluate(
        "() => { const start = performance.now(); document.querySelector('[name=loss]').value = 1;"
        "document.querySelector('.filters').dispatchEvent(new Event('input')); turn(1);"
        "return performance.now() - start; }"
    )
    assert page.locator(".pages span").inner_text().startswith("page 2 of ")
    assert milliseconds < 1000
    page.close()
