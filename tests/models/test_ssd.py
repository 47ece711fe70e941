"""SSD: the numbers of SSD513 and SSD321, the losses by hand, and what it refuses."""

import math
from pathlib import Path

import pytest
import torch

from focaldet import config as configs
from focaldet.errors import ConfigError
from focaldet.models import LossContext, SSDConfig, build, find_preset, named_config
from focaldet.models.ssd import DecoderConfig, SSDOutputs
from focaldet.models.ssd_settings import SSDDetectConfig, SSDLossConfig
from focaldet.ops.boxes import encode
from focaldet.ops.priors import PriorConfig, all_priors
from focaldet.training.config import RunConfig
from focaldet.types import ImageSize, Preprocessing, Target

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {"backbone": "resnet18", "extra_width": 64, "module_widths": (16,)}


def on_meta(name, **architecture):
    with torch.device("meta"):
        return build(name, architecture=architecture)


def num_parameters(detector):
    return sum(parameter.numel() for parameter in detector.parameters())


@pytest.mark.parametrize(("name", "count"), [("ssd513_r101", 173_145_304), ("dssd513_r101", 254_983_896)])
def test_the_parameters(name, count):
    """BatchNorm's affine part counted, 81 outputs."""
    assert num_parameters(on_meta(name)) == count


@pytest.mark.parametrize(
    ("name", "side", "cells"),
    [
        ("ssd513_r101", 513, (64, 32, 16, 8, 4, 2, 1)),
        ("ssd321_r101", 321, (40, 20, 10, 5, 3, 1)),
        ("dssd513_r101", 513, (64, 32, 16, 8, 4, 2, 1)),
        ("dssd321_r101", 321, (40, 20, 10, 5, 3, 1)),
    ],
)
def test_the_maps_and_priors(name, side, cells):
    detector = on_meta(name)
    with torch.device("meta"):
        outputs = detector(torch.zeros(2, 3, side, side), [ImageSize(side, side)] * 2)
    assert outputs.level_sizes == tuple(8 * cell**2 for cell in cells)
    assert outputs.logits.shape == (2, {513: 43_688, 321: 17_080}[side], 81)
    preprocessing = find_preset(name).preprocessing
    assert preprocessing.padded_size(preprocessing.resize.target(ImageSize(480, 640))) == (side, side)


@pytest.mark.parametrize("name", ["ssd_mobilenet_v2", "ssd_r18"])
@pytest.mark.parametrize("side", [320, 321])
def test_the_small_ones_have_six_maps(name, side):
    detector = on_meta(name)
    with torch.device("meta"):
        outputs = detector(torch.zeros(2, 3, side, side), [ImageSize(side, side)] * 2)
    sides = [math.isqrt(size // detector.config.priors.per_cell) for size in outputs.level_sizes]
    assert sides == ([41, 21, 11, 5, 3, 1] if name == "ssd_mobilenet_v2" and side == 321 else [40, 20, 10, 5, 3, 1])


def test_a_padded_pool_breaks_everything_after():
    with torch.device("meta"):
        outputs = on_meta("ssd513_r101", ceil_pool=False)(torch.zeros(2, 3, 513, 513), [ImageSize(513, 513)] * 2)
    assert outputs.level_sizes[0] == 8 * 65**2


def test_the_strides_follow_the_sources():
    assert find_preset("ssd513_r101").config.strides_px == (8, 16, 32, 64, 128, 256, 512)
    assert find_preset("ssd321_r101").config.strides_px == (8, 16, 32, 64, 64, 64)
    assert find_preset("ssd_mobilenet_v2").config.strides_px == (8, 16, 32, 64, 128, 256)


def tiny(*, detect=SSDDetectConfig(), **loss):  # noqa: B008  frozen
    """A network of one level, whose losses and detections are those of outputs made by hand."""
    config = SSDConfig(
        num_classes=2,
        backbone="resnet18",
        sources=("C5",),
        module_widths=(8,),
        priors=PriorConfig(percents=(10.0, 20.0), starts_px=(None,), elongations=()),
        loss=SSDLossConfig(**loss),
        detect=detect,
    )
    return config.build(class_names=("a", "b"), preprocessing=Preprocessing())


PRIORS = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10], [30, 0, 40, 10], [0, 20, 10, 30]])
LOGITS = torch.tensor([[2.0, 0, 1], [1, 0, 0], [0, 0, 3], [0, 2, 0], [0, 0, 0]])
DELTAS = torch.tensor([[0.3, -0.2, 0.0, 2.0]]).repeat(5, 1)
OUTPUTS = SSDOutputs(LOGITS[None], DELTAS[None], PRIORS, (5,))


