"""TensorFlow's Faster R-CNN with Inception-ResNet-v2, atrous version, written out over the names of its variables.

After the released code (see tensorflow_files.py), in numpy and torch's convolution alone; shares nothing with focaldet.
Boxes are y1, x1, y2, x2; maps are channels, rows, columns.
"""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F

FIRST, SECOND = "FirstStageFeatureExtractor/InceptionResnetV2", "SecondStageFeatureExtractor/InceptionResnetV2"
RATIOS, SCALES, BASE = (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0), 256


def lively_arrays(shapes, *, seed):
    """Random variables that keep the signal of about the same size from layer to layer."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        part = name.rpartition("/")[2]
        if part == "weights":
            spread = (2.2 if "BoxPredictor" in name else 1.7) / math.prod(shape[:-1])
            arrays[name] = draw.standard_normal(shape, np.float32) * np.float32(spread**0.5)
        elif part == "moving_variance":
            arrays[name] = draw.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            arrays[name] = draw.standard_normal(shape, np.float32) * np.float32(0.2)
    return arrays


class FasterRCNNOracle:
    def __init__(self, arrays, *, stride):
        self.arrays, self.stride = arrays, stride
        self.rate = 2 if stride == 8 else 1

    def tensor(self, name):
        return torch.from_numpy(self.arrays[name])

    def plain(self, x, scope, *, stride=1, rate=1, padding="SAME"):
        weight = self.tensor(f"{scope}/weights").permute(3, 2, 0, 1)
        if padding == "SAME":
            x = same(x, weight.shape[2:], stride, rate, 0.0)
        return F.conv2d(x, weight, None, stride, 0, rate)

    def conv(self, x, scope, **settings):
        x = self.plain(x, scope, **settings)
        mean, variance, beta = (
            self.tensor(f"{scope}/BatchNorm/{part}")[:, None, None]
            for part in ("moving_mean", "moving_variance", "beta")
        )
        return F.relu((x - mean) / torch.sqrt(variance + 0.001) + beta)

    def branch(self, x, scope, *layers, **last):
        """Convolutions one after the other; `last` are the settings of the last of them."""
        for layer in layers:
            x = self.conv(x, f"{scope}/{layer}", **(last if layer is layers[-1] else {}))
        return x

    def residual(self, x, scope, branches, scale, relu=True):
        up = self.plain(torch.cat(branches, 1), f"{scope}/Conv2d_1x1")
        x = x + scale * (up + self.tensor(f"{scope}/Conv2d_1x1/biases")[:, None, None])
        return F.relu(x) if relu else x

    def repeats(self, scope):
        """The numbered blocks, in their order."""
        names = {match[0] for name in self.arrays if (match := re.match(rf"{scope}_\d+", name))}
        return sorted(names, key=lambda name: int(name.rpartition("_")[2]))

    def trunk(self, x):
        x = self.conv(x, f"{FIRST}/Conv2d_1a_3x3", stride=2)
        x = self.conv(self.conv(x, f"{FIRST}/Conv2d_2a_3x3"), f"{FIRST}/Conv2d_2b_3x3")
        x = self.conv(self.conv(max_pool(x, 2), f"{FIRST}/Conv2d_3b_1x1"), f"{FIRST}/Conv2d_4a_3x3")
        x, scope = max_pool(x, 2), f"{FIRST}/Mixed_5b"
        branches = [
            self.branch(x, f"{scope}/Branch_0", "Conv2d_1x1"),
            self.branch(x, f"{scope}/Branch_1", "Conv2d_0a_1x1", "Conv2d_0b_5x5"),
            self.branch(x, f"{scope}/Branch_2", "Conv2d_0a_1x1", "Conv2d_0b_3x3", "Conv2d_0c_3x3"),
            self.branch(mean_pool(x), f"{scope}/Branch_3", "Conv2d_0b_1x1"),
        ]
        x = torch.cat(branches, 1)
        for scope in self.repeats(f"{FIRST}/Repeat/block35"):
            branches = [
                self.branch(x, f"{scope}/Branch_0", "Conv2d_1x1"),
                self.branch(x, f"{scope}/Branch_1", "Conv2d_0a_1x1", "Conv2d_0b_3x3"),
                self.branch(x, f"{scope}/Branch_2", "Conv2d_0a_1x1", "Conv2d_0b_3x3", "Conv2d_0c_3x3"),
            ]
            x = self.residual(x, scope, branches, 0.17)
        scope, step = f"{FIRST}/Mixed_6a", self.stride // 8
        branches = [
            self.branch(x, f"{scope}/Branch_0", "Conv2d_1a_3x3", stride=step),
            self.branch(x, f"{scope}/Branch_1", "Conv2d_0a_1x1", "Conv2d_0b_3x3", "Conv2d_1a_3x3", stride=step),
            max_pool(x, step),
        ]
        x = torch.cat(branches, 1)
        for scope in self.repeats(f"{FIRST}/Repeat_1/block17"):
            y = self.conv(x, f"{scope}/Branch_1/Conv2d_0a_1x1")
            y = self.conv(y, f"{scope}/Branch_1/Conv2d_0b_1x7", rate=self.rate)
            y = self.conv(y, f"{scope}/Branch_1/Conv2d_0c_7x1", rate=self.rate)
            x = self.residual(x, scope, [self.conv(x, f"{scope}/Branch_0/Conv2d_1x1"), y], 0.1)
        return x

    def tail(self, x):
        scope, valid = f"{SECOND}/Mixed_7a", {"stride": 2, "padding": "VALID"}
        branches = [
            self.branch(x, f"{scope}/Branch_0", "Conv2d_0a_1x1", "Conv2d_1a_3x3", **valid),
            self.branch(x, f"{scope}/Branch_1", "Conv2d_0a_1x1", "Conv2d_1a_3x3", **valid),
            self.branch(x, f"{scope}/Branch_2", "Conv2d_0a_1x1", "Conv2d_0b_3x3", "Conv2d_1a_3x3", **valid),
            F.max_pool2d(x, 3, 2),
        ]
        x = torch.cat(branches, 1)
        for scope in [*self.repeats(f"{SECOND}/Repeat/block8"), f"{SECOND}/Block8"]:
            layers = ("Conv2d_0a_1x1", "Conv2d_0b_1x3", "Conv2d_0c_3x1")
            branches = [self.conv(x, f"{scope}/Branch_0/Conv2d_1x1"), self.branch(x, f"{scope}/Branch_1", *layers)]
            is_last = scope.endswith("/Block8")
            x = self.residual(x, scope, branches, 1.0 if is_last else 0.2, relu=not is_last)
        return self.conv(x, f"{SECOND}/Conv2d_7b_1x1")

    def proposals(self, features, frame, keep):
        """Objectness (two values) and boxes of all anchors, and the regions that NMS leaves."""
        x = self.plain(features, "Conv", rate=self.rate) + self.tensor("Conv/biases")[:, None, None]
        x = x.clamp(0, 6)
        rows = []
        for kind, width in (("ClassPredictor", 2), ("BoxEncodingPredictor", 4)):
            scope = f"FirstStageBoxPredictor/{kind}"
            y = self.plain(x, scope) + self.tensor(f"{scope}/biases")[:, None, None]
            rows.append(y.permute(0, 2, 3, 1).reshape(-1, width).numpy())
        values, encoded = rows
        boxes = decode(encoded, self.anchors(features.shape[-2:]))
        scores = softmax(values)[:, 1]
        clipped = np.clip(boxes, 0, [*frame, *frame])
        real = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(1))
        kept = real[suppress(clipped[real], scores[real], 0.7)][:keep]
        return values, boxes, clipped[kept]

    def anchors(self, cells):
        """Row by row; of a cell every ratio (width / height) with every scale."""
        shapes = [(s * BASE / r**0.5, s * BASE * r**0.5) for r in RATIOS for s in SCALES]
        centers = [(y * self.stride, x * self.stride) for y in range(cells[0]) for x in range(cells[1])]
        return np.array([(y - h / 2, x - w / 2, y + h / 2, x + w / 2) for y, x in centers for h, w in shapes])

    def classify(self, features, regions, frame):
        """91 class values and 90 boxes of each region."""
        normalized = regions / [*frame, *frame]
        crops = np.stack([crop_and_resize(features[0].numpy(), box, 17) for box in normalized])
        vectors = self.tail(torch.from_numpy(crops).float()).mean((2, 3)).numpy()
        values, encoded = (
            vectors @ self.arrays[f"SecondStageBoxPredictor/{kind}/weights"]
            + self.arrays[f"SecondStageBoxPredictor/{kind}/biases"]
            for kind in ("ClassPredictor", "BoxEncodingPredictor")
        )
        return values, encoded.reshape(len(regions), -1, 4)

    def detections(self, values, encoded, regions, frame):
        """Boxes, scores and category ids, best first."""
        scores = softmax(values)[:, 1:]
        boxes = decode(encoded, np.repeat(regions[:, None], encoded.shape[1], 1))
        clipped = np.clip(boxes, 0, [*frame, *frame])
        rows = []
        for number in range(scores.shape[1]):
            real = np.flatnonzero((clipped[:, number, 2:] > clipped[:, number, :2]).all(1))
            kept = real[suppress(clipped[real, number], scores[real, number], 0.6)][:100]
            rows += [(scores[i, number], number + 1, clipped[i, number]) for i in kept]
        rows.sort(key=lambda row: -row[0])
        score, ids, best = zip(*rows[:100], strict=True)
        return np.stack(best), np.array(score), np.array(ids)


def same(x, kernel, stride, rate, value):
    pads = []
    for cells, side in zip(reversed(x.shape[-2:]), reversed(kernel), strict=True):
        total = max((math.ceil(cells / stride) - 1) * stride + (side - 1) * rate + 1 - cells, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def max_pool(x, stride):
    return F.max_pool2d(same(x, (3, 3), stride, 1, -math.inf), 3, stride)


def mean_pool(x):
    sums, counts = (F.avg_pool2d(same(y, (3, 3), 1, 1, 0.0), 3, 1) for y in (x, torch.ones_like(x)))
    return sums / counts


def decode(encoded, boxes):
    """ty, tx, th, tw with the scale factors 10, 10, 5, 5."""
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    center = encoded[..., :2] / 10 * size + low + size / 2
    half = np.exp(encoded[..., 2:] / 5) * size / 2
    return np.concatenate([center - half, center + half], -1)


def crop_and_resize(image, box, count):
    """The operation of this name: bilinear, corner on corner, 0 outside."""
    _, rows, columns = image.shape
    y1, x1, y2, x2 = box
    crop = np.zeros((len(image), count, count))
    for i in range(count):
        y = y1 * (rows - 1) + i * (y2 - y1) * (rows - 1) / (count - 1)
        if not 0 <= y <= rows - 1:
            continue
        top, below = int(np.floor(y)), int(np.ceil(y))
        for j in range(count):
            x = x1 * (columns - 1) + j * (x2 - x1) * (columns - 1) / (count - 1)
            if not 0 <= x <= columns - 1:
                continue
            left, right = int(np.floor(x)), int(np.ceil(x))
            upper = image[:, top, left] + (image[:, top, right] - image[:, top, left]) * (x - left)
            lower = image[:, below, left] + (image[:, below, right] - image[:, below, left]) * (x - left)
            crop[:, i, j] = upper + (lower - upper) * (y - top)
    return crop


def softmax(values):
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def suppress(boxes, scores, most):
    """Greedy, best first: indices of those that overlap no better one by more than `most`."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        others = boxes[kept]
        shared = np.clip(np.minimum(boxes[i, 2:], others[:, 2:]) - np.maximum(boxes[i, :2], others[:, :2]), 0, None)
        overlap = shared.prod(1) / (areas[i] + areas[kept] - shared.prod(1)) if kept else np.zeros(0)
        if not (overlap > most).any():
            kept.append(i)
    return np.array(kept, int)
