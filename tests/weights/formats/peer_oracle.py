"""RetinaNet and Faster R-CNN of detectron2 and mmdetection, transcribed: tensors by name, and what they compute.

Shares no code with focaldet. The names and shapes stand in detectron2_*.txt and mmdetection_*.txt, as they are in the
`state_dict` of the models that both programs build from their configs for COCO (detectron2 02b5c4e, mmdetection 3.3.0;
of R101-C4 mmdetection has the parts, but no config): `{a,b}` and `{0..2}` stand for several names, `-` for a number
without axes.
"""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.ops import nms, roi_align

EPS = 1e-5
LARGEST_GROWTH = math.log(1000 / 16)
SCORE, NMS, REGION_NMS, KEPT = 0.05, 0.5, 0.7, 100
RATIOS = (0.5, 1.0, 2.0)


def tensor_shapes(name):
    """Name → shape of every tensor."""
    rows = (line.split() for line in (Path(__file__).parent / f"{name}.txt").read_text().splitlines())
    return {
        key: () if shape == "-" else tuple(map(int, shape.split("x"))) for names, shape in rows for key in spread(names)
    }


def spread(names):
    """The names that `{a,b}` and `{0..2}` stand for."""
    match = re.search(r"\{([^}]*)\}", names)
    if match is None:
        return [names]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    choices = range(int(ends[1]), int(ends[2]) + 1) if ends else match[1].split(",")
    return [key for choice in choices for key in spread(f"{names[: match.start()]}{choice}{names[match.end() :]}")]


def lively_tensors(shapes, *, seed):
    """Random tensors that keep the signal of about the same size from layer to layer."""
    torch.manual_seed(seed)
    return {name: _lively(name, shape, shapes) for name, shape in shapes.items()}


def _lively(name, shape, shapes):
    if not shape:
        return torch.tensor(7)  # the batches that BatchNorm has counted
    if len(shape) > 1:
        return torch.randn(shape) * (1.6 / math.prod(shape[1:])) ** 0.5
    if name.rpartition(".")[0] + ".running_var" not in shapes:
        return torch.randn(shape) * 0.2
    # What is added to another signal must be small, or all of it grows.
    share = 0.15 if re.search(r"conv3\.norm|bn3", name) else 1.0
    low, high, spread_ = {"weight": (0.5, 1.5, 0), "running_var": (0.5, 1.5, 0)}.get(
        name.rpartition(".")[2], (0, 0, 0.2)
    )
    if spread_:
        return torch.randn(shape) * spread_
    return (torch.rand(shape) * (high - low) + low) * (share if name.endswith(".weight") else 1.0)


class Detectron2:
    """Names and conventions of detectron2. Of its answer, boxes that the border cut to nothing are left out last."""

    mean, std, is_bgr, in_1x1 = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), True, True
    ratio_is_outer, relu_before_p7, clips_before_nms, divisor_without_pyramid = False, True, False, 1
    rpn = tuple(f"proposal_generator.rpn_head.{part}" for part in ("conv", "objectness_logits", "anchor_deltas"))
    fcs = ("roi_heads.box_head.fc1", "roi_heads.box_head.fc2")
    classes, boxes = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"
    retina = ("head.cls_score", "head.bbox_pred")
    extra = ("backbone.top_block.p6", "backbone.top_block.p7")

    def __init__(self, tensors):
        self.root = "backbone.bottom_up." if "backbone.bottom_up.stem.conv1.weight" in tensors else "backbone."

    def stem(self):
        return f"{self.root}stem.conv1", f"{self.root}stem.conv1.norm"

    def block(self, stage, number, conv):
        root = "roi_heads." if self.root == "backbone." and stage == 5 else self.root
        layer = f"{root}res{stage}.{number}.{'shortcut' if conv is None else f'conv{conv}'}"
        return layer, f"{layer}.norm"

    def lateral(self, level, _finest):
        return f"backbone.fpn_lateral{level}"

    def output(self, level, _finest):
        return f"backbone.fpn_output{level}"

    def tower(self, kind, number):
        return f"head.{'cls' if kind == 'classes' else 'bbox'}_subnet.{2 * number}"


