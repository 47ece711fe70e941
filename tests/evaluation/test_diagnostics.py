"""Confusion, kinds of errors, calibration and scores of images: by hand, and against plain loops."""

import math

import pytest

from focaldet.evaluation import diagnostics
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.diagnostics import (
    ERROR_MEANINGS,
    count_confusion,
    count_error_kinds,
    measure_calibration,
    score_images,
    slice_ap,
)
from tests.evaluation import oracle
from tests.evaluation.cases import make_dataset, make_detections

BOX, FAR, SHIFTED = [0, 0, 20, 20], [60, 60, 80, 80], [8, 0, 28, 20]  # the last overlaps the first by 3/7


def confuse(detections, objects, *, score, num_classes):
    """Rows: truth, columns: prediction, last: background; best first, whatever the class.

    Ignored objects are in no row, and detections that match no object of their class but lie on an ignored one in no
    column.
    """
    counts = [[0] * (num_classes + 1) for _ in range(num_classes + 1)]
    taken, matches = set(), oracle.match(detections, objects)
    counted = [each for each, one in zip(detections, matches, strict=True) if one != "ignored"]
    for image, label, box, value in sorted(counted, key=lambda row: -row[3]):
        if value < score:
            continue
        free = [k for k, each in enumerate(objects) if each[0] == image and k not in taken and not each[3]]
        best = max(free, key=lambda k: oracle.iou(box, objects[k][2]), default=None)
        if best is not None and oracle.iou(box, objects[best][2]) >= 0.5:
            taken.add(best)
            counts[objects[best][1]][label] += 1
        else:
            counts[num_classes][label] += 1
    for k, each in enumerate(objects):
        counts[each[1]][num_classes] += k not in taken and not each[3]
    return tuple(map(tuple, counts))


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_confusion_is_that_of_plain_loops(seed, crowds):
    truth, rows, evaluator = oracle.columns(*oracle.scenes(seed, crowds=crowds))
    for score in (0.0, 0.37, 2.0):
        expected = confuse(oracle.detections_of(rows), oracle.boxes_of(truth), score=score, num_classes=3)
        assert count_confusion(evaluator, truth, score=score).counts == expected


def test_confusion_by_hand_in_the_order_of_the_classes():
    """The ids of the file fall while the labels rise; an object of class b is taken for a, one of a is missed."""
    dataset = make_dataset([[(BOX, 1, 0), (FAR, 0, 0)]], names=("a", "b"), category_ids=(9, 4))
    detections = {0: make_detections((BOX, 0.9, 0), ([40, 0, 50, 10], 0.8, 1), names=("a", "b"))}
    truth, _, evaluator = oracle.columns(dataset, detections)
    assert count_confusion(evaluator, truth, score=0.5).counts == ((0, 0, 1), (1, 0, 0), (0, 1, 0))
    assert count_confusion(evaluator, truth, score=0.5).class_names == ("a", "b")


def test_too_many_classes_have_no_matrix(monkeypatch):
    truth, _, evaluator = oracle.columns(*oracle.scenes(0))
    monkeypatch.setattr(diagnostics, "MOST_CONFUSION_CLASSES", 2)
    assert count_confusion(evaluator, truth, score=0.5) is None


def calibrate(rows):
    """Expected calibration error of (score, is right) rows, in ten bins."""
    bins = [[] for _ in range(10)]
    for score, is_right in rows:
        bins[min(9, int(score * 10 + 1e-9))].append((score, is_right))
    full = [each for each in bins if each]
    gaps = [abs(math.fsum(s for s, _ in each) - sum(r for _, r in each)) for each in full]
    return sum(gaps) / max(1, len(rows)), [len(each) for each in full]


@pytest.mark.parametrize("seed", range(6))
def test_calibration_is_that_of_plain_loops(seed):
    truth, rows, evaluator = oracle.columns(*oracle.scenes(seed, crowds=True))
    every = oracle.detections_of(rows)
    matches = zip(every, oracle.match(every, oracle.boxes_of(truth)), strict=True)
    counted = [(d[1], d[3], one is not None) for d, one in matches if one != "ignored"]
    result = measure_calibration(evaluator, truth)
    ece, counts = calibrate([row[1:] for row in counted])
    assert result.ece == pytest.approx(ece, abs=1e-6)
    assert [each.count for each in result.bins] == counts
    for label, name in enumerate("abc"):
        assert result.per_class[name] == pytest.approx(
            calibrate([r[1:] for r in counted if r[0] == label])[0], abs=1e-6
        )


def test_a_perfect_score_is_calibrated_and_a_bold_one_is_not():
    dataset = make_dataset([[(BOX, 0, 0)]] * 10)
    sure = {k: make_detections((BOX if k < 8 else FAR, 0.8, 0)) for k in range(10)}
    truth, _, evaluator = oracle.columns(dataset, sure)
    assert measure_calibration(evaluator, truth).ece == pytest.approx(0.0, abs=1e-6)
    bold = {k: make_detections((FAR, 0.95, 0)) for k in range(10)}
    truth, _, evaluator = oracle.columns(dataset, bold)
    assert measure_calibration(evaluator, truth).ece == pytest.approx(0.95, abs=1e-6)


def error_kind(number, detections, objects, matches):
    """TIDE's kind of the error of an unmatched detection, and the object that it is about, which is never ignored."""
    image, label, box, _ = detections[number]
    here = [k for k, each in enumerate(objects) if each[0] == image and not each[3]]
    same = max((k for k in here if objects[k][1] == label), key=lambda k: oracle.iou(box, objects[k][2]), default=None)
    other = max((k for k in here if objects[k][1] != label), key=lambda k: oracle.iou(box, objects[k][2]), default=None)
    same_iou = oracle.iou(box, objects[same][2]) if same is not None else 0.0
    other_iou = oracle.iou(box, objects[other][2]) if other is not None else 0.0
    if 0.1 <= same_iou < 0.5:
        return "Loc", same
    if other_iou >= 0.5:
        return "Cls", other
    if same_iou >= 0.5 and same in matches:
        return "Dupe", same
    return ("Bkg", None) if max(same_iou, other_iou) < 0.1 else ("Both", None)


