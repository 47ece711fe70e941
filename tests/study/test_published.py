"""The table of `focaldet models`: the paper's figures, and parameters counted by hand elsewhere."""

import pytest

from focaldet.models import DETECTORS
from focaldet.study.published import detector_rows
from focaldet.types import Resize

COUNTED = {
    "retinanet_r50_fpn": 37_915_572,
    "retinanet_r101_fpn": 56_855_476,
    "retinanet_x101_32x8d_fpn": 101_000_116,
    "retinanet_r50_fpn_tv": 34_014_999,
    "retinanet_r50_fpn_v2_tv": 38_198_935,
}


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in detector_rows()}


def test_every_detector_has_a_row(rows):
    assert list(rows) == list(DETECTORS)


@pytest.mark.parametrize("name", COUNTED)
def test_parameters(rows, name):
    assert rows[name].num_parameters == COUNTED[name]


def test_the_papers_table_2(rows):
    published = rows["retinanet_r101_fpn"].published
    assert (published.ap, published.ap50, published.ap75) == (39.1, 59.1, 42.3)
    assert (published.ap_small, published.ap_medium, published.ap_large) == (21.8, 42.7, 50.2)
    assert rows["retinanet_x101_32x8d_fpn"].published.ap == 40.8
    assert rows["retinanet_r50_fpn"].published is None


@pytest.mark.parametrize(
    ("resize", "words"),
    [
        (Resize(), "short side 800, long ≤ 1333 px"),
        (Resize(mode="long", size=320), "long side 320 px"),
        (Resize(mode="warp", size=513), "513 × 513 px"),
        (Resize(size=600, max_size=None), "short side 600 px"),
    ],
)
def test_the_input_in_words(resize, words):
    assert str(resize) == words