class MMDetection:
    """Names and conventions of mmdetection, style "pytorch". Its RetinaNet leaves such boxes out first."""

    mean, std, is_bgr, in_1x1 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False, False
    ratio_is_outer, relu_before_p7, clips_before_nms, divisor_without_pyramid = True, False, True, 32
    rpn = ("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg")
    fcs = ("roi_head.bbox_head.shared_fcs.0", "roi_head.bbox_head.shared_fcs.1")
    classes, boxes = "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"
    retina = ("bbox_head.retina_cls", "bbox_head.retina_reg")
    extra = ("neck.fpn_convs.3.conv", "neck.fpn_convs.4.conv")

    def __init__(self, tensors):
        self.tail = "roi_head.shared_head." if "roi_head.shared_head.layer4.0.conv1.weight" in tensors else "backbone."

    def stem(self):
        return "backbone.conv1", "backbone.bn1"

    def block(self, stage, number, conv):
        module = f"{self.tail if stage == 5 else 'backbone.'}layer{stage - 1}.{number}"
        return (
            (f"{module}.downsample.0", f"{module}.downsample.1")
            if conv is None
            else (f"{module}.conv{conv}", f"{module}.bn{conv}")
        )

    def lateral(self, level, finest):
        return f"neck.lateral_convs.{level - finest}.conv"

    def output(self, level, finest):
        return f"neck.fpn_convs.{level - finest}.conv"

    def tower(self, kind, number):
        return f"bbox_head.{'cls' if kind == 'classes' else 'reg'}_convs.{number}.conv"


class MMDetectionCaffe(MMDetection):
    """The same, style "caffe"."""

    mean, std, is_bgr, in_1x1 = Detectron2.mean, Detectron2.std, True, True


