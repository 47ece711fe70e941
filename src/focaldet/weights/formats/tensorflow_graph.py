"""TensorFlow's frozen graphs (GraphDef, `.pb`) as named tensors, read without TensorFlow.

What a frozen graph calls Const is a tensor: those of floating-point numbers are read under the names of their nodes, in
TensorFlow's layout. Of the other nodes two facts are kept that weights depend on, ε of a batch normalization and the
strides of a convolution. Sizes are judged before anything is allocated: a tensor has the bytes that are there, and
those that repeat one number have at most as many bytes together as the file.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.files import read_bytes, to_json_text
from focaldet.weights.formats.protobuf import bytes_value, int_value, read_fields, read_varint, text_value

FLOATS = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
"""DataType of TensorFlow and torch; integers, truth values and text of a graph are arguments of its operations."""
VALUE_FIELDS = {1: 5, 2: 6}
"""The fields float_val and double_val, where a TensorProto has its numbers one by one."""
MOST_NODES, MOST_TENSORS, MOST_AXES, MOST_NAME_BYTES = 200_000, 20_000, 8, 1024
"""The published detectors have some ten thousand nodes and a thousand tensors."""
MOST_NUMBERS = 2**40
SPARE_BYTES = 2**20
"""What tensors that repeat one number may have beside the size of the file."""
CONVOLUTIONS = (b"Conv2D", b"DepthwiseConv2dNative")
NORMALIZATIONS = (b"FusedBatchNorm", b"FusedBatchNormV2", b"FusedBatchNormV3")

NODE, NAME, OPERATION, ATTRIBUTE = 1, 1, 2, 5
KEY, VALUE = 1, 2
LIST, FLOAT, TENSOR = 1, 4, 8
DTYPE, SHAPE, CONTENT = 1, 2, 4


@dataclass(slots=True)
class _Graph:
    """What is read of a graph; `spare` is how many bytes tensors that repeat one number may still have."""

    spare: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    strides: dict[str, int] = field(default_factory=dict)
    epsilons: set[float] = field(default_factory=set)


def is_graph(start: bytes) -> bool:
    """True for how a GraphDef begins: with a node, which begins with its name."""
    if start[:1] != b"\x0a":
        return False
    try:
        _, position = read_varint(memoryview(start), 1)
    except CheckpointError:
        return False
    return start[position : position + 1] == b"\x0a"


def read_graph(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a frozen graph by the names of their nodes, and what the graph states.

    Its `graph` is a mapping in JSON: `strides` of the convolutions by their names, `epsilons` of batch normalization.

    Raises:
        CheckpointError: damaged, a tensor that is larger than its bytes, or variables that are not frozen.
    """
    try:
        content = read_bytes(path)
        graph = _Graph(spare=len(content) + SPARE_BYTES)
        _read_nodes(memoryview(content), graph)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: damaged, or not a frozen graph of TensorFlow: {error}") from None
    stated = {"strides": graph.strides, "epsilons": sorted(graph.epsilons)}
    return graph.tensors, {"graph": to_json_text(stated)}


def _read_nodes(data: memoryview, graph: _Graph) -> None:
    count = 0
    for number, value in read_fields(data):
        if number != NODE:
            continue
        count += 1
        if count > MOST_NODES:
            raise CheckpointError(f"more than {MOST_NODES} nodes")
        _read_node(bytes_value(value), graph)


def _read_node(node: memoryview, graph: _Graph) -> None:
    name, operation = "", b""
    for number, value in read_fields(node):
        if number == NAME:
            name = _read_name(value)
        elif number == OPERATION:
            operation = bytes(bytes_value(value)[:MOST_NAME_BYTES])
    if not name:
        raise CheckpointError("a node without a name")
    try:
        if operation == b"Const":
            _read_constant(name, node, graph)
        elif operation in CONVOLUTIONS and (steps := _attribute(node, b"strides", LIST)) is not None:
            graph.strides[name] = max(_read_integers(bytes_value(steps)), default=1)
        elif operation in NORMALIZATIONS and (epsilon := _attribute(node, b"epsilon", FLOAT)) is not None:
            graph.epsilons.add(_read_float(bytes_value(epsilon)))
        elif operation in (b"VariableV2", b"VarHandleOp", b"Variable"):
            raise CheckpointError("its weights are not in it (a graph that is not frozen)")
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    if max(len(graph.strides), len(graph.tensors), len(graph.epsilons)) > MOST_TENSORS:
        raise CheckpointError(f"more than {MOST_TENSORS} tensors or convolutions")


