"""What "+++" adds to Faster R-CNN, each addition by hand or against the rule in words."""

import math
from dataclasses import replace

import pytest
import torch

import focaldet
from focaldet.models import LossContext, build
from focaldet.models.faster_rcnn.plus import (
    RefineConfig,
    ScaledMaps,
    boxes_to_refine,
    max_over_scales,
    nearest_scales,
    scale_maps,
)
from focaldet.ops.boxes import pairwise_iou
from focaldet.ops.nms import class_nms, vote
from focaldet.types import ImageSize, Target
from focaldet.weights import override_postprocess

SMALL = {
    "anchors": {"scales": [2.0, 4.0]},
    "pooling": {"size": 4, "canonical_px": 40},
    "proposals": {"detect": {"keep": 20}},
}
TARGETS = [
    Target(torch.tensor([[4.0, 4.0, 40.0, 44.0]]), torch.tensor([1]), torch.tensor([False])),
    Target.empty(),
]


def detector(**plus):
    torch.manual_seed(0)
    network = build("faster_rcnn_r18_c4", class_names=("cat", "dog"), architecture={**SMALL, "plus": plus}).eval()
    with torch.no_grad():  # boxes that move, and classes that differ from region to region
        network.predictor.boxes.weight.mul_(100)
        network.predictor.classes.weight.mul_(20)
    return network


SIZES = [ImageSize(64, 96), ImageSize(64, 96)]


def random_images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255


def random_boxes(count, *, generator, side=80):
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * side], 1)


@pytest.mark.parametrize("case", range(20))
def test_two_neighbouring_scales_whose_region_is_nearest_to_the_canonical_side(case):
    generator = torch.Generator().manual_seed(case)
    factors = torch.rand(5, generator=generator).add(0.2).sort().values.tolist()
    maps = [ScaledMaps((), (1, 1), (factor, factor)) for factor in factors]
    regions = random_boxes(30, generator=generator)
    chosen = nearest_scales(regions, maps, canonical_px=40)
    for region, pair in zip(regions.tolist(), chosen.tolist(), strict=True):
        side = math.sqrt((region[2] - region[0]) * (region[3] - region[1]))
        apart = sorted(range(5), key=lambda row: abs(math.log(side * factors[row] / 40)))
        assert sorted(pair) == sorted(apart[:2])
        assert abs(pair[0] - pair[1]) == 1


def test_of_two_scales_the_larger_value_counts_at_each_position():
    maps = [ScaledMaps((), (1, 1), (factor, factor)) for factor in (0.5, 1.0, 2.0)]
    regions = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 40, 40], [0, 0, 90, 90]]
    )  # nearest: 1 and 2, two of three, 0 and 1
    seen = {}

    def look(maps_at, own, index):
        rows = torch.stack([maps_at.scale[0] * own[:, 2], -own[:, 2] + index], 1)
        seen[maps_at.scale[0]] = own[:, 2].tolist()
        return rows

    largest = max_over_scales(regions, torch.tensor([0, 1, 0]), maps, look, canonical_px=40)
    assert seen[2.0] == [20.0, 80.0] or seen[0.5] == [20.0, 45.0]
    assert largest[0].tolist() == [40.0, -10.0]
    assert largest[2].tolist() == [90.0, -45.0]


def test_views_are_the_images_at_their_scales():
    x = torch.rand(1, 3, 30, 50)
    calls = []
    own, other = [torch.zeros(1)], [torch.ones(1)]
    maps = scale_maps(x, own, scales=(0.5, 1.0, 1.31), levels_of=lambda y: calls.append(y) or other)
    assert [maps_at.frame_px for maps_at in maps] == [(15, 25), (30, 50), (39, 66)]
    assert [maps_at.levels is own for maps_at in maps] == [False, True, False]
    assert maps[2].scale == (66 / 50, 39 / 30) and [tuple(y.shape[-2:]) for y in calls] == [(15, 25), (39, 66)]
    torch.testing.assert_close(
        maps[2].scale_regions(torch.tensor([[0.0, 0, 50, 30]])), torch.tensor([[0.0, 0, 66, 39]])
    )
    torch.testing.assert_close(calls[0].mean((2, 3)), x.mean((2, 3)), rtol=0.05, atol=0)


@torch.inference_mode()
def test_several_scales_are_what_each_scale_gives_alone():
    network = detector(scales=(0.5, 1.0, 2.0))
    raw = network(random_images(), SIZES)
    levels, _ = network.first_stage(random_images(), SIZES)
    maps = scale_maps(network.normalize(random_images()), levels, scales=(0.5, 1.0, 2.0), levels_of=network.levels)
    alone = torch.stack([network._region_vectors([maps_at], raw.regions, raw.image_index) for maps_at in maps], 1)
    chosen = nearest_scales(raw.regions, maps, canonical_px=40)
    vectors = torch.take_along_dim(alone, chosen[..., None], 1).amax(1)
    logits, deltas = network.predictor(vectors)
    torch.testing.assert_close(raw.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw.deltas, deltas, rtol=1e-4, atol=1e-3)
    assert len({tuple(pair) for pair in chosen.sort(1).values.tolist()}) == 2, "both pairs are used"
    plain = detector()(random_images(), SIZES)
    assert torch.equal(plain.regions, raw.regions), "proposals come from the image as it is"
    assert not torch.allclose(plain.logits, raw.logits, atol=1e-3)


