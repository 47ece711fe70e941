"""YOLOv2 against a transcription of darknet: network, boxes, loss and its gradient, detections."""

import math
import random

import numpy as np
import pytest
import torch

from focaldet.errors import ConfigError
from focaldet.models import LossContext, build, named_config
from focaldet.models.yolov2 import COCO_ANCHORS, VOC_ANCHORS, YOLOv2Outputs
from focaldet.nets.darknet import reorganize
from focaldet.ops.region import decode_in_cells, grid_anchors, responsible_anchors
from focaldet.types import ImageSize, Target
from tests.batches import full_sizes
from tests.models import darknet_oracle as oracle

CLASSES = ("a", "b", "c")
SMALL = {"backbone": "darknet19_quarter", "width": 64, "passthrough": 8}
WARM, SETTLED = LossContext(images_seen=12_799), LossContext(images_seen=12_800)


def double(name="yolov2", **architecture):
    return build(name, class_names=CLASSES, architecture=architecture).double().eval()


def parts_of(detector):
    """(bias, scale, mean, variance, weight) of each convolution in the order of darknet's cfg."""
    layers = [layer for block in detector.backbone.blocks for layer in block]
    layers += [*detector.top, detector.passthrough, detector.merge]
    parts = [
        (one.norm.bias, one.norm.weight, one.norm.running_mean, one.norm.running_var, one.conv.weight) for one in layers
    ]
    return [*parts, (detector.predict.bias, None, None, None, detector.predict.weight)]


def filled(detector, convolutions):
    """The detector with the oracle's weights."""
    for tensors, arrays in zip(parts_of(detector), convolutions, strict=True):
        for tensor, array in zip(tensors, arrays, strict=True):
            if array is not None:
                assert tensor.shape == array.shape
                tensor.data.copy_(torch.from_numpy(array))
    return detector


def outputs_of(raw, anchors, num_classes):
    """Our outputs for the oracle's maps (B, S · (5 + K), H, W), as leaves of a graph in float64."""
    images, _, height, width = raw.shape
    values = torch.tensor(raw).view(images, len(anchors), 5 + num_classes, height, width)
    values = values.permute(0, 3, 4, 1, 2).reshape(images, -1, 5 + num_classes).requires_grad_()
    boxes = grid_anchors(anchors, stride_px=32, height=height, width=width).double()
    # What fp32 rounds off the anchors would be the largest difference where the truth is 0.
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).round()
    half = torch.tensor(anchors, dtype=torch.float64).repeat(height * width, 1) * 16
    torch.testing.assert_close(boxes, torch.cat([centers - half, centers + half], 1), rtol=1e-6, atol=1e-4)
    boxes = torch.cat([centers - half, centers + half], 1)
    return values, YOLOv2Outputs(values[..., 5:], values[..., 4], values[..., :4], boxes, (height, width))


def target_of(truths, crowds, *, height, width):
    """Boxes in shares of the input as a target in its pixels."""
    frame = torch.tensor([width, height] * 2, dtype=torch.float64) * 32
    centers = torch.tensor([one[:4] for one in [*truths, *crowds]], dtype=torch.float64).reshape(-1, 4)
    boxes = torch.cat([centers[:, :2] - centers[:, 2:] / 2, centers[:, :2] + centers[:, 2:] / 2], 1) * frame
    labels = [one[4] for one in truths] + [0] * len(crowds)
    ignored = [False] * len(truths) + [True] * len(crowds)
    return Target(boxes, torch.tensor(labels, dtype=torch.int64), torch.tensor(ignored, dtype=torch.bool))


def assert_close_to_the_largest(actual, expected, tolerance):
    difference = np.abs(np.asarray(actual) - expected).max()
    assert difference <= tolerance * max(np.abs(expected).max(), 1e-9), difference


