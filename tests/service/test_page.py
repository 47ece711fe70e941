"""The page for people in a real browser: images in, boxes, choices, downloads, keys, phone, dark, and the camera."""

import json
import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from focaldet.prediction import Predictor
from tests.chromium import open_chromium
from tests.evaluation.cases import BrightDetector, make_image
from tests.service.services import SECRET, bright_predictor, encode, running_service

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
OVERLAPS = """() => {
  const kinds = "h1, h2, h3, button, a, input, label, p, li, summary, dl, td, th, pre, #frame, #strip";
  const parts = [...document.querySelectorAll(kinds)]
    .filter((part) => part.getClientRects().length && !part.closest("#strip *, #frame *"));
  const rows = parts.map((part) => [part, part.getBoundingClientRect(), part.closest("ul, ol")]);
  const overlaps = [];
  for (const [a, p, list] of rows) for (const [b, q, other] of rows) {
    if (a === b || a.contains(b) || b.contains(a) || a.compareDocumentPosition(b) & 2) continue;
    if ((list || other) && list !== other) continue; // what is scrolled out of a list is not seen
    const width = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const height = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (width > 1 && height > 1) overlaps.push(`${a.outerHTML.slice(0, 60)} over ${b.outerHTML.slice(0, 60)}`);
  }
  return overlaps;
}"""
COUNTS = "[...document.querySelectorAll('#strip i')].map(i => i.textContent).join()"
DROP = """([bytes, name]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser():
    with open_chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as browser:
        yield browser


@pytest.fixture(scope="module")
def address():
    with running_service(bright_predictor(), name="cells", max_megabytes=0.5) as (host, port):
        yield f"http://{host}:{port}"


@contextmanager
def opened(browser, address, **settings):
    """The page; at its end nothing was asked of another machine, and the browser had nothing to complain of."""
    context = browser.new_context(viewport=DESKTOP, accept_downloads=True, **settings)
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    yield page
    context.close()
    assert [url for url in requests if not url.startswith((address, "blob:", "data:"))] == []
    assert [text for text in messages if "status of 4" not in text] == []  # a refusal is in the console too


def give(page, *files):
    kinds = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
    page.set_input_files("#files", kinds)


def status(page, text):
    page.wait_for_function("text => document.querySelector('#status').textContent.includes(text)", arg=text)


def downloaded(page, action):
    with page.expect_download() as waiting:
        action()
    return waiting.value.suggested_filename, json.loads(waiting.value.path().read_text())


def test_images_are_shown_with_boxes_and_choices(browser, address):
    dog = make_image(box=(4, 4, 60, 20), green=200)
    with opened(browser, address) as page:
        page.wait_for_function("() => document.title === 'cells: object detection'")
        page.evaluate(DROP, [list(encode()), "cell.png"])
        status(page, "cell.png: 64 × 48 px")
        box, frame = page.locator(".box").bounding_box(), page.locator("#frame").bounding_box()
        relative = [(box["x"] - frame["x"]) / frame["width"], (box["y"] - frame["y"]) / frame["height"]]
        relative += [box["width"] / frame["width"], box["height"] / frame["height"]]
        assert relative == pytest.approx([8 / 64, 8 / 48, 16 / 64, 32 / 48], abs=0.01)
        assert page.locator(".box span").text_content() == "cell 1.00"
        give(page, ("dog.png", encode(dog)), ("pale.png", encode(make_image(red=220))), ("broken.png", b"<html>"))
        status(page, "dog.png: 64 × 48")
        page.wait_for_function(f"() => {COUNTS} === '1,1,1,!'")

        page.uncheck("#classes li:nth-child(2) input")
        assert page.locator(".box").count() == 0
        page.keyboard.press("2")
        assert page.locator(".box").count() == 1
        page.keyboard.press("ArrowRight")
        status(page, "pale.png")
        page.evaluate("document.querySelector('#strip img').marked = true")
        page.locator("#score").fill("0.9")
        assert page.evaluate("document.querySelector('#strip img').marked")  # and not made anew with each step
        assert (page.locator(".box").count(), page.locator("#score-text").text_content()) == (0, "0.90")
        page.locator("#score").evaluate("element => element.blur()")
        page.keyboard.press("-")
        assert page.locator(".box").count() == 1
        name, rows = downloaded(page, lambda: page.keyboard.press("j"))
        assert (name, [row["file"] for row in rows]) == ("detections.json", ["cell.png", "dog.png", "pale.png"])
        name, coco = downloaded(page, lambda: page.click("#coco"))
        assert [(row["category_id"], row["image_id"]) for row in coco["annotations"]] == [(7, 1), (9, 2), (7, 3)]
        assert coco["annotations"][0]["bbox"] == [8, 8, 16, 32]
        assert coco["categories"] == [{"id": 7, "name": "cell"}, {"id": 9, "name": "dog"}]
        page.keyboard.press("ArrowRight")
        status(page, "broken.png: the file is not an image in a known format")
        assert page.locator("#frame").is_hidden()
        page.keyboard.press("Delete")
        assert page.locator("#strip button").count() == 3


def test_a_file_that_is_too_large_is_not_sent(browser, address):
    with opened(browser, address) as page:
        page.wait_for_function("() => state.maxBytes < Infinity")  # the page has been told the limit
        give(page, ("large.png", bytes(600_000)))
        status(page, "large.png: the file has 0.6 MB, at most 0.5 MB are taken")


@contextmanager
def service_of_many_classes():
    """The address of a service whose classes have names of all lengths."""
    names = ("cell", "a class with a name that is longer than its line", *(f"class {k}" for k in range(2, 14)))
    predictor = Predictor(BrightDetector(names=names), device="cpu", precision="fp32")
    with running_service(predictor, name="cells", max_megabytes=0.5) as (host, port):
        yield f"http://{host}:{port}"


def photograph(page, name):
    """Nothing lies over another or beside the window; where FOCALDET_SHOTS names a folder, an image of the page too."""
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    if folder := os.environ.get("FOCALDET_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def require_inside(part, whole):
    """A rectangle lies in another, up to a pixel."""
    for start, length in (("x", "width"), ("y", "height")):
        assert part[start] >= whole[start] - 1
        assert part[start] + part[length] <= whole[start] + whole[length] + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["390", "1280"])
def test_it_fits_a_phone_and_is_dark_where_that_is_wished(browser, scheme, size):
    corner = make_image((480, 640), (400, 4, 630, 220), green=200)
    shot = partial("{}_{}_{}".format, size["width"], scheme)
    with service_of_many_classes() as address, opened(browser, address, color_scheme=scheme) as page:
        page.set_viewport_size(size)
        page.wait_for_selector("#classes li")
        photograph(page, shot("1_empty"))
        page.evaluate(DROP, [list(encode(corner)), "corner.png"])
        status(page, "640 × 480")
        photograph(page, shot("2_dropped"))
        require_inside(page.locator(".box span").bounding_box(), page.locator("#frame").bounding_box())
        give(page, *[(f"{k}.png", encode(make_image(red=215 + 5 * k, green=200 * (k % 2)))) for k in range(8)])
        status(page, "0.png: 64 × 48")
        page.wait_for_function(f"() => {COUNTS} === '1,1,1,1,1,1,1,1,1'")
        page.locator("#score").fill("0.85")
        page.locator("#score").evaluate("element => element.blur()")
        assert page.locator(".box").count() == 0
        photograph(page, shot("3_slider"))
        page.keyboard.press("ArrowRight")
        page.locator("#score").fill("0.5")
        page.uncheck("#classes li:nth-child(1) input")
        page.click("summary")
        assert page.locator(".box").count() == 1
        photograph(page, shot("4_classes"))
        give(page, ("a broken file.png", b"<html>"))
        status(page, "a broken file.png: the file is not an image")
        require_inside(page.locator("#strip .failed").bounding_box(), page.locator("#strip").bounding_box())
        photograph(page, shot("5_broken"))
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(250, 250, 248)", "dark": "rgb(20, 22, 26)"}[scheme]
        page.goto(f"{address}/docs")
        photograph(page, shot("6_docs"))


def test_a_detector_without_names_has_its_numbers_as_categories(browser):
    predictor = Predictor(BrightDetector(names=()), device="cpu", precision="fp32")
    with running_service(predictor) as (host, port), opened(browser, f"http://{host}:{port}") as page:
        give(page, ("dog.png", encode(make_image(green=200))), ("cell.png", encode()))
        page.wait_for_function(f"() => {COUNTS} === '1,1'")
        _, coco = downloaded(page, lambda: page.click("#coco"))
        assert [row["category_id"] for row in coco["annotations"]] == [2, 1]
        assert sorted(coco["categories"], key=lambda row: row["id"]) == [{"id": 1, "name": "0"}, {"id": 2, "name": "1"}]


def test_an_image_behind_the_camera_is_not_removed(browser, address):
    with opened(browser, address, permissions=["camera"]) as page:
        give(page, ("cell.png", encode()))
        status(page, "cell.png: 64 × 48")
        page.keyboard.press("c")
        status(page, "camera: ")
        page.keyboard.press("Delete")
        page.keyboard.press("c")
        status(page, "cell.png: 64 × 48")
        page.keyboard.press("Delete")
        assert page.locator("#empty").is_visible()


def test_the_camera_is_detected_in_as_it_runs(browser, address):
    with opened(browser, address, permissions=["camera"]) as page:
        page.click("#camera")
        status(page, "camera: ")
        page.keyboard.press("s")
        status(page, "camera_1.jpg: ")
        assert page.locator("#camera").text_content() == "Camera"


def waits_for(page, holds):
    """Until it holds; meanwhile the browser goes on."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError


