"""Files of `torch.save`, read by torch with `weights_only`, once their pickle was judged.

torch runs no code of a file, but makes what it asks for: memory of any size (`bytearray(n)`, `torch.Tensor(n)`), a
tensor that is larger than its storage, which then grows. So the opcodes of the pickle are gone through first, on a
stack where a tensor is its shape and nothing is made: what it names, and how much the tensors claim.
"""

import argparse
import io
import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import torch

from focaldet.errors import CheckpointError
from focaldet.files import open_plain
from focaldet.weights.formats.archives import CEILING, ZIP_START, allowed_bytes, judge_entries
from focaldet.weights.formats.pickles import OPCODES

OLD_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""How old files of `torch.save` begin: a pickle of a certain number, with others behind it."""
OLD_PICKLES = 5
"""Of an old file: a number, the version, the machine, the content, and the keys of the storages that follow."""
RUN = (".eval", ".exec", ".compile", ".getattr", ".open", ".__import__")
"""Ends of names that run code."""
MOST_PARTS = 5_000_000
"""Opcodes of a file, and members of mappings and lists that are copied."""

BESIDE = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.ndarray", "numpy.dtype"),
)
"""What training checkpoints of mmdetection 3 keep beside the weights: curves of the losses, in arrays."""

ITEM_BYTES = {
    **dict.fromkeys(("ComplexDoubleStorage",), 16),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage"), 1),
}
"""The bytes of a number, by the name of its storage in `torch`."""
TENSORS = {f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2")}
PARAMETERS = {f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
COPIES = {"collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set"}
ODD = {"torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_meta_tensor_no_storage"}
"""Tensors that take no memory; who asked for plain ones says so by name."""
HARMLESS = {"torch.Size", "torch.device", "builtins.complex", "__builtin__.complex", "torch.serialization._get_layout"}
HARMLESS |= {*BESIDE, *ODD}
OBJECTS = {"argparse.Namespace", *BESIDE}
DTYPES = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
NAMES = TENSORS | PARAMETERS | COPIES | HARMLESS | OBJECTS | DTYPES | {f"torch.{name}" for name in ITEM_BYTES}
NAMES |= {"_codecs.encode"}
"""What a file of weights may name."""

VALUES = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"}


class IgnoredObject:
    """Stands for everything in `BESIDE`: nothing is made of what the file says of it."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _RefusedFile(Exception):  # noqa: N818  it never leaves this file
    """What the file asks for is not what weights need."""


@dataclass(slots=True)
class _GlobalName:
    """A name that the file refers to."""

    text: str


@dataclass(slots=True)
class _Storage:
    """A storage of so many numbers."""

    numbers: int
    item_bytes: int


@dataclass(slots=True)
class _Container:
    """A list, mapping or set of so many members."""

    members: int = 0


_TENSOR, _OTHER, _MARK = object(), object(), object()


def read_torch(path: Path) -> object:
    """What `torch.save` wrote: plain values and tensors by name, on the CPU.

    Raises:
        CheckpointError: damaged, or with anything else; names what was refused.
    """
    # argparse.Namespace, a set of plain values, is in the files of torchvision's own training script.
    known: list[Any] = [argparse.Namespace, *((IgnoredObject, name) for name in BESIDE)]
    try:
        judge_file(path)
        with torch.serialization.safe_globals(known), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except _RefusedFile as refusal:
        raise CheckpointError(f"{path}: refused: {refusal}; plain tensors by name are allowed") from None
    # The restricted unpickler raises whatever the bytes of a strange file lead it to.
    except Exception as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds code ({blocked[1]}), which is never run" if blocked else "damaged, or no weights file"
        raise CheckpointError(f"{path}: refused: {reason}; plain tensors by name are allowed") from None


