"""The report: what it says, that it needs nothing from elsewhere, and how a real browser shows it."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from focaldet.data.problems import Problem
from focaldet.errors import DataError
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.results import write_results
from focaldet.report.image_pairs import NUM_IMAGES, NUM_WORST, target_as_detections
from focaldet.report.page import DARK, LIGHT
from focaldet.report.run_report import write_report
from focaldet.types import Target
from tests.chromium import open_chromium
from tests.evaluation.cases import make_dataset, make_detections, make_image

EVIL = "<script>alert(1)</script>"
METRICS = """kind,epoch,step,learning_rate,loss,class_loss,box_loss,ap,ap50,ap75
step,1,1,0.01,2.0,1.5,0.5,,,
step,1,2,0.02,1.0,0.8,0.2,,,
evaluation,1,2,,,,,0.25,0.5,
"""


class Scenes:
    """Twenty dark images with one bright box each."""

    def __init__(self, names=("cell", "dog"), num_images=20):
        boxes = [[([8, 8, 24, 40], k % 2, int(k % 5 == 4))] for k in range(num_images)]
        self.dataset = make_dataset(boxes, names=names, sizes=[(48, 64)] * num_images)

    def load(self, i, *, epoch):
        assert epoch == 0
        return make_image(), self.dataset.target(i)


@pytest.fixture
def run(tmp_path):
    """A run folder with everything a training writes."""
    folder = tmp_path / "cells"
    folder.mkdir()
    (folder / "metrics.csv").write_text(METRICS)
    (folder / "config.yaml").write_text("model: retinanet_r18_fpn\nseed: 7\n")
    (folder / "environment.json").write_text('{"torch": "2.14"}')
    detections = {k: make_detections(([8, 8, 24, 40], 0.9, k % 2), ([0, 0, 9, 9], 0.2, 0)) for k in range(20)}
    write_results(folder / "predictions.json", Scenes().dataset, detections)
    return folder


def test_phases_are_shown_with_their_settings(run):
    assert "Phases" not in write_report(run, Scenes()).read_text()
    (run / "config.yaml").write_text("phases:\n- {epochs: 4}\n- {epochs: 2, model_note: <b>, ema: null}\n")
    page = Seen(write_report(run, Scenes()).read_text())
    assert "Phases" in page.text
    assert "epochs 1 to 4: as the run" in page.text
    assert "epochs 5 to 6: model_note <b>, ema off" in page.text


class Seen(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run, source=None, **settings):
    path = write_report(run, source or Scenes(), **settings)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_it_has_numbers_curves_images_and_settings(run):
    seen = Seen(page_of(run))
    assert seen.open == []
    for text in ("cells", "retinanet_r18_fpn", "AP75", "area below 32² px", "seed7", "torch2.14", "20 images"):
        assert text in seen.text
    assert len(seen.all("img")) == 2 * NUM_IMAGES  # no image has an error
    charts = [one["aria-label"].partition(".")[0] for one in seen.all("svg") if one.get("role") == "img"]
    assert charts == [
        *("Precision, recall and F1", "F1 of each class", "Precision at each recall", "Reliability"),
        *("Training loss", "Learning rate", "Average precision"),
    ]


def test_numbers_are_those_of_the_predictions(run):
    page = page_of(run)
    expected = evaluate_detections(
        Scenes().dataset,
        {k: make_detections(([8, 8, 24, 40], 0.9, k % 2), ([0, 0, 9, 9], 0.2, 0)) for k in range(20)},
    )
    assert f'<p class="value">{100 * expected.ap:.1f}</p>' in page
    assert '<th scope="row" class="text">AP large</th><td>-</td><td>-</td>' in page
    assert "16 boxes of 2 classes, 40 detections" in page


def test_given_numbers_and_notes_are_taken(run):
    from dataclasses import replace

    metrics = replace(
        evaluate_detections(Scenes().dataset, {}), ap=0.123, milliseconds_per_image=45.6, notes=(f"note {EVIL}",)
    )
    page = page_of(run, metrics=metrics)
    assert "12.3" in page
    assert "45.6" in page
    assert "note &lt;script&gt;" in page


def test_it_needs_nothing_from_elsewhere_and_runs_nothing(run):
    page = page_of(run)
    seen = Seen(page)
    assert {tag for tag, _ in seen.tags} & {"script", "link", "iframe", "object", "embed"} == set()
    assert all(one["src"].startswith("data:image/jpeg;base64,") for one in seen.all("img"))
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]


def test_every_image_has_a_text_and_a_size(run):
    for one in Seen(page_of(run)).all("img"):
        assert re.search(r"\d+\.png: (ground truth|detections): (\d+ \w+|nothing)", one["alt"])
        assert (one["width"], one["height"]) == ("64", "48")


def test_detections_below_the_best_score_are_not_shown(run):
    """Of the two detections in each image that of .2 is wrong: the best score lies between."""
    page = page_of(run)
    assert "detections with a score of at least 0.55" in page
    assert "detections: 1 cell" in page and "detections: 2 cell" not in page


def test_where_the_time_went_is_the_sum_of_the_epochs(run):
    seconds = {"loading": 1.0, "forward and losses": 2.0, "evaluation": 1.0}
    lines = [json.dumps({"event": "epoch", "seconds": seconds})] * 2 + ['{"half', json.dumps({"event": "note"})]
    (run / "events.jsonl").write_text("\n".join(lines))
    page = page_of(run)
    bar = '<div class="bar" style="--length:50.0%">50.0'
    assert f'<th scope="row" class="text">forward and losses</th><td>4.0</td><td>{bar}' in page
    assert '<th scope="row" class="text">all epochs</th><td>8.0</td>' in page


def test_the_worst_images_come_first_and_link_to_the_explorer(run):
    """Image 7 has a wrong detection and a missed object, image 3 a missed object."""
    detections = {k: make_detections(([8, 8, 24, 40], 0.9, k % 2)) for k in range(20) if k != 3}
    detections[7] = make_detections(([30, 8, 46, 40], 0.95, 1))
    write_results(run / "predictions.json", Scenes().dataset, detections)
    worst = page_of(run).partition("The worst images")[2].partition("Images</h2>")[0]
    captions = re.findall(r"<figcaption>(\d+)\.png: [^<]*; (\d wrong detections?, \d missed)", worst)
    assert captions == [("7", "1 wrong detection, 1 missed"), ("3", "0 wrong detections, 1 missed")]
    assert f"focaldet study hard {run}" in worst
    (run / "hard-val").mkdir()
    (run / "hard-val" / "index.html").write_text("")
    assert '<a href="hard-val/index.html">hard-val</a>' in page_of(run)


def test_settings_without_a_value_say_what_that_means(run):
    (run / "config.yaml").write_text("model: m\nsize: null\nema: null\nprecision: null\nloggers: []\nphases: []\n")
    page = page_of(run)
    assert "null" not in Seen(page).text and "None" not in Seen(page).text
    assert "bf16 where the hardware has it" in page


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ("weights: null", "0, as the weights were random"),
        ("model: retinanet_r18_fpn\nweights: auto", "0, as the weights were random"),
        ("model: retinanet_efficientnet_lite0_fpn\nweights: auto", "as the preset"),
        ("model: retinanet_r18_fpn\nweights: auto\narchitecture: {backbone: efficientnet_lite0}", "as the preset"),
        ("model: gone\nweights: auto", "as the preset"),
        ("weights: w.safetensors", "as the preset"),
        ("weights: null\narchitecture: {frozen_stages: 1}", "1, as the architecture says"),
    ],
)
def test_frozen_stages_that_were_not_set_are_those_that_held(run, settings, stages):
    """As `training.state.initial_architecture` decides it."""
    (run / "config.yaml").write_text(f"{settings}\nfrozen_stages: null\n")
    page = page_of(run)
    assert f'frozen_stages</th><td class="text"><code>{stages}</code>' in page
    assert ("none: they were random" in page) == ("weights: null" in settings)


def test_names_from_the_data_cannot_become_markup(run):
    dataset = Scenes((EVIL, '" onload="x')).dataset
    dataset.problems.add(Problem("warning", EVIL, EVIL, EVIL))
    source = Scenes((EVIL, '" onload="x'))
    source.dataset = dataset
    seen = Seen(page_of(run, source))
    assert not seen.all("script")
    assert EVIL in seen.text
    assert all("onload" not in attributes for _, attributes in seen.tags)


def test_ignored_truth_is_named_so():
    target = Target(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([False, True]))
    assert target_as_detections(target, ("cell", "dog")).names == ("cell", "dog (ignored)")


def test_a_folder_with_predictions_alone_is_enough(run):
    for name in ("metrics.csv", "config.yaml", "environment.json"):
        (run / name).unlink()
    seen = Seen(page_of(run))
    assert "Training loss" not in seen.text
    assert "Settings of the training" not in seen.text


def test_a_damaged_history_is_survived(run):
    (run / "metrics.csv").write_text(METRICS + "step,1,3,nan,oops,,,,\nstep\n")
    assert "Training loss" in page_of(run)


def test_fewer_images_than_the_page_shows(run):
    write_results(run / "predictions.json", Scenes(num_images=3).dataset, {})
    pairs = 3 + 3  # all three have a missed object
    assert len(Seen(page_of(run, Scenes(num_images=3))).all("img")) == 2 * pairs
    assert NUM_WORST > 3


def test_predictions_of_other_images_are_refused(run):
    with pytest.raises(DataError, match="is not an image of the ground truth"):
        write_report(run, Scenes(num_images=3))


def luminance(color):
    channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_colors_have_the_contrast_that_the_web_guidelines_ask_for(colors):
    """Text 4.5 : 1 on both backgrounds and on the bars; curves and the text of a shaded range 3 : 1."""
    for ink, ground, least in [
        *[(ink, ground, 4.5) for ink in ("ink", "soft") for ground in ("page", "sheet")],
        ("ink", "bar", 4.5),
        *[(f"c{number}", "sheet", 3.0) for number in range(6)],
        ("c2", "shade", 3.0),
    ]:
        bright, dark = sorted((luminance(colors[ink]), luminance(colors[ground])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= least, (ink, ground)


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.prove)])
def test_a_real_browser_shows_it_without_messages(run, scheme):
    path = write_report(run, Scenes())
    with open_chromium() as browser:
        page = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 844})
        messages, requests = [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        loaded = page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        width = page.evaluate("document.documentElement.scrollWidth")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert loaded
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert width <= 390  # the page fits a phone
    assert ground == {"light": "rgb(250, 250, 248)", "dark": "rgb(20, 22, 26)"}[scheme]
