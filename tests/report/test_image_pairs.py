"""Boxes in the images of a report lie where the objects are, also in images that are loaded reduced."""

import numpy
import pytest
from PIL import Image

from focaldet.data import images
from focaldet.data.dataset import FileSource
from focaldet.report.image_pairs import draw_truth_and_detections, even_indices, image_pair
from tests.evaluation.cases import make_dataset, make_detections

BOX = [60, 20, 100, 60]


@pytest.fixture
def source(tmp_path):
    """One black image of 160 × 80 px with an object."""
    Image.new("RGB", (160, 80)).save(tmp_path / "large.jpg")
    return FileSource(make_dataset([[(BOX, 0, 0)]], sizes=[(80, 160)], paths=["large.jpg"], root=tmp_path))


def extent(drawing):
    """The box around all that is drawn on black, without the text above it."""
    rows, columns = numpy.nonzero(numpy.asarray(drawing).max(axis=2) > 60)
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("factor", [1, 2])
def test_detections_lie_on_the_truth_whether_the_image_is_reduced_or_not(source, monkeypatch, factor):
    monkeypatch.setattr(images, "MAX_PIXELS", 160 * 80 // factor**2)
    truth, drawing = draw_truth_and_detections(source, 0, [make_detections((BOX, 0.9, 0))], show_scores=False)
    assert truth.size == (160 // factor, 80 // factor)
    assert extent(truth) == extent(drawing)
    left, _, right, bottom = extent(drawing)
    assert (left, right, bottom) == pytest.approx((60 / factor, 100 / factor, 60 / factor), abs=3)


def test_the_longest_side_is_that_which_was_asked_for(source):
    drawings = draw_truth_and_detections(source, 0, [make_detections((BOX, 0.9, 0))] * 2, longest_px=80)
    assert [drawing.size for drawing in drawings] == [(80, 40)] * 3
    assert (numpy.asarray(drawings[1]) == numpy.asarray(drawings[2])).all()


def test_a_caption_says_what_is_drawn(source):
    html = image_pair(source, 0, [("a<b", make_detections((BOX, 0.9, 0), (BOX, 0.8, 1)))], note="note")
    assert "<figcaption>large.jpg: ground truth: 1 cell; a&lt;b: 1 cell, 1 dog; note</figcaption>" in html


def test_even_indices_cover_the_split():
    assert even_indices(10, 5) == [0, 2, 4, 6, 8]
    assert (even_indices(3, 5), even_indices(0, 5)) == ([0, 1, 2], [])