def object_at(*box, label=0):
    return Target(torch.tensor([box]), torch.tensor([label]), torch.tensor([False]))


def cross_entropy(row, label):
    return math.log(sum(math.exp(x) for x in row)) - row[label]


def smooth_l1(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def test_the_losses_by_hand():
    """One object, three negatives: the hardest three of four, by the loss of calling them background."""
    target = object_at(1.0, 0.0, 11.0, 12.0)
    losses = tiny().losses(OUTPUTS, [target], LossContext())
    rows = LOGITS.tolist()
    of_background = sorted((cross_entropy(rows[index], 2) for index in range(1, 5)), reverse=True)
    assert float(losses["class"]) == pytest.approx(cross_entropy(rows[0], 0) + sum(of_background[:3]), rel=1e-6)
    centre_x, centre_y, width, height = 6.0, 6.0, 10.0, 12.0
    offsets = [(centre_x - 5) / 10 / 0.1, (centre_y - 5) / 10 / 0.1]
    truth = [*offsets, math.log(width / 10) / 0.2, math.log(height / 10) / 0.2]
    expected = sum(smooth_l1(a - b) for a, b in zip(DELTAS[0].tolist(), truth, strict=True))
    assert float(losses["box"]) == pytest.approx(expected, rel=1e-5)


def test_both_losses_are_divided_by_the_matches_of_the_batch():
    """Two images, one with two objects, the other with none: it gives no negatives, and counts in nothing."""
    two = Target(torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), torch.tensor([0, 1]), torch.tensor([False, False]))
    batch = SSDOutputs(LOGITS.repeat(2, 1, 1), DELTAS.repeat(2, 1, 1), PRIORS, (5,))
    together = tiny().losses(batch, [two, Target.empty()], LossContext())
    rows = LOGITS.tolist()
    objects = cross_entropy(rows[0], 0) + cross_entropy(rows[2], 1)
    negatives = sum(cross_entropy(rows[index], 2) for index in (1, 3, 4))
    assert float(together["class"]) == pytest.approx((objects + negatives) / 2, rel=1e-6)
    alone = tiny().losses(OUTPUTS, [two], LossContext())
    assert float(together["box"]) == pytest.approx(float(alone["box"]), rel=1e-6)


def test_matches_count_over_all_processes():
    context = LossContext(all_reduce_sum=lambda counts: counts * 4, num_ranks=2)  # the others have three times as many
    target = object_at(1.0, 0.0, 11.0, 12.0)
    alone = tiny().losses(OUTPUTS, [target], LossContext())
    ranked = tiny().losses(OUTPUTS, [target], context)
    assert float(ranked["class"]) == pytest.approx(float(alone["class"]) / 2, rel=1e-6)
    own = tiny(across_ranks=False).losses(OUTPUTS, [target], context)
    assert float(own["class"]) == pytest.approx(float(alone["class"]), rel=1e-6)


@pytest.mark.parametrize("kind", ["focal", "softmax_focal"])
def test_one_field_replaces_mining_by_the_focal_loss(kind):
    """By the formula, over all priors; sigmoids have no background."""
    detector = tiny(kind=kind)
    logits = LOGITS[:, :2] if kind == "focal" else LOGITS
    actual = detector.losses(OUTPUTS._replace(logits=logits[None]), [object_at(0.0, 0, 10, 10, label=1)], LossContext())
    total = 0.0
    for index, row in enumerate(logits.double()):
        label = 1 if index == 0 else 2
        if kind == "softmax_focal":
            p = float(row.softmax(0)[label])
            total -= (0.25 if label < 2 else 0.75) * (1 - p) ** 2 * math.log(p)
            continue
        for k, p in enumerate(row.sigmoid().tolist()):
            p_t, alpha = (p, 0.25) if k == label else (1 - p, 0.75)
            total -= alpha * (1 - p_t) ** 2 * math.log(p_t)
    assert float(actual["class"]) == pytest.approx(total, rel=1e-5)


