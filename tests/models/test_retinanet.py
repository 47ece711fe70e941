"""What RetinaNet makes of raw outputs and settings, by hand."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import focaldet
from focaldet import losses
from focaldet.models import PRESETS, LossContext, build
from focaldet.models.retinanet import LossConfig, RetinaNet, RetinaNetConfig, RetinaNetOutputs
from focaldet.types import ImageSize, Preprocessing, Target
from focaldet.weights import load_detector, load_into, save_detector
from tests.weights.test_checkpoint import rewrite

SMALL = {"width": 16, "head_depth": 1}
ANCHORS = torch.tensor(
    [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [50.0, 50.0, 90.0, 90.0], [200.0, 200.0, 240.0, 240.0]]
)


def detector(**architecture):
    return build("retinanet_r18_fpn", class_names=("cat", "dog"), architecture={**SMALL, **architecture})


def outputs(logits, *, levels=(2, 1, 1)):
    """Raw outputs of one image whose boxes are the anchors themselves."""
    return RetinaNetOutputs(torch.tensor([logits]), torch.zeros(1, len(logits), 4), ANCHORS, levels)


def logit(p):
    return math.log(p / (1 - p))


def target(boxes, labels, ignored=None):
    marks = torch.zeros(len(boxes), dtype=torch.bool) if ignored is None else torch.tensor(ignored)
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), marks)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"width": -32}, "width: Input should be greater than 0, got -32"),
        ({"prior": 0.0}, "prior: Input should be greater than 0"),
        ({"loss": {"gamma": -1.0}}, "loss.gamma: Input should be greater than or equal to 0"),
        ({"loss": {"mining": {"batch": 0}}}, "loss.mining.batch: Input should be greater than 0"),
        ({"loss": {"mining": {"nms": 0.5}}}, "unknown setting 'loss.mining.nms'.*nms_iou"),
        ({"classifier": "softmix"}, "classifier: Input should be 'sigmoid' or 'softmax'"),
        ({"classifier": "softmax", "prior": 0.5}, "prior: must be below 1 / 2 "),
        ({"detect": {"score_threshold": 1.0}}, "score_threshold: Input should be less than 1"),
        ({"frozen_stages": 9}, "frozen_stages: Input should be less than or equal to 5"),
        ({"backbone": "resnet19"}, "resnet19"),
        ({"norm": "batch", "norm_eps": 0.0}, "norm_eps: .* must be above 0"),
        ({"anchors": {"ratios": []}}, "anchors.ratios: .* at least 1 item"),
        ({"loss": {"quality": True, "mining": {}}}, "quality: .* exclude each other"),
        ({"loss": {"quality": True}, "classifier": "softmax"}, "loss.quality: .* sigmoid"),
        ({"matching": {"foreground_iou": 0.3, "background_iou": 0.6}}, "background_iou: must be at most"),
    ],
)
def test_settings_out_of_range_are_named(setting, problem):
    with pytest.raises(focaldet.ConfigError, match=problem):
        build("retinanet_r18_fpn", num_classes=2, architecture=setting)


SMALL_PRESETS = ("retinanet_efficientnet_lite0_fpn", "retinanet_mobilenet_v2_fpn")


def test_the_pyramid_is_normalized_nowhere_unless_it_is_asked_for():
    retinanets = [preset.config for preset in PRESETS.values() if isinstance(preset.config, RetinaNetConfig)]
    assert len(retinanets) >= 8 and not any(config.neck_norm for config in retinanets)
    net = build(SMALL_PRESETS[1], num_classes=2, architecture={**SMALL, "neck_norm": True})
    norms = [name for name, module in net.pyramid.named_modules() if isinstance(module, nn.GroupNorm)]
    assert norms == [f"{part}_norms.{level}" for part in ("lateral", "output") for level in range(3)]


@pytest.mark.parametrize("head_norm", [False, True])
def test_behind_a_normalized_pyramid_a_fresh_network_answers_with_its_prior(head_norm):
    torch.manual_seed(0)
    change = {"width": 32, "head_depth": 1, "head_norm": head_norm, "neck_norm": True}
    net = build(SMALL_PRESETS[1], num_classes=2, architecture=change).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        scores = net(images, [ImageSize(64, 96)] * 2).logits.sigmoid()
    assert float(scores.mean()) == pytest.approx(0.01, rel=0.15)


def test_weights_of_before_the_setting_load_and_a_normalized_pyramid_takes_the_backbone_alone(tmp_path):
    path = tmp_path / "old.safetensors"
    trained = build(SMALL_PRESETS[1], num_classes=2, architecture=SMALL)
    save_detector(path, trained)
    rewrite(path, lambda _, description: description["config"].pop("neck_norm"))
    loaded = load_detector(path).detector
    assert loaded.config == trained.config
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in loaded.state_dict().items())
    normalized = build(SMALL_PRESETS[1], num_classes=2, architecture={**SMALL, "neck_norm": True})
    before = normalized.pyramid.lateral[0].weight.clone()
    assert load_into(normalized, path).kind == "backbone"
    backbones = (net.backbone.state_dict().values() for net in (normalized, trained))
    assert all(torch.equal(one, other) for one, other in zip(*backbones, strict=True))
    assert torch.equal(normalized.pyramid.lateral[0].weight, before)


def test_detections_by_hand():
    low = logit(0.01)
    actual = detector().detect(
        outputs([[logit(0.9), low], [logit(0.8), logit(0.6)], [low, logit(0.7)], [low, logit(0.04)]]),
        [ImageSize(80, 80)],
    )[0]
    # The second cat overlaps the first by 9/11 and goes; the dog there stays; .04 is below the threshold.
    assert actual.names == ("cat", "dog", "dog")
    torch.testing.assert_close(actual.scores, torch.tensor([0.9, 0.7, 0.6]))
    assert actual.boxes.tolist() == [[0, 0, 10, 10], [50, 50, 80, 80], [1, 0, 11, 10]], "clipped to the image"


def test_one_object_has_one_answer_across_classes():
    rows = [[logit(0.9), 0.0], [logit(0.8), logit(0.6)], [0.0, logit(0.7)], [logit(0.01)] * 2]
    settings = {"across_classes": True, "score_threshold": 0.55}
    (actual,) = detector(detect=settings).detect(outputs(rows), [ImageSize(80, 80)])
    assert actual.names == ("cat", "dog"), "the dog under the first cat is gone"


def test_boxes_are_cut_to_the_image_before_or_behind_suppression():
    """In an image 2 wide the two left boxes share a half; whole, as detectron2 compares them, 9/11."""
    rows, size = [[logit(0.9), 0.0], [logit(0.8), 0.0], *[[logit(0.01)] * 2] * 2], ImageSize(10, 2)
    for clip_first, expected in ((True, [[0, 0, 2, 10], [1, 0, 2, 10]]), (False, [[0, 0, 2, 10]])):
        settings = {"nms_iou": 0.6, "score_threshold": 0.7, "clip_first": clip_first}
        (actual,) = detector(detect=settings).detect(outputs(rows), [size])
        assert actual.boxes.tolist() == expected


def test_best_candidates_are_chosen_level_by_level():
    rows = [[logit(0.9), logit(0.8)], [logit(0.7), logit(0.6)], [logit(0.2), logit(0.1)], [logit(0.3), logit(0.1)]]
    actual = detector(detect={"top_k": 1}).detect(outputs(rows), [ImageSize(300, 300)])[0]
    torch.testing.assert_close(actual.scores, torch.tensor([0.9, 0.3, 0.2]))
    few = detector(detect={"max_detections": 2}).detect(outputs(rows), [ImageSize(300, 300)])[0]
    assert len(few) == 2


def test_threshold_zero_keeps_everything():
    actual = detector(detect={"score_threshold": 0.0, "nms_iou": 1.0}).detect(
        outputs([[-50.0, -60.0]] * 4), [ImageSize(300, 300)]
    )[0]
    assert len(actual) == 8


def test_losses_by_hand():
    rows = [[0.0, 0.0]] * 4
    truth = [target([[0.0, 0.0, 10.0, 10.0]], [1])]
    net = detector(loss={"alpha": None, "gamma": 0.0})
    actual = net.losses(outputs(rows), truth, LossContext())
    # Anchors 0 and 1 (IoU 9/11) are foreground: 8 cross entropies of log 2 over 2 positives.
    assert actual["class"].item() == pytest.approx(8 * math.log(2) / 2, rel=1e-6)
    # Anchor 1 is a tenth of its side off, below the corner at .11.
    assert actual["box"].item() == pytest.approx(0.5 * 0.1**2 / 0.11 / 2, rel=1e-4)


def test_quality_losses_by_hand():
    """Of the dog's two anchors one lies on it and one shares 9/11: these are what they are to answer."""
    net = detector(loss={"quality": True, "gamma": 2.0, "box": "giou"})
    actual = net.losses(outputs([[0.0, 0.0]] * 4), [DOG], LossContext())
    targets = [0.0] * 6 + [1.0, 9 / 11]
    expected = sum((y - 0.5) ** 2 * math.log(2) for y in targets) / 2
    assert actual["class"].item() == pytest.approx(expected, rel=1e-5)
    crowd = target([[0.0, 0.0, 10.0, 10.0]], [1], [True])
    assert net.losses(outputs([[0.0, 0.0]] * 4), [crowd], LossContext())["class"].item() == pytest.approx(
        4 * 0.25 * math.log(2)
    ), "two anchors are ignored, and no positive counts as one"


