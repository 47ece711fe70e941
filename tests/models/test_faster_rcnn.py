"""What Faster R-CNN makes of raw outputs, samples and settings, by hand; and what it does where there is nothing."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import focaldet
from focaldet.models import LossContext, build, named_config
from focaldet.models.faster_rcnn.losses import FasterRCNNOutputs, RPNOutputs, StageConfig, match_regions, sample_regions
from focaldet.models.faster_rcnn.plus import ScaledMaps
from focaldet.nets.regions import FourConvolutions, RegionPredictor, RPNHead, RPNHeadConfig, TwoLayers
from focaldet.ops.losses.focal import balanced_focal_loss, softmax_focal_loss
from focaldet.ops.matching import MatchConfig
from focaldet.ops.sampling import SampleConfig
from focaldet.types import ImageSize, Target

SMALL = {"width": 8, "head_width": 16, "backbone": "resnet18", "anchors": {"ratios": (1.0,)}}
ANCHORS = torch.tensor(
    [[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 16.0, 20.0], [50.0, 50.0, 90.0, 90.0], [0.0, 60.0, 30.0, 90.0]]
)


def detector(**architecture):
    torch.manual_seed(0)
    return build("faster_rcnn_mobilenet_v2_fpn", class_names=("cat", "dog"), architecture={**SMALL, **architecture})


def target(boxes, labels, ignored=None):
    marks = torch.zeros(len(boxes), dtype=torch.bool) if ignored is None else torch.tensor(ignored)
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), marks)


CAT = target([[0.0, 0.0, 20.0, 20.0]], [0])


def outputs(*, objectness=(0.0,) * 4, regions=ANCHORS, logits=None, deltas=None):
    """Raw outputs of one image of 100 × 100 px whose anchors are ANCHORS."""
    first = RPNOutputs(
        torch.tensor([objectness]), torch.zeros(1, 4, 4), ANCHORS, (3, 1), torch.tensor([[100.0, 100.0]])
    )
    logits = torch.zeros(len(regions), 3) if logits is None else torch.tensor(logits)
    deltas = torch.zeros(len(regions), 2, 4) if deltas is None else deltas
    return FasterRCNNOutputs(first, regions, torch.zeros(len(regions), dtype=torch.int64), logits, deltas)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            {"pooling": {"kind": "mean"}},
            "pooling.kind: Input should be 'align', 'align_legacy', 'max' or 'crop",
        ),
        ({"pooling": {"size": 0}}, "pooling.size: Input should be greater than 0"),
        ({"head": "3fc"}, "head: Input should be '2fc' or '4conv1fc'"),
        ({"rpn": {"sampling": {"positives": 1.5}}}, "rpn.sampling.positives: Input should be less than or equal to 1"),
        ({"rpn": {"loss": "focl"}}, "rpn.loss: Input should be 'cross_entropy' or 'focal'"),
        ({"region": {"loss": "focal"}, "prior": 0.5}, "prior: must be below 1 / 2 "),
        ({"proposals": {"train": {"kep": 3}}}, 'proposals.train.kep.*did you mean "keep"'),
        ({"region_weights": (10.0, 10.0, 0.0, 5.0)}, "region_weights.2: Input should be greater than 0"),
        ({"straddle_px": -1.0}, "straddle_px: Input should be greater than or equal to 0"),
        ({"norm": "batch", "norm_eps": 0.0}, "norm_eps: .* must be above 0"),
        ({"region": {"matching": {"background_iou": 0.6}}}, "background_iou: must be at most foreground_iou"),
        ({"rpn": {"matching": {"rule": "adaptive"}}}, r"rpn\.matching\.rule: adaptive is for .* the RPN"),
        ({"region": {"matching": {"rule": "adaptive"}}}, r"region\.matching\.rule: adaptive is for .* second stage"),
    ],
)
def test_settings_out_of_range_are_named(setting, problem):
    with pytest.raises(focaldet.ConfigError, match=problem):
        build("faster_rcnn_r18_fpn", num_classes=2, architecture=setting)


def test_losses_by_hand():
    """Anchors 0 (IoU 1) and 1 (.8) are the cat; regions 0 and 1 too; everything trains."""
    network = detector(
        rpn={"sampling": {"count": 100, "positives": 1.0}, "beta": 0.5}, region={"beta": 1.0, "box_weight": 2.0}
    )
    raw = outputs(objectness=(2.0, -1.0, 0.5, -3.0), logits=[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0], [0, 0, 0]])
    losses = network.losses(raw, [CAT], LossContext())
    p = torch.tensor([2.0, -1.0, 0.5, -3.0]).sigmoid()
    expected = -(p[0].log() + p[1].log() + (1 - p[2]).log() + (1 - p[3]).log()) / 4
    assert float(losses["objectness"]) == pytest.approx(float(expected), rel=1e-5)
    # Anchor 1 is 16 wide around x = 8: dx = 2 / 16, dw = ln(20 / 16), both below their corner of 0.5 or 1.
    dx, dw = 0.125, float(torch.tensor(1.25).log())
    assert float(losses["anchor_box"]) == pytest.approx((dx**2 + dw**2) / 4, rel=1e-5)
    rows = F.cross_entropy(raw.logits, torch.tensor([0, 0, 2, 2]), reduction="sum")
    assert float(losses["class"]) == pytest.approx(float(rows) / 4, rel=1e-5)
    # In the second stage the same is times 10 and 5, above the corner of 1.
    assert float(losses["box"]) == pytest.approx(2 * ((10 * dx - 0.5) + (5 * dw - 0.5)) / 4, rel=1e-5)


def test_only_the_box_of_the_true_class_counts():
    network = detector()
    deltas = torch.zeros(4, 2, 4)
    deltas[:2, 1] = 7.0
    losses = network.losses(outputs(deltas=deltas), [CAT], LossContext())
    assert float(losses["box"]) == pytest.approx(
        float(network.losses(outputs(), [CAT], LossContext())["box"]), rel=1e-6
    )
    deltas[0, 0] = 7.0
    assert losses["box"] < network.losses(outputs(deltas=deltas), [CAT], LossContext())["box"]


def test_focal_losses_are_over_the_positives():
    network = detector(rpn={"loss": "focal"}, region={"loss": "focal", "gamma": 1.0, "alpha": 0.6})
    raw = outputs(objectness=(2.0, -1.0, 0.5, -3.0), logits=[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0], [0, 0, 0]])
    losses = network.losses(raw, [CAT], LossContext())
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    expected = balanced_focal_loss(raw.rpn.objectness, truth, alpha=0.25, gamma=2.0).sum() / 2
    assert float(losses["objectness"]) == pytest.approx(float(expected), rel=1e-5)
    weights = torch.tensor([0.6, 0.6, 0.4])
    expected = softmax_focal_loss(raw.logits, torch.tensor([0, 0, 2, 2]), gamma=1.0, alpha=weights).sum() / 2
    assert float(losses["class"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_fresh_network_answers_the_prior_under_the_focal_loss():
    network = detector(rpn={"loss": "focal"}, region={"loss": "focal"}, prior=0.03)
    assert network.rpn_head.objectness.bias.sigmoid().tolist() == pytest.approx([0.03])
    assert network.predictor.classes.bias.softmax(0).tolist() == pytest.approx([0.03, 0.03, 0.94])
    plain = detector()
    assert not plain.rpn_head.objectness.bias.any() and not plain.predictor.classes.bias.any()


def test_the_sample_of_the_first_stage_bounds_what_trains():
    """256 anchors of an image, at most half of them objects: seen in which logits have a gradient."""
    torch.manual_seed(0)
    network = detector(rpn={"sampling": {"count": 6, "positives": 0.5}})
    anchors = torch.cat([ANCHORS[:1].expand(10, 4), ANCHORS[2:3].expand(40, 4)])
    objectness = torch.zeros(1, 50, requires_grad=True)
    first = RPNOutputs(objectness, torch.zeros(1, 50, 4), anchors, (50,), torch.tensor([[100.0, 100.0]]))
    network.losses(outputs()._replace(rpn=first), [CAT], LossContext())["objectness"].backward()
    assert objectness.grad is not None
    assert (objectness.grad[0, :10] < 0).sum() == 3 and (objectness.grad[0, 10:] > 0).sum() == 3
    assert float(objectness.grad.abs().sum()) == pytest.approx(0.5)


@pytest.mark.parametrize("stage", ["rpn", "region"])
def test_boxes_to_ignore_are_neither_object_nor_background(stage):
    """No gradient where a box lies on a crowd, whatever the sample; with crowds alone no loss at all."""
    crowd = target([[40.0, 40.0, 100.0, 100.0], [0.0, 50.0, 40.0, 100.0]], [0, 1], [True, True])
    mixed = Target(*(torch.cat([one, other]) for one, other in zip(_parts(CAT), _parts(crowd), strict=True)))
    network = detector()
    objectness, logits = torch.zeros(1, 4, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    raw = outputs()
    raw = raw._replace(rpn=raw.rpn._replace(objectness=objectness), logits=logits)
    losses = network.losses(raw, [mixed], LossContext())
    torch.stack(list(losses.values())).sum().backward()
    gradient = objectness.grad[0] if stage == "rpn" else logits.grad.abs().sum(1)
    assert (gradient != 0).tolist() == [True, True, False, False]
    only = outputs(regions=ANCHORS[2:])
    only = only._replace(rpn=only.rpn._replace(anchors=ANCHORS[[2, 3, 2, 3]]))
    assert all(float(loss) == 0 for loss in network.losses(only, [crowd], LossContext()).values())


def _parts(one):
    return one.boxes, one.labels, one.ignored


@pytest.mark.parametrize("case", range(30))
def test_the_second_stages_minibatch(case):
    """Objects are added, a quarter at most is positive, crowds take no part: against the rule, box by box."""
    generator = torch.Generator().manual_seed(case)
    corner = torch.rand(60, 2, generator=generator) * 60
    regions = torch.cat([corner, corner + 8 + torch.rand(60, 2, generator=generator) * 30], 1)
    objects = regions[: case % 5] + 1.0
    ignored = torch.rand(len(objects), generator=generator) < 0.3
    truth = Target(objects, torch.zeros(len(objects), dtype=torch.int64), ignored)
    config = StageConfig(MatchConfig(background_iou=0.5), SampleConfig(count=16, positives=0.25), beta=1.0)
    torch.manual_seed(case)
    drawn = sample_regions(regions, truth, config)
    torch.manual_seed(case)
    assert torch.equal(drawn, sample_regions(regions, truth, config)), "torch's generator draws"
    known = torch.cat([regions, objects[~ignored]])
    matched = match_regions(
        known, torch.zeros(len(known), dtype=torch.int64), [truth], config=config.matching, num_classes=1
    )
    positives = known[(matched.labels == 0) & ~matched.ignored]
    negatives = known[(matched.labels == 1) & ~matched.ignored]
    rows = {tuple(row) for row in drawn.tolist()}
    num_positive = len(rows & {tuple(row) for row in positives.tolist()})
    assert num_positive == min(4, len(positives))
    assert len(rows & {tuple(row) for row in negatives.tolist()}) == len(drawn) - num_positive
    assert len(drawn) == min(16, num_positive + len(negatives))
    assert len(positives) >= int((~ignored).sum()), "every object is its own best region"


def test_detections_by_hand():
    """Two cats that overlap and a dog at the same position: one cat falls; what the border cuts to nothing is none."""
    network = detector(detect={"score_threshold": 0.3})
    regions = torch.cat([ANCHORS, torch.tensor([[100.0, 5.0, 120.0, 25.0]])])
    logits = [[2.0, 0.0, 0.0], [1.9, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 4.0], [9.0, 0.0, 0.0]]
    deltas = torch.zeros(5, 2, 4)
    deltas[2, 1] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # a tenth of the width to the right
    (detections,) = network.detect(outputs(regions=regions, logits=logits, deltas=deltas), [ImageSize(100, 100)])
    assert detections.names == ("dog", "cat")
    torch.testing.assert_close(detections.boxes, torch.tensor([[54.0, 50.0, 94.0, 90.0], [0.0, 0.0, 20.0, 20.0]]))
    expected = torch.tensor(logits).softmax(1)
    torch.testing.assert_close(detections.scores, torch.stack([expected[2, 1], expected[0, 0]]))
    network.config = replace(network.config, detect=replace(network.config.detect, max_detections=1))
    assert len(network.detect(outputs(regions=regions, logits=logits), [ImageSize(100, 100)])[0]) == 1


def test_one_object_has_one_answer_across_classes():
    """Of two classes at one place the better stays; by classes alone both."""
    logits = [[2.0, 1.9, 0.0], [0.0, 1.9, 0.0], [0.0, 0.0, 9.0], [0.0, 0.0, 9.0]]
    names = []
    for across in (False, True):
        network = detector(detect={"score_threshold": 0.3, "across_classes": across})
        names.append(network.detect(outputs(logits=logits), [ImageSize(100, 100)])[0].names)
    assert names == [("dog", "cat"), ("dog",)]


def test_margins_are_those_of_the_regions():
    raw = outputs(logits=[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0], [0, 0, 0]])
    margins = detector().margins(raw, [CAT])
    p = raw.logits.softmax(1)
    torch.testing.assert_close(margins.positive.sigmoid(), p[:2, 0])
    torch.testing.assert_close(margins.negative.sigmoid(), p[2:, 2])


SIZES = [ImageSize(64, 96), ImageSize(64, 96)]


def random_images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255


def test_targets_choose_the_regions_and_nothing_else_does():
    network = detector().eval()
    with torch.inference_mode():
        free, bound = network(random_images(), SIZES), network(random_images(), SIZES, [CAT, Target.empty()])
        torch.manual_seed(5)
        again = network.train()(random_images(), SIZES, [CAT, Target.empty()])
        torch.manual_seed(5)
        twice = network.eval()(random_images(), SIZES, [CAT, Target.empty()])
    assert torch.equal(free.rpn.objectness, bound.rpn.objectness)
    assert bound.image_index.bincount().max() <= 64 < free.image_index.bincount().max() <= 300
    assert (bound.regions[bound.image_index == 0] == CAT.boxes).all(1).any(), "the object itself is among them"
    assert torch.equal(again.regions, twice.regions) and torch.equal(again.logits, twice.logits)


def test_regions_stay_in_the_image_though_the_batch_is_larger():
    images = random_images()
    images[0, :, 40:] = torch.tensor(focaldet.Preprocessing().rgb_mean)[:, None, None]
    with torch.inference_mode():
        raw = detector().eval()(images, [ImageSize(40, 96), ImageSize(64, 96)])
    assert raw.rpn.image_sizes.tolist() == [[40.0, 96.0], [64.0, 96.0]]
    bottoms = [float(raw.regions[raw.image_index == position, 3].max()) for position in (0, 1)]
    assert bottoms == [40.0, 64.0]


def test_the_second_stage_does_not_mix_images():
    """Regions of two images in one call give what each image gives alone."""
    network = detector().eval()
    regions = torch.tensor([[0.0, 0.0, 40.0, 40.0], [10.0, 5.0, 90.0, 60.0], [30.0, 8.0, 50.0, 30.0]])
    index = torch.tensor([1, 0, 1])
    with torch.inference_mode():
        levels, first = network.first_stage(random_images(), SIZES)
        logits, deltas = network.second_stage(
            [ScaledMaps(levels, (64, 96))], regions, index, image_sizes=first.image_sizes
        )
        for position in range(3):
            own = [level[index[position]][None] for level in levels]
            here = torch.zeros(1, dtype=torch.int64)
            one = network.second_stage(
                [ScaledMaps(own, (64, 96))], regions[[position]], here, image_sizes=first.image_sizes[:1]
            )
            torch.testing.assert_close(logits[[position]], one[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(deltas[[position]], one[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{}, {"head": "4conv1fc", "neck_norm": True, "norm": "batch"}, {"pooling": {"kind": "crop_resize"}}]
)
def test_without_a_single_region_all_parameters_have_a_gradient(change, monkeypatch):
    """A process that meets such a batch must take part when the gradients of all are added."""
    monkeypatch.setattr("focaldet.models.faster_rcnn.losses.propose", lambda *_, **__: torch.zeros(0, 4))
    network = detector(**change).train()
    empty = [Target.empty(), Target.empty()]
    raw = network(random_images(), SIZES, empty)
    assert raw.regions.shape == (0, 4) and raw.logits.shape == (0, 3)
    losses = network.losses(raw, empty, LossContext())
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert not network.predictor.classes.weight.grad.any() and network.rpn_head.objectness.weight.grad.any()
    assert [len(each) for each in network.detect(raw, [ImageSize(64, 96)] * 2)] == [0, 0]


def test_losses_of_two_ranks_add_up():
    """Two images in one process, or one each with counts added up, as the mean over processes has it."""
    network = detector(rpn={"sampling": {"count": 10_000, "positives": 1.0}})
    images, truth = random_images(), [CAT, Target.empty()]
    regions = torch.tensor([[0.0, 0.0, 22.0, 20.0], [30.0, 8.0, 50.0, 30.0], [5.0, 5.0, 60.0, 60.0]])
    index = torch.tensor([0, 0, 1])
    with torch.inference_mode():
        levels, first = network.first_stage(images, SIZES)
        second = network.second_stage([ScaledMaps(levels, (64, 96))], regions, index, image_sizes=first.image_sizes)
        both = FasterRCNNOutputs(first, regions, index, *second)
        together = network.losses(both, truth, LossContext())
        counts = {0: [], 1: []}
        for rank in (0, 1):
            network.losses(
                _of(both, rank), [truth[rank]], LossContext(all_reduce_sum=_noting(counts[rank]), num_ranks=1)
            )
        sums = [sum(pair) for pair in zip(*counts.values(), strict=True)]
        parts = []
        for rank in (0, 1):
            given = iter(sums)
            context = LossContext(all_reduce_sum=lambda _, given=given: next(given), num_ranks=2)
            parts.append(network.losses(_of(both, rank), [truth[rank]], context))
    for name, loss in together.items():
        assert float(parts[0][name] + parts[1][name]) / 2 == pytest.approx(float(loss), rel=1e-4, abs=1e-7), name


def _noting(counts):
    def noting(value):
        counts.append(value)
        return value

    return noting


def _of(both, rank):
    mine = both.image_index == rank
    first = both.rpn._replace(
        objectness=both.rpn.objectness[[rank]],
        deltas=both.rpn.deltas[[rank]],
        image_sizes=both.rpn.image_sizes[[rank]],
    )
    return FasterRCNNOutputs(
        first, both.regions[mine], both.image_index[mine] - rank, both.logits[mine], both.deltas[mine]
    )


def test_heads_have_the_shapes_they_say():
    maps = [torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 4)]
    objectness, boxes = RPNHead(8, config=RPNHeadConfig(depth=2), per_cell=3)(maps)
    assert (objectness.shape, boxes.shape) == ((2, 162), (2, 162, 4))
    pooled = torch.randn(5, 8, 7, 7)
    for head in (TwoLayers(8, 7, 16), FourConvolutions(8, 7, 16, norm="batch", eps=1e-5)):
        assert head(pooled).shape == (5, 16)
    for background_box in (True, False):
        predictor = RegionPredictor(16, biases=(0.0, 0.0, 0.0, 1.0), background_box=background_box)
        logits, deltas = predictor(torch.randn(5, 16))
        assert (logits.shape, deltas.shape) == ((5, 4), (5, 3, 4))
        assert len(predictor.boxes.bias) == 12 + 4 * background_box


def test_objectness_and_boxes_are_in_the_order_of_the_anchors():
    """A head whose 1×1 layers pass channels on tells which cell and which anchor each row is."""
    head = RPNHead(3, config=RPNHeadConfig(), per_cell=3)
    with torch.no_grad():
        head.tower[0].weight.zero_()
        head.tower[0].weight[:, :, 1, 1] = torch.eye(3)
        head.objectness.weight.copy_(torch.eye(3)[:, :, None, None])
    cells = torch.arange(12.0).reshape(1, 1, 3, 4) * 10
    objectness, _ = head([torch.cat([cells + position for position in range(3)], 1)])
    assert objectness[0].tolist() == [10.0 * cell + position for cell in range(12) for position in range(3)]


def test_norms_without_regions_keep_their_statistics():
    head = FourConvolutions(8, 3, 4, norm="batch", eps=1e-5).train()
    before = copy.deepcopy(head.norms.state_dict())
    assert head(torch.zeros(0, 8, 3, 3)).shape == (0, 4)
    assert all(torch.equal(before[name], value) for name, value in head.norms.state_dict().items())


def test_settings_and_state_dicts_of_version_0_1_are_read():
    with pytest.warns(FutureWarning, match="rpn_head|trunk"):
        config = named_config("faster_rcnn_r18_c4", architecture={"trunk": "halves", "proposal_head": {"width": 24}})
    assert (config.trunk, config.rpn_head.width) == ("c4", 24)
    before, after = detector(), detector()
    with torch.no_grad():
        before.rpn_head.objectness.weight.add_(1)
    old = {
        name.replace("rpn_head.", "proposal_head.").replace("roi_head.", "region_head."): value
        for name, value in before.state_dict().items()
    }
    assert "proposal_head.objectness.weight" in old and "region_head.fc6.weight" in old
    after.load_state_dict(old)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in after.state_dict().items())