def test_what_the_loss_counts_is_what_the_margins_tell():
    margins = tiny().margins(OUTPUTS, [object_at(1.0, 0.0, 11.0, 12.0)])
    assert (len(margins.positive), len(margins.negative)) == (1, 3)
    losses = torch.nn.functional.softplus(-torch.cat(margins)).sum()
    expected = tiny().losses(OUTPUTS, [object_at(1.0, 0.0, 11.0, 12.0)], LossContext())["class"]
    torch.testing.assert_close(losses, expected)


def test_one_object_has_one_answer_across_classes():
    """Two priors moved to one place; each is another class, the second one both."""
    deltas = torch.zeros(5, 4)
    deltas[1] = encode(PRIORS[0], PRIORS[1]) / torch.tensor([0.1, 0.1, 0.2, 0.2])
    logits = torch.tensor([[-9.0, -9, 9]]).repeat(5, 1)
    logits[:2] = torch.tensor([[3.0, 0, 0], [1.0, 2, 0]])
    outputs, labels = OUTPUTS._replace(logits=logits[None], deltas=deltas[None]), []
    for across in (False, True):
        (actual,) = tiny(detect=SSDDetectConfig(across_classes=across)).detect(outputs, [ImageSize(40, 40)])
        labels.append(actual.labels.tolist())
    assert labels == [[0, 1], [0]]


def test_detections_undo_the_variances():
    """Deltas that encode a box, divided by the variances, give it back; scores are those of the softmax."""
    box = torch.tensor([12.0, 1.0, 24.0, 9.0])
    deltas = torch.zeros(5, 4)
    deltas[1] = encode(box, PRIORS[1]) / torch.tensor([0.1, 0.1, 0.2, 0.2])
    logits = torch.tensor([[-9.0, -9, 9]]).repeat(5, 1)
    logits[1] = torch.tensor([0.0, 4, 0])
    (actual,) = tiny().detect(OUTPUTS._replace(logits=logits[None], deltas=deltas[None]), [ImageSize(40, 40)])
    assert actual.labels.tolist()[0] == 1
    torch.testing.assert_close(actual.boxes[0], box)
    assert float(actual.scores[0]) == pytest.approx(math.exp(4) / (math.exp(4) + 2), rel=1e-5)


def test_the_best_of_each_class_are_looked_at_not_of_all():
    detector = tiny(detect=SSDDetectConfig(top_k=1, nms_iou=1.0))
    logits = torch.tensor([[3.0, 0, 0], [2.9, 0, 0], [0, 1.0, 0], [0, 0.5, 0], [0, 0, 9]])
    (actual,) = detector.detect(OUTPUTS._replace(logits=logits[None], deltas=torch.zeros(1, 5, 4)), [ImageSize(40, 40)])
    assert actual.labels.tolist() == [0, 1]
    assert actual.boxes.tolist() == [PRIORS[0].tolist(), PRIORS[2].tolist()]


def test_batch_norm_on_a_single_cell_of_a_single_image_says_what_to_do():
    detector = build("ssd321_r101", num_classes=2, architecture=SMALL).train()
    one, sizes = torch.zeros(1, 3, 64, 64), [ImageSize(64, 64)]
    with pytest.raises(
        ConfigError, match=r"batch_size: BatchNorm .* at least 2 images[^.]*architecture.extra_norm to group"
    ):
        detector(one, sizes)
    detector(torch.zeros(2, 3, 64, 64), sizes * 2)
    detector.eval()(one, sizes)
    build("ssd321_r101", num_classes=2, architecture=SMALL | {"extra_norm": "group"}).train()(one, sizes)