@pytest.mark.parametrize(
    ("classes", "trainable", "floats"), [(80, 50_962_889, 50_983_561), (20, 50_655_389, 50_676_061)]
)
def test_size_of_the_released_networks(classes, trainable, floats):
    """The floats are those of yolov2.weights; with 20 classes those of yolov2-voc.weights."""
    with torch.device("meta"):
        detector = build("yolov2", num_classes=classes)
    assert sum(parameter.numel() for parameter in detector.parameters()) == trainable
    state = detector.state_dict().items()
    assert sum(value.numel() for name, value in state if not name.endswith("num_batches_tracked")) == floats
    assert sum(parameter.numel() for parameter in detector.backbone_parameters()) == 19_817_376


def test_anchors_in_pixels():
    """18.33×21.68 … 312.66×293.38 px for COCO, whatever the size of the input."""
    anchors = grid_anchors(COCO_ANCHORS, stride_px=32, height=2, width=3)
    assert anchors.shape == (30, 4)
    sides = [[round(value, 2) for value in row] for row in (anchors[:5, 2:] - anchors[:5, :2]).tolist()]
    assert sides == [[18.33, 21.68], [59.98, 66.0], [106.83, 175.18], [252.25, 112.89], [312.66, 293.38]]
    centers = (anchors[::5, :2] + anchors[::5, 2:]) / 2
    assert centers.tolist() == [[16, 16], [48, 16], [80, 16], [16, 48], [48, 48], [80, 48]]
    assert len(VOC_ANCHORS) == 5 and VOC_ANCHORS[0] == (1.3221, 1.73145)


