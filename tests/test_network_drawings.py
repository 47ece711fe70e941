"""The drawings of the networks in docs match the networks of today, and nothing in them is cut off."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
NAMES = ("ssd", "dssd", "yolov2", "faster_rcnn", "faster_rcnn_c4", "faster_rcnn_inception")
SVG = "{http://www.w3.org/2000/svg}"
WIDEST_LETTER = 0.5  # of the size of the letters, on average over a line


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    subprocess.run([sys.executable, str(DOCS / "draw_networks.py"), "--out", str(folder)], check=True)
    return folder


@pytest.mark.prove
@pytest.mark.parametrize("name", NAMES)
def test_the_drawing_matches_the_network(drawn, name):
    assert (drawn / f"{name}.svg").read_text() == (DOCS / f"{name}.svg").read_text(), "run docs/draw_networks.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_it(name):
    assert any(f"]({name}.svg)" in page.read_text() for page in DOCS.glob("*.md"))


def texts(name):
    return [(one.text, one.attrib) for one in ElementTree.parse(DOCS / f"{name}.svg").iter(f"{SVG}text")]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cut_off(name):
    _, _, width, height = map(float, ElementTree.parse(DOCS / f"{name}.svg").getroot().attrib["viewBox"].split())
    for text, at in texts(name):
        left, _, right, bottom = rectangle(text, at)
        assert left >= 0 and right <= width, text
        assert 10 <= bottom <= height - 6, text


def rectangle(text, at):
    """Left, top, right and bottom of a line of text, estimated from its letters; capitals are 0.7 high."""
    size, x, y = (float(at[name]) for name in ("font-size", "x", "y"))
    long = len(text) * size * WIDEST_LETTER
    left = x - {"start": 0, "middle": long / 2, "end": long}[at["text-anchor"]]
    return left, y - 0.7 * size, left + long, y


@pytest.mark.parametrize("name", NAMES)
def test_no_texts_overlap(name):
    for one, other in itertools.combinations(texts(name), 2):
        left, top, right, bottom = rectangle(*one)
        left2, top2, right2, bottom2 = rectangle(*other)
        apart = right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
        assert apart, (one[0], other[0])


def test_the_maps_of_ssd_have_the_published_sizes():
    words = [text for text, _ in texts("ssd")]
    sides = [int(match[1]) for word in words if (match := re.fullmatch(r"(\d+) × \1 × (1024|2048|512)", word))]
    assert sides == [64, 32, 16, 8, 4, 2, 1, 32]  # the last one is C4, which does not predict
    assert any("43,688" in word for word in words)


def test_yolov2_has_425_numbers_a_cell():
    assert "5 · (4 + 1 + 80) = 425 numbers for a cell" in [text for text, _ in texts("yolov2")]


def test_faster_rcnn_has_the_anchors_of_its_pyramid():
    words = [text for text, _ in texts("faster_rcnn")]
    counts = [3 * height * width for height, width in ((13, 17), (25, 34), (50, 68), (100, 136), (200, 272))]
    assert {f"{count:,}" for count in counts} < set(words)
    assert any(f"{sum(counts):,} anchors" in word for word in words)
    assert {"fc6, 1024", "7 × 7 × 256", "81", "324"} < set(words)


def test_plus_classifies_300_regions_twice_with_4096_numbers():
    words = {text for text, _ in texts("faster_rcnn_c4")}
    assert {"1 × 1, 12", "1 × 1, 48", "14 × 14 × 1024", "7 × 7 × 2048", "300 boxes", "600 detections", "4096"} < words
    assert {"NMS at .3 in each class", *(f"{side} px" for side in (200, 400, 600, 800, 1000))} < words


def test_the_halves_of_inception_resnet_have_the_published_widths():
    words = {text for text, _ in texts("faster_rcnn_inception")}
    assert {"150 × 200 × 192", "75 × 100 × 320", "38 × 50 × 1088", "10 × Block35", "20 × Block17"} < words
    assert {"17 × 17 × 1088", "8 × 8 × 2080", "10 × Block8", "8 × 8 × 1536", "3 × 3, 512", "ReLU6"} < words
    assert {"L: 3 × 3, 256", "75 × 100 × 512", "adapter 1 × 1, 1088", "top-down module (TDM): a re-creation"} < words
