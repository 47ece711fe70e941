"""The paired bootstrap: against hotcoco, against a new evaluation of every resampled split, and its false alarms."""

import itertools
import math
from dataclasses import replace

import hotcoco
import numpy
import pytest
import torch

from focaldet.evaluation import bootstrap
from focaldet.evaluation.bootstrap import (
    ApSample,
    SeedSpread,
    adjust_p_values,
    compare_samples,
    draw_splits,
    match_images,
    percentiles,
    resampled_ap,
    seed_spread,
)
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.evaluator import ground_truth_of, open_evaluator
from focaldet.evaluation.results import result_rows
from tests.evaluation.cases import make_dataset, make_detections


def scenes(num_images=12, num_objects=5, *, seed=0, num_classes=2, ignored=0.2):
    """A dataset of random boxes in images of 400 × 400 px, some of them ignored."""
    rng = numpy.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        corners = rng.uniform(0, 340, (num_objects, 2))
        sides = rng.uniform(20, 60, (num_objects, 2))
        boxes = numpy.concatenate([corners, corners + sides], axis=1)
        images.append([(box.tolist(), int(rng.integers(num_classes)), int(rng.random() < ignored)) for box in boxes])
    return make_dataset(images, names=("cell", "dog")[:num_classes], sizes=[(400, 400)] * num_images)


def detect(dataset, *, jitter, seed, extra=2, image_noise=0.0):
    """Detections with so many pixels of noise, some on the background; better boxes have better scores."""
    rng = numpy.random.default_rng(seed)
    detections = {}
    for index in range(len(dataset)):
        target, rows = dataset.target(index), []
        noise = jitter * math.exp(image_noise * rng.standard_normal())
        for box, label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
            moved = numpy.array(box) + rng.normal(0, noise, 4)
            score = float(numpy.clip(0.9 - 0.02 * numpy.abs(moved - box).sum() + rng.normal(0, 0.1), 0.01, 0.99))
            rows.append((moved.tolist(), score, label))
        for _ in range(extra):
            x, y = rng.uniform(0, 340, 2).tolist()
            rows.append(
                ([x, y, x + 40, y + 40], float(rng.uniform(0.01, 0.5)), int(rng.integers(2)) % len(dataset.classes))
            )
        detections[index] = make_detections(*rows, names=dataset.classes.names)
    return detections


def matches_of(dataset, detections):
    return match_images(ground_truth_of(dataset), result_rows(detections))


def repeated(dataset, detections, counts):
    """The data and detections with every image as often as it was drawn, as separate images."""
    chosen = [index for index, count in enumerate(counts) for _ in range(int(count))]
    drawn = dataset.subset(chosen, "drawn")
    drawn = replace(drawn, image_ids=torch.arange(len(chosen)))
    return drawn, {number: detections[index] for number, index in enumerate(chosen)}


@pytest.mark.parametrize("seed", [0, 1])
def test_on_the_split_itself_it_is_the_ap_of_the_evaluator(seed):
    dataset = scenes(seed=seed)
    detections = detect(dataset, jitter=5, seed=seed)
    metrics, matches = evaluate_detections(dataset, detections), matches_of(dataset, detections)
    whole = torch.ones(1, len(dataset), dtype=torch.float64)
    assert float(resampled_ap(matches, whole)) == pytest.approx(metrics.ap, abs=1e-12)
    assert float(resampled_ap(matches, whole, thresholds=[0])) == pytest.approx(metrics.ap50, abs=1e-12)
    assert 0.1 < metrics.ap < 0.9


def test_every_resampled_split_has_the_ap_of_a_new_evaluation_of_it():
    dataset = scenes(num_images=8)
    detections = detect(dataset, jitter=5, seed=3)
    splits = draw_splits(len(dataset), num_splits=25, seed=1)
    expected = [evaluate_detections(*repeated(dataset, detections, counts)).ap for counts in splits.tolist()]
    assert resampled_ap(matches_of(dataset, detections), splits).tolist() == pytest.approx(expected, abs=1e-9)
    assert len(set(expected)) > 20


def test_chunks_change_nothing(monkeypatch):
    dataset = scenes(num_images=6)
    matches = matches_of(dataset, detect(dataset, jitter=5, seed=3))
    splits = draw_splits(len(dataset), num_splits=30, seed=1)
    whole = resampled_ap(matches, splits)
    monkeypatch.setattr(bootstrap, "CHUNK_VALUES", 100)
    assert torch.equal(resampled_ap(matches, splits), whole)