def mend_errors(name, errors, detections, objects, matches):
    """The detections without one kind of error, and what they match then.

    A wrong class or a poor box becomes right where the object has no match: the best one about it, of both kinds
    together. All other detections with the error are gone.
    """
    best = {}
    for number in sorted(errors, key=lambda number: -detections[number][3]):
        kind, one = errors[number]
        if kind in ("Cls", "Loc") and one not in matches:
            best.setdefault(one, number)
    mended = []
    for number, detection in enumerate(detections):
        kind, one = errors.get(number, ("", None))
        if kind != name:
            mended.append((detection, matches[number]))
        elif best.get(one) == number:
            image, _, box, score = detection
            mended.append(((image, objects[one][1], box, score), one))
    return [detection for detection, _ in mended], [match for _, match in mended]


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_kinds_of_errors_are_those_of_plain_loops(seed, crowds):
    truth, rows, evaluator = oracle.columns(*oracle.scenes(seed, images=12, crowds=crowds, ties=False))
    objects, detections = oracle.boxes_of(truth), oracle.detections_of(rows)
    matches = oracle.match(detections, objects)
    errors = {n: error_kind(n, detections, objects, matches) for n, one in enumerate(matches) if one is None}
    about = {k for kind, k in errors.values() if kind in ("Loc", "Cls")}
    missed = [k for k, each in enumerate(objects) if k not in matches and k not in about and not each[3]]
    kinds = {each.name: each for each in count_error_kinds(evaluator)}
    expected = {name: sum(kind == name for kind, _ in errors.values()) for name in ERROR_MEANINGS}
    assert {name: each.count for name, each in kinds.items()} == {**expected, "Miss": len(missed)}
    base = mean_ap(detections, objects, matches)
    for name in ("Cls", "Loc", "Both", "Dupe", "Bkg"):
        better, mended = mend_errors(name, errors, detections, objects, matches)
        assert kinds[name].ap50_gain == pytest.approx(mean_ap(better, objects, mended) - base, abs=1e-9), name
    without = [(*each[:3], each[3] or k in missed) for k, each in enumerate(objects)]
    assert kinds["Miss"].ap50_gain == pytest.approx(mean_ap(detections, without, matches) - base, abs=1e-9)


def mean_ap(detections, objects, matches):
    """AP50, mean over the classes with objects; those flagged do not count, nor what lies on them."""
    values = []
    for label in sorted({each[1] for each in objects if not each[3]}):
        rows = [
            (d[3], one is not None)
            for d, one in zip(detections, matches, strict=True)
            if d[1] == label and one != "ignored"
        ]
        values.append(oracle.average_precision(rows, sum(each[1] == label and not each[3] for each in objects)))
    return sum(values) / len(values)


def test_each_kind_of_error_by_hand():
    objects = [(BOX, 0, 0), (FAR, 1, 0), ([0, 60, 20, 80], 0, 0)]
    rows = [(BOX, 0.9, 0), (BOX, 0.8, 0), (FAR, 0.7, 0), ([120, 0, 140, 20], 0.6, 1)]
    rows += [([8, 60, 28, 80], 0.5, 0), (SHIFTED, 0.4, 1)]
    truth, _, evaluator = oracle.columns(make_dataset([objects, [(BOX, 1, 0)]]), {0: make_detections(*rows)})
    kinds = {each.name: each.count for each in count_error_kinds(evaluator)}
    assert kinds == {"Cls": 1, "Loc": 1, "Both": 1, "Dupe": 1, "Bkg": 1, "Miss": 1}
    assert len(truth.labels) == 4


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_images_are_those_of_plain_loops(seed):
    dataset, detections = oracle.scenes(seed, crowds=True)
    truth, rows, _ = oracle.columns(dataset, detections)
    objects = oracle.boxes_of(truth)
    kept = [each for each in oracle.detections_of(rows) if each[3] >= 0.3]
    matches = oracle.match(kept, objects)
    for one in score_images(truth, rows, score=0.3):
        own = [m for d, m in zip(kept, matches, strict=True) if d[0] == one.image]
        right = sum(isinstance(m, int) for m in own)
        regular = sum(each[0] == one.image and not each[3] for each in objects)
        assert (one.right, one.wrong, one.missed) == (right, own.count(None), regular - right)
        assert one.errors == one.wrong + one.missed


def test_ap_of_a_group_of_images_is_that_of_these_images_alone():
    dataset, detections = oracle.scenes(2, images=12)
    truth, _, evaluator = oracle.columns(dataset, detections)
    groups = {"first": [0, 1, 2, 3, 4], "others": list(range(5, 12)), "none": []}
    results = slice_ap(evaluator, truth, groups)
    assert set(results) == {"first", "others"}
    for name, ap in results.items():
        chosen = groups[name]
        part = make_dataset(
            [
                [
                    (box.tolist(), int(label), 0)
                    for box, label in zip(dataset.target(k).boxes, dataset.target(k).labels, strict=True)
                ]
                for k in chosen
            ],
            names=("a", "b", "c"),
        )
        alone = evaluate_detections(part, {row: detections[k] for row, k in enumerate(chosen)})
        assert ap == pytest.approx(alone.ap, abs=1e-4)