@torch.inference_mode()
def test_one_scale_of_1_is_none():
    plain, single = detector()(random_images(), SIZES), detector(scales=(1.0,))(random_images(), SIZES)
    assert torch.equal(plain.logits, single.logits)


@torch.inference_mode()
def test_context_is_the_image_without_its_padding_beside_every_region():
    network = detector(context=True)
    images = random_images()
    images[0, :, 40:] = torch.tensor(focaldet.Preprocessing().rgb_mean)[:, None, None]
    sizes = [ImageSize(40, 96), ImageSize(64, 96)]
    raw = network(images, sizes)
    levels, _ = network.first_stage(images, sizes)
    maps_at = [ScaledMaps(levels, (64, 96))]
    whole = torch.tensor([[0.0, 0.0, 96.0, 40.0], [0.0, 0.0, 96.0, 64.0]])
    context = network._region_vectors(maps_at, whole, torch.tensor([0, 1]))
    vectors = network._region_vectors(maps_at, raw.regions, raw.image_index)
    assert not torch.allclose(context[0], context[1], atol=1e-3)
    logits, _ = network.predictor(torch.cat([vectors, context[raw.image_index]], 1))
    torch.testing.assert_close(raw.logits, logits, rtol=1e-4, atol=1e-4)
    assert network.predictor.classes.in_features == 2 * network.roi_head.width


