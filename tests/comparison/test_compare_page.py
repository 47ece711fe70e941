"""The page of a comparison in a real browser: nine detectors on 500 images, on a desk and a phone, light and dark."""

from dataclasses import replace
from itertools import combinations

import pytest

from focaldet.comparison.compare_page import _bar_table, write_compare_page
from focaldet.comparison.figure import mark_rows
from focaldet.comparison.sentences import conclude, sort_by_ap
from focaldet.comparison.systems import SMALL_DETECTORS
from focaldet.evaluation.bootstrap import seed_spread
from tests.chromium import open_chromium
from tests.comparison.rows_by_hand import make_difference, make_row
from tests.evaluation.cases import make_dataset, make_detections, make_image

NUM_IMAGES = 500
EVIL = "<script>alert(1)</script>"
FIRST_PAINT = """() => new Promise(resolve => {
    const take = list => list.getEntriesByName("first-contentful-paint").forEach(entry => resolve(entry.startTime))
    new PerformanceObserver(take).observe({type: "paint", buffered: true})
})"""


class ManyScenes:
    """As many dark images with one bright box each, of a class whose name is HTML, or of another."""

    def __init__(self):
        boxes = [[([8, 8, 24, 40], k % 2, 0)] for k in range(NUM_IMAGES)]
        self.dataset = make_dataset(boxes, names=("cell", EVIL), sizes=[(48, 64)] * NUM_IMAGES)

    def load(self, i, *, epoch):
        del epoch
        return make_image(), self.dataset.target(i)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    """The page of nine detectors and one that failed."""
    detections = [make_detections(([8, 8, 24, 40], 0.9, 0))] * NUM_IMAGES
    rows = [
        replace(make_row(name, [0.2 + 0.03 * k], 20.0 * 1.6**k, model=name), detections=detections)
        for k, name in enumerate(SMALL_DETECTORS)
    ]
    rows.append(make_row("yolov2", [], model="yolov2", error=f"loss is NaN {EVIL}"))
    names = [row.name for row in sort_by_ap(rows)]
    pairs = [make_difference(first, second, 0.1, 0.05, 0.15, 0.01) for first, second in combinations(names, 2)]
    samples = [row.sample for row in rows if row.sample is not None]
    sentences = conclude(rows, pairs, seed_spread(samples), num_images=NUM_IMAGES)
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_compare_page(
        path,
        rows,
        differences=pairs,
        sentences=sentences,
        timing=None,
        source=ManyScenes(),
        budget="3 min",
        budget_seconds=180.0,
        notes=(EVIL,),
    )
    assert len(mark_rows(rows)) == 9
    return path


def measure_paint(page):
    """Milliseconds to the first paint of anything, the page loaded anew."""
    page.reload()
    return page.evaluate(FIRST_PAINT)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_real_browser_shows_it_within_a_second(page_path, scheme, width):
    with open_chromium() as browser:
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
        messages, requests = [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_path.as_uri())
        loaded = page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        shown = page.evaluate("document.documentElement.scrollWidth")
        results = page.locator("section", has_text="Two-stage methods").first.locator(".wide").first
        cut = results.evaluate("table => table.scrollWidth - table.clientWidth")
        paints = [measure_paint(page) for _ in range(3)]  # once the browser has begun
    assert loaded and messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert shown <= width, "the page is not wider than the screen"
    assert (cut <= 0) == (width > 1000), "the results are shown whole on a desk, and scroll on a phone"
    assert 0 < min(paints) < 1000, "milliseconds"


def test_the_page_folds_what_is_long_and_names_what_is_real(page_path):
    text = page_path.read_text()
    assert text.count("<summary>Which differences are real</summary>") == 1
    assert text.index("Take ") < text.index("<summary>Which differences are real") < text.index("Results")
    assert EVIL not in text and text.count("<img") == 6 * 10


def test_in_a_column_of_zeros_nothing_is_bold():
    html = _bar_table(["a", "b"], ["small", "large"], [[0.0, 0.5], [0.0, 0.25]])
    assert html.count("<strong>") == 1 and "<strong>50.0</strong>" in html
