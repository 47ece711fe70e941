"""Pickles of arrays, such as detectron2's `.pkl` files, read by a machine that knows arrays and nothing else.

Python's own unpickler imports what a file names and calls it. Narrowing its choice of names would still hand the file's
bytes to the constructors of numpy and leave the extension registry open, so that unpickler is not used: `pickletools`
takes the file apart, and each of its opcodes acts on a stack of plain values. A name in the file is compared with the
few in `KNOWN_NAMES` and never looked up; "calling" one makes an array or bytes by the code below.
"""

import codecs
import math
import mmap
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, cast

import numpy
from numpy.typing import NDArray

from focaldet.errors import CheckpointError
from focaldet.files import open_plain

PICKLE_DTYPES = tuple(f"{kind}{size}" for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248")) for size in sizes)
"""Admitted types of numbers, `b1` (truth values) beside them: never objects, structures or text."""
MAX_OPCODES = 2_000_000
"""Opcodes of a file, and values of the result with shared ones counted each time; a model has some thousands."""
MAX_DEPTH = 32
"""Levels of nesting; a model's file has three."""
MAX_AXES = 16
MAX_BITS = 64


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that a pickle of arrays needs. It stands for itself: there is nothing behind it to run."""

    text: str


KNOWN_NAMES = {
    **{
        (f"numpy.{core}.{module}", name): _Name(name)
        for core in ("core", "_core")  # before and since numpy 2
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
    ("numpy", "ndarray"): _Name("ndarray"),
    ("numpy", "dtype"): _Name("dtype"),
    ("_codecs", "encode"): _Name("encode"),  # how Python 3 writes bytes for protocol 2
    ("__builtin__", "bytes"): _Name("bytes"),  # and no bytes at all
    ("builtins", "bytes"): _Name("bytes"),
    ("collections", "OrderedDict"): _Name("OrderedDict"),
}
"""What a file may name, by module and exact name."""

LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Opcodes whose argument is the value itself."""
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_MARK = _Name("mark")


class _RefusedPickle(Exception):  # noqa: N818  it never leaves this file
    """What the file asks for is not what an array needs."""


@dataclass(slots=True)
class _Type:
    """A type of numbers; its byte order arrives after it was referred to."""

    code: str
    order: Literal["<", ">", "|", "="] = "="

    def dtype(self) -> numpy.dtype[Any]:
        return numpy.dtype(self.code).newbyteorder(self.order)


@dataclass(slots=True)
class _Array:
    """An array; its content arrives after it was referred to."""

    values: NDArray[Any] | None = None


def read_pickle(path: Path) -> Any:
    """The dictionaries, lists, tuples, strings, bytes, numbers and numpy arrays of a pickle; nothing is ever run.

    Strings of Python 2 are read as latin-1. An array is a copy of its own, in the machine's byte order.

    Raises:
        CheckpointError: missing, damaged, or holding anything else; names the file and what was refused.
    """
    try:
        with open_plain(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            value = _Machine(len(content)).run(_opcodes(content))
            return value if content.tell() == len(content) else _refuse("it goes on after its end")
    except _RefusedPickle as refusal:
        raise CheckpointError(f"{path}: refused: {refusal}; plain arrays by name are allowed") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    # The parser and the stack raise whatever the bytes of a strange file lead them to.
    except Exception:
        raise CheckpointError(f"{path}: refused: damaged, or not a pickle; plain arrays by name are allowed") from None


def _opcodes(content: mmap.mmap) -> Iterator[tuple[str, Any]]:
    """The names of a pickle's opcodes with their arguments; none claims more bytes than the file has."""
    for _ in range(MAX_OPCODES):
        opcode = OPCODES[content.read(1)]
        if opcode.name == "STRING":  # pickletools would take the strings of Python 2 for ASCII
            quoted = content.readline().rstrip(b"\n")
            yield opcode.name, codecs.escape_decode(quoted[1:-1])[0].decode("latin-1")
        else:
            # The readers ask for a file; a memory map has the two methods of one that they call.
            yield opcode.name, opcode.arg and opcode.arg.reader(cast("IO[bytes]", content))
    raise _RefusedPickle(f"it has more than {MAX_OPCODES} parts")


def _refuse(reason: str) -> NoReturn:
    raise _RefusedPickle(reason)


class _Machine:
    """A pickle's stack and memo, filled by the opcodes of plain values and of arrays."""

    def __init__(self, num_bytes: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = 2 * num_bytes  # the bytes themselves, and the arrays that are made of them
        self.items_left = MAX_OPCODES  # of dictionaries that are made of a list, which may be the same again and again

    def run(self, opcodes: Iterator[tuple[str, Any]]) -> Any:
        """The value that the pickle leaves on the stack."""
        for name, argument in opcodes:
            if name == "STOP":
                (value,) = self.stack
                return _resolve_value(value, {}, depth=0)[0]
            if name in LITERALS:
                if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                    _refuse(f"a number of more than {MAX_BITS} bits")
                self.stack.append(argument)
            elif name in ACTIONS:
                ACTIONS[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                _refuse(FORBIDDEN.get(name, f"it uses the opcode {name}"))
        raise EOFError

    def pop(self) -> Any:
        """The topmost value, which no operation takes from below a mark."""
        value = self.stack.pop()
        return value if value is not _MARK else _refuse("damaged: an operand is missing")

    def above_mark(self) -> list[Any]:
        """The values above the last mark, taken from the stack."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def memoize(self, index: int) -> None:
        """Keep the value on top for later."""
        self.memo[index] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        """Put the last `count` values into a tuple."""
        values = tuple(self.pop() for _ in range(count))
        self.stack.append(values[::-1])

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top."""
        if not isinstance(self.stack[-1], list):
            _refuse("it appends to something other than a list")
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        """Set keys and values, in turn, of the dictionary on top."""
        if not isinstance(self.stack[-1], dict):
            _refuse("it sets items of something other than a dictionary")
        self.stack[-1].update(_dictionary(values))

    def push_name(self, module: object, name: object) -> None:
        """Push one of the known names, or refuse it."""
        if not isinstance(module, str) or not isinstance(name, str):
            _refuse("it names something by what is not text")
        if (known := KNOWN_NAMES.get((module, name))) is None:
            readable = re.sub(r"[^\w.]", "?", f"{module}.{name}")[:80]
            _refuse(f"it holds code ({readable}), which is never run")
        self.stack.append(known)

    def reduce(self) -> None:
        """ "Call" a name: make what it stands for."""
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            _refuse("it calls something that is not a name")
        self.stack.append(self.make(name.text, arguments))

    def make(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What `name` makes of `arguments`, in exactly the forms in which arrays are written."""
        match name, arguments:
            case "_reconstruct", (_Name("ndarray"), (0,), "b" | b"b"):
                return _Array()
            case "dtype", (str(code), bool() | 0 | 1, bool() | 0 | 1):
                if code not in (*PICKLE_DTYPES, "b1"):
                    _refuse(f"an array of type {code[:20]!r}; numbers are allowed")
                return _Type(code)
            case "encode", (str(text), "latin1" | "latin-1"):
                self.spend(len(text))
                return text.encode("latin-1")
            case "bytes" | "OrderedDict", ():
                return b"" if name == "bytes" else {}
            case "OrderedDict", ([*pairs],):  # the way of Python 2
                self.items_left -= len(pairs)
                if self.items_left < 0:
                    _refuse(f"more than {MAX_OPCODES} values, the same ones again and again")
                return _dictionary([part for key, value in pairs for part in (key, value)])
            case "scalar", (_Type() as kind, raw):
                return self.array(kind, (), raw, is_fortran=False)[()]
            case "_frombuffer", (raw, _Type() as kind, tuple(shape), "C" | "F" as order):
                return _Array(self.array(kind, shape, raw, is_fortran=order == "F"))
            case "_frombuffer", (raw, _Type() as kind, tuple(shape), "K", tuple(axes)):
                return _Array(self.array(kind, shape, raw, is_fortran=False).transpose(axes))
        _refuse(f"{name} with other arguments than an array's")

    def build(self) -> None:
        """Give a type its byte order, or an array its content; nothing else has a state."""
        state, target = self.pop(), self.stack[-1]
        match target, state:
            case _Type(), (3 | 4, "<" | ">" | "|" | "=" as order, None, None, None, int(), int(), 0):
                target.order = order
            case _Array(values=None), (1, tuple(shape), _Type() as kind, bool() | 0 | 1 as is_fortran, raw):
                target.values = self.array(kind, shape, raw, is_fortran=bool(is_fortran))
            case _:
                _refuse("it sets the state of something other than an array of numbers")

    def array(self, kind: _Type, shape: tuple[Any, ...], raw: object, *, is_fortran: bool) -> NDArray[Any]:
        """The array of exactly these bytes."""
        content = raw.encode("latin-1") if isinstance(raw, str) else raw
        if not isinstance(content, bytes | bytearray):
            _refuse("an array whose content is not bytes")
        if len(shape) > MAX_AXES or not all(type(side) is int and side >= 0 for side in shape):
            _refuse("an array whose shape is not a list of sides")
        dtype = kind.dtype()
        if math.prod(shape) * dtype.itemsize != len(content):
            _refuse(f"an array whose shape asks for more or less than its {len(content)} bytes")
        self.spend(len(content))
        # A truth value has but two states, and any byte may stand in the file.
        stored = numpy.dtype("u1") if kind.code == "b1" else dtype
        values = numpy.ndarray(shape, stored, bytes(content) or None, order="F" if is_fortran else "C")
        return values != 0 if kind.code == "b1" else numpy.array(values, dtype.newbyteorder("="))

    def spend(self, num_bytes: int) -> None:
        """Count what is allocated: bytes that are used again and again may not fill the memory."""
        self.bytes_left -= num_bytes
        if self.bytes_left < 0:
            _refuse("its arrays claim more bytes than the file has")


def _dictionary(values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn; only keys whose hash is plain."""
    keys = values[::2]
    if not all(isinstance(key, str | bytes | int | float | None) for key in keys):
        _refuse("a dictionary whose keys are neither names nor numbers")
    return dict(zip(keys, values[1::2], strict=True))


def _resolve_value(value: Any, done: dict[int, Any], *, depth: int) -> tuple[Any, int, int]:
    """`value` with its arrays filled in, its depth, and its number of values, shared ones counted each time.

    `done` has the results by identity, so that shared values are visited once, and None for what is being visited.
    """
    key = id(value)
    if key not in done:
        done[key] = None
        done[key] = _resolve_parts(value, done, depth=depth)
    if done[key] is None:
        _refuse("a value that holds itself")
    finished, height, count = done[key]
    if depth + height > MAX_DEPTH:
        _refuse(f"more than {MAX_DEPTH} levels of nesting")
    return finished, height, count


def _resolve_parts(value: Any, done: dict[int, Any], *, depth: int) -> tuple[Any, int, int]:
    if depth > MAX_DEPTH:
        _refuse(f"more than {MAX_DEPTH} levels of nesting")
    if isinstance(value, _Array):
        return (value.values if value.values is not None else _refuse("an array without content")), 0, 1
    if isinstance(value, _Name | _Type):
        _refuse("a name or type that belongs to no array")
    if not isinstance(value, dict | list | tuple):
        return value, 0, 1
    parts = [
        _resolve_value(part, done, depth=depth + 1) for part in (value.values() if isinstance(value, dict) else value)
    ]
    count = 1 + sum(part[2] for part in parts)
    if count > MAX_OPCODES:
        _refuse(f"more than {MAX_OPCODES} values, the same ones again and again")
    finished = [part[0] for part in parts]
    whole = dict(zip(value, finished, strict=True)) if isinstance(value, dict) else type(value)(finished)
    return whole, 1 + max((part[1] for part in parts), default=0), count


ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.above_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.above_mark()),
    "DICT": lambda machine, _: machine.stack.append(_dictionary(machine.above_mark())),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.above_mark()),
    "SETITEM": lambda machine, _: machine.update([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.update(machine.above_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.memoize),
    "MEMOIZE": lambda machine, _: machine.memoize(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])),
    "POP": lambda machine, _: machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.above_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "GLOBAL": lambda machine, pair: machine.push_name(*pair.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.push_name(*[machine.pop(), machine.pop()][::-1]),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
"""What each admitted opcode does."""

FORBIDDEN = {
    **dict.fromkeys(("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"), "it makes objects of a class, which would run code"),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "it asks for registered extensions, which are code"),
    **dict.fromkeys(("PERSID", "BINPERSID"), "it refers to objects outside the file"),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), "it refers to memory outside the file"),
    **dict.fromkeys(("EMPTY_SET", "ADDITEMS", "FROZENSET"), "it holds a set"),
}
"""Why the other opcodes are refused."""
