"""What every detector of the table must do: a new entry is tested by existing.

Every entry is followed by shape at its own size; larger siblings of others in `make prove`. Settings also really run,
on small images: the backbone is then replaced by a small one of the same blocks, and entries that become equal by that
run once. One of each kind learns every day, all and the variants of the class loss in `make prove`, which repeats
it with networks as wide as the smaller entries.
"""

import copy
import functools
import json
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from focaldet import config as configs
from focaldet.models import (
    PRESETS,
    Detector,
    FasterRCNNConfig,
    LossContext,
    SSDConfig,
    YOLOv2Config,
    build,
    find_preset,
    named_config,
)
from focaldet.models.faster_rcnn.model import FasterRCNN
from focaldet.models.retinanet import RetinaNetConfig
from focaldet.models.ssd_tf import TensorFlowSSDConfig
from focaldet.training.config import RunConfig
from focaldet.training.state import start_state
from focaldet.training.step import train_step
from focaldet.types import Batch, ImageSize, Preprocessing, Target
from focaldet.weights import load_detector, save_detector
from tests import tiny_backbones  # noqa: F401  their names are used here

CLASSES = ("circle", "square", "혈소판")
PADDED = (64, 96)
WHOLE = (ImageSize(*PADDED),) * 2
SIZES = (ImageSize(64, 96), ImageSize(50, 80))


@functools.cache
def on_meta(name: str) -> Detector:
    """The detector without numbers. Shared: never change it."""
    with torch.device("meta"):
        return build(name, class_names=CLASSES)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("retinanet_mobilenet_v2_fpn", {"classifier": "softmax", "loss": {"quality": False}}),
    "softmax with mining": (
        "retinanet_r18_fpn",
        {"classifier": "softmax", "loss": {"alpha": None, "gamma": 0.0, "mining": {"batch": 32}}},
    ),
    "mining": (
        "retinanet_mobilenet_v2_fpn",
        {"loss": {"quality": False, "alpha": None, "gamma": 0.0, "mining": {"batch": 16}}},
    ),
    "mining 1:3": (
        "retinanet_mobilenet_v2_fpn",
        {
            "loss": {
                "quality": False,
                "alpha": None,
                "gamma": 0.0,
                "normalizer": "image",
                "mining": {"nms_iou": 0.7, "ratio": 3.0},
            }
        },
    ),
    "SSD with the focal loss": ("ssd_mobilenet_v2", {"loss": {"kind": "focal"}}),
    "SSD with the focal loss of a softmax": ("ssd_mobilenet_v2", {"loss": {"kind": "softmax_focal"}}),
    "YOLOv2 with the focal loss": ("yolov2_tiny", {"loss": {"objectness": "focal"}}),
    "Faster R-CNN with the focal loss": (
        "faster_rcnn_mobilenet_v2_fpn",
        {"rpn": {"loss": "focal"}, "region": {"loss": "focal"}},
    ),
}
SMALLEST = {
    "resnet18": "resnet_tiny",
    "resnet34": "resnet_tiny",
    "resnet50": "resnet_tiny_bottleneck",
    "resnet101": "resnet_tiny_bottleneck",
    "resnext101_32x8d": "resnext_tiny",
    "resnext101_64x4d": "resnext_tiny",
    "inception_resnet_v2": "inception_resnet_tiny",
    "inception_resnet_small": "inception_resnet_tiny",
    "darknet19": "darknet19_quarter",
}
MOBILE = ("mobilenet_v2", "efficientnet_lite0")
FEW = {"top_k": 100, "keep": 30}
WIDE = " at full width"
# What the widest of the proofs are made of: these backbones as they are, and of the larger ones another.
AS_THEY_ARE = (*MOBILE, "mobilenet_v2_tf", "resnet18", "darknet19_quarter", "inception_resnet_small")
WIDE_CHANGES: dict[type, dict[str, Any]] = {
    SSDConfig: {"backbone": "resnet18", "extra_width": 64, "module_widths": (16,)},
    YOLOv2Config: {"backbone": "darknet19_quarter", "width": 128},
    FasterRCNNConfig: {"backbone": "resnet18", "width": 64, "head_width": 128},
}