def test_context_and_regions_go_through_the_head_together():
    """BatchNorm that learns has one mean for both; of two passes it would learn one each and keep a mixture."""
    network = detector(context=True).train()
    network(random_images(), SIZES, TARGETS)
    norms = [module for module in network.roi_head.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and {int(norm.num_batches_tracked) for norm in norms} == {1}


def boxes_of(network, raw):
    deltas = raw.deltas / torch.tensor(network.config.region_weights)
    size = raw.regions[:, None, 2:] - raw.regions[:, None, :2]
    center = raw.regions[:, None, :2] + size / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(max=math.log(1000 / 16)).exp() / 2
    return torch.cat([center - half, center + half], -1)


@torch.inference_mode()
def test_the_box_refinement_is_at_the_box_of_the_likeliest_class():
    plain, network = detector(), detector(refine={})
    once, raw = plain(random_images(), SIZES), network(random_images(), SIZES)
    count = len(once.regions)
    assert count < len(raw.regions) <= 2 * count
    assert torch.equal(raw.regions[:count], once.regions) and torch.equal(raw.logits[:count], once.logits)
    best = once.logits[:, :2].argmax(1)
    expected = boxes_of(plain, once)[torch.arange(count), best]
    expected[:, 0::2] = expected[:, 0::2].clamp(0, 96)
    expected[:, 1::2] = expected[:, 1::2].clamp(0, 64)
    real = ((expected[:, 2:] - expected[:, :2]) >= 1e-3).all(1)
    torch.testing.assert_close(raw.regions[count:], expected[real], rtol=1e-4, atol=1e-3)
    assert torch.equal(raw.image_index[count:], once.image_index[real])
    levels, first = network.first_stage(random_images(), SIZES)
    again = network.second_stage(
        [ScaledMaps(levels, (64, 96))], raw.regions[count:], raw.image_index[count:], image_sizes=first.image_sizes
    )
    torch.testing.assert_close(raw.logits[count:], again[0], rtol=1e-4, atol=1e-4)


def test_every_class_that_is_likely_can_be_looked_at_again():
    boxes = torch.tensor(
        [[[0.0, 0, 9, 9], [5, 5, 50, 50]], [[-5, 0, 4, 4], [8, 8, 8, 8.0005]], [[1, 1, 3, 3], [2, 2, 9, 9]]]
    )
    probabilities = torch.tensor([[0.5, 0.2], [0.3, 0.6], [0.01, 0.05]])
    index, image_sizes = torch.tensor([0, 1, 1]), torch.tensor([[40.0, 30.0], [20.0, 20.0]])
    every = RefineConfig(boxes="every_class", least_score=0.1)
    refined, images = boxes_to_refine(boxes, probabilities, index, image_sizes=image_sizes, config=every)
    assert refined.tolist() == [
        [0.0, 0, 9, 9],
        [5, 5, 30, 40],
        [0, 0, 4, 4],
    ]  # cut to the image, the empty one left out
    assert images.tolist() == [0, 0, 1]
    refined, images = boxes_to_refine(boxes, probabilities, index, image_sizes=image_sizes, config=RefineConfig())
    assert refined.tolist() == [[0.0, 0, 9, 9], [2, 2, 9, 9]] and images.tolist() == [0, 1]


@pytest.mark.parametrize("case", range(30))
def test_votes_against_the_rule_in_words(case):
    generator = torch.Generator().manual_seed(case)
    boxes = random_boxes(25, generator=generator, side=20)
    scores, labels = torch.rand(25, generator=generator), torch.randint(0, 3, (25,), generator=generator)
    kept = class_nms(boxes, scores, labels, iou=0.3)
    voted = vote(boxes, scores, labels, kept=kept, iou=0.5)
    overlaps = pairwise_iou(boxes, boxes)
    for row, own in enumerate(kept.tolist()):
        voters = [n for n in range(25) if labels[n] == labels[own] and overlaps[own, n] >= 0.5]
        assert own in voters
        total = sum(float(scores[n]) for n in voters)
        mean = [sum(float(scores[n] * boxes[n, side]) for n in voters) / total for side in range(4)]
        assert voted[row].tolist() == pytest.approx(mean, rel=1e-4)
    assert vote(boxes[:0], scores[:0], labels[:0], kept=kept[:0], iou=0.5).shape == (0, 4)


def test_autocast_does_not_shorten_what_is_voted():
    boxes = torch.tensor([[1001.0, 1003.0, 1101.0, 1105.0], [1002.0, 1003.0, 1101.0, 1105.0]])
    with torch.autocast("cpu", torch.bfloat16):
        voted = vote(boxes, torch.tensor([0.5, 0.5]), torch.tensor([0, 0]), kept=torch.tensor([0]), iou=0.5)
    assert voted.tolist() == [[1001.5, 1003.0, 1101.0, 1105.0]]


@torch.inference_mode()
def test_both_looks_go_into_nms_and_vote():
    network = detector(refine={"nms_iou": 0.3, "vote_iou": 0.6})
    raw = network(random_images(), SIZES)
    detections = network.detect(raw, [ImageSize(64, 96), ImageSize(64, 96)])
    boxes = boxes_of(network, raw)
    boxes[..., 0::2], boxes[..., 1::2] = boxes[..., 0::2].clamp(0, 96), boxes[..., 1::2].clamp(0, 64)
    probabilities = raw.logits.softmax(1)
    for row, each in enumerate(detections):
        assert len(each) > 1
        for box, score, label in zip(each.boxes, each.scores, each.labels, strict=True):
            rows = (raw.image_index == row) & (probabilities[:, label] > 0.05)
            own, weights = boxes[rows, label], probabilities[rows, label]
            (center,) = own[weights == score]
            voters = pairwise_iou(center[None], own)[0] >= 0.6
            mean = (own[voters] * weights[voters, None]).sum(0) / weights[voters].sum()
            torch.testing.assert_close(box, mean, rtol=1e-4, atol=1e-3)
        same = each.labels[:, None] == each.labels
        assert len(each) == int(same.diagonal().sum())
    loose = replace(network.config, plus=replace(network.config.plus, refine=RefineConfig(nms_iou=0.9)))
    network.config = loose
    assert len(network.detect(raw, [ImageSize(64, 96)] * 2)[0]) > len(detections[0])


def test_training_knows_neither_box_refinement_nor_scales():
    plain, network = detector(), detector(refine={}, scales=(0.5, 2.0))
    torch.manual_seed(1)
    one = plain(random_images(), SIZES, TARGETS)
    torch.manual_seed(1)
    other = network(random_images(), SIZES, TARGETS)
    assert torch.equal(one.regions, other.regions) and torch.equal(one.logits, other.logits)
    assert all(loss.isfinite() for loss in network.losses(other, TARGETS, LossContext()).values())


def test_a_trained_detector_takes_answers_and_nothing_else():
    config = detector().config
    changed = override_postprocess(config, {"plus": {"refine": {"boxes": "every_class"}, "scales": [0.5, 1.0]}})
    assert changed.plus.refine == RefineConfig(boxes="every_class") and changed.plus.scales == (0.5, 1.0)
    assert override_postprocess(changed, {"plus": {"refine": None, "scales": []}}) == config
    assert override_postprocess(config, {"detect": {"nms_iou": 0.4}}).detect.nms_iou == 0.4
    for fixed in ({"plus": {"context": True}}, {"num_classes": 3}, {"pooling": {"size": 7}}):
        with pytest.raises(focaldet.ConfigError, match="trained detector takes other settings of detect"):
            override_postprocess(config, fixed)
    for scale in (0, 8.1, math.inf, math.nan):
        with pytest.raises(focaldet.ConfigError, match=r"plus\.scales\.1"):
            override_postprocess(config, {"plus": {"scales": [1.0, scale]}})
    with pytest.raises(focaldet.ConfigError, match='did you mean "refine"'):
        override_postprocess(config, {"plus": {"refin": {}}})