def test_a_class_loss_of_ones_own_is_not_passed_over():
    class Own(RetinaNet):
        def class_loss(self, logits, labels, ignored, normalizers):
            return logits.sum()

    config = dataclasses.replace(detector().config, loss=LossConfig(quality=True))
    with pytest.raises(focaldet.ConfigError, match=r"loss\.quality: .*Own overrides"):
        Own(config, class_names=("cat", "dog"), preprocessing=Preprocessing())


def test_ignored_boxes_take_their_anchors_out():
    rows = [[0.0, 0.0]] * 4
    truth = [target([[0.0, 0.0, 10.0, 10.0], [40.0, 40.0, 100.0, 100.0]], [1, 0], [False, True])]
    net = detector(loss={"alpha": None, "gamma": 0.0})
    assert net.losses(outputs(rows), truth, LossContext())["class"].item() == pytest.approx(6 * math.log(2) / 2)


@pytest.mark.parametrize("box", ["smooth_l1", "l1", "giou"])
def test_image_normalizer_is_the_mean_over_images(box):
    """A batch costs what its images cost alone, on average."""
    net = detector(loss={"normalizer": "image", "box": box}, matching={"low_quality": "any"})
    generator = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(2, 4, 2, generator=generator), torch.randn(2, 4, 4, generator=generator) / 10
    truths = [target([[0.0, 0.0, 10.0, 10.0], [55.0, 50.0, 90.0, 90.0]], [1, 0]), Target.empty()]
    both = net.losses(RetinaNetOutputs(logits, deltas, ANCHORS, (2, 1, 1)), truths, LossContext())
    alone = [
        net.losses(RetinaNetOutputs(logits[i : i + 1], deltas[i : i + 1], ANCHORS, (2, 1, 1)), [truth], LossContext())
        for i, truth in enumerate(truths)
    ]
    for name in ("class", "box"):
        torch.testing.assert_close(both[name], (alone[0][name] + alone[1][name]) / 2)