# What narrow networks learn in eight steps only at a higher rate, and what they do not learn in so few: those are wide.
NARROW_RATES = {RetinaNetConfig: 1e-3, SSDConfig: 1e-2, FasterRCNNConfig: 3e-3}
WIDE_LEARNERS = {
    *(name for name in VARIANTS if not name.startswith("SSD")),
    *("yolov2", "yolov2_tiny", "retinanet_r18_fpn", "faster_rcnn_r50_fpn_v2_tv", "ssd_mobilenet_v2_tf"),
}


def small_change(config: Any) -> dict[str, Any]:
    """Everything that is only size made small; blocks, strides, norms, heads and losses stay the entry's own."""
    backbone = SMALLEST.get(config.backbone, config.backbone)
    if backbone in MOBILE and not isinstance(config, RetinaNetConfig):
        backbone = "resnet_tiny"  # RetinaNet runs on these two
    has_norm = getattr(config, "head_norm", False)  # in groups of at least five values, or rounding decides
    change: dict[str, Any] = {"backbone": backbone, "width": 40 if has_norm else 32}
    if isinstance(config, SSDConfig):
        change = {"backbone": backbone, "extra_width": 32, "module_widths": (16,)}
        if config.decoder:
            change["decoder"] = {"width": 16, "inter_width": config.decoder.inter_width and 16}
    if isinstance(config, TensorFlowSSDConfig):
        change = {"backbone": "resnet_tiny", "extra_widths": (32, 16, 16, 16)}
    if isinstance(config, FasterRCNNConfig):
        change |= {"head_width": 64, "proposals": {"detect": FEW, "train": FEW}}
        if config.trunk == "c4":
            del change["width"], change["head_width"]
            change |= {"pooling": {"size": 5}, "top_down": (16,) * len(config.top_down)}
            change |= {"rpn_head": {"width": 32}} if config.backbone.startswith("inception") else {}
    return change


def wide_change(config: Any) -> dict[str, Any]:
    """Another backbone in place of the large ones."""
    if config.backbone in AS_THEY_ARE:
        return {}
    change = WIDE_CHANGES.get(type(config), {"backbone": "resnet18"})
    if getattr(config, "decoder", None):
        change = change | {"decoder": {"width": 64, "inter_width": 256}}
    if getattr(config, "trunk", None) == "c4":
        change = {"backbone": "resnet18", "pooling": {"size": 7}}
        if config.backbone.startswith("inception"):
            change = change | {"backbone": "inception_resnet_small", "rpn_head": {"width": 64}}
    return change


def entry_of(name: str) -> tuple[str, dict[str, Any]]:
    """The entry that a name of this suite stands for, and the change of architecture that lets it run in a test."""
    entry, change = VARIANTS.get(name.removesuffix(WIDE), (name.removesuffix(WIDE), {}))
    config = find_preset(entry).config
    return entry, change | (wide_change(config) if name.endswith(WIDE) else small_change(config))


def distinct(names: Iterable[str]) -> list[str]:
    """One name of each architecture that runs."""

    def running_config(name: str) -> Any:
        entry, change = entry_of(name)
        return named_config(entry, architecture=change)

    return list({running_config(name): name for name in names}.values())


# Larger networks that differ from a smaller one in size, widths and published settings alone: they run in `make prove`.
SIBLINGS = {
    "retinanet_r50_fpn",
    "retinanet_r50_fpn_tv",
    "retinanet_r50_fpn_v2_tv",
    "faster_rcnn_r50_fpn",
    "faster_rcnn_r50_fpn_tv",
    "faster_rcnn_r50_fpn_v2_tv",
    "faster_rcnn_x101_32x8d_fpn",
    "faster_rcnn_r101_c4",
    "faster_rcnn_inception_resnet_v2",
    "faster_rcnn_inception_resnet_v2_atrous",
    "faster_rcnn_inception_resnet_v2_tdm",
    "ssd321_r101",
    "ssd513_r101",
    "dssd321_r101",
    "dssd513_r101",
    "softmax with mining",
    "mining 1:3",
}
EVERY_NAME = [*VARIANTS, *reversed(PRESETS)]
RUNNING = [
    *(
        pytest.param(name, marks=pytest.mark.prove) if name in SIBLINGS else name
        for name in distinct(sorted(EVERY_NAME, key=lambda name: name not in SIBLINGS))
    ),
    *(pytest.param(name, marks=pytest.mark.prove) for name in distinct(name + WIDE for name in EVERY_NAME)),
]
every = pytest.mark.parametrize("name", PRESETS)
# What builds a whole network, if without numbers.
following = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.prove) if name in SIBLINGS else name for name in PRESETS]
)
running = pytest.mark.parametrize("name", RUNNING)
# One of each kind every day.
DAILY = {
    *("retinanet_mobilenet_v2_fpn", "ssd_mobilenet_v2", "ssd_mobilenet_v2_tf", "dssd_r18", "yolov2_tiny"),
    *("faster_rcnn_mobilenet_v2_fpn", "faster_rcnn_r18_c4", "faster_rcnn_inception_resnet_small_tdm", "softmax"),
}
daily = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.prove) if isinstance(name, str) and name not in DAILY else name
        for name in RUNNING
    ],
)


