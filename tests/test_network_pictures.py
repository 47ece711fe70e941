"""The pictures of the networks in docs are those that the networks of today give, and nothing in them is cut off."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
NAMES = ("ssd", "dssd", "yolov2")
SVG = "{http://www.w3.org/2000/svg}"
WIDEST_LETTER = 0.5  # of the size of the letters, on average over a line


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    subprocess.run([sys.executable, str(DOCS / "draw_networks.py"), "--out", str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_that_of_the_network(drawn, name):
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
        long = len(text) * float(at["font-size"]) * WIDEST_LETTER
        left = float(at["x"]) - {"start": 0, "middle": long / 2, "end": long}[at["text-anchor"]]
        assert left >= 0 and left + long <= width, text
        assert 10 <= float(at["y"]) <= height - 6, text


def test_the_maps_of_ssd_have_the_published_sizes():
    words = [text for text, _ in texts("ssd")]
    sides = [int(found[1]) for word in words if (found := re.fullmatch(r"(\d+) × \1 × (1024|2048|512)", word))]
    assert sides == [64, 32, 16, 8, 4, 2, 1, 32]  # the last one is C4, which does not predict
    assert any("43,688" in word for word in words)


def test_yolov2_has_425_numbers_a_cell():
    assert "5 · (4 + 1 + 80) = 425 numbers for a cell" in [text for text, _ in texts("yolov2")]