def test_box_weight_scales_the_box_loss_alone():
    truth = [target([[2.0, 0.0, 12.0, 10.0]], [1])]
    one, three = (
        detector(loss={"box_weight": weight}).losses(outputs([[0.0, 0.0]] * 4), truth, LossContext())
        for weight in (1.0, 3.0)
    )
    assert three["box"].item() == pytest.approx(3 * one["box"].item()) and three["class"] == one["class"]


def test_tower_starts():
    """N(0, .01) shrinks the signal of a layer, He's variance keeps it."""
    features = torch.randn(1, 96, 12, 12, generator=torch.Generator().manual_seed(0)).relu()
    spread = {}
    for start in ("normal", "he"):
        torch.manual_seed(0)
        net = build("retinanet_r18_fpn", num_classes=1, architecture={"width": 96, "tower_init": start})
        x = features
        with torch.no_grad():
            for conv in net.class_subnet.tower:
                x = conv(x).relu()
        spread[start] = float(x.square().mean() / features.square().mean())
    assert spread["normal"] < 1e-4 and 0.2 < spread["he"] < 5


def test_class_count_and_names_must_agree():
    with pytest.raises(focaldet.ConfigError, match="num_classes is 3, but 2 class_names"):
        build("retinanet_r18_fpn", num_classes=3, class_names=("a", "b"))
    with pytest.raises(focaldet.ConfigError, match=r"num_classes: .*greater than 0"):
        build("retinanet_r18_fpn", num_classes=0)
    with pytest.raises(focaldet.ConfigError, match='did you mean "retinanet_r18_fpn"'):
        build("retinanet_r18_fp", num_classes=1)


def test_config_is_the_architecture():
    config = detector(loss={"gamma": 1.5}).config
    assert config.loss.gamma == 1.5 and config.num_classes == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3