def built(name: str, **architecture: Any) -> Detector:
    """The entry, small enough to run, with random weights; `architecture` where its config has such a setting."""
    entry, change = entry_of(name)
    settings = {field.name for field in fields(find_preset(entry).config)}
    known = {key: value for key, value in architecture.items() if key in settings}
    return build(entry, class_names=CLASSES, architecture=change | known)


@functools.cache
def fresh(name: str) -> Detector:
    """A new detector with BatchNorm statistics that fit its random weights. Shared: never change it."""
    torch.manual_seed(0)
    measured = built(name, norm="batch", norm_eps=1e-5)
    for module in measured.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        measured.train()(images(), WHOLE)
    detector = built(name)
    detector.load_state_dict(measured.state_dict(), strict=False)
    return detector.eval()


def images(count: int = 2, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 16, 24, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, size=PADDED, mode="bilinear").to(torch.uint8)


def target(boxes: list[list[int]], labels: list[int]) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.zeros(len(labels), dtype=torch.bool),
    )


TARGETS = (target([[4, 4, 36, 40], [50, 10, 90, 60]], [0, 2]), target([[20, 12, 60, 44]], [1]))
BACKGROUND = (Target.empty(), Target.empty())
CROWDS = tuple(replace(target, ignored=torch.ones_like(target.ignored)) for target in TARGETS)


def with_crowd(target: Target, boxes: Tensor) -> Target:
    """The target and ignored boxes beside its own."""
    more = len(boxes)
    return Target(
        torch.cat([target.boxes, boxes]),
        torch.cat([target.labels, target.labels[:1].expand(more)]),
        torch.cat([target.ignored, torch.ones(more, dtype=torch.bool)]),
    )


def numbered(outputs: Any) -> Any:
    """The outputs whose rows mean the same anchors in every call: those of the first stage, where there are two."""
    return getattr(outputs, "rpn", outputs)


def probabilities(detector: Detector, outputs: Any) -> Tensor:
    """What the network believes of every anchor and class; of the object alone where that is a number of its own."""
    if hasattr(outputs, "objectness"):
        return outputs.objectness.detach()[..., None].sigmoid().expand(outputs.logits.shape)
    logits = outputs.logits.detach()
    return logits.softmax(-1)[..., :-1] if detector.config.classifier == "softmax" else logits.sigmoid()


def silenced(outputs: Any) -> Any:
    """Outputs of a network that is sure of the background."""
    if hasattr(outputs, "objectness"):
        return outputs._replace(objectness=torch.full_like(outputs.objectness, -50.0))
    logits = torch.full_like(outputs.logits, -200.0)
    if logits.shape[-1] > len(CLASSES):
        logits[..., -1] = 200.0
    return outputs._replace(logits=logits)


def excited(outputs: Any) -> Any:
    """Outputs with random logits in place of a fresh network's silence."""
    generator = torch.Generator().manual_seed(1)
    names = {"logits", "objectness"} & set(outputs._fields)
    drawn = {name: torch.randn(getattr(outputs, name).shape, generator=generator) * 3 - 4 for name in sorted(names)}
    return outputs._replace(**drawn)


def assert_alike(left: Any, right: Any, *, tolerance: float = 1e-4) -> None:
    for name, value in left._asdict().items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, getattr(right, name), rtol=tolerance, atol=tolerance, msg=name)
        elif hasattr(value, "_asdict"):
            assert_alike(value, getattr(right, name), tolerance=tolerance)


