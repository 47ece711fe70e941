"""What hotcoco computes, once more, by the definitions, with plain loops: for the tests of the evaluation.

A detection is (image, label, box xyxy, score), an object (image, label, box xyxy).
"""

import random

import numpy

from focaldet.evaluation.evaluator import ground_truth_of, open_evaluator
from focaldet.evaluation.results import result_rows
from tests.evaluation.cases import make_dataset, make_detections


def scenes(seed, *, images=8, classes=3, crowds=False, ties=True):
    """A dataset and the detections of its images: near objects, of wrong classes, doubled, and beside everything.

    With `crowds` some objects are ignored; without `ties` no two scores are equal.
    """
    rng = random.Random(seed)
    names = tuple("abcdefg"[:classes])
    objects, detections = [], {}
    for image in range(images):
        boxes, rows = [], []
        for _ in range(rng.randint(0, 5)):
            x, y, w, h = rng.uniform(0, 160), rng.uniform(0, 160), rng.uniform(12, 40), rng.uniform(12, 40)
            label = rng.randrange(classes)
            boxes.append(([x, y, x + w, y + h], label, int(crowds and rng.random() < 0.15)))
            for _ in range(rng.choice([0, 1, 1, 2])):
                dx, dy = rng.gauss(0, 5), rng.gauss(0, 5)
                guess = label if rng.random() < 0.75 else rng.randrange(classes)
                rows.append(([x + dx, y + dy, x + w + dx, y + h + dy], rng.randint(1, 99) / 100, guess))
        for _ in range(rng.randint(0, 2)):
            x, y = rng.uniform(0, 160), rng.uniform(0, 160)
            rows.append(([x, y, x + 30, y + 30], rng.randint(1, 60) / 100, rng.randrange(classes)))
        rng.shuffle(rows)
        if not ties:
            rows = [(box, score + (99 * image + k) / 1e6, label) for k, (box, score, label) in enumerate(rows)]
        objects.append(boxes)
        detections[image] = make_detections(*sorted(rows, key=lambda row: -row[1]), names=names)
    return make_dataset(objects, names=names, sizes=[(240, 240)] * images), detections


def columns(dataset, detections):
    """Ground truth, rows and hotcoco's evaluator of them."""
    truth, rows = ground_truth_of(dataset), result_rows(detections)
    return truth, rows, open_evaluator(truth, rows)


def boxes_of(truth):
    """(image, label, box xyxy, ignored) of every object."""
    rows = zip(truth.image_indices, truth.labels, truth.xywh, truth.ignored, strict=True)
    return [
        (int(image), int(label), (x, y, x + w, y + h), bool(ignored)) for image, label, (x, y, w, h), ignored in rows
    ]


def detections_of(rows):
    """(image, label, box xyxy, score) of every detection."""
    values = zip(rows.image_indices, rows.labels, rows.xywh, rows.scores, strict=True)
    return [
        (int(image), int(label), (x, y, x + w, y + h), float(score)) for image, label, (x, y, w, h), score in values
    ]


def area(box):
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(a, b):
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a, b):
    shared = overlap(a, b)
    union = area(a) + area(b) - shared
    return shared / union if union else 0.0


def match(detections, objects):
    """For each detection the number of the object that it matches, "ignored", or None; best first, as COCO says.

    A regular object goes before an ignored one, which any number of detections may lie on.
    """
    matches, taken = [None] * len(detections), set()
    for number in sorted(range(len(detections)), key=lambda number: -detections[number][3]):
        image, label, box, _ = detections[number]
        same = [k for k, each in enumerate(objects) if each[0] == image and each[1] == label]
        free = [k for k in same if not objects[k][3] and k not in taken]
        best = max(free, key=lambda k: iou(box, objects[k][2]), default=None)
        if best is not None and iou(box, objects[best][2]) >= 0.5:
            matches[number] = best
            taken.add(best)
        elif any(objects[k][3] and overlap(box, objects[k][2]) >= 0.5 * area(box) for k in same):
            matches[number] = "ignored"
    return matches


def average_precision(rows, num_objects):
    """AP with 101 recalls of (score, is right) rows."""
    rows = sorted(rows, key=lambda row: -row[0])
    points, right = [], 0
    for rank, (_, is_right) in enumerate(rows, start=1):
        right += is_right
        points.append((right / num_objects, right / rank))
    recalls = numpy.linspace(0, 1, 101).tolist()  # as COCO has them: 0.7000000000000001 is above 7 of 10 objects
    return sum(max((p for r, p in points if r >= recall), default=0.0) for recall in recalls) / 101