def test_margins_are_the_decisions_that_the_class_loss_sums():
    truth = [target([[0.0, 0.0, 10.0, 10.0], [40.0, 40.0, 100.0, 100.0]], [1, 0], [False, True])]
    rows = [
        [-3.0, 2.0],
        [-1.0, 0.5],
        [9.0, 9.0],
        [-4.0, -5.0],
    ]  # anchors 0 and 1 on the dog, 2 on the crowd
    net = detector(loss={"alpha": None, "gamma": 2.0})
    margins = net.margins(outputs(rows), truth)
    assert margins.positive.tolist() == [2.0, 0.5]
    assert sorted(margins.negative.tolist()) == [1.0, 3.0, 4.0, 5.0]
    loss = sum(losses.focal_loss(x, torch.ones_like(x), gamma=2.0).sum() for x in margins)
    torch.testing.assert_close(loss / 2, net.losses(outputs(rows), truth, LossContext())["class"])


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 0.0), (0.25, 2.0), (0.75, 0.5)])
@pytest.mark.parametrize("prior", [0.01, 0.1])
def test_a_fresh_head_costs_what_its_prior_says(alpha, gamma, prior):
    """Section 4.1: every class has probability π at every anchor, whatever features of unit variance it is fed."""
    torch.manual_seed(0)
    net = detector(width=256, head_depth=4, prior=prior, loss={"alpha": alpha, "gamma": gamma})
    levels = [torch.randn(1, 256, size, size) for size in (8, 4, 2, 1, 1)]
    with torch.no_grad():
        logits = net.class_subnet(levels)
    num_anchors = logits.shape[1]
    anchors = torch.arange(4.0).repeat(num_anchors, 1) * 10 + torch.arange(num_anchors)[:, None] * 1000
    anchors[:, 2:] += 100
    objects = target(anchors[::9].tolist(), [0] * len(anchors[::9]))
    raw = RetinaNetOutputs(logits, torch.zeros(1, num_anchors, 4), anchors, (num_anchors,))
    actual = net.losses(raw, [objects], LossContext())["class"].item()
    positives, negatives = len(objects.boxes), 2 * num_anchors - len(objects.boxes)
    weight = (alpha, 1 - alpha) if alpha is not None else (1, 1)
    of_positive = -weight[0] * (1 - prior) ** gamma * math.log(prior)
    of_negative = -weight[1] * prior**gamma * math.log(1 - prior)
    assert actual == pytest.approx(of_positive + negatives / positives * of_negative, rel=0.01)


MINED = {"alpha": None, "gamma": 0.0, "mining": {"batch": 2}}
ROWS = [[-3.0, 2.0], [-1.0, 0.5], [1.0, -2.0], [-4.0, -5.0]]
DOG = target([[0.0, 0.0, 10.0, 10.0]], [1])  # anchors 0 and 1, which overlap each other by 9/11


def cross_entropy(*x_t):
    return sum(math.log1p(math.exp(-x)) for x in x_t)


def test_mining_by_hand():
    """Anchor 1 of the dog is harder than anchor 0 and suppresses it; the other survivor is the cat that is none."""
    actual = detector(loss=MINED).losses(outputs(ROWS), [DOG], LossContext())
    assert actual["class"].item() == pytest.approx((cross_entropy(1.0, 0.5) + cross_entropy(-1.0, 2.0)) / 2, rel=1e-6)
    plain = detector(loss={**MINED, "mining": None}).losses(outputs(ROWS), [DOG], LossContext())
    assert plain["box"] == actual["box"], "boxes are learned from all positives"
    margins = detector(loss=MINED).margins(outputs(ROWS), [DOG])
    assert margins.positive.tolist() == [0.5] and sorted(margins.negative.tolist()) == [-1.0, 1.0, 2.0]


def test_mining_with_a_ratio_by_hand():
    net = detector(loss={**MINED, "mining": {"batch": 100, "ratio": 1.0}})
    expected = (cross_entropy(1.0, 0.5) + cross_entropy(-1.0, 2.0)) / 2
    assert net.losses(outputs(ROWS), [DOG], LossContext())["class"].item() == pytest.approx(expected, rel=1e-6)
    alone = net.losses(outputs(ROWS), [Target.empty()], LossContext())
    assert alone["class"].item() == pytest.approx(cross_entropy(3.0, -2.0), rel=1e-6), "one hardest negative"
    assert alone["box"] == 0


