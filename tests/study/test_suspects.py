"""Suspected label errors: each rule by hand, and the files that go back to a labeling tool."""

import csv
import json

import pytest
from PIL import Image

from focaldet.data.config import DataConfig
from focaldet.evaluation.error_kinds import classify_outcomes
from focaldet.evaluation.evaluate import open_evaluation_split
from focaldet.study.suspects import LabeledBox, find_suspects, write_suspects
from tests.evaluation.cases import make_dataset, make_detections

CELL, DOG = 0, 1
HERE = (0.0, 0.0, 10.0, 10.0)
BESIDE = (5.0, 0.0, 15.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def suspects_of(*images, objects, score=0.3):
    """Suspects of images given by their detections, with the objects of each."""
    dataset = make_dataset([[(box, label, 0) for box, label in rows] for rows in objects])
    pairs = zip(images, range(len(dataset)), strict=True)
    examples = [classify_outcomes(make_detections(*rows), dataset.target(index), score=score) for rows, index in pairs]
    return find_suspects(examples, num_classes=2, score=score), dataset


def summarize(several):
    return [(one.image, one.problem, round(one.suspicion, 4)) for one in several]


def test_a_good_detector_on_good_labels_suspects_nothing():
    assert suspects_of([(HERE, 0.9, CELL)], objects=[[(HERE, CELL)]])[0] == ()


@pytest.mark.parametrize(
    ("detections", "problem", "suspicion", "annotated", "proposed"),
    [
        ([(HERE, 0.9, CELL), (FAR, 0.8, DOG)], "missing box", 0.8, None, LabeledBox(DOG, FAR)),
        ([(HERE, 0.9, DOG)], "wrong class", 0.9, LabeledBox(CELL, HERE), LabeledBox(DOG, HERE)),
        ([(HERE, 0.9, DOG), (HERE, 0.2, CELL)], "wrong class", 0.72, LabeledBox(CELL, HERE), LabeledBox(DOG, HERE)),
        ([(BESIDE, 0.9, CELL)], "misplaced box", 0.6, LabeledBox(CELL, HERE), LabeledBox(CELL, BESIDE)),
    ],
)
def test_each_problem_by_hand(detections, problem, suspicion, annotated, proposed):
    (one,), _ = suspects_of(detections, objects=[[(HERE, CELL)]])
    assert (one.image, one.problem, one.annotated, one.proposed) == (0, problem, annotated, proposed)
    assert one.suspicion == pytest.approx(suspicion, abs=1e-6)


def test_a_missed_object_counts_by_the_recall_of_its_class():
    rows = [[(HERE, 0.9, CELL)], [(HERE, 0.9, CELL)], [(HERE, 0.9, CELL)], []]
    several, _ = suspects_of(*rows, objects=[[(HERE, CELL)]] * 4)
    assert summarize(several) == [(3, "nothing there", 0.375)]  # a half × three of four are detected
    assert summarize(suspects_of([], objects=[[(HERE, CELL)]])[0]) == [(0, "nothing there", 0.0)]


def test_one_place_is_named_once():
    """Two classes and a shifted double where the file has nothing, an object that is missed under another's box."""
    near = (51.0, 50.0, 61.0, 60.0)
    doubled = [(FAR, 0.9, DOG), (near, 0.8, CELL), (FAR, 0.7, CELL), (HERE, 0.6, CELL)]
    several, _ = suspects_of(doubled, [(FAR, 0.5, CELL)], objects=[[], []])
    assert summarize(several) == [(0, "missing box", 0.9), (0, "missing box", 0.6), (1, "missing box", 0.5)]
    several, _ = suspects_of([(HERE, 0.9, DOG)], objects=[[(HERE, CELL), (near, CELL), ((0.0, 0.0, 10.0, 9.0), CELL)]])
    assert [one.problem for one in several if one.annotated and one.annotated.box != near] == ["wrong class"]


def test_an_unsure_detector_suspects_nothing_is_missing():
    assert suspects_of([(FAR, 0.29, CELL)], objects=[[]])[0] == ()
    assert len(suspects_of([(FAR, 0.31, CELL)], objects=[[]])[0]) == 1


def test_the_strongest_comes_first_over_all_images():
    several, _ = suspects_of([(FAR, 0.5, CELL)], [(FAR, 0.9, CELL)], [(FAR, 0.7, DOG)], objects=[[], [], []])
    assert summarize(several) == [(1, "missing box", 0.9), (2, "missing box", 0.7), (0, "missing box", 0.5)]


def test_the_files_have_what_the_annotations_and_the_detector_say(tmp_path):
    rows = [[(HERE, 0.9, DOG), (FAR, 0.8, CELL)], []]
    several, dataset = suspects_of(*rows, objects=[[(HERE, CELL)], [(FAR, DOG)]])
    write_suspects(several, dataset, table=tmp_path / "s.csv", coco=tmp_path / "s.json")
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["file"], line["problem"], line["class"], line["proposed_class"]) for line in lines] == [
        ("0.png", "wrong class", "cell", "dog"),
        ("0.png", "missing box", "", "cell"),
        ("1.png", "nothing there", "dog", ""),
    ]
    assert [lines[1][f"proposed_{side}"] for side in ("x1", "y1", "x2", "y2")] == ["50.00", "50.00", "60.00", "60.00"]
    coco = json.loads((tmp_path / "s.json").read_text())
    assert [(one["id"], one["file_name"]) for one in coco["images"]] == [(1, "0.png"), (2, "1.png")]
    first, second, third = coco["annotations"]
    assert (first["category_id"], first["bbox"], first["annotated"]["category_id"]) == (2, [0, 0, 10, 10], 1)
    assert (second["bbox"], second["annotated"]) == ([50, 50, 10, 10], None)
    assert (third["category_id"], third["problem"], third["area"]) == (2, "nothing there", 100)


def test_the_coco_file_can_be_read_again(tmp_path):
    several, dataset = suspects_of([(HERE, 0.9, DOG)], objects=[[(HERE, CELL)]])
    Image.new("RGB", (100, 100)).save(tmp_path / "0.png")
    write_suspects(several, dataset, table=tmp_path / "s.csv", coco=tmp_path / "s.json")
    again = open_evaluation_split(DataConfig(path=tmp_path / "s.json"), "val", seed=0)
    assert again.boxes.tolist() == [list(HERE)]
    assert again.labels.tolist() == [DOG]