@pytest.mark.parametrize(("channels", "height", "width"), [(4, 2, 2), (8, 4, 6), (64, 6, 2)])
def test_reorg_is_darknets(channels, height, width):
    x = torch.randn(2, channels, height, width)
    expected = [
        oracle.reorg(image.numpy().ravel(), width, height, channels, 2).reshape(4 * channels, height // 2, width // 2)
        for image in x
    ]
    assert np.array_equal(reorganize(x).numpy(), np.stack(expected))
    if (channels, height, width) != (4, 2, 2):
        usual = torch.nn.functional.pixel_unshuffle(x, 2)
        assert not torch.equal(usual, reorganize(x)), "it is not the usual space-to-depth"


@pytest.mark.parametrize("size", [(64, 96), (96, 32)])
def test_the_network_is_darknets(size):
    """Raw numbers of a network with random weights, in float64 and as it runs."""
    detector = double(**SMALL)
    layers = oracle.yolov2_layers(5 * 8, factor=0.25, width=64, passthrough=8)
    weights = oracle.lively_weights(oracle.conv_shapes(layers), seed=3)
    filled(detector, weights)
    images = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    raw = np.stack([oracle.network(image.numpy() / 255.0, layers, weights) for image in images])
    expected = outputs_of(raw, COCO_ANCHORS, 3)[0].detach().numpy()
    for network, tolerance in ((detector, 1e-6), (detector.float(), 1e-5)):
        with torch.no_grad():
            actual = network(images, full_sizes(images))
        together = torch.cat([actual.deltas, actual.objectness[..., None], actual.logits], -1)
        assert_close_to_the_largest(together, expected, tolerance)


@pytest.mark.prove
def test_the_released_network_is_darknets():
    """At full width, with the 50 983 561 floats of its file."""
    detector = build("yolov2", num_classes=80).eval()
    layers = oracle.yolov2_layers(425)
    weights = oracle.lively_weights(oracle.conv_shapes(layers), seed=4)
    assert oracle.flat_floats(weights).nbytes + 16 == 203_934_260
    filled(detector, weights)
    image = torch.randint(0, 256, (1, 3, 96, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    raw = oracle.network(image[0].numpy() / 255.0, layers, weights)[None]
    with torch.no_grad():
        actual = detector(image, full_sizes(image))
    together = torch.cat([actual.deltas, actual.objectness[..., None], actual.logits], -1)
    assert_close_to_the_largest(together, outputs_of(raw, COCO_ANCHORS, 80)[0].detach().numpy(), 1e-5)


def test_boxes_are_darknets():
    raw = np.random.default_rng(0).normal(0, 2, (5 * 7, 4, 3))
    _, outputs = outputs_of(raw[None], COCO_ANCHORS, 2)
    actual = decode_in_cells(outputs.deltas[0], outputs.anchors, stride_px=32).detach().numpy()
    frame = np.array([3, 4, 3, 4]) * 32
    for row, (box, _) in zip(actual, oracle.Region(raw, COCO_ANCHORS, 2).boxes(), strict=True):
        x, y, w, h = np.array(box) * frame
        np.testing.assert_allclose(row, [x - w / 2, y - h / 2, x + w / 2, y + h / 2], rtol=1e-5, atol=1e-4)


def drawn_case(seed):
    """Raw maps, truths and crowds of two images: often several objects in a cell, equal ones, none, or on an edge."""
    draws = random.Random(seed)
    height, width, classes = draws.randint(1, 4), draws.randint(1, 4), draws.randint(1, 3)
    anchors = list(COCO_ANCHORS[: draws.randint(1, 5)])
    if draws.random() < 0.3:
        anchors.append(anchors[0])  # of equal fits the first anchor counts
    spread = draws.choice([0.2, 1.0, 3.0])
    raw = np.random.default_rng(seed).normal(0, spread, (2, len(anchors) * (5 + classes), height, width))
    images = []
    for index in range(2):
        region = oracle.Region(raw[index], anchors, classes)
        boxes = []
        for _ in range(draws.choice([0, 1, 2, 5, 9])):
            kind = draws.random()
            if kind < 0.2 and boxes:
                box = boxes[-1]
            elif kind < 0.4 and boxes:  # another size in the same cell
                box = (*boxes[-1][:2], draws.uniform(0.01, 1), draws.uniform(0.01, 1))
            elif kind < 0.6:  # on what is predicted already, so that some predictions lie above .6
                x, y, w, h = region.box(*draws.choice(region.cells()))
                box = (min(x, 0.999), min(y, 0.999), min(w * draws.uniform(0.8, 1.2), 5), min(h, 5))
            else:
                box = (draws.random(), draws.random(), draws.uniform(0.01, 1), draws.uniform(0.01, 1))
            boxes.append(box)
        crowds = [box for box in boxes if draws.random() < 0.2]
        truths = [(*box, draws.randrange(classes)) for box in boxes if box not in crowds]
        images.append((truths, crowds))
    return raw, anchors, classes, images, draws.choice([0, 12_799, 12_800, 10**6])


def check_loss(seed):
    raw, anchors, classes, images, seen = drawn_case(seed)
    height, width = raw.shape[2:]
    values, outputs = outputs_of(raw, anchors, classes)
    detector = double("yolov2_tiny", anchors=anchors, loss={"warmup_images": 12_800})
    targets = [target_of(*image, height=height, width=width) for image in images]
    losses = detector.losses(outputs, targets, LossContext(images_seen=seen))
    torch.stack(list(losses.values())).sum().backward()
    for index, (truths, crowds) in enumerate(images):
        delta = oracle.Region(raw[index], anchors, classes).deltas(truths, seen=seen, crowds=crowds)
        expected = outputs_of(delta[None].reshape(1, -1, height, width), anchors, classes)[0].detach()[0]
        actual = -values.grad[index] * len(images)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, msg=lambda text: f"seed {seed}: {text}")


def test_the_gradient_of_the_loss_is_darknets():
    for seed in range(50):
        check_loss(seed)


@pytest.mark.prove
def test_the_gradient_of_the_loss_is_darknets_a_thousand_times():
    for seed in range(50, 1050):
        check_loss(seed)


def silent(*, height=2, width=2, classes=2, anchors=COCO_ANCHORS):
    """Outputs of 0: boxes are their anchors, objectness one half, all classes alike."""
    return outputs_of(np.zeros((1, len(anchors) * (5 + classes), height, width)), anchors, classes)[1]


def of_one_object(box, **loss):
    detector = double("yolov2", **SMALL, loss=loss)
    target = Target(torch.tensor([box], dtype=torch.float64), torch.tensor([1]), torch.tensor([False]))
    with torch.no_grad():
        return detector.losses(silent(), [target], SETTLED)


def test_the_loss_by_hand():
    """An object as large as anchor 1 in the middle of the first cell: only objectness and class are wrong."""
    w, h = (side * 32 for side in COCO_ANCHORS[1])
    losses = of_one_object([16 - w / 2, 16 - h / 2, 16 + w / 2, 16 + h / 2])
    assert float(losses["box"]) == pytest.approx(0, abs=1e-9)
    # 20 predictions, one of them on the object (IoU 1): half of 19 · .5² + 5 · (1 - .5)².
    assert float(losses["object"]) == pytest.approx((19 * 0.25 + 5 * 0.25) / 2)
    assert float(losses["class"]) == pytest.approx(math.log(2))


def test_a_shifted_object_by_hand():
    """Twice as high as anchor 1 and 8 px to the right: σ(tx) is wrong by 1/4 and th by ln 2, times 2 - w h."""
    w, h = COCO_ANCHORS[1][0] * 32, COCO_ANCHORS[1][1] * 64
    losses = of_one_object([24 - w / 2, 16 - h / 2, 24 + w / 2, 16 + h / 2])
    weight = 2 - w * h / 64**2
    assert float(losses["box"]) == pytest.approx(weight * (1 / 16 + math.log(2) ** 2) / 2, rel=1e-5)


def test_warm_up_draws_boxes_to_their_anchors():
    _, outputs = outputs_of(np.full((1, 35, 2, 2), 0.5), COCO_ANCHORS, 2)
    detector = double("yolov2", **SMALL)
    with torch.no_grad():
        cold, warm = (detector.losses(outputs, [Target.empty()], context)["box"] for context in (SETTLED, WARM))
    assert float(cold) == 0
    sigma = 1 / (1 + math.exp(-0.5))
    assert float(warm) == pytest.approx(20 * 0.01 * (2 * (sigma - 0.5) ** 2 + 2 * 0.25) / 2)


def test_without_rescoring_objectness_is_drawn_to_one():
    w, h = (side * 32 for side in COCO_ANCHORS[1])
    box = [20 - w / 2, 16 - h / 2, 20 + w / 2, 16 + h / 2]
    rescored, plain = (float(of_one_object(box, rescore=rescore)["object"]) for rescore in (True, False))
    assert plain == pytest.approx((19 * 0.25 + 5 * 0.25) / 2) and rescored < plain


def test_the_focal_loss_replaces_the_squares():
    """Section 3 of its paper, of one sigmoid per anchor: at p = .5 an object costs α / 4 · ln 2, others 1 - α."""
    w, h = (side * 32 for side in COCO_ANCHORS[1])
    box = [16 - w / 2, 16 - h / 2, 16 + w / 2, 16 + h / 2]
    share = math.log(2) / 4 * 5
    focal = of_one_object(box, objectness="focal")
    assert float(focal["object"]) == pytest.approx((0.25 + 19 * 0.75) * share)
    unbalanced = of_one_object(box, objectness="focal", alpha=None, gamma=0.0)
    assert float(unbalanced["object"]) == pytest.approx(20 * math.log(2) * 5)
    assert float(focal["class"]) == pytest.approx(math.log(2)), "the rest of the loss stays"


def test_margins_are_those_of_objects_and_background():
    raw = np.random.default_rng(1).normal(0, 1, (1, 35, 2, 2))
    _, outputs = outputs_of(raw, COCO_ANCHORS, 2)
    truths, crowds = [(0.3, 0.3, 0.4, 0.4, 1), (0.3, 0.3, 0.4, 0.4, 0)], [(0.75, 0.75, 0.5, 0.5)]
    detector = double("yolov2", **SMALL)
    margins = detector.margins(outputs, [target_of(truths, crowds, height=2, width=2)])
    delta = oracle.Region(raw[0], COCO_ANCHORS, 2).deltas(truths, seen=10**6, crowds=crowds)
    chosen = oracle.Region(raw[0], COCO_ANCHORS, 2).responsible(truths[0])
    logits = raw.reshape(5, 7, 2, 2)[:, 4]
    assert margins.positive.tolist() == pytest.approx([logits[chosen]])
    counted = np.argwhere(delta[:, 4] != 0).tolist()
    expected = sorted(-logits[tuple(index)] for index in counted if tuple(index) != chosen)
    assert sorted(margins.negative.tolist()) == pytest.approx(expected)
    assert len(expected) < 19


def test_responsible_anchors_by_hand():
    """The cell of the center, row by row; the anchor of the nearest shape; an edge belongs to the last cell."""
    shapes = ((1.0, 1.0), (1.0, 2.0), (1.0, 2.0))
    boxes = torch.tensor([[0, 0, 32, 32], [40, 0, 72, 64], [48, 32, 80, 64], [60, 60, 68, 68]], dtype=torch.float32)
    assert responsible_anchors(boxes, shapes, stride_px=32, height=2, width=2).tolist() == [0, 10, 9, 9]
    assert responsible_anchors(torch.zeros(0, 4), shapes, stride_px=32, height=2, width=2).tolist() == []


def test_detections_are_darknets():
    raw = np.random.default_rng(5).normal(0, 1.5, (5 * 8, 3, 4))
    _, outputs = outputs_of(raw[None], COCO_ANCHORS, 3)
    detector = double("yolov2", **SMALL, detect={"max_detections": 10_000})
    with torch.no_grad():
        actual = detector.detect(outputs, [ImageSize(10**6, 10**6)])[0]
    expected = oracle.Region(raw, COCO_ANCHORS, 3).detections()
    assert len(expected) > 30
    assert actual.labels.tolist() == [label for label, _, _ in expected]
    np.testing.assert_allclose(actual.scores, [score for _, score, _ in expected], rtol=1e-5)
    frame = np.array([4, 3, 4, 3]) * 32
    for row, (_, _, box) in zip(actual.boxes, expected, strict=True):
        x, y, w, h = np.array(box) * frame
        corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clip(0)
        np.testing.assert_allclose(row, corners, rtol=1e-5, atol=1e-3)


def test_one_object_has_one_answer_across_classes():
    """One anchor that is sure of an object and unsure of its class, beside anchors that see none."""
    raw = np.full((1, 5 * 8, 3, 3), -9.0)
    raw[0, :8, 1, 1] = [0.0, 0.0, 0.0, 0.0, 5.0, 2.0, 1.9, -9.0]
    _, outputs = outputs_of(raw, COCO_ANCHORS, 3)
    labels = []
    for across in (False, True):
        detector = double("yolov2", **SMALL, detect={"score_threshold": 0.3, "across_classes": across})
        labels.append(detector.detect(outputs, [ImageSize(96, 96)])[0].labels.tolist())
    assert labels == [[0, 1], [0]]


def test_the_best_pairs_are_kept_where_there_are_too_many():
    raw = np.random.default_rng(6).normal(0, 1, (1, 40, 3, 3))
    _, outputs = outputs_of(raw, COCO_ANCHORS, 3)
    full, few = (double("yolov2", **SMALL, detect={"top_k": top_k, "nms_iou": 1.0}) for top_k in (4000, 7))
    all_of_them, best = (one.detect(outputs, [ImageSize(96, 96)])[0] for one in (full, few))
    assert len(best) == 7 and torch.equal(best.scores, all_of_them.scores[:7])


@pytest.mark.parametrize("side", [32, 320, 608])
def test_every_multiple_of_32_goes_in(side):
    with torch.device("meta"):
        outputs = build("yolov2_tiny")(torch.zeros(1, 3, side, 64), [ImageSize(side, 64)])
    assert outputs.grid == (side // 32, 2) and outputs.logits.shape == (1, side // 32 * 2 * 5, 80)


def test_other_sizes_are_refused():
    with pytest.raises(ConfigError, match="multiples of 32 px, got 48 × 32"):
        build("yolov2_tiny")(torch.zeros(1, 3, 32, 48), [ImageSize(32, 48)])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"anchors": []}, "anchors: Tuple should have at least 1 item"),
        ({"anchors": [[1.0, -2.0]]}, "anchors.0.1: Input should be greater than 0"),
        ({"anchors": [[1.0]]}, "anchors.0.1: Field required"),
        ({"passthrough": 6}, "multiple of 4"),
        ({"norm_eps": 0.0}, "norm_eps"),
    ],
)
def test_bad_settings_are_told(setting, words):
    with pytest.raises(ConfigError, match=words):
        named_config("yolov2", architecture=setting)