class Network:
    """The forward pass of one image."""

    def __init__(self, tensors, peer, *, top_k=1000, keep=1000):
        self.tensors, self.peer, self.top_k, self.keep = tensors, peer(tensors), top_k, keep
        self.is_retinanet = f"{self.peer.retina[0]}.weight" in tensors
        self.has_pyramid = f"{self.peer.output(5, 2)}.weight" in tensors
        self.finest = 3 if self.is_retinanet else 2 if self.has_pyramid else 4
        self.strides = [2**level for level in (range(self.finest, self.finest + 5) if self.has_pyramid else (4,))]

    def conv(self, x, layer, **settings):
        return F.conv2d(x, self.tensors[f"{layer}.weight"], self.tensors.get(f"{layer}.bias"), **settings)

    def linear(self, x, layer):
        return x @ self.tensors[f"{layer}.weight"].T + self.tensors[f"{layer}.bias"]

    def normed(self, x, names, **settings):
        conv, norm = names
        x = self.conv(x, conv, **settings)
        gamma, beta, mean, variance = (
            self.tensors[f"{norm}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + EPS).sqrt() * gamma + beta

    def stage(self, x, number):
        block = 0
        while f"{self.peer.block(number, block, 1)[0]}.weight" in self.tensors:
            stride = 2 if block == 0 and number > 2 else 1
            first, second = (stride, 1) if self.peer.in_1x1 else (1, stride)
            shortcut = x if block else self.normed(x, self.peer.block(number, 0, None), stride=stride)
            y = F.relu(self.normed(x, self.peer.block(number, block, 1), stride=first))
            y = F.relu(self.normed(y, self.peer.block(number, block, 2), stride=second, padding=1))
            x = F.relu(self.normed(y, self.peer.block(number, block, 3)) + shortcut)
            block += 1
        assert block
        return x

    def prepared(self, rgb):
        """An RGB image in 0…255 as the network sees it, padded with zeros as the program pads."""
        x = rgb[None].float()
        x = x.flip(1) if self.peer.is_bgr else x
        x = (x - torch.tensor(self.peer.mean)[:, None, None]) / torch.tensor(self.peer.std)[:, None, None]
        divisor = 32 if self.has_pyramid else self.peer.divisor_without_pyramid
        return F.pad(x, (0, -x.shape[-1] % divisor, 0, -x.shape[-2] % divisor))

    def levels(self, rgb):
        x = F.relu(self.normed(self.prepared(rgb), self.peer.stem(), stride=2, padding=3))
        x = F.max_pool2d(x, 3, 2, padding=1)
        maps = {}
        for number in (2, 3, 4, 5) if self.has_pyramid else (2, 3, 4):
            x = maps[number] = self.stage(x, number)
        if not self.has_pyramid:
            return [maps[4]]
        merged, levels = None, []
        for number in range(5, self.finest - 1, -1):
            lateral = self.conv(maps[number], self.peer.lateral(number, self.finest))
            if merged is not None:
                lateral = lateral + merged.repeat_interleave(2, -1).repeat_interleave(2, -2)
            merged = lateral
            levels.insert(0, self.conv(merged, self.peer.output(number, self.finest), padding=1))
        if not self.is_retinanet:
            return [*levels, levels[-1][:, :, ::2, ::2]]
        p6 = self.conv(maps[5], self.peer.extra[0], stride=2, padding=1)
        p7 = self.conv(F.relu(p6) if self.peer.relu_before_p7 else p6, self.peer.extra[1], stride=2, padding=1)
        return [*levels, p6, p7]

    def anchors(self, levels):
        """xyxy of every level's anchors: rows, columns, then the shapes of a cell in the peer's order."""
        results = []
        for stride, level in zip(self.strides, levels, strict=True):
            sizes = [4 * stride * 2 ** (third / 3) for third in range(3)] if self.is_retinanet else [8 * stride]
            sizes = sizes if self.has_pyramid else [32, 64, 128, 256, 512]
            pairs = [(size, ratio) for size in sizes for ratio in RATIOS]
            if self.peer.ratio_is_outer:
                pairs = [(size, ratio) for ratio in RATIOS for size in sizes]
            shapes = [(size / ratio**0.5, size * ratio**0.5) for size, ratio in pairs]
            results.append(
                torch.tensor(
                    [
                        (stride * column - w / 2, stride * row - h / 2, stride * column + w / 2, stride * row + h / 2)
                        for row in range(level.shape[-2])
                        for column in range(level.shape[-1])
                        for w, h in shapes
                    ]
                )
            )
        return results

    def retina_towers(self, levels):
        """What goes into the last layers of classes and of boxes, for each level."""
        results = {"classes": [], "boxes": []}
        for kind, rows in results.items():
            for level in levels:
                x = level
                for number in range(4):
                    x = F.relu(self.conv(x, self.peer.tower(kind, number), padding=1))
                rows.append(x)
        return results

    def retina_outputs(self, levels):
        """Logits (A, K) and encoded boxes (A, 4), level by level."""
        towers = self.retina_towers(levels)
        logits, boxes = (
            [rows_of(self.conv(x, layer, padding=1)) for x in towers[kind]]
            for kind, layer in zip(("classes", "boxes"), self.peer.retina, strict=True)
        )
        boxes = [box.reshape(-1, 4) for box in boxes]
        return [logit.reshape(len(box), -1) for logit, box in zip(logits, boxes, strict=True)], boxes

    def rpn_outputs(self, levels):
        """Objectness (A) and encoded boxes (A, 4), level by level."""
        hidden = [F.relu(self.conv(level, self.peer.rpn[0], padding=1)) for level in levels]
        return (
            [rows_of(self.conv(x, self.peer.rpn[1])).reshape(-1) for x in hidden],
            [rows_of(self.conv(x, self.peer.rpn[2])).reshape(-1, 4) for x in hidden],
        )

    def proposals(self, levels, size):
        regions, scores = [], []
        for logits, boxes, anchors in zip(*self.rpn_outputs(levels), self.anchors(levels), strict=True):
            best = logits.sort(descending=True, stable=True).indices[: self.top_k]
            moved = clip(decode(boxes[best], anchors[best]), size)
            real = ((moved[:, 2:] - moved[:, :2]) > 0).all(1)
            moved, logits_ = moved[real], logits[best][real]
            keep = nms(moved, logits_, REGION_NMS)
            regions.append(moved[keep])
            scores.append(logits_[keep])
        order = torch.cat(scores).argsort(descending=True)[: self.keep]
        return torch.cat(regions)[order]

    def region_vectors(self, levels, regions):
        """What goes into the last layers, for each region."""
        if not self.has_pyramid:
            cells = roi_align(levels[0], [regions], 14, 1 / 16, -1, aligned=True)
            return self.stage(cells, 5).mean((2, 3))
        sides = (regions[:, 2:] - regions[:, :2]).prod(1).sqrt()
        level = (4 + torch.log2(sides / 224 + 1e-8)).floor().clamp(2, 5)
        cells = torch.zeros(len(regions), 256, 7, 7)
        for number in range(2, 6):
            of = level == number
            if of.any():
                cells[of] = roi_align(levels[number - 2], [regions[of]], 7, 1 / 2**number, -1, aligned=True)
        x = cells.reshape(len(cells), -1)
        for layer in self.peer.fcs:
            x = F.relu(self.linear(x, layer))
        return x

    def region_outputs(self, levels, regions):
        """Class values (R, K + 1), the background's last, and encoded boxes (R, K, 4)."""
        vectors = self.region_vectors(levels, regions)
        return self.linear(vectors, self.peer.classes), self.linear(vectors, self.peer.boxes).reshape(
            len(regions), -1, 4
        )

    def retina_detections(self, levels, size):
        boxes, scores, labels = [], [], []
        for logits, deltas, anchors in zip(*self.retina_outputs(levels), self.anchors(levels), strict=True):
            likely = logits.sigmoid()
            anchor, label = (likely > SCORE).nonzero().unbind(1)
            best = likely[anchor, label].sort(descending=True, stable=True).indices[:1000]
            anchor, label = anchor[best], label[best]
            boxes.append(decode(deltas[anchor], anchors[anchor]))
            scores.append(likely[anchor, label])
            labels.append(label)
        boxes, scores, labels = (torch.cat(parts) for parts in (boxes, scores, labels))
        if self.peer.clips_before_nms:
            real = has_area(clip(boxes, size))
            boxes, scores, labels = boxes[real], scores[real], labels[real]
        return self.suppressed(boxes, scores, labels, size)

    def region_detections(self, levels, regions, size):
        logits, deltas = self.region_outputs(levels, regions)
        deltas = deltas / torch.tensor([10.0, 10.0, 5.0, 5.0])
        boxes = clip(decode(deltas, regions[:, None].expand_as(deltas)), size)
        likely = logits.softmax(1)[:, :-1]
        region, label = (likely > SCORE).nonzero().unbind(1)
        return self.suppressed(boxes[region, label], likely[region, label], label, size)

    def suppressed(self, boxes, scores, labels, size):
        """Boxes, scores and labels of the best that no better one of their class covers."""
        boxes = clip(boxes, size) if self.peer.clips_before_nms else boxes
        kept = [
            of[nms(boxes[of], scores[of], NMS)]
            for of in ((labels == label).nonzero()[:, 0] for label in labels.unique())
        ]
        keep = torch.cat(kept)
        keep = keep[scores[keep].argsort(descending=True)][:KEPT]
        keep = keep[has_area(clip(boxes[keep], size))]
        return clip(boxes[keep], size), scores[keep], labels[keep]


def rows_of(x):
    """A map's values by row, column and channel."""
    return x[0].permute(1, 2, 0)


def decode(deltas, boxes):
    size, center = boxes[..., 2:] - boxes[..., :2], (boxes[..., 2:] + boxes[..., :2]) / 2
    center = center + deltas[..., :2] * size
    size = size * deltas[..., 2:].clamp(max=LARGEST_GROWTH).exp()
    return torch.cat([center - size / 2, center + size / 2], -1)


def clip(boxes, size):
    height, width = size
    return boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def has_area(boxes):
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def livened(network, rgb):
    """Scale the last layers so that every output spreads over cells or regions, and few classes are above SCORE."""
    tensors, peer, size = network.tensors, network.peer, tuple(rgb.shape[1:])
    levels = network.levels(rgb)
    if network.is_retinanet:
        towers = network.retina_towers(levels)
        for kind, layer, std, mean in zip(("classes", "boxes"), peer.retina, (1.5, 0.3), (-7.0, 0.0), strict=True):
            values = [rows_of(network.conv(x, layer, padding=1)) for x in towers[kind]]
            _spread(tensors, layer, values, std=std, mean=mean)
        return
    hidden = [F.relu(network.conv(level, peer.rpn[0], padding=1)) for level in levels]
    for layer, std in zip(peer.rpn[1:], (3.0, 0.1), strict=True):
        _spread(tensors, layer, [rows_of(network.conv(x, layer)) for x in hidden], std=std, mean=0.0)
    vectors = network.region_vectors(levels, network.proposals(levels, size))
    _spread(tensors, peer.classes, [network.linear(vectors, peer.classes)], std=1.5, mean=0.0)
    _spread(tensors, peer.boxes, [network.linear(vectors, peer.boxes)], std=1.0, mean=0.0)


def _spread(tensors, layer, values, *, std, mean):
    """Give every output of a layer this mean and standard deviation over the `values` it has now."""
    values = torch.cat([part.reshape(-1, part.shape[-1]) for part in values])
    scale = std / values.std(0)
    weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
    bias.copy_((bias - values.mean(0)) * scale + mean)
    weight.mul_(scale.reshape(-1, *[1] * (weight.ndim - 1)))
