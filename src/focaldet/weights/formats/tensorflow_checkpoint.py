"""TensorFlow's checkpoints of its format 2 as named tensors: `NAME.index`, with `NAME.data-00000-of-00001` beside it.

The index is a sorted table of LevelDB (blocks of keys that share their beginnings, a block of handles, a footer with a
magic number), whose values are BundleEntryProtos: type, shape, shard, offset and size of each tensor. Not read are
blocks compressed by Snappy, variables in several parts, big-endian files, and checkpoints of format 1; checksums are
not compared. Sizes are judged before anything is allocated, and all tensors have at most the bytes of the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from focaldet.errors import CheckpointError
from focaldet.files import open_plain, read_bytes
from focaldet.weights.formats.protobuf import bytes_value, int_value, read_fields, read_varint
from focaldet.weights.formats.tensorflow_graph import (
    FLOATS,
    MOST_NAME_BYTES,
    MOST_TENSORS,
    make_tensor,
    read_shape,
)

TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER_BYTES, HANDLES_BYTES = 48, 40
COMPRESSIONS = {1: "Snappy", 2: "zlib"}
NUMBERS = FLOATS | {3: torch.int32, 9: torch.int64}
TEXT_KINDS = (7, 21)  # strings and variants: what TensorFlow 2 says of its objects
MOST_SHARDS = 1000
ENTRY_DTYPE, ENTRY_SHAPE, ENTRY_SHARD, ENTRY_OFFSET, ENTRY_SIZE, ENTRY_PARTS = 1, 2, 3, 4, 5, 7

Handle = tuple[int, int]
"""Where a block of the index begins, and how long it is."""


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file of data and its size in bytes."""

    path: Path
    size: int


def is_checkpoint_index(path: Path) -> bool:
    """True for a file that ends as LevelDB's tables do."""
    with open_plain(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(TABLE_MAGIC)))
        return size >= FOOTER_BYTES and file.read() == TABLE_MAGIC


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of numbers of the checkpoint whose index is `path`, by name; text is left out.

    Raises:
        CheckpointError: damaged, of a kind that is not read, or data that are missing or too short.
    """
    try:
        entries = dict(_read_table(memoryview(read_bytes(path))))
        shards = _find_shards(path, entries.pop(b"", memoryview(b"")))
        left = sum(shard.size for shard in shards)
        tensors: dict[str, Tensor] = {}
        for key, entry in entries.items():
            name = _decode_key(key)
            try:
                tensor = _read_entry(entry, shards, left)
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {error}") from None
            if tensor is not None:
                left -= tensor.nbytes
                tensors[name] = tensor
        return tensors
    except CheckpointError as error:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint that is read: {error}") from None


def _read_table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The keys and values of all blocks."""
    handles = data[-FOOTER_BYTES : HANDLES_BYTES - FOOTER_BYTES]
    _, position = _read_handle(handles, 0)  # of the block about blocks, which has nothing in it
    handle, _ = _read_handle(handles, position)
    previous, count = b"", 0
    for _, value in _read_block(data, handle):
        for key, entry in _read_block(data, _read_handle(value, 0)[0]):
            count += 1
            if key <= previous and count > 1:
                raise CheckpointError("its names are not in order")
            if count > MOST_TENSORS:
                raise CheckpointError(f"more than {MOST_TENSORS} tensors")
            previous = key
            yield key, entry


def _read_handle(data: memoryview, position: int) -> tuple[Handle, int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _read_block(data: memoryview, handle: Handle) -> Iterator[tuple[bytes, memoryview]]:
    """The keys and values of one block; a key begins as the one before it, which the block says to how many bytes."""
    offset, size = handle
    if size < 4 or offset + size >= len(data):
        raise CheckpointError(f"a block of {size} bytes at {offset} is not within the {len(data)} of the index")
    if kind := data[offset + size]:
        raise CheckpointError(f"its index is compressed ({COMPRESSIONS.get(kind, kind)}), which is not read")
    block = data[offset : offset + size]
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise CheckpointError(f"a block of {size} bytes claims {restarts} restarts")
    key, position = b"", 0
    while position < end:
        shared, position = read_varint(block, position)
        more, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if shared > len(key) or shared + more > MOST_NAME_BYTES or position + more + length > end:
            raise CheckpointError("a name or its entry is longer than its block")
        key = key[:shared] + bytes(block[position : position + more])
        position += more
        yield key, block[position : position + length]
        position += length


def _decode_key(key: bytes) -> str:
    name = key.decode(errors="replace")
    if not name.isprintable():
        raise CheckpointError(f"a name has control characters: {name[:40]!r}")
    return name


def _find_shards(path: Path, header: memoryview) -> list[_Shard]:
    """The files of data that the header counts."""
    fields = dict(read_fields(header))
    count, endianness = (int_value(fields.get(number, 0)) for number in (1, 2))
    if endianness:
        raise CheckpointError("it is big-endian, which is not read")
    if not 1 <= count <= MOST_SHARDS:
        raise CheckpointError(f"it has {count} files of data, must be 1 to {MOST_SHARDS}")
    stem = path.name.removesuffix(".index")
    files = [path.with_name(f"{stem}.data-{number:05d}-of-{count:05d}") for number in range(count)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{missing[0]}, which must lie beside it, is missing")
    return [_Shard(file, file.stat().st_size) for file in files]


def _read_entry(entry: memoryview, shards: list[_Shard], left: int) -> Tensor | None:
    """The tensor of an entry; None for text. `left` is how many bytes of the data no tensor has taken yet."""
    fields = dict(read_fields(entry))
    kind, shard, offset, size = (
        int_value(fields.get(number, 0)) for number in (ENTRY_DTYPE, ENTRY_SHARD, ENTRY_OFFSET, ENTRY_SIZE)
    )
    if kind in TEXT_KINDS:
        return None
    if ENTRY_PARTS in fields:
        raise CheckpointError("a variable in several parts, which is not read")
    if kind not in NUMBERS:
        raise CheckpointError(f"numbers of TensorFlow's type {kind}, which is not read")
    if not 0 <= shard < len(shards):
        raise CheckpointError(f"it is in file {shard} of {len(shards)}")
    if min(offset, size) < 0 or offset + size > shards[shard].size or size > left:
        raise CheckpointError(f"{size} bytes at {offset} are not within the {shards[shard].size} of the data")
    shape = read_shape(bytes_value(fields.get(ENTRY_SHAPE, memoryview(b""))))
    try:
        with open_plain(shards[shard].path) as file:
            file.seek(offset)
            content = bytearray(file.read(size))
    except OSError as error:
        raise CheckpointError(f"{shards[shard].path.name} cannot be read: {error.strerror}") from None
    return make_tensor(content, shape, NUMBERS[kind])