def test_a_fresh_network_is_even_or_answers_the_prior():
    assert SSDConfig(num_classes=4).first_probability == 1 / 5
    focal = SSDLossConfig(kind="focal")
    assert SSDConfig(loss=focal).first_probability == 0.01
    assert (SSDConfig(loss=focal).classifier, SSDConfig().classifier) == ("sigmoid", "softmax")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"sources": ("C5", "C3")}, "fine to coarse"),
        ({"sources": ("C3", "C3")}, "each once"),
        ({"priors": {"percents": (5.0, 10.0), "starts_px": (None,)}}, "at least one level"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"backbone": "mobilenet_v2"}, "ceil_pool and dilated_c5"),
        ({"extra_width": 130}, "multiple of 4"),
        ({"matching": {"rule": "adaptive"}}, "matching.rule: adaptive .* SSD matches by iou"),
    ],
)
def test_what_does_not_fit_is_refused(architecture, words):
    with pytest.raises(ConfigError, match=words):
        build("ssd513_r101", architecture=architecture)


def test_a_frozen_encoder_leaves_the_rest_to_train():
    settings = {"norm": "frozen", "extra_norm": "frozen", "decoder": {"norm": "batch", "frozen_encoder": True}}
    detector = on_meta("dssd321_r101", **settings)
    trained = {name.split(".")[0] for name, parameter in detector.named_parameters() if parameter.requires_grad}
    still = {name.split(".")[0] for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert (trained, still) == ({"decoder", "predictors"}, {"backbone", "extras"})
    with pytest.raises(ConfigError, match="frozen_encoder: norm and extra_norm must be frozen"):
        on_meta("dssd321_r101", decoder={"frozen_encoder": True})


def test_a_dssd_differs_from_its_ssd_in_decoder_and_predictors_alone():
    ssd, dssd = (on_meta(name).state_dict() for name in ("ssd513_r101", "dssd513_r101"))
    encoder = {name for name in ssd if name.startswith(("backbone.", "extras."))}
    assert encoder == {name for name in dssd if name.startswith(("backbone.", "extras."))}
    assert all(ssd[name].shape == dssd[name].shape for name in encoder)


def test_size_is_the_side_of_the_square():
    """A detector that warps keeps warping; a short side makes no sense for it."""
    warp = find_preset("ssd513_r101").preprocessing.resize
    asked = warp.with_sides(size=320)
    assert (asked.mode, asked.target(ImageSize(480, 640))) == ("warp", (320, 320))
    assert warp.with_sides() == warp
    with pytest.raises(ConfigError, match="short_side: this detector resizes images to a square"):
        warp.with_sides(short_side=600)


def test_the_priors_grow_with_the_image():
    """Their sizes are shares of the side, not pixels."""
    config = find_preset("ssd_r18").config
    cells = tuple((side, side) for side in (40, 20, 10, 5, 3, 1))
    small, large = (
        all_priors(config.priors, strides_px=config.strides_px, cells=cells, image=(side, side)) for side in (320, 640)
    )
    torch.testing.assert_close(large, small * 2)


def test_the_published_recipes_build_what_they_name():
    for path in sorted((REPOSITORY / "recipes").glob("*ssd513*.yaml")):
        run = configs.from_dict(RunConfig, configs.read_mapping(path))
        phases = run.phase_configs
        assert path.stem.startswith(run.model)
        assert [phase.scaled_learning_rate for phase in phases] == pytest.approx([1e-3, 1e-4][: len(phases)])
        for phase in phases:
            config = named_config(phase.model, architecture=phase.architecture)
            assert not config.stride_in_1x1, "the strides of torchvision's ImageNet weights"


def test_the_phases_of_a_dssd_are_those_of_the_paper():
    """The decoder alone with BatchNorm trained, then everything with BatchNorm as it is."""
    run = configs.from_dict(RunConfig, configs.read_mapping(REPOSITORY / "recipes" / "dssd513_r101.yaml"))
    first, second = (named_config(phase.model, architecture=phase.architecture) for phase in run.phase_configs)
    assert first.decoder == DecoderConfig(norm="batch", frozen_encoder=True) and second.decoder == DecoderConfig()
    assert (first.norm, second.norm) == ("frozen", "frozen")
    assert [phase.epochs for phase in run.phase_configs] == [41, 11] and run.epochs == 52
    falls = [[share * phase.epochs * 117_266 / 32 for share in phase.step_at] for phase in run.phase_configs]
    assert falls == [pytest.approx([80_000, 130_000], rel=0.01), pytest.approx([20_000], rel=0.01)]
