"""Errors that come together: by hand, and the pairs against counting in plain loops."""

import random

from focaldet.evaluation.analysis import confident_outcomes, group_by_objects
from focaldet.evaluation.error_pairs import ErrorPair, name_errors, pair_errors
from focaldet.evaluation.evaluator import ground_truth_of
from tests.evaluation import oracle
from tests.evaluation.cases import make_dataset, make_detections

HERE, FAR, BESIDE = (0, 0, 20, 20), (60, 60, 80, 80), (8, 0, 28, 20)


def outcomes_of(*images):
    """Outcomes of (objects, detections) of each image."""
    dataset = make_dataset([[(box, label, 0) for box, label in objects] for objects, _ in images])
    detections = [make_detections(*((box, 0.9, label) for box, label in rows)) for _, rows in images]
    return confident_outcomes(dataset, detections, score=0.5)


def test_each_error_has_a_name():
    several = outcomes_of(
        ([(HERE, 0)], [(HERE, 0)]),
        ([(HERE, 0)], []),
        ([(HERE, 0)], [(BESIDE, 0)]),
        ([(HERE, 0)], [(HERE, 1)]),
        ([(HERE, 0)], [(HERE, 0), (HERE, 0), (FAR, 1)]),
    )
    names = [name_errors(each, ("cell", "dog")) for each in several]
    errors = [set(), {"missed cell"}, {"cell with a poor box"}, {"cell as another class"}]
    assert names == [*errors, {"duplicate cell", "false dog"}]


def test_pairs_by_hand():
    """A false dog and a missed cell: three times together, a missed cell once alone, six images without errors."""
    both, alone, none = ([(HERE, 0)], [(FAR, 1)]), ([(HERE, 0)], []), ([(HERE, 0)], [(HERE, 0)])
    pairs = pair_errors(outcomes_of(*[both] * 3, alone, *[none] * 6), ("cell", "dog"))
    assert pairs == [ErrorPair("false dog", "missed cell", 3, 4 * 3 / 10)]
    assert pair_errors(outcomes_of(both, both, none), ("cell", "dog")) == []  # too few images
    assert pair_errors(outcomes_of(*[both] * 4), ("cell", "dog")) == []  # as many as by chance
    assert pair_errors([], ("cell",)) == []


def test_pairs_are_those_of_plain_loops():
    rng = random.Random(3)
    kinds = [([(HERE, 0)], []), ([(HERE, 1)], [(FAR, 0)]), ([(HERE, 0), (FAR, 1)], [(HERE, 1)]), ([], [(HERE, 1)])]
    several = outcomes_of(*(rng.choice(kinds) for _ in range(60)))
    sets = [name_errors(each, ("cell", "dog")) for each in several]
    for pair in pair_errors(several, ("cell", "dog")):
        assert pair.num_images == sum(pair.first in each and pair.second in each for each in sets)
        first, second = (sum(name in each for each in sets) for name in (pair.first, pair.second))
        assert pair.expected == first * second / 60


def test_images_are_grouped_by_their_objects():
    counts = [0, 1, 1, 2, 5, 9, 9]
    dataset = make_dataset([[(HERE, 0, 0)] * count for count in counts])
    groups = group_by_objects(ground_truth_of(dataset))
    assert groups == {"0": [0], "1 to 4": [1, 2, 3], "5 to 9": [4, 5, 6]}
    assert group_by_objects(ground_truth_of(make_dataset([[(HERE, 0, 0)]] * 4))) == {"1": [0, 1, 2, 3]}
    assert len(group_by_objects(ground_truth_of(oracle.scenes(0, images=30)[0]))) == 3
