"""The wire format of protocol buffers, taken apart without a schema: numbers of fields and their bytes.

Nothing is allocated by what the bytes claim: a field is a slice of the bytes that are there, or an error. Groups, which
no file since 2008 has, are not read. https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator

from focaldet.errors import CheckpointError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
LONGEST_VARINT = 10
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
WireField = tuple[int, int | memoryview]
"""The number of a field; the value of a varint, or the bytes of anything else."""


def read_varint(data: memoryview, start: int) -> tuple[int, int]:
    """An unsigned number of 7 bits a byte, and where it ends.

    Raises:
        CheckpointError: it does not end within the data and within 10 bytes.
    """
    value = 0
    for position, byte in enumerate(data[start : start + LONGEST_VARINT]):
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value & (2**64 - 1), start + position + 1
    raise CheckpointError("a number does not end")


def read_fields(data: memoryview) -> Iterator[WireField]:
    """The fields of a message in their order.

    Raises:
        CheckpointError: a field is longer than the message, or of a kind that does not exist.
    """
    position = 0
    while position < len(data):
        key, position = read_varint(data, position)
        kind = key & 7
        if kind == VARINT:
            value, position = read_varint(data, position)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, position = read_varint(data, position)
        elif kind in FIXED_SIZES:
            size = FIXED_SIZES[kind]
        else:
            raise CheckpointError(f"field {key >> 3} is of kind {kind}, which does not exist")
        if size > len(data) - position:
            raise CheckpointError(f"field {key >> 3} claims {size} bytes where {len(data) - position} are left")
        yield key >> 3, data[position : position + size]
        position += size


def bytes_value(value: int | memoryview) -> memoryview:
    """The bytes of a field.

    Raises:
        CheckpointError: it is a number.
    """
    if isinstance(value, int):
        raise CheckpointError("a number stands where text or a message should")
    return value


def int_value(value: int | memoryview) -> int:
    """The number of a field of int64.

    Raises:
        CheckpointError: it is not a varint.
    """
    if not isinstance(value, int):
        raise CheckpointError("text or a message stands where a number should")
    return value - 2**64 if value >= 2**63 else value


def text_value(value: int | memoryview) -> str:
    """The text of a field.

    Raises:
        CheckpointError: it is not UTF-8 or has control characters.
    """
    try:
        text = bytes(bytes_value(value)).decode()
    except UnicodeDecodeError:
        raise CheckpointError("text is not UTF-8") from None
    if not text.isprintable():
        raise CheckpointError(f"a name has control characters: {text[:40]!r}")
    return text