@every
def test_config_survives_json(name: str) -> None:
    config = find_preset(name).config
    again = configs.from_dict(type(config), json.loads(configs.to_json(config)))
    assert again == config
    assert hash(again) == hash(config)


@following
def test_shapes_follow_without_memory(name: str) -> None:
    """Also for the huge ones: outputs have one row per anchor and class, without a single number computed."""
    detector = on_meta(name)
    if isinstance(detector, FasterRCNN):
        two_stages_follow(detector)
        return
    with torch.device("meta"):
        outputs = detector(images().to("meta"), WHOLE)
    assert outputs.logits.device.type == "meta"
    background = getattr(detector.config, "classifier", "sigmoid") == "softmax"
    assert outputs.logits.shape[0] == 2 and outputs.logits.shape[-1] == len(CLASSES) + background
    assert outputs.logits.shape[1] == outputs.deltas.shape[1] == len(outputs.anchors)
    if isinstance(detector.config, YOLOv2Config):
        assert outputs.grid == (PADDED[0] // 32, PADDED[1] // 32)
        assert len(outputs.anchors) == outputs.grid[0] * outputs.grid[1] * len(detector.config.anchors)
    else:
        assert len(outputs.anchors) == sum(outputs.level_sizes)


def two_stages_follow(detector: FasterRCNN) -> None:
    """How many regions there are, numbers decide: the second stage is given some."""
    with torch.device("meta"):
        levels, first = detector.first_stage(images().to("meta"), WHOLE)
        channels, size = levels[0].shape[1], detector.config.pooling.size
        vectors = detector.roi_head(torch.empty(7, channels, size, size))
        vectors = vectors.repeat(1, 1 + detector.config.plus.context)
        logits, deltas = detector.predictor(vectors)
    assert first.objectness.device.type == logits.device.type == "meta"
    assert first.objectness.shape == first.deltas.shape[:2] == (2, len(first.anchors))
    assert len(first.anchors) == sum(first.level_sizes) and len(levels) == len(first.level_sizes)
    assert logits.shape == (7, len(CLASSES) + 1) and deltas.shape == (7, len(CLASSES), 4)


@every
def test_frozen_stages_and_backbone_parameters(name: str) -> None:
    detector = on_meta(name)
    backbone = {id(parameter) for parameter in detector.backbone_parameters()}
    assert backbone < {id(parameter) for parameter in detector.parameters()}
    frozen = {id(parameter) for parameter in detector.parameters() if not parameter.requires_grad}
    assert frozen <= backbone
    assert bool(frozen) == (detector.config.frozen_stages > 0)


@following
def test_all_stages_frozen_leave_nothing_of_the_backbone_to_training(name: str) -> None:
    trainable = {"frozen_stages": 5, "norm": "batch", "norm_eps": 1e-5}
    with torch.device("meta"):
        detector = build(name, class_names=CLASSES, architecture=trainable).train()
    kept = {id(parameter) for parameter in detector.backbone_parameters()}
    assert not any(parameter.requires_grad for parameter in detector.backbone_parameters())
    for module in detector.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.BatchNorm2d) and own:
            assert module.training != (id(own[0]) in kept)


@daily
def test_a_fresh_detector_answers_the_prior(name: str) -> None:
    """Section 4.1: every class has probability π at every anchor; exactly so on the mean color, whose input is 0."""
    detector = fresh(name)
    prior = getattr(detector.config, "first_probability", detector.config.prior)
    noise = probabilities(detector, detector(images(), WHOLE)).mean()
    assert float(noise) == pytest.approx(prior, rel=0.5)
    still = built(name).eval()
    mean = torch.tensor(still.preprocessing.rgb_mean)[:, None, None].expand(1, 3, *PADDED)
    believed = probabilities(still, still(mean, WHOLE[:1]))
    assert believed.shape[-1] == len(CLASSES)
    torch.testing.assert_close(believed, torch.full_like(believed, prior), rtol=1e-4, atol=0)


