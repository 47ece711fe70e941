"""YOLOv2 as darknet's C code computes it, written out in float64 loops: it shares no code with the model.

After cfg/yolov2.cfg, src/convolutional_layer.c, maxpool_layer.c, reorg_layer.c with blas.c, region_layer.c and box.c.
Arrays are flat in darknet's order; boxes are (x, y, w, h) of the center in shares of the input.
"""

import math

import numpy as np


def yolov2_layers(num_outputs, *, factor=1.0, width=1024, passthrough=64):
    """The layers of the cfg: ("conv", filters, size, batch_normalize), ("max",), ("route", layers…), ("reorg",)."""
    c = lambda filters, size: ("conv", round(filters * factor), size, True)  # noqa: E731
    w = lambda filters, size: ("conv", filters, size, True)  # noqa: E731
    return [
        *(c(32, 3), ("max",), c(64, 3), ("max",), c(128, 3), c(64, 1), c(128, 3), ("max",)),
        *(c(256, 3), c(128, 1), c(256, 3), ("max",), c(512, 3), c(256, 1), c(512, 3), c(256, 1), c(512, 3), ("max",)),
        *(c(1024, 3), c(512, 1), c(1024, 3), c(512, 1), c(1024, 3), w(width, 3), w(width, 3)),
        *(("route", 16), w(passthrough, 1), ("reorg",), ("route", 27, 24), w(width, 3)),
        ("conv", num_outputs, 1, False),
    ]


def conv_shapes(layers, channels=3):
    """(filters, channels, size, batch_normalize) of every convolution in the order of the weights file."""
    widths, shapes = [], []
    for kind, *rest in layers:
        if kind == "conv":
            filters, size, normalized = rest
            shapes.append((filters, channels, size, normalized))
            channels = filters
        elif kind == "route":
            channels = sum(widths[index] for index in rest)
        elif kind == "reorg":
            channels *= 4
        widths.append(channels)
    return shapes


def lively_weights(shapes, seed):
    """Per convolution biases, scales, means, variances (None without normalization) and weights, none of them tame."""
    draws = np.random.default_rng(seed)
    drawn = []
    for filters, channels, size, normalized in shapes:
        statistics = [draws.uniform(0.5, 1.5, filters), draws.normal(0, 0.3, filters), draws.uniform(0.5, 2, filters)]
        weights = draws.normal(0, math.sqrt(2 / (channels * size * size)), (filters, channels, size, size))
        arrays = [draws.normal(0, 0.2, filters), *(statistics if normalized else [None] * 3), weights]
        drawn.append([None if array is None else array.astype(np.float32) for array in arrays])
    return drawn


def flat_floats(convolutions):
    """Everything in the order in which a .weights file holds it."""
    parts = [array.ravel() for arrays in convolutions for array in arrays if array is not None]
    return np.concatenate(parts).astype("<f4")


