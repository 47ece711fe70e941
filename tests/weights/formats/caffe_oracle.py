"""Caffe's SSD and DSSD, transcribed from the layers of the authors' branch: blobs by name, and what they compute.

Shares no code with focaldet. The layers stand in caffe_*_layers.txt, a line for each that has blobs, in the order of
the scripts: its name, then the shapes of its blobs (the scripts for 321 px are those for VOC, with 21 classes).
"""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

MEAN_BGR = (104.0, 117.0, 123.0)
EPS = 1e-3
VARIANCES = (0.1, 0.1, 0.2, 0.2)
RATIOS = (1.6, 2.0, 3.0)
# side: steps, starts, then lowest and highest per cent of the rule, and the lowest of the first map
PRIORS = {
    513: ((8, 16, 32, 64, 128, 256, 513), (2.5, 2.5, 10.5, 26.5, 58.5, 122.5, 256.5), (10, 95, 4)),
    321: ((8, 16, 32, 64, 64, 321), (2.5, 2.5, 10.5, 26.5, 90.5, 160.5), (20, 95, 10)),
}
CELLS = {513: (64, 32, 16, 8, 4, 2, 1), 321: (40, 20, 10, 5, 3, 1)}
THIN = 16


def listed_layers(name):
    """Layer → shapes of its blobs."""
    lines = (Path(__file__).parent / f"caffe_{name}_layers.txt").read_text().splitlines()
    rows = [line.split() for line in lines]
    return {row[0]: [tuple(map(int, shape.split("x"))) for shape in row[1:]] for row in rows}


def thinned(layers):
    """The same layers with a 16th of the channels inside residual units, and of all channels behind the backbone."""
    return {re.sub(r"_inter(\d+)", _thin_name, layer): _thin_shapes(layer, shapes) for layer, shapes in layers.items()}


def _thin_name(match):
    return f"_inter{int(match[1]) // THIN}"


def _thin_shapes(layer, shapes):
    in_backbone = re.fullmatch(r"(bn_|scale_)?conv1|(res|bn|scale)[2-5][abc]\d*_branch\w+", layer)
    is_output = re.search(r"_mbox_(loc|conf)(new)?$", layer)
    reads_backbone = re.fullmatch(r"(res6|res(res3b3|res5c)_relu_inter\d+)_branch(1|2a)|res(3b3|5c)_relu_pre1", layer)
    thin_rows = re.search(r"branch2[ab]$", layer) or not (in_backbone or is_output)
    thin_columns = re.search(r"branch2[bc]$", layer) or not (in_backbone or reads_backbone)
    result = []
    for shape in shapes:
        rows, *rest = shape
        rows = rows // THIN if thin_rows and rows > 1 else rows
        if rest:
            rest[0] = rest[0] // THIN if thin_columns else rest[0]
        result.append((rows, *rest))
    return result


def lively_blobs(layers, *, seed):
    """Random blobs that keep the signal of about the same size from layer to layer."""
    draw = np.random.default_rng(seed)
    return {layer: _lively(draw, layer, shapes) for layer, shapes in layers.items()}


def _lively(draw, layer, shapes):
    channels = shapes[-1][0]
    if len(shapes[0]) == 4:  # convolution
        is_output = re.search(r"_mbox_(loc|conf)(new)?$", layer)
        scale = 0.01 if layer == "conv1" else 0.3 if is_output else 1.4  # the image's numbers go up to 255
        weight = draw.standard_normal(shapes[0], dtype=np.float32)
        weight *= np.float32(scale / np.prod(shapes[0][1:]) ** 0.5)
        return [weight, *(draw.normal(0, 0.5, shape).astype(np.float32) for shape in shapes[1:])]
    if len(shapes) == 3:  # BatchNorm: sums of so many means and variances
        factor, channels = draw.choice([1.0, 437.5, 999.98]), shapes[0][0]
        mean, variance = draw.normal(0, 0.2, channels), draw.uniform(0.5, 1.5, channels)
        return [(part * factor).astype(np.float32) for part in (mean, variance, np.ones(1))]
    # What is added to or multiplied with another signal must be small, or all of it grows.
    share = 0.15 if layer.endswith("branch2c") else 0.4 if re.search(r"_pre2?_scale$", layer) else 1.0
    gamma = draw.uniform(0.5, 1.5, channels) * share
    return [gamma.astype(np.float32), draw.normal(0, 0.2, channels).astype(np.float32)]


def arrays_of(blobs):
    """What pycaffe's `net.params` is written as."""
    return {f"{layer}.{index}": blob for layer, parts in blobs.items() for index, blob in enumerate(parts)}


