"""Data for the tests of reports."""

import pytest

from tests.report.runs import write_coco


@pytest.fixture
def data(tmp_path):
    """Two images to train on and ten to evaluate on, as COCO."""
    folder = write_coco(tmp_path / "data", "train", range(11, 13))
    return write_coco(folder, "val", range(1, 11))