def judge_file(path: Path) -> None:
    """Go through the pickles of a file of `torch.save`, before torch reads it.

    Raises:
        CheckpointError, _RefusedFile: see `read_torch`.
    """
    allowed = allowed_bytes(path)
    with open_plain(path) as file:
        if file.read(len(ZIP_START)) != ZIP_START:  # as torch tells them apart
            file.seek(0)
            for _ in range(OLD_PICKLES):
                _Judge(None, allowed).run(_read_opcodes(file))
            return
    with zipfile.ZipFile(path) as archive:
        entries = judge_entries(archive, path)
        pickles = [name for name in entries if name.casefold().rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            _refuse_file("damaged, or no weights file")
        prefix = pickles[0].removesuffix("data.pkl") + "data/"
        sizes = {name.removeprefix(prefix): e.file_size for name, e in entries.items() if name.startswith(prefix)}
        with archive.open(pickles[0]) as file:
            _Judge(sizes, allowed).run(_read_opcodes(cast("io.BufferedIOBase", file)))


def _read_opcodes(file: io.BufferedIOBase) -> Iterator[tuple[str, Any]]:
    """The names of a pickle's opcodes with their arguments, up to its end."""
    for _ in range(MOST_PARTS):
        opcode = OPCODES.get(file.read(1)) or _refuse_file("damaged, or no weights file")
        argument = opcode.arg and opcode.arg.reader(cast("IO[bytes]", file))
        yield opcode.name, argument
        if opcode.name == "STOP":
            return
    _refuse_file(f"it has more than {MOST_PARTS:,} parts")


def _refuse_file(reason: str) -> NoReturn:
    raise _RefusedFile(reason)


class _Judge:
    """A stack as torch's unpickler has it, of claims instead of values.

    `sizes` are the bytes of the storages by key; None for an old file, which has them behind its pickles. `allowed` is
    how many bytes all tensors may claim together.
    """

    def __init__(self, sizes: dict[str, int] | None, allowed: int) -> None:
        self.sizes, self.allowed, self.parts = sizes, allowed, MOST_PARTS
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.stored: dict[str, int] = {}
        self.claimed = 0

    def run(self, opcodes: Iterator[tuple[str, Any]]) -> None:
        """Go through a whole pickle."""
        for name, argument in opcodes:
            if name in VALUES:
                self.stack.append(argument)
            elif name == "GLOBAL":
                self.push_name(argument)
            elif (act := getattr(self, f"on_{name.lower()}", None)) is not None:
                act(argument)
            elif name not in ("PROTO", "STOP"):
                _refuse_file(f"it uses the opcode {name}")

    def push_name(self, pair: str) -> None:
        name = pair.replace(" ", ".", 1)
        if name not in NAMES:
            readable = re.sub(r"[^\w.]", "?", name)[:80]
            if name.startswith(("torch.", "builtins.", "__builtin__.")) and not name.endswith(RUN):
                _refuse_file(f"it asks for something other than plain tensors ({readable})")
            _refuse_file(f"it holds code ({readable}), which is never run")
        self.stack.append(_GlobalName(name))

    def above_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def copy(self, values: object) -> None:
        """Count what is copied: the same mapping may be, again and again."""
        for value in values if isinstance(values, tuple) else (values,):
            self.parts -= value.members if isinstance(value, _Container) else 1
            if isinstance(value, str | bytes):
                self.parts -= len(value)
        if self.parts < 0:
            _refuse_file(f"more than {MOST_PARTS:,} values, the same ones again and again")

    def on_reduce(self, _: object) -> None:
        """A call: of what makes tensors, or of something small."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _GlobalName) or not isinstance(arguments, tuple):
            _refuse_file("it calls something that is not a name")
        self.copy(arguments)
        if function.text in TENSORS:
            self.claim(*arguments[:4])
            self.stack.append(_TENSOR)
        elif function.text in PARAMETERS and arguments[:1] == (_TENSOR,):
            self.stack.append(_TENSOR)
        elif function.text in COPIES:
            self.stack.append(_Container(sum(value.members for value in arguments if isinstance(value, _Container))))
        elif function.text == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
            self.stack.append(arguments[0])
        elif function.text in HARMLESS | {"_codecs.encode"}:
            self.stack.append(_OTHER)
        else:
            _refuse_file(f"it calls {function.text} with what that does not take")

    def claim(self, storage: Any, offset: Any = 0, size: Any = (), stride: Any = ()) -> None:
        """Make sure that a tensor lies within its storage, and that its numbers are there and not one repeated."""
        sides = (*size, *stride, offset) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
        if not isinstance(storage, _Storage) or not all(type(side) is int and side >= 0 for side in sides):
            _refuse_file("a tensor whose shape is not a list of sides, or that has no storage")
        numbers = math.prod(size)
        end = offset + 1 + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if numbers else 0
        if end > storage.numbers or numbers > storage.numbers:
            _refuse_file(f"a tensor of {numbers:,} numbers, of which only {storage.numbers:,} are in the file")
        self.claimed += numbers * storage.item_bytes
        if self.claimed > self.allowed:
            _refuse_file(f"its tensors claim more than {CEILING} times the size of the file")

    def on_binpersid(self, _: object) -> None:
        """A storage: "storage", its type, its key, where it was, its numbers, and for old files a part of it."""
        match self.stack.pop():
            case ("storage" | b"storage", _GlobalName() as kind, str() | bytes() as key, _, int() as numbers, *view):
                item_bytes = ITEM_BYTES.get(kind.text.removeprefix("torch."), 0)
            case _:
                _refuse_file("it refers to something outside the file")
        text = key if isinstance(key, str) else key.decode("latin-1")
        if not item_bytes or numbers < 0:
            _refuse_file("a storage of an unknown kind")
        there = self.sizes.get(text, 0) if self.sizes is not None else self.allowed - sum(self.stored.values())
        if numbers * item_bytes > there + self.stored.get(text, 0) * (self.sizes is None):
            _refuse_file(f"a storage that claims {numbers * item_bytes:,} bytes, which are not in the file")
        self.stored[text] = max(numbers * item_bytes, self.stored.get(text, 0))
        match view:
            case [] | [None]:
                pass
            case [(_, int() as offset, int() as part)] if offset >= 0 and part >= 0 and offset + part <= numbers:
                numbers = part
            case _:
                _refuse_file("a part of a storage that is not within it")
        self.stack.append(_Storage(numbers, item_bytes))

    def on_newobj(self, _: object) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _GlobalName) or kind.text not in OBJECTS:
            _refuse_file("it makes an object of a class")
        self.copy(arguments)
        self.stack.append(_OTHER)

    def on_build(self, _: object) -> None:
        """The state of an object; a tensor takes none, it would get another storage."""
        state = self.stack.pop()
        if self.stack[-1] is _TENSOR:
            _refuse_file("it changes a tensor after it was made")
        self.copy(state)

    def on_append(self, _: object) -> None:
        self.stack.pop()
        self.grow(1)

    def on_appends(self, _: object) -> None:
        self.grow(len(self.above_mark()))

    def on_setitem(self, _: object) -> None:
        del self.stack[-2:]
        self.grow(1)

    def on_setitems(self, _: object) -> None:
        self.grow(len(self.above_mark()) // 2)

    def grow(self, members: int) -> None:
        if not isinstance(self.stack[-1], _Container):
            _refuse_file("it adds to something that is not a list or mapping")
        self.stack[-1].members += members

    def on_mark(self, _: object) -> None:
        self.stack.append(_MARK)

    def on_tuple(self, _: object) -> None:
        self.stack.append(tuple(self.above_mark()))

    def on_tuple1(self, _: object) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def on_tuple2(self, _: object) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def on_tuple3(self, _: object) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def on_empty_tuple(self, _: object) -> None:
        self.stack.append(())

    def on_empty_list(self, _: object) -> None:
        self.stack.append(_Container())

    on_empty_dict = on_empty_set = on_empty_list

    def on_none(self, _: object) -> None:
        self.stack.append(None)

    def on_newtrue(self, _: object) -> None:
        self.stack.append(True)

    def on_newfalse(self, _: object) -> None:
        self.stack.append(False)

    def on_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def on_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    on_long_binget, on_long_binput = on_binget, on_binput
