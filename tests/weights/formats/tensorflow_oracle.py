"""A literal evaluation of a frozen graph's own nodes, one operation after the other; parsed by tensorboard's protobuf.

Nothing here knows what network it is: names, order, padding, anchors and box code are the graph's.
"""

import numpy as np
import torch
import torch.nn.functional as F

FLOAT_TYPES = {1: np.float32, 3: np.int32, 9: np.int64, 10: np.bool_}


def read_proto(path):
    graph = __import__("tensorboard.compat.proto.graph_pb2", fromlist=["GraphDef"]).GraphDef()
    graph.ParseFromString(path.read_bytes())
    return graph


def constant(proto):
    shape = [dim.size for dim in proto.tensor_shape.dim]
    dtype = FLOAT_TYPES.get(proto.dtype)
    if dtype is None:
        return None
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = list(proto.float_val) or list(proto.int_val) or list(proto.int64_val) or list(proto.bool_val) or [0]
    return np.resize(np.array(values, dtype), shape) if shape else np.array(values[0], dtype)


class Evaluator:
    """The values of nodes by name, once some have been `fed`."""

    def __init__(self, graph, fed):
        self.nodes = {node.name: node for node in graph.node}
        self.values = dict(fed)

    def __call__(self, name):
        waiting = [name]
        while waiting:
            node = self.nodes[waiting[-1].split(":")[0]]
            if node.name in self.values:
                waiting.pop()
            elif missing := [i for i in data_inputs(node) if i.split(":")[0] not in self.values]:
                waiting += missing
            else:
                self.values[node.name] = self.evaluate(node)
                waiting.pop()
        return self.value(name)

    def value(self, name):
        name, _, output = name.partition(":")
        return self.values[name][int(output)] if output else self.first(self.values[name])

    def first(self, value):
        return value[0] if isinstance(value, list) else value

    def evaluate(self, node):
        inputs = [self.value(name) for name in data_inputs(node)]
        if node.op == "Const":
            return constant(node.attr["value"].tensor)
        return OPERATIONS[node.op](node.attr, *inputs)


def data_inputs(node):
    """Without those that only come before."""
    return [name for name in node.input if not name.startswith("^")]


def convolve(attr, x, kernel, groups=1):
    strides, dilations = list(attr["strides"].list.i), list(attr["dilations"].list.i) or [1, 1, 1, 1]
    x = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)
    if attr["padding"].s == b"SAME":
        pads = []
        for axis in (3, 2):  # columns first, as F.pad wants them
            side, step, rate = kernel.shape[axis - 2], strides[axis - 1], dilations[axis - 1]
            needed = max(0, (-(-x.shape[axis] // step) - 1) * step + (side - 1) * rate + 1 - x.shape[axis])
            pads += [needed // 2, needed - needed // 2]
        x = F.pad(x, pads)
    weight = torch.from_numpy(np.array(kernel))
    weight = weight.permute(3, 2, 0, 1) if groups == 1 else weight.permute(2, 3, 0, 1).flatten(0, 1)[:, None]
    y = F.conv2d(x, weight, None, strides[1:3], 0, dilations[1:3], groups)
    return y.permute(0, 2, 3, 1).numpy()


def pool(attr, x):
    side, step = attr["ksize"].list.i[1], attr["strides"].list.i[1]
    x = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2)
    if attr["padding"].s == b"SAME":
        pads = []
        for axis in (3, 2):
            needed = max(0, (-(-x.shape[axis] // step) - 1) * step + side - x.shape[axis])
            pads += [needed // 2, needed - needed // 2]
        x = F.pad(x, pads, value=-np.inf)
    return F.max_pool2d(x, side, step).permute(0, 2, 3, 1).numpy()


def strided_slice(attr, x, begin, end, strides):
    index = []
    for axis, (start, stop, step) in enumerate(zip(begin, end, strides, strict=True)):
        bit = 1 << axis
        if attr["shrink_axis_mask"].i & bit:
            index.append(int(start))
            continue
        first = None if attr["begin_mask"].i & bit else int(start)
        index.append(slice(first, None if attr["end_mask"].i & bit else int(stop), int(step)))
    return np.asarray(x[tuple(index)])


OPERATIONS = {
    "Identity": lambda attr, x: x,
    "Add": lambda attr, x, y: x + y,
    "Sub": lambda attr, x, y: x - y,
    "Mul": lambda attr, x, y: x * y,
    "RealDiv": lambda attr, x, y: x / y,
    "Minimum": lambda attr, x, y: np.minimum(x, y),
    "Maximum": lambda attr, x, y: np.maximum(x, y),
    "Rsqrt": lambda attr, x: 1 / np.sqrt(x),
    "Sqrt": lambda attr, x: np.sqrt(x),
    "Exp": lambda attr, x: np.exp(x),
    "Sigmoid": lambda attr, x: 1 / (1 + np.exp(-x)),
    "Relu": lambda attr, x: np.maximum(x, 0),
    "Relu6": lambda attr, x: np.clip(x, 0, 6),
    "BiasAdd": lambda attr, x, bias: x + bias,
    "Conv2D": convolve,
    "DepthwiseConv2dNative": lambda attr, x, kernel: convolve(attr, x, kernel, groups=x.shape[-1]),
    "MaxPool": pool,
    "Cast": lambda attr, x: np.asarray(x).astype(FLOAT_TYPES[attr["DstT"].type]),
    "Shape": lambda attr, x: np.array(x.shape, np.int32),
    "Rank": lambda attr, x: np.array(x.ndim, np.int32),
    "Range": lambda attr, start, stop, step: np.arange(start, stop, step),
    "Reshape": lambda attr, x, shape: np.reshape(x, shape),
    "Squeeze": lambda attr, x: np.squeeze(x, tuple(attr["squeeze_dims"].list.i) or None),
    "Fill": lambda attr, shape, value: np.full(shape, value),
    "ExpandDims": lambda attr, x, axis: np.expand_dims(x, int(axis)),
    "Tile": lambda attr, x, counts: np.tile(x, counts),
    "Transpose": lambda attr, x, order: np.transpose(x, order),
    "Pack": lambda attr, *parts: np.stack(parts, attr["axis"].i),
    "Unpack": lambda attr, x: [np.asarray(part) for part in np.moveaxis(x, attr["axis"].i, 0)],
    "ConcatV2": lambda attr, *parts: np.concatenate(parts[:-1], int(parts[-1])),
    "Slice": lambda attr, x, begin, size: x[
        tuple(slice(b, None if n < 0 else b + n) for b, n in zip(begin, size, strict=True))
    ],
    "StridedSlice": strided_slice,
}