@pytest.mark.parametrize("normalizer", ["batch", "batch_plus_one", "moving_average", "image"])
def test_mining_divides_by_what_was_chosen(normalizer):
    """Two images choose 2 + 1 anchors: a mean over both, or a mean of the means."""
    context = LossContext()
    net = detector(loss={**MINED, "normalizer": normalizer})
    far = target(
        [[300.0, 300.0, 400.0, 400.0], [0.0, 0.0, 100.0, 100.0], [190.0, 190.0, 250.0, 250.0]], [0] * 3, [True] * 3
    )
    raw = outputs(ROWS)
    both = RetinaNetOutputs(raw.logits.repeat(2, 1, 1), raw.deltas.repeat(2, 1, 1), ANCHORS, raw.level_sizes)
    alone = [net.losses(raw, [truth], LossContext())["class"] for truth in (DOG, far)]
    kept = [
        len(margins.positive) + len(margins.negative) for margins in (net.margins(raw, [DOG]), net.margins(raw, [far]))
    ]
    assert kept == [4, 0], "two anchors of two classes; all others lie on crowds"
    actual = net.losses(both, [DOG, far], context)["class"]
    expected = (alone[0] + alone[1]) / 2 if normalizer == "image" else alone[0]
    torch.testing.assert_close(actual, expected)
    assert set(context.averages) == ({"positives"} if normalizer == "moving_average" else set())


def softmax(**architecture):
    return detector(classifier="softmax", **architecture)


def test_softmax_losses_by_hand():
    rows = [[0.0, 0.0, 0.0]] * 4
    plain = softmax(loss={"alpha": None, "gamma": 0.0}).losses(outputs(rows), [DOG], LossContext())
    assert plain["class"].item() == pytest.approx(4 * math.log(3) / 2, rel=1e-6), "once per anchor, over 2 positives"
    focal = softmax(loss={"alpha": 0.25, "gamma": 2.0}).losses(outputs(rows), [DOG], LossContext())
    weights = 2 * 0.25 + 2 * 0.75
    assert focal["class"].item() == pytest.approx(weights * (2 / 3) ** 2 * math.log(3) / 2, rel=1e-6)


def test_softmax_detections_by_hand():
    rows = torch.tensor([[0.9, 0.05, 0.05], [0.02, 0.6, 0.38], [0.01, 0.7, 0.29], [0.04, 0.04, 0.92]]).log() + 3.0
    actual = softmax().detect(outputs(rows.tolist()), [ImageSize(300, 300)])[0]
    assert actual.names == ("cat", "dog", "dog")
    torch.testing.assert_close(actual.scores, torch.tensor([0.9, 0.7, 0.6]))


def test_softmax_margins_are_one_for_each_anchor():
    rows = torch.tensor([[0.2, 0.7, 0.1], [0.1, 0.5, 0.4], [0.1, 0.1, 0.8], [0.0001, 0.0001, 0.9998]]).log()
    margins = softmax().margins(outputs(rows.tolist()), [DOG])
    torch.testing.assert_close(margins.positive.sigmoid(), torch.tensor([0.7, 0.5]))
    torch.testing.assert_close(margins.negative.sigmoid(), torch.tensor([0.8, 0.9998]))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"loss": {"alpha": 0.5}}, "loss.alpha: has no effect with loss.quality: true; change that"),
        ({"loss": {"alpha": None, "gamma": 1.0}}, "loss.alpha: has no effect with loss.quality: true"),
        ({"loss": {"beta": 0.2}}, "loss.beta: has no effect with loss.box: giou"),
        ({"loss": {"beta": 0.2, "box": "l1"}}, "loss.beta: has no effect with loss.box: l1"),
        ({"matching": {"foreground_iou": 0.6}}, "matching.foreground_iou: has no effect with matching.rule: adaptive"),
        ({"matching": {"background_iou": 0.3}}, "matching.background_iou: has no effect with matching.rule: adaptive"),
        ({"matching": {"low_quality": "any"}}, "matching.low_quality: has no effect with matching.rule: adaptive"),
        ({"matching": {"rule": "iou", "candidates": 5}}, "matching.candidates: has no effect with matching.rule: iou"),
    ],
)
def test_what_has_no_effect_is_refused_where_it_is_given(setting, reason):
    for network in ("retinanet_mobilenet_v2_fpn", "retinanet_efficientnet_lite0_fpn"):
        with pytest.raises(focaldet.ConfigError, match=f"architecture of {network}: {reason}"):
            build(network, num_classes=2, architecture=setting)


def test_what_the_other_setting_gives_an_effect_is_taken():
    settings = {"loss": {"quality": False, "alpha": 0.5, "box": "smooth_l1", "beta": 0.2}}
    matching = {"rule": "iou", "foreground_iou": 0.6, "low_quality": "any"}
    architecture = {**SMALL, **settings, "matching": matching}
    config = build("retinanet_mobilenet_v2_fpn", num_classes=2, architecture=architecture).config
    assert (config.loss.alpha, config.loss.beta, config.matching.foreground_iou) == (0.5, 0.2, 0.6)