@contextmanager
def running_camera(browser, address):
    """The page with its camera on, and the requests of it, none of which is answered by itself."""
    with opened(browser, address, permissions=["camera"]) as page:
        held = []
        page.route("**/predict*", lambda route: held.append(route))  # noqa: PLW0108  it takes no built-in
        page.keyboard.press("c")
        waits_for(page, lambda: len(held) == 1)
        yield page, held
        page.unroute_all(behavior="ignoreErrors")


def test_a_camera_that_is_stopped_waits_for_no_answer(browser, address):
    with running_camera(browser, address) as (page, held):
        page.keyboard.press("c")
        assert page.locator("#camera").text_content() == "Camera"
        held[0].continue_()
        page.wait_for_timeout(500)
        assert (page.locator("#status").text_content(), len(held)) == ("", 1)
        assert page.locator("#empty").is_visible()


def test_a_camera_that_is_stopped_and_started_has_one_loop(browser, address):
    with running_camera(browser, address) as (page, held):
        page.keyboard.press("c")
        page.keyboard.press("c")
        waits_for(page, lambda: len(held) == 2)
        held[0].continue_()
        page.wait_for_timeout(500)
        assert len(held) == 2  # the first session asks for nothing more
        held[1].continue_()
        waits_for(page, lambda: len(held) == 3)


def test_two_quick_presses_leave_the_camera_off(browser, address):
    with opened(browser, address, permissions=["camera"]) as page:
        page.wait_for_selector("#classes li")
        page.evaluate("() => { toggleCamera(); toggleCamera(); }")
        page.wait_for_timeout(500)
        assert page.evaluate("[state.camera, document.querySelector('#video').srcObject]") == [None, None]
        assert page.locator("#camera").text_content() == "Camera"
        page.click("#camera")
        status(page, "camera: ")


def test_the_token_is_asked_for(browser):
    with (
        running_service(bright_predictor(), token=SECRET) as (host, port),
        opened(browser, f"http://{host}:{port}") as page,
    ):
        page.fill("#token", "a wrong one")
        page.keyboard.press("Enter")
        status(page, "send the token")
        page.fill("#token", SECRET)
        page.keyboard.press("Enter")
        page.wait_for_selector("#classes li")
        give(page, ("cell.png", encode()))
        status(page, "cell.png: 64 × 48")
