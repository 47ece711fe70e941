"""Detections, targets and batches as values: rows, slices, masks, equality, repr, pickles."""

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch

from focaldet.config import from_dict, to_dict
from focaldet.errors import ConfigError
from focaldet.types import Batch, Detection, Detections, GroundTruth, ImageSize, Preprocessing, Resize, Target

NAMES = ("cat", "dog")


def detections(*, names=NAMES):
    boxes = torch.tensor([[0.0, 1.0, 10.0, 11.0], [5.0, 5.0, 9.0, 8.0], [2.0, 2.0, 40.0, 30.0]])
    return Detections(boxes, torch.tensor([0.875, 0.5, 0.25]), torch.tensor([0, 1, 0]), names)


def target():
    boxes = torch.tensor([[0.0, 1.0, 10.0, 11.0], [5.0, 5.0, 9.0, 8.0]])
    return Target(boxes, torch.tensor([1, 0]), torch.tensor([False, True]))


def batch():
    sizes = (ImageSize(20, 30), ImageSize(32, 24))
    images = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).reshape(2, 3, 32, 32)
    return Batch(images, sizes, (target(), Target.empty()), (7, 3), (ImageSize(40, 60), ImageSize(64, 48)), ("a", "b"))


VALUES = [detections, target, batch, Target.empty, Detections.empty]


@pytest.mark.parametrize("index", [1, -2, np.int64(1), torch.tensor(1)])
def test_a_number_gives_one_detection(index):
    assert detections()[index] == Detection((5.0, 5.0, 9.0, 8.0), 0.5, 1, "dog")


@pytest.mark.parametrize(
    ("rows", "scores"),
    [
        (slice(0, 2), [0.875, 0.5]),
        (slice(None, None, 2), [0.875, 0.25]),
        (torch.tensor([True, False, True]), [0.875, 0.25]),
        (torch.tensor([2, 0]), [0.25, 0.875]),
        ([1, 1], [0.5, 0.5]),
        (torch.zeros(3, dtype=torch.bool), []),
        (torch.zeros(0, dtype=torch.int64), []),
    ],
)
def test_several_rows_give_detections_with_the_names(rows, scores):
    chosen = detections()[rows]
    assert isinstance(chosen, Detections)
    assert chosen.scores.tolist() == scores and chosen.class_names == NAMES
    assert chosen.boxes.shape == (len(scores), 4)


@pytest.mark.parametrize("value", [detections(), target(), batch(), Detections.empty()])
def test_an_index_outside_is_an_index_error(value):
    for index in (len(value), -len(value) - 1):
        with pytest.raises(IndexError):
            value[index]


def test_iteration_gives_named_rows():
    rows = list(detections())
    assert len(rows) == len(detections()) == 3
    assert [row.name for row in rows] == ["cat", "dog", "cat"] == list(detections().names)
    box, score, label, name = rows[2]
    assert (box, score, label, name) == ((2.0, 2.0, 40.0, 30.0), 0.25, 0, "cat")
    assert detections(names=())[1].name == "1", "the class index where there are no names"
    assert list(Detections.empty()) == []


def test_iteration_over_a_target():
    assert list(target()) == [
        GroundTruth((0.0, 1.0, 10.0, 11.0), 1, ignored=False),
        GroundTruth((5.0, 5.0, 9.0, 8.0), 0, ignored=True),
    ]
    assert target()[-1].ignored
    assert target()[~target().ignored] == target()[:1]
    assert len(target()) == 2 and len(Target.empty()) == 0


def test_a_batch_gives_batches():
    one = batch()[1]
    assert len(batch()) == 2 and len(one) == 1
    assert (one.sizes, one.indices, one.image_names) == ((ImageSize(32, 24),), (3,), ("b",))
    assert torch.equal(one.images, batch().images[1:])
    assert [each.image_names for each in batch()] == [("a",), ("b",)]
    assert batch()[-2] == batch()[0] == batch()[:1] and batch()[:] == batch()