@running
def test_a_batch_gives_what_its_images_give_alone(name: str) -> None:
    detector, batch = fresh(name), images(3)
    with torch.inference_mode():
        together = numbered(detector(batch, [WHOLE[0]] * 3))
        for index in range(3):
            alone = numbered(detector(batch[index : index + 1], WHOLE[:1]))
            for field in {"logits", "objectness", "deltas"} & set(together._fields):
                one, other = getattr(together, field)[index], getattr(alone, field)[0]
                # The last digit of fp32 grows with what the random layers make of it.
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * max(1.0, float(other.std())))


@running
def test_bytes_and_floats_are_the_same_image(name: str) -> None:
    detector = fresh(name)
    with torch.inference_mode():
        assert_alike(detector(images(), WHOLE), detector(images().float(), WHOLE))


@running
def test_channel_order_is_the_detectors_own_business(name: str) -> None:
    """A network with mirrored first convolution sees in the other order of channels what it saw in its own."""
    detector = copy.deepcopy(fresh(name))
    with torch.inference_mode():
        expected = numbered(detector(images(), WHOLE))
        first = next(module for module in detector.modules() if isinstance(module, torch.nn.Conv2d))
        first.weight.copy_(first.weight.flip(1))
        own = detector.preprocessing
        other = "RGB" if own.channels == "BGR" else "BGR"
        detector.preprocessing = replace(own, channels=other, mean=own.mean[::-1], std=own.std[::-1])
        assert_alike(numbered(detector(images(), WHOLE)), expected)


@running
def test_training_mode_changes_nothing(name: str) -> None:
    detector = built(name, norm="frozen", extra_norm="frozen")
    detector.load_state_dict(fresh(name).state_dict(), strict=False)
    with torch.no_grad():
        assert_alike(detector.train()(images(), WHOLE), detector.eval()(images(), WHOLE), tolerance=0)


@running
def test_detections_are_sane(name: str) -> None:
    detector = fresh(name)
    with torch.inference_mode():
        actual = detector.detect(excited(detector(images(), WHOLE)), SIZES)
    assert len(actual) == len(SIZES)
    for detections, size in zip(actual, SIZES, strict=True):
        assert 5 < len(detections) <= detector.config.detect.max_detections
        assert (detections.boxes.dtype, detections.scores.dtype) == (torch.float32, torch.float32)
        assert detections.class_names == CLASSES
        assert set(detections.names) <= set(CLASSES)
        assert torch.equal(detections.scores, detections.scores.sort(descending=True).values)
        assert detections.scores.min() > detector.config.detect.score_threshold and detections.scores.max() <= 1
        assert torch.equal(detections.clip(size).boxes, detections.boxes)
        assert (detections.boxes[:, 2:] >= detections.boxes[:, :2]).all()


@running
def test_no_detections_are_a_result(name: str) -> None:
    detector = fresh(name)
    with torch.inference_mode():
        actual = detector.detect(silenced(detector(images(), WHOLE)), SIZES)
    assert [len(detections) for detections in actual] == [0, 0]
    assert actual[0].boxes.shape == (0, 4)
    assert actual[0].to_coco(image_id=1) == []