def network(image, layers, convolutions):
    """The input of the region layer for one image (3, H, W) in 0…1."""
    outputs, x, rest = [], image.astype(np.float64), list(convolutions)
    for kind, *parameters in layers:
        if kind == "conv":
            x = convolve(x, *rest.pop(0))
        elif kind == "max":
            channels, height, width = x.shape
            x = x.reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))
        elif kind == "reorg":
            channels, height, width = x.shape
            x = reorg(x.ravel(), width, height, channels, 2).reshape(channels * 4, height // 2, width // 2)
        else:
            x = np.concatenate([outputs[index] for index in parameters])
        outputs.append(x)
    assert not rest
    return x


def convolve(x, biases, scales, means, variances, weights):
    filters, _, size, _ = weights.shape
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    y = np.tensordot(weights.astype(np.float64), windows, axes=((1, 2, 3), (0, 3, 4)))
    column = lambda values: values.astype(np.float64)[:, None, None]  # noqa: E731
    if scales is None:
        return y + column(biases)
    y = (y - column(means)) / np.sqrt(column(variances) + 0.00001) * column(scales) + column(biases)
    assert y.shape[0] == filters
    return np.where(y > 0, y, 0.1 * y)


def reorg(x, w, h, c, stride):
    """reorg_cpu with forward = 0, which is what the layer calls going forward."""
    out = np.zeros_like(x)
    out_c = c // (stride * stride)
    for k in range(c):
        for j in range(h):
            for i in range(w):
                in_index = i + w * (j + h * k)
                c2 = k % out_c
                offset = k // out_c
                w2 = i * stride + offset % stride
                h2 = j * stride + offset // stride
                out[in_index] = x[w2 + w * stride * (h2 + h * stride * c2)]
    return out


def logistic(x):
    return 1.0 / (1.0 + math.exp(-x))


def box_iou(a, b):
    def overlap(x1, w1, x2, w2):
        return min(x1 + w1 / 2, x2 + w2 / 2) - max(x1 - w1 / 2, x2 - w2 / 2)

    w, h = overlap(a[0], a[2], b[0], b[2]), overlap(a[1], a[3], b[1], b[3])
    shared = 0.0 if w < 0 or h < 0 else w * h
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def coverage(a, b):
    """The share of box a that lies in box b."""
    w = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    h = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    return max(w, 0.0) * max(h, 0.0) / (a[2] * a[3])


def letterbox(im, net):
    """letterbox_image of image.c for (3, h, w) in 0…1 and a square network, with its resize_image and embed_image."""
    _, im_h, im_w = im.shape
    new_w, new_h = _inside(im_w, im_h, net)
    boxed = np.full((3, net, net), 0.5)
    dx, dy = (net - new_w) // 2, (net - new_h) // 2
    boxed[:, dy : dy + new_h, dx : dx + new_w] = resize_image(im, new_w, new_h)
    return boxed


def _inside(im_w, im_h, net):
    if net / im_w < net / im_h:
        return net, (im_h * net) // im_w
    return (im_w * net) // im_h, net


def resize_image(im, w, h):
    channels, im_h, im_w = im.shape
    part, resized = np.zeros((channels, im_h, w)), np.zeros((channels, h, w))
    w_scale, h_scale = (im_w - 1) / (w - 1), (im_h - 1) / (h - 1)
    for c in range(w):
        if c == w - 1 or im_w == 1:
            part[:, :, c] = im[:, :, im_w - 1]
        else:
            ix = int(c * w_scale)
            dx = c * w_scale - ix
            part[:, :, c] = (1 - dx) * im[:, :, ix] + dx * im[:, :, ix + 1]
    for r in range(h):
        iy = int(r * h_scale)
        dy = r * h_scale - iy
        resized[:, r] = (1 - dy) * part[:, iy]
        if r == h - 1 or im_h == 1:
            continue
        resized[:, r] += dy * part[:, iy + 1]
    return resized


def corrected(box, w, h, net):
    """correct_region_boxes of region_layer.c: a box of the square network's input in pixels of the image."""
    new_w, new_h = _inside(w, h, net)
    x, y, bw, bh = box
    x = (x - (net - new_w) / 2 / net) / (new_w / net)
    y = (y - (net - new_h) / 2 / net) / (new_h / net)
    return x * w, y * h, bw * net / new_w * w, bh * net / new_h * h


class Region:
    """The region layer over one image: `raw` is (S · (5 + K), H, W), as the last convolution leaves it."""

    def __init__(self, raw, biases, classes):
        self.n, self.classes, self.biases = len(biases), classes, biases
        _, self.h, self.w = raw.shape
        self.raw = raw.reshape(self.n, 5 + classes, self.h, self.w).astype(np.float64)
        x = self.raw.copy()
        for entry in (0, 1, 4):
            x[:, entry] = 1 / (1 + np.exp(-x[:, entry]))
        e = np.exp(x[:, 5:] - x[:, 5:].max(1, keepdims=True))
        x[:, 5:] = e / e.sum(1, keepdims=True)
        self.x = x

    def box(self, n, j, i):
        x = self.x[n, :, j, i]
        bw, bh = self.biases[n]
        return ((i + x[0]) / self.w, (j + x[1]) / self.h, math.exp(x[2]) * bw / self.w, math.exp(x[3]) * bh / self.h)

    def cells(self):
        return [(n, j, i) for j in range(self.h) for i in range(self.w) for n in range(self.n)]

    def boxes(self):
        """Boxes and objectness × class of every prediction, cell by cell."""
        return [(self.box(n, j, i), self.x[n, 4, j, i] * self.x[n, 5:, j, i]) for n, j, i in self.cells()]

    def responsible(self, truth):
        i, j = min(int(truth[0] * self.w), self.w - 1), min(int(truth[1] * self.h), self.h - 1)
        best_iou, best_n = 0.0, 0
        for n, (bw, bh) in enumerate(self.biases):
            iou = box_iou((0, 0, bw / self.w, bh / self.h), (0, 0, truth[2], truth[3]))
            if iou > best_iou:
                best_iou, best_n = iou, n
        return best_n, j, i

    def deltas(self, truths, *, seen, crowds=(), thresh=0.6, warm=12800):
        """-∂L/∂raw of one image. `truths` are (x, y, w, h, class), `crowds` boxes that count neither way.

        darknet knows no crowds: a prediction is left out where it would be no background if they were objects, and
        where it lies in one by at least half.
        """
        delta = np.zeros_like(self.x)
        left_out = {self.responsible(crowd) for crowd in crowds}
        for n, j, i in self.cells():
            pred = self.box(n, j, i)
            best_iou = 0.0
            for truth in [*truths, *crowds]:
                best_iou = max(best_iou, box_iou(pred, truth))
            delta[n, 4, j, i] = 1.0 * (0 - self.x[n, 4, j, i])
            hidden = (n, j, i) in left_out or any(coverage(pred, crowd) >= 0.5 for crowd in crowds)
            if best_iou > thresh or hidden:
                delta[n, 4, j, i] = 0
            if seen < warm:
                bw, bh = self.biases[n]
                truth = ((i + 0.5) / self.w, (j + 0.5) / self.h, bw / self.w, bh / self.h)
                self.delta_box(truth, n, j, i, delta, 0.01)
        for truth in truths:
            n, j, i = self.responsible(truth)
            iou = self.delta_box(truth, n, j, i, delta, 2 - truth[2] * truth[3])
            delta[n, 4, j, i] = 5.0 * (iou - self.x[n, 4, j, i])
            for k in range(self.classes):
                delta[n, 5 + k, j, i] = (1 if k == truth[4] else 0) - self.x[n, 5 + k, j, i]
        for entry in (0, 1, 4):
            delta[:, entry] *= self.x[:, entry] * (1 - self.x[:, entry])
        return delta

    def delta_box(self, truth, n, j, i, delta, scale):
        iou = box_iou(self.box(n, j, i), truth)
        bw, bh = self.biases[n]
        wanted = (truth[0] * self.w - i, truth[1] * self.h - j)
        wanted += (math.log(truth[2] * self.w / bw), math.log(truth[3] * self.h / bh))
        for entry in range(4):
            delta[n, entry, j, i] = scale * (wanted[entry] - self.x[n, entry, j, i])
        return iou

    def detections(self, *, thresh=0.005, nms=0.45):
        """(class, score, box) after do_nms_sort, class by class."""
        actual = []
        for k in range(self.classes):
            ranked = sorted(((p[k], box) for box, p in self.boxes() if p[k] > thresh), key=lambda item: -item[0])
            kept = []
            for score, box in ranked:
                if all(box_iou(box, other) <= nms for _, other in kept):
                    kept.append((score, box))
            actual += [(k, score, box) for score, box in kept]
        return sorted(actual, key=lambda item: -item[1])