@pytest.mark.parametrize("make", VALUES)
def test_equality_always_gives_true_or_false(make):
    assert make() == make()
    assert (make() != make()) is False
    for other in (None, 3, "text", [], torch.zeros(2), *(each() for each in VALUES if each is not make)):
        assert (make() == other) is False and (make() != other) is True


def test_what_makes_two_detections_differ():
    value = detections()
    assert value != detections(names=("cat", "cow"))
    assert value != value[:2] and value[:0] == Detections.empty(NAMES)
    assert value != value.shift(1.0, 0.0)
    assert value != Detections(value.boxes, value.scores.double(), value.labels, NAMES)
    moved = batch()
    moved.images[0, 0, 0, 0] += 1
    assert moved != batch()


@pytest.mark.parametrize("make", VALUES)
def test_values_are_frozen_and_picklable_and_have_no_hash(make):
    value = make()
    for other in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value), value.to("cpu")):
        assert other == value and type(other) is type(value)
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, None)
    with pytest.raises(TypeError, match="unhashable"):
        hash(value)


def test_reprs_are_short():
    assert repr(detections()) == "Detections(3 boxes, best 0.88 'cat')"
    assert repr(detections()[[2, 1]]) == "Detections(2 boxes, best 0.50 'dog')"
    assert repr(Detections.empty()) == "Detections(0 boxes)"
    assert repr(target()[:1]) == "Target(1 box)"
    assert repr(batch()) == "Batch(2 × 32 × 32 px, 2 boxes)"


def test_empty_detections_know_their_classes():
    empty = Detections.empty(NAMES)
    assert (len(empty), empty.class_names, empty.names) == (0, NAMES, ())
    assert empty.boxes.shape == (0, 4) and empty.labels.dtype == torch.int64


def test_scale_shift_clip_above():
    value = detections()
    assert value.scale(2.0, 0.5).boxes[0].tolist() == [0.0, 0.5, 20.0, 5.5]
    assert value.shift(-3.0, 1.0).boxes[1].tolist() == [2.0, 6.0, 6.0, 9.0]
    assert value.shift(-3.0, 1.0).clip(ImageSize(20, 30)).boxes[2].tolist() == [0.0, 3.0, 30.0, 20.0]
    assert value.above(0.5) == value[:2]


def test_earlier_names_still_work_for_one_version():
    value = detections()
    for old, new in (
        (lambda: value.scaled(2.0, 2.0), value.scale(2.0, 2.0)),
        (lambda: value.moved(1.0, 2.0), value.shift(1.0, 2.0)),
        (lambda: value.clipped(ImageSize(5, 5)), value.clip(ImageSize(5, 5))),
        (lambda: Preprocessing().padded(ImageSize(33, 64)), ImageSize(64, 64)),
    ):
        with pytest.warns(DeprecationWarning, match="is now called"):
            assert old() == new


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"size_divisor": 0}, "size_divisor: must be at least 1, got 0"),
        ({"mean": (1.0, float("nan"), 1.0)}, "mean: must be finite"),
        ({"std": (1.0, 0.0, 1.0)}, "std: must be above 0 and finite"),
        ({"std": (1.0, 1.0, float("inf"))}, "std: must be above 0 and finite"),
        ({"std": (1.0, float("nan"), 1.0)}, "std: must be above 0 and finite"),
        ({"resize": {"size": 0}}, "size: must be at least 1, got 0"),
        ({"resize": {"max_size": -1}}, "max_size: must be at least 1, got -1"),
    ],
)
def test_preprocessing_refuses_what_no_image_can_go_through(values, problem):
    with pytest.raises(ConfigError, match=f"weights.safetensors: {problem}"):
        from_dict(Preprocessing, values, source="weights.safetensors")
    given = values.get("resize", values)
    with pytest.raises(ConfigError, match=f"^{problem}"):
        replace(Resize() if "resize" in values else Preprocessing(), **given)


def test_preprocessing_is_read_back():
    value = Preprocessing(size_divisor=1, resize=Resize(size=1, max_size=None))
    assert from_dict(Preprocessing, to_dict(value)) == value