@daily
@pytest.mark.parametrize(
    "targets",
    [TARGETS, BACKGROUND, CROWDS, (TARGETS[0], Target.empty())],
    ids=["objects", "background", "crowds", "one image"],
)
def test_losses_are_finite_and_reach_every_trained_parameter(name: str, targets: tuple[Target, ...]) -> None:
    """Also without boxes: a rank whose gradients are absent makes the others wait forever."""
    detector = copy.deepcopy(fresh(name)).train()
    losses = detector.losses(detector(images(), WHOLE, targets), targets, LossContext())
    assert all(loss.shape == () and loss.isfinite() and loss >= 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for tensor_name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, tensor_name
        assert parameter.grad is None or parameter.grad.isfinite().all(), tensor_name
    if targets is TARGETS:
        silent = [
            tensor_name for tensor_name, p in detector.named_parameters() if p.grad is not None and not p.grad.any()
        ]
        # No anchor of the coarse levels is among the hardest of these images; a level without objects moves no box.
        loss = getattr(detector.config, "loss", None)
        mined = getattr(loss, "mining", None) is not None or getattr(loss, "kind", None) == "mining"
        allowed = re.compile(r"pyramid\.|extras\.|decoder\.|predictors\." if mined else r"predictors\.\d+\.box")
        assert not [tensor_name for tensor_name in silent if not allowed.match(tensor_name)]
        levels = [tensor_name for tensor_name, _ in detector.named_parameters() if tensor_name.endswith("boxes.weight")]
        assert not levels or set(levels) - set(silent), "some level moves boxes"


@running
def test_ignored_boxes_are_neither_object_nor_background(name: str) -> None:
    detector = fresh(name)
    with torch.inference_mode():
        outputs = excited(detector(images(), WHOLE))
        losses = {
            kind: detector.losses(outputs, targets, LossContext())
            for kind, targets in (("objects", TARGETS), ("crowds", CROWDS), ("background", BACKGROUND))
        }
    sums = {kind: float(sum(values.values())) for kind, values in losses.items()}
    if isinstance(detector, FasterRCNN):
        return  # the mean over a drawn sample: tests/models/test_faster_rcnn.py looks at what is left out
    if getattr(detector.config.loss, "kind", None) == "mining":
        assert sums["crowds"] == sums["background"] == 0, "no objects, no negatives"
    else:
        assert sums["crowds"] < sums["background"], "anchors on a crowd leave the loss"
    assert sums["crowds"] != sums["objects"]
    everywhere = torch.tensor([[0.0, 0.0, PADDED[1], PADDED[0]]])
    beside = tuple(with_crowd(target, everywhere) for target in TARGETS)
    with torch.inference_mode():
        quiet = detector.losses(outputs, beside, LossContext())
    assert float(sum(quiet.values())) < sums["objects"], "so do those on a crowd beside objects"


@daily
def test_one_batch_is_learned_through_the_training_step(name: str) -> None:
    learner = name + WIDE if name in WIDE_LEARNERS else name
    detector = copy.deepcopy(fresh(learner)).train()
    rate = 3e-4 if learner.endswith(WIDE) else NARROW_RATES[type(detector.config)]
    # Soft targets rise only as the boxes fit.
    is_soft = isinstance(detector.config, RetinaNetConfig) and detector.config.loss.quality
    config = RunConfig(model=entry_of(name)[0], channels_last=False, ema=None, precision="fp32")
    state = start_state(detector, config, context=LossContext(), device=torch.device("cpu"))
    batch = Batch(images(), WHOLE, TARGETS, (0, 1), WHOLE, ("a", "b"))
    steps = [train_step(state, [batch], module=detector, config=config, rate=rate) for _ in range(24 if is_soft else 8)]
    totals = [sum(losses.values()) for losses, *_ in steps]
    assert min(totals[-2:]) < 0.7 * totals[0], totals


@daily
def test_checkpoints_give_the_same_detector(name: str, tmp_path: Path) -> None:
    detector = fresh(name)
    save_detector(tmp_path / "w.safetensors", detector)
    loaded = load_detector(tmp_path / "w.safetensors").detector.eval()
    (tmp_path / "w.safetensors").unlink()
    assert (loaded.config, loaded.class_names) == (detector.config, CLASSES)
    assert loaded.preprocessing == detector.preprocessing
    state = loaded.state_dict()
    assert all(torch.equal(state[tensor_name], value) for tensor_name, value in detector.state_dict().items())
    with torch.inference_mode():
        assert_alike(loaded(images(), WHOLE), detector(images(), WHOLE), tolerance=0)


@running
def test_half_precision_stays_finite(name: str) -> None:
    detector = fresh(name)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = detector(images(), WHOLE)
    assert (outputs.logits.dtype, outputs.deltas.dtype) == (torch.float32, torch.float32)
    assert outputs.logits.isfinite().all() and outputs.deltas.isfinite().all()
    field = "logits" if hasattr(numbered(outputs), "logits") else "objectness"
    actual, exact = (getattr(numbered(each), field).detach() for each in (outputs, detector(images(), WHOLE)))
    # bf16 keeps 8 bits, and seventeen blocks of random weights make the most of what it loses.
    assert (actual - exact).abs().mean() < max(0.1, 0.3 * float(exact.std()))


def test_preprocessing_is_the_detectors_own() -> None:
    other = Preprocessing(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    assert build("retinanet_r18_fpn", num_classes=1, preprocessing=other).preprocessing == other