def test_the_interval_of_a_difference_is_that_of_hotcoco_which_counts_an_image_once():
    """hotcoco 1.3 takes an image that was drawn twice once, so that its intervals are too narrow by a quarter."""
    dataset = scenes(num_images=40, seed=5)
    both = [detect(dataset, jitter=jitter, seed=seed) for jitter, seed in ((4, 1), (5, 2))]
    truth = ground_truth_of(dataset)
    second, first = (open_evaluator(truth, result_rows(each)) for each in reversed(both))
    peer = hotcoco.compare(second, first, n_bootstrap=2000, seed=7)["ci"]["AP"]
    splits = draw_splits(len(dataset), num_splits=4000, seed=3)
    matches = [matches_of(dataset, each) for each in both]

    def difference(splits):
        samples = [ApSample(str(k), (0.0,), resampled_ap(each, splits)) for k, each in enumerate(matches)]
        return compare_samples(samples, spread=SeedSpread(0.0, math.inf))[0]

    once, twice = difference(splits.clamp(max=1)), difference(splits)
    assert [once.low, once.high] == pytest.approx([peer["lower"], peer["upper"]], abs=0.003)
    assert once.probability == pytest.approx(peer["prob_positive"], abs=0.02)
    assert (twice.high - twice.low) / (once.high - once.low) == pytest.approx(math.sqrt(0.632 / 0.368), rel=0.08)


def sample(dataset, name, runs, splits):
    """The sample of some result sets as seeds of one detector."""
    whole = torch.ones(1, len(dataset), dtype=torch.float64)
    matches = [matches_of(dataset, detections) for detections in runs]
    aps = tuple(float(resampled_ap(each, whole)) for each in matches)
    return ApSample(name, aps, torch.stack([resampled_ap(each, splits) for each in matches]).mean(0))


def test_a_detector_against_itself_has_no_difference():
    dataset = scenes()
    splits = draw_splits(len(dataset), num_splits=200)
    one, same = (sample(dataset, name, [detect(dataset, jitter=5, seed=1)], splits) for name in "ab")
    (difference,) = compare_samples([one, same], spread=SeedSpread(0.01, math.inf))
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert (difference.probability, difference.p_value, difference.is_real) == (0.5, 1.0, False)


JITTER, SEED_NOISE = 6.0, 0.03  # pixels, and its relative deviation between seeds: about one point of AP


def compare_seeds(num_splits, *, seed_noise=SEED_NOISE):
    """On many splits: six seeds of a detector pair by pair, three of them against the others, and a worse detector."""
    rows = {"one": [], "three": [], "worse": []}
    rng = numpy.random.default_rng(11)
    for number in range(num_splits):
        dataset = scenes(num_images=30, num_objects=4, seed=1000 + number, num_classes=1, ignored=0.0)
        splits = draw_splits(len(dataset), num_splits=200, seed=number)

        def train(factor, dataset=dataset, splits=splits):
            jitter = JITTER * factor * math.exp(seed_noise * rng.standard_normal())
            noisy = detect(dataset, jitter=jitter, seed=int(rng.integers(1 << 30)), extra=1, image_noise=0.3)
            return sample(dataset, "run", [noisy], splits)

        def differ(first, second, number=number):
            pair = [
                ApSample(name, tuple(run.ap[0] for run in group), torch.stack([run.resampled for run in group]).mean(0))
                for name, group in (("first", first), ("second", second))
            ]
            return compare_samples(pair, spread=seed_spread(pair, assumed=0.01), num_units=30, seed=number)[0]

        runs, worse = [train(1.0) for _ in range(6)], train(1.6)
        rows["one"] += [differ([first], [second]) for first, second in itertools.combinations(runs, 2)]
        for other in itertools.combinations(range(1, 6), 2):
            three = [runs[k] for k in (0, *other)]
            rows["three"].append(differ(three, [run for run in runs if run not in three]))
        rows["worse"].append(differ(runs[:1], [worse]))
    return rows


@pytest.fixture(scope="module")
def trials():
    return compare_seeds(25)


def test_seeds_that_differ_widely_are_seldom_called_different_detectors():
    """A small part of the long proofs below. Images alone, without the deviation between seeds, call 12 of 60 real."""
    trials = compare_seeds(6, seed_noise=5 * SEED_NOISE)
    differences = trials["three"]
    assert len(differences) == 60
    assert sum(not each.low <= 0 <= each.high for each in differences) <= 0.05 * len(differences)
    assert sum(each.is_real for each in differences) <= 0.05 * len(differences)
    assert sum(each.is_real and each.mean > 0 for each in trials["worse"]) >= 4


