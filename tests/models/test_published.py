"""The table of `focaldet models`: the paper's figures, and parameters counted by hand elsewhere."""

import json
from dataclasses import asdict, astuple
from importlib.resources import files

import pytest

from focaldet.cli.models import embedded_backbones
from focaldet.models import PRESETS
from focaldet.models.published import detector_rows
from focaldet.types import Resize
from focaldet.weights.sources import EMBEDDED_WEIGHTS

COUNTED = {
    "retinanet_r50_fpn": 37_915_572,
    "retinanet_r101_fpn": 56_855_476,
    "retinanet_x101_32x8d_fpn": 101_000_116,
    "retinanet_r50_fpn_tv": 34_014_999,
    "retinanet_r50_fpn_v2_tv": 38_198_935,
    "faster_rcnn_r50_fpn": 41_704_036,
    "faster_rcnn_r101_fpn": 60_643_940,
    "ssd513_r101": 173_145_304,
    "dssd513_r101": 254_983_896,
    "yolov2": 50_962_889,
}


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in detector_rows()}


def test_every_detector_has_a_row(rows):
    assert list(rows) == list(PRESETS)


def test_the_list_that_is_read_without_torch_is_that_of_the_detectors(rows):
    stored = json.loads(files("focaldet.cli").joinpath("detectors.json").read_text(encoding="utf-8"))
    assert stored == [asdict(row) for row in rows.values()], "run docs/list_detectors.py"
    assert embedded_backbones() == sorted(EMBEDDED_WEIGHTS.values())


@pytest.mark.parametrize("name", COUNTED)
def test_parameters(rows, name):
    assert rows[name].num_parameters == COUNTED[name]


def test_the_papers_table_2(rows):
    published = rows["retinanet_r101_fpn"].published
    assert (published.ap, published.ap50, published.ap75) == (39.1, 59.1, 42.3)
    assert (published.ap_small, published.ap_medium, published.ap_large) == (21.8, 42.7, 50.2)
    assert rows["retinanet_x101_32x8d_fpn"].published.ap == 40.8
    assert rows["retinanet_r50_fpn"].published is None


def test_the_rows_of_ssd_and_dssd(rows):
    assert astuple(rows["ssd513_r101"].published) == (31.2, 50.4, 33.3, 10.2, 34.5, 49.8)
    assert astuple(rows["dssd513_r101"].published) == (33.2, 53.3, 35.2, 13.0, 35.4, 51.1)
    assert rows["ssd513_r101"].input == "513 × 513 px" and rows["ssd321_r101"].published is None


def test_faster_rcnns_row(rows):
    assert astuple(rows["faster_rcnn_r101_fpn"].published) == (36.2, 59.1, 39.0, 18.2, 39.0, 48.2)
    assert astuple(rows["faster_rcnn_r101_c4_plus"].published) == (34.9, 55.7, 37.4, 15.6, 38.7, 50.9)
    assert astuple(rows["faster_rcnn_inception_resnet_v2"].published) == (34.7, 55.5, 36.7, 13.5, 38.1, 52.0)
    assert astuple(rows["faster_rcnn_inception_resnet_v2_tdm"].published) == (36.8, 57.7, 39.2, 16.2, 39.8, 52.1)
    assert rows["faster_rcnn_r50_fpn"].published is rows["faster_rcnn_r101_c4"].published is None


def test_yolov2s_row(rows):
    assert astuple(rows["yolov2"].published) == (21.6, 44.0, 19.2, 5.0, 22.4, 35.5)
    assert rows["yolov2"].backbone == "darknet19" and rows["yolov2_tiny"].published is None


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