def _read_name(value: int | memoryview) -> str:
    if len(bytes_value(value)) > MOST_NAME_BYTES:
        raise CheckpointError(f"a name has more than {MOST_NAME_BYTES} bytes")
    return text_value(value)


def _attribute(node: memoryview, key: bytes, kind: int) -> int | memoryview | None:
    """The value of a node's attribute where it is of this kind (a field of AttrValue)."""
    for number, value in read_fields(node):
        if number == ATTRIBUTE:
            entry = dict(read_fields(bytes_value(value)))
            if KEY in entry and bytes_value(entry[KEY]) == key:
                return dict(read_fields(bytes_value(entry.get(VALUE, memoryview(b""))))).get(kind)
    return None


def _read_integers(data: memoryview) -> Iterator[int]:
    """The integers of a ListValue, packed or one by one."""
    for number, value in read_fields(data):
        if number == 3 and isinstance(value, int):
            yield value
        elif number == 3:
            position = 0
            while position < len(bytes_value(value)):
                item, position = read_varint(bytes_value(value), position)
                yield item


def _read_float(data: memoryview) -> float:
    # Six digits: .001 is kept as .0010000000474974513.
    return float(f"{torch.frombuffer(bytearray(data), dtype=torch.float32).item():.6g}") if len(data) == 4 else math.nan


def _read_constant(name: str, node: memoryview, graph: _Graph) -> None:
    proto = _attribute(node, b"value", TENSOR)
    if proto is None:
        raise CheckpointError("a constant without a value")
    tensor = bytes_value(proto)
    fields = dict(item for item in read_fields(tensor) if item[0] in (DTYPE, SHAPE, CONTENT))
    kind = int_value(fields.get(DTYPE, 0))
    if kind not in FLOATS:
        return
    if name in graph.tensors:
        raise CheckpointError("two nodes have this name")
    shape = read_shape(bytes_value(fields.get(SHAPE, memoryview(b""))))
    size = math.prod(shape) * FLOATS[kind].itemsize
    content = bytes_value(fields.get(CONTENT, memoryview(b"")))
    numbers = content or _repeat_values(tensor, kind, size, graph)
    graph.tensors[name] = make_tensor(numbers, shape, FLOATS[kind])


def read_shape(data: memoryview) -> tuple[int, ...]:
    """The sides that a TensorShapeProto states.

    Raises:
        CheckpointError: more than 8 of them, a product that no file has, or one that is negative, which means unknown.
    """
    sides = []
    for number, value in read_fields(data):
        if number == 2:
            sides.append(int_value(dict(read_fields(bytes_value(value))).get(1, 0)))
        if len(sides) > MOST_AXES:
            raise CheckpointError(f"a tensor of more than {MOST_AXES} axes")
    if any(side < 0 for side in sides) or math.prod(max(side, 1) for side in sides) > MOST_NUMBERS:
        raise CheckpointError(f"a tensor of shape {tuple(sides)}")
    return tuple(sides)


def make_tensor(content: memoryview | bytearray, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of these bytes; those of a file are copied.

    Raises:
        CheckpointError: it has other bytes than its shape needs.
    """
    size = math.prod(shape) * dtype.itemsize
    if size != len(content):
        raise CheckpointError(f"a tensor of shape {shape} has {size} bytes, {len(content)} are there")
    owned = content if isinstance(content, bytearray) else bytearray(content)
    return torch.frombuffer(owned, dtype=dtype).reshape(shape) if size else torch.zeros(shape, dtype=dtype)


def _repeat_values(tensor: memoryview, kind: int, size: int, graph: _Graph) -> bytearray:
    """The `size` bytes of a tensor that has its numbers one by one: the last stands for all that are missing."""
    if size > graph.spare:
        raise CheckpointError(f"a tensor of {size} bytes has none in the file, which is too small for that")
    graph.spare -= size
    values = bytearray()
    for number, value in read_fields(tensor):
        if number == VALUE_FIELDS.get(kind):
            values += bytes_value(value)
        elif number == 13:
            raise CheckpointError("its 16-bit numbers are kept one by one, which is not read")
    item = FLOATS[kind].itemsize
    if len(values) > size or len(values) % item:
        raise CheckpointError(f"{len(values)} bytes of numbers in a tensor of {size} bytes")
    last = values[-item:] or bytearray(item)
    return values + last * ((size - len(values)) // item)