class Network:
    """The forward pass of a deploy network."""

    def __init__(self, blobs):
        self.blobs = {layer: [torch.from_numpy(part) for part in parts] for layer, parts in blobs.items()}

    def convolution(self, x, layer, **settings):
        return F.conv2d(x, *self.blobs[layer], **settings)

    def batch_norm_scale(self, x, batch_norm, scale):
        mean, variance, factor = self.blobs[batch_norm]
        inverse = 0.0 if float(factor) == 0 else 1 / float(factor)
        gamma, beta = (part[:, None, None] for part in self.blobs[scale])
        mean, variance = (part[:, None, None] * inverse for part in (mean, variance))
        return (x - mean) / (variance + EPS).sqrt() * gamma + beta

    def residual_unit(self, x, block, *, stride=1, dilation=1):
        def branch(y, name, **settings):
            y = self.convolution(y, f"res{block}_{name}", **settings)
            return self.batch_norm_scale(y, f"bn{block}_{name}", f"scale{block}_{name}")

        shortcut = branch(x, "branch1", stride=stride) if f"res{block}_branch1" in self.blobs else x
        y = F.relu(branch(x, "branch2a", stride=stride))
        y = F.relu(branch(y, "branch2b", padding=dilation, dilation=dilation))
        return F.relu(shortcut + branch(y, "branch2c"))

    def single(self, x, layer):
        return self.batch_norm_scale(self.convolution(x, layer, padding=1), f"{layer}_bn", f"{layer}_scale")

    def encoder(self, image):
        """The maps that predict, by the name of their layer."""
        x = self.convolution(image, "conv1", stride=2, padding=3)
        x = F.max_pool2d(F.relu(self.batch_norm_scale(x, "bn_conv1", "scale_conv1")), 3, 2, ceil_mode=True)
        maps = {}
        names = ["2a", "2b", "2c", "3a", *(f"3b{n}" for n in range(1, 4)), "4a", *(f"4b{n}" for n in range(1, 23))]
        for block in [*names, "5a", "5b", "5c"]:
            x = self.residual_unit(x, block, stride=2 if block in ("3a", "4a") else 1, dilation=1 + (block[0] == "5"))
            if block in ("3b3", "5c"):
                maps[f"res{block}_relu"] = x
        number = 6
        while f"res{number}_branch1" in self.blobs:
            kernel = self.blobs[f"res{number}_branch1"][0].shape[-1]
            x = maps[f"res{number}_relu"] = self.residual_unit(x, str(number), stride={2: 2, 3: 1}[kernel])
            number += 1
        return maps

    def decoder(self, maps):
        """The same maps combined from the coarsest on, which itself goes to the end unchanged."""
        names = list(maps)
        x, features = maps[names[-1]], {names[-1]: maps[names[-1]]}
        for step, source in enumerate(reversed(names[:-1])):
            number = re.match(r"res(\d+)", source)[1]
            weight, bias = self.blobs[f"deconv_{number}"]
            raised = F.conv_transpose2d(x, weight, bias, stride=1 if step == 0 or weight.shape[-1] == 3 else 2)
            fine = self.single(F.relu(self.single(maps[source], f"{source}_pre1")), f"{source}_pre2")
            x = F.relu(self.single(raised, f"deconv_{number}_pre") * fine)
            features[f"combined_{number}_EltwisePROD_relu"] = x
        return dict(reversed(features.items()))

    def outputs(self, image):
        """conf (priors, classes with the background first) and loc (priors, 4) of a BGR image less its mean."""
        maps, new = self.encoder(image), ""
        if "deconv_3" in self.blobs:
            maps, new = self.decoder(maps), "new"
        outputs = {"conf": [], "loc": []}
        for feature, source in maps.items():
            (block,) = {m[1] for layer in self.blobs if (m := re.match(rf"res({feature}_inter\d+)_branch1", layer))}
            x = self.residual_unit(source, block)
            for kind, rows in outputs.items():
                layer = f"res{block}_mbox_{kind}{new}"
                y = F.relu(self.single(x, f"{layer}_inter")) if f"{layer}_inter" in self.blobs else x
                y = self.convolution(y, layer, padding=self.blobs[layer][0].shape[-1] // 2)
                rows.append(y.permute(0, 2, 3, 1).flatten())
        loc = torch.cat(outputs["loc"]).view(-1, 4)
        return torch.cat(outputs["conf"]).view(len(loc), -1), loc


def prior_boxes(side, *, literal=False):
    """xyxy fractions of the image, float64. `literal` reads the starts as offsets in cells, as prior_box_layer does."""
    steps, starts, (lowest, highest, first) = PRIORS[side]
    step = (highest - lowest) // (len(steps) - 2)
    ratios = list(range(lowest, highest + 1, step))
    sizes = [(side * first / 100, side * lowest / 100), *((side * r / 100, side * (r + step) / 100) for r in ratios)]
    result = []
    for cells, step_px, start, exact in zip(CELLS[side], steps, starts, sizes, strict=True):
        low, high = map(int, exact)
        shapes = [(low, low), ((low * high) ** 0.5,) * 2]
        for ratio in (value for r in RATIOS for value in (r, 1 / r)):
            shapes.append((low * ratio**0.5, low / ratio**0.5))
        centers = [(w + start) * step_px if literal else start + w * step_px for w in range(cells)]
        result += [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for y in centers for x in centers for w, h in shapes]
    return np.array(result) / side


def decode(loc, priors):
    """DecodeBBox for CENTER_SIZE with variances: xyxy fractions of the image."""
    size, center = priors[:, 2:] - priors[:, :2], (priors[:, 2:] + priors[:, :2]) / 2
    center = np.array(VARIANCES[:2]) * loc[:, :2] * size + center
    half = np.exp(np.array(VARIANCES[2:]) * loc[:, 2:]) * size / 2
    return np.concatenate([center - half, center + half], axis=1)
