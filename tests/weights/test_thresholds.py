"""The score thresholds of a weights file: kept, read back, absent in older files, refused where damaged."""

import pytest

from focaldet.errors import CheckpointError
from focaldet.weights.thresholds import LEAST_BOXES, THRESHOLDS_KEY, ScoreThreshold, ScoreThresholds, read_thresholds

KNOWN = ScoreThresholds(
    ScoreThreshold(None, 0.4, 0.8, 0.75, 0.85, 50),
    (ScoreThreshold("cell", 0.35, 0.8, 0.8, 0.8, 45), ScoreThreshold("dog", 0.9, 1.0, 1.0, 1.0, LEAST_BOXES - 1)),
    "val",
)


def test_they_survive_the_text_of_a_file():
    assert read_thresholds({THRESHOLDS_KEY: KNOWN.to_text()}, source="w") == KNOWN


def test_files_without_them_have_none():
    assert read_thresholds({"caffe": "net"}, source="w") is None


def test_a_class_with_few_objects_takes_the_score_over_all():
    assert KNOWN.for_classes(("dog", "cell", "bird")) == (0.4, 0.35, 0.4)


def test_they_are_described():
    assert KNOWN.describe(("cell", "dog")) == "score ≥ 0.35 (cell), 0.40 (dog): the largest F1 on val"
    assert KNOWN.describe(("dog",)) == "score ≥ 0.40: the largest F1 on val"
    assert KNOWN.describe(()) == "score ≥ 0.40: the largest F1 on val"
    assert KNOWN.describe(("cell", *"abcdefg")) == "score ≥ 0.35 to 0.40, by class: the largest F1 on val"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a mapping, got list"),
        ('{"overal": 1}', "unknown setting 'overal'"),
        ('{"overall": 1, "per_class": []}', "overall"),
    ],
)
def test_damaged_ones_are_refused(text, message):
    with pytest.raises(CheckpointError, match=f"W: {THRESHOLDS_KEY}: .*{message}"):
        read_thresholds({THRESHOLDS_KEY: text}, source="W")