@pytest.mark.prove
@pytest.mark.parametrize("pair", ["one", "three"])
def test_two_seeds_of_a_detector_are_different_in_at_most_5_percent_of_trials(trials, pair):
    differences = trials[pair]
    assert len(differences) >= 250
    assert sum(not each.low <= 0 <= each.high for each in differences) <= 0.05 * len(differences)
    assert sum(each.is_real for each in differences) <= 0.05 * len(differences)


@pytest.mark.prove
def test_a_worse_detector_is_told_from_a_better_one(trials):
    worse = trials["worse"]
    assert sum(each.is_real and each.mean > 0 for each in worse) >= 0.9 * len(worse)


def test_few_images_widen_an_interval_as_students_t_says():
    rng = numpy.random.default_rng(0)
    values = torch.from_numpy(0.1 + 0.02 * rng.standard_normal(200_000))
    pair = [ApSample("a", (0.1,), values), ApSample("b", (0.0,), torch.zeros(200_000, dtype=torch.float64))]
    for num_units, quantile in ((6, 2.571), (20, 2.093)):
        (difference,) = compare_samples(pair, spread=SeedSpread(0.0, math.inf), num_units=num_units)
        half = 0.02 * quantile * math.sqrt(num_units / (num_units - 1))
        assert (difference.high - difference.low) / 2 == pytest.approx(half, rel=0.02)


def test_clusters_are_drawn_whole():
    keys = ["a", "a", "b", "c", "c", "c"]
    splits = draw_splits(6, num_splits=50, seed=2, clusters=keys)
    assert torch.equal(splits[:, 0], splits[:, 1]) and torch.equal(splits[:, 3], splits[:, 5])
    assert set(splits[:, [0, 2, 3]].sum(1).tolist()) == {3.0}
    assert torch.equal(draw_splits(3, num_splits=5, seed=4), draw_splits(3, num_splits=5, seed=4, clusters="xyz"))


def test_images_of_a_cluster_that_are_alike_widen_the_interval():
    dataset = scenes(num_images=10, seed=8)
    detections = detect(dataset, jitter=6, seed=1, image_noise=0.8)
    frames, of_frames = repeated(dataset, detections, [4] * 10)
    matches = matches_of(frames, of_frames)
    width = {}
    for name, keys in (("images", None), ("clusters", [k // 4 for k in range(40)])):
        low, high = percentiles(resampled_ap(matches, draw_splits(40, num_splits=600, seed=1, clusters=keys)))
        width[name] = high - low
    assert width["clusters"] == pytest.approx(2 * width["images"], rel=0.25)  # a quarter as many independent images


def test_holms_correction_by_hand():
    assert adjust_p_values([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_p_values([0.5, 0.9]) == [1.0, 1.0]
    assert adjust_p_values([]) == []


def test_the_spread_between_seeds_is_pooled_and_assumed_without_any():
    none = torch.zeros(3, dtype=torch.float64)
    samples = [ApSample("a", (0.5, 0.52), none), ApSample("b", (0.3, 0.36), none), ApSample("c", (0.1,), none)]
    spread = seed_spread(samples)
    assert (spread.deviation, spread.freedom) == (pytest.approx(math.sqrt((2 * 0.01**2 + 2 * 0.03**2) / 2)), 2.0)
    assert not spread.is_assumed and seed_spread(samples[2:], assumed=0.02) == SeedSpread(0.02, math.inf)


def test_a_split_without_objects_or_detections():
    dataset = make_dataset([[], [([0, 0, 50, 50], 0, 0)]], names=("cell",))
    matches = matches_of(dataset, {})
    splits = torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    values = resampled_ap(matches, splits).tolist()
    assert math.isnan(values[0]) and values[1] == 0.0


def test_one_image_says_nothing_of_others():
    first, second = (ApSample(name, (ap,), torch.full((100,), ap).double()) for name, ap in (("a", 0.5), ("b", 0.3)))
    (pair,) = compare_samples([first, second], spread=seed_spread([first, second]), num_units=1)
    assert not pair.is_real and (pair.low, pair.high, pair.probability) == (-1.0, 1.0, 0.5)
