"""Writers of TensorFlow's files for tests, and the variables of its two published networks.

`tensorflow_ssd_mobilenet_v2.txt` and `tensorflow_faster_rcnn_inception_resnet_v2_atrous.txt` have the names and shapes
of all variables, as the released code makes them for ssd_mobilenet_v2_coco and
faster_rcnn_inception_resnet_v2_atrous_coco (tensorflow/models at 332061a: slim/nets, object_detection/models and
meta_architectures): 90 classes.
"""

import re

import numpy as np

from tests.weights.formats.peer_oracle import tensor_shapes

SSD = "tensorflow_ssd_mobilenet_v2"
GRMI = "tensorflow_faster_rcnn_inception_resnet_v2_atrous"
THIN = 4


def grmi_shapes(*, thin):
    """Name → shape; thin with a quarter of the channels inside and few repeated blocks."""
    shapes = tensor_shapes(GRMI)
    return {name: _thin_shape(name, shape) for name, shape in shapes.items() if not _is_extra(name)} if thin else shapes


def _is_extra(name):
    match = re.search(r"block(35|17|8)_(\d+)/", name)
    return match is not None and int(match[2]) > {"35": 1, "17": 2, "8": 1}[match[1]]


def _thin_shape(name, shape):
    if name.startswith(("FirstStageBoxPredictor", "SecondStageBoxPredictor")):
        return (*shape[:-2], shape[-2] // THIN, shape[-1]) if len(shape) > 1 else shape
    return tuple(_thin(side) if index >= len(shape) - 2 and side > 7 else side for index, side in enumerate(shape))


def _thin(width):
    return max(1, int(width / THIN / 8 + 0.5)) * 8


def write_graph(path, tensors, *, stride=1, epsilon=0.001, more=()):
    """A frozen graph with these constants, one convolution and one normalization; `more` are (name, operation)."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = GraphDef()
    graph.node.add(name="image_tensor", op="Placeholder")
    for name, array in tensors.items():
        add_constant(graph, name, np.asarray(array, np.float32))
    scope = "FirstStageFeatureExtractor/InceptionResnetV2/InceptionResnetV2/Mixed_6a/Branch_0/Conv2d_1a_3x3"
    conv = graph.node.add(name=f"{scope}/Conv2D", op="Conv2D", input=["image_tensor"])
    conv.attr["strides"].list.i.extend([1, stride, stride, 1])
    if epsilon is not None:
        norm = graph.node.add(name=f"{scope}/BatchNorm/FusedBatchNorm", op="FusedBatchNorm")
        norm.attr["epsilon"].f = epsilon
    for name, operation in more:
        graph.node.add(name=name, op=operation)
    path.write_bytes(graph.SerializeToString())
    return path


def add_constant(graph, name, array):
    node = graph.node.add(name=name, op="Const")
    proto = node.attr["value"].tensor
    proto.dtype = {"float32": 1, "float64": 2, "int32": 3, "float16": 19}[array.dtype.name]
    for side in array.shape:
        proto.tensor_shape.dim.add(size=side)
    proto.tensor_content = array.tobytes()
    return proto


# --- checkpoints: a table of LevelDB, and the data beside it


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(*fields):
    """A protobuf message of (number, integer or bytes)."""
    parts = (
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )
    return b"".join(parts)


def block(entries, *, compression=0):
    """A block of sorted keys and values, each key without what it shares with the one before; then its trailer."""
    out, previous, restarts = b"", b"", []
    for index, (key, value) in enumerate(entries):
        shared = 0
        if index % 16 == 0:
            restarts.append(len(out))
        else:
            shared = next(
                (i for i, (a, b) in enumerate(zip(key, previous, strict=False)) if a != b), min(len(key), len(previous))
            )
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    restarts = restarts or [0]
    return (
        out + b"".join(r.to_bytes(4, "little") for r in [*restarts, len(restarts)]) + bytes([compression, 0, 0, 0, 0])
    )


def write_checkpoint(prefix, tensors, *, block_size=40, entry=lambda name, fields: fields, endian=0, compression=0):
    """NAME.index and NAME.data-00000-of-00001 with these arrays; `entry` may spoil the fields of one."""
    data, entries = b"", [(b"", message((1, 1), (2, endian), (3, message((1, 1)))))]
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        shape = message(*((2, message((1, side))) for side in array.shape))
        kind = {"float32": 1, "int64": 9}[array.dtype.name]
        fields = [(1, kind), (2, shape), (4, len(data)), (5, array.nbytes)]
        entries.append((name.encode(), message(*entry(name, fields))))
        data += array.tobytes()
    out, handles = b"", []
    for start in range(0, len(entries), block_size):
        part = entries[start : start + block_size]
        body = block(part, compression=compression)
        handles.append((part[-1][0], varint(len(out)) + varint(len(body) - 5)))
        out += body
    places = []
    for body in (block([]), block(handles)):
        places.append(varint(len(out)) + varint(len(body) - 5))
        out += body
    footer = b"".join(places).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    index = prefix.with_name(f"{prefix.name}.index")
    index.write_bytes(out + footer)
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    return index
