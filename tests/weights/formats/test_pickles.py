"""Pickles of arrays are read, and nothing in any pickle is ever run."""

import builtins
import collections
import copyreg
import importlib
import os
import pickle
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from focaldet.cli import main
from focaldet.errors import CheckpointError
from focaldet.weights.formats import pickles
from focaldet.weights.formats.files import read_tensors
from focaldet.weights.formats.pickles import read_pickle

FLOATS = numpy.arange(24, dtype="f4").reshape(2, 3, 4)
ARRAYS = {
    "plain": FLOATS,
    "fortran": numpy.asfortranarray(FLOATS),
    "transposed": FLOATS.transpose(2, 0, 1),
    "strided": FLOATS[:, ::2],
    "other byte order": FLOATS.astype(">f4"),
    "half": FLOATS.astype("f2"),
    "counter": numpy.array(7),
    "bytes of every value": numpy.arange(-128, 128).astype("i1"),
    "truth": numpy.array([[True], [False]]),
    "empty": numpy.zeros((0, 3)),
}


def dump(content: object, path: Path, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_numbers_and_names_come_back(tmp_path: Path, protocol: int) -> None:
    beside = {"iteration": 89_999, "scale": 1.5, "none": None, "names": ["é", ("b", b"\xff\x00", b"")], "long": 1 << 40}
    content = {"model": collections.OrderedDict(ARRAYS), "again": FLOATS, "scalar": numpy.float32(2.5), **beside}
    result = read_pickle(dump(content, tmp_path / "w.pkl", protocol))
    assert {name: result[name] for name in beside} == beside
    assert result["scalar"] == 2.5
    assert list(result["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        read = result["model"][name]
        assert numpy.array_equal(read, array) and read.dtype == array.dtype.newbyteorder("="), name
        assert read.flags.writeable
    assert result["again"] is result["model"]["plain"], "what was one array stays one"


def python_2(name: bytes, raw: bytes, *, protocol: int) -> bytes:
    """`{"blobs": {name: <f4 array of one axis>}}` as cPickle of Python 2 wrote it: every string one of bytes."""

    def text(content: bytes) -> bytes:
        if protocol:
            return b"T" + struct.pack("<i", len(content)) + content
        return b"S'" + b"".join(b"\\x%02x" % byte for byte in content) + b"'\n"

    function = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + text(b"b") + b"tR"
    kind = b"cnumpy\ndtype\n(" + text(b"f4") + b"I0\nI1\ntR(I3\n" + text(b"<") + b"NNNI-1\nI-1\nI0\ntb"
    array = function + b"(I1\n(I" + str(len(raw) // 4).encode() + b"\nt" + kind + b"I00\n" + text(raw) + b"tb"
    start = b"\x80\x02" if protocol else b""
    return start + b"(d" + text(b"blobs") + b"(d" + text(name) + array + b"ss."


@pytest.mark.parametrize("protocol", [0, 2])
def test_strings_of_python_2_are_latin_1(tmp_path: Path, protocol: int) -> None:
    values = numpy.array([-1.5, 3e38, 1e-40, 0.1], dtype="<f4")
    (tmp_path / "w.pkl").write_bytes(python_2(b"conv\xe9_w", values.tobytes(), protocol=protocol))
    assert numpy.array_equal(read_pickle(tmp_path / "w.pkl")["blobs"]["convé_w"], values)
    assert torch.equal(read_tensors(tmp_path / "w.pkl").tensors["convé_w"], torch.from_numpy(values))


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_files_of_detectron2_and_detectron(tmp_path: Path, protocol: int) -> None:
    content: dict[str, Any] = {"model": ARRAYS, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    file = read_tensors(dump(content, tmp_path / "any name", protocol))
    assert list(file.tensors) == list(ARRAYS)
    assert all(numpy.array_equal(file.tensors[name].numpy(), array) for name, array in ARRAYS.items())
    assert file.tensors["counter"].dtype == torch.int64
    assert file.statements == {"__author__": "Detectron2 Model Zoo", "matching_heuristics": "True"}
    blobs = {"conv1_w": FLOATS, "conv1_w_momentum": FLOATS, "fc_b": FLOATS[0, 0]}
    for detectron in ({"blobs": blobs, "cfg": "MODEL: {}"}, blobs):
        file = read_tensors(dump(detectron, tmp_path / "w.pkl", protocol))
        assert (list(file.tensors), file.statements) == (["conv1_w", "fc_b"], {})


# --- what must never run: pickles that make the folder `trace` when Python's own unpickler reads them


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Never used; pickle takes only what can be called for a function."""


def text(content: object) -> bytes:
    return b"X" + struct.pack("<I", len(raw := str(content).encode())) + raw


def wait_for(command: list[str]) -> Any:
    return Calls(subprocess.Popen.wait, Calls(subprocess.Popen, command))


MKDIR = b"cposix\nmkdir\n"
DANGEROUS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda trace: pickle.dumps(Calls(os.system, f"mkdir {trace}"), 2),
    "os.system of protocol 0": lambda trace: pickle.dumps(Calls(os.system, f"mkdir {trace}"), 0),
    "os.system of protocol 5": lambda trace: pickle.dumps(Calls(os.system, f"mkdir {trace}"), 5),
    "eval": lambda trace: pickle.dumps(Calls(builtins.eval, f"__import__('os').mkdir({str(trace)!r})"), 2),
    "exec": lambda trace: pickle.dumps(Calls(builtins.exec, f"import os; os.mkdir({str(trace)!r})"), 4),
    "subprocess": lambda trace: pickle.dumps(wait_for(["mkdir", str(trace)]), 4),
    "getattr of a module": lambda trace: pickle.dumps(
        Calls(Calls(getattr, Calls(importlib.import_module, "os"), "mkdir"), str(trace)), 2
    ),
    "among the weights": lambda trace: pickle.dumps({"model": {"a": FLOATS, "b": Calls(os.mkdir, str(trace))}}, 2),
    "beside the weights": lambda trace: pickle.dumps({"model": {"a": FLOATS}, "extra": Calls(os.mkdir, str(trace))}, 4),
    "in an array of objects": lambda trace: pickle.dumps(numpy.array([Calls(os.mkdir, str(trace)), 1], object), 2),
    "as a key": lambda trace: pickle.dumps({"model": {Calls(os.mkdir, str(trace)): FLOATS}}, 4),
    "a dotted name": lambda trace: b"\x80\x04" + text("shutil") + text("os.mkdir") + b"\x93" + text(trace) + b"\x85R.",
    "a name by memo": lambda trace: (
        b"\x80\x04" + text("os") + b"\x94" + text("mkdir") + b"\x94h\x00h\x01\x93" + text(trace) + b"\x85R."
    ),
    "and thrown away": lambda trace: b"\x80\x02" + MKDIR + text(trace) + b"\x85R0}.",
    "INST": lambda trace: b"(" + text(trace) + b"iposix\nmkdir\n.",
    "OBJ": lambda trace: b"(" + MKDIR + text(trace) + b"o.",
    "EXT1": lambda trace: b"\x80\x02\x82\xf0" + text(trace) + b"\x85R.",
    "EXT2": lambda trace: b"\x80\x02\x83\xf1\x00" + text(trace) + b"\x85R.",
    "EXT4": lambda trace: b"\x80\x02\x84\xf2\x00\x00\x00" + text(trace) + b"\x85R.",
    "in the arguments of a codec": lambda trace: (
        b"\x80\x02c_codecs\nencode\n" + MKDIR + text(trace) + b"\x85R" + text("latin1") + b"\x86R."
    ),
    "BUILD of a class": lambda trace: b"\x80\x02cnumpy\nmatrix\n" + MKDIR + text(trace) + b"\x85Rb.",
    "in a dtype": lambda trace: b"\x80\x02cnumpy\ndtype\n" + MKDIR + text(trace) + b"\x85R\x85R.",
    "in the state of a dtype": lambda trace: (
        b"\x80\x02cnumpy\ndtype\n" + text("f4") + b"K\x00K\x01\x87R(K\x03" + MKDIR + text(trace) + b"\x85Rtb."
    ),
    "in the arguments of an OrderedDict": lambda trace: (
        b"\x80\x02ccollections\nOrderedDict\n]" + MKDIR + text(trace) + b"\x85Ra\x85R."
    ),
    "behind the end": lambda trace: pickle.dumps({"a": FLOATS}, 2) + pickle.dumps(Calls(os.mkdir, str(trace)), 2),
}


@pytest.fixture
def extensions() -> Iterator[None]:
    """Codes that someone registered for a function, one of them looked up before."""
    names = {0xF0: ("posix", "mkdir"), 0xF1: ("os", "mkdir"), 0xF2: ("nt", "mkdir")}
    for code, (module, name) in names.items():
        copyreg.add_extension(module, name, code)
    copyreg._extension_cache[0xF2] = os.mkdir  # type: ignore[attr-defined]
    yield
    copyreg._extension_cache.clear()  # type: ignore[attr-defined]
    for code, (module, name) in names.items():
        copyreg.remove_extension(module, name, code)


def refusal(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: refused: ") and "\n" not in text and len(text) < len(str(path)) + 200
    return text


@pytest.mark.usefixtures("extensions")
@pytest.mark.parametrize("kind", DANGEROUS)
def test_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    trace = tmp_path / "trace"
    for name in ("w.pkl", "w.pth"):
        (tmp_path / name).write_bytes(DANGEROUS[kind](trace))
        refusal(read_pickle, tmp_path / name)
    text = refusal(read_tensors, tmp_path / "w.pkl")
    for line in (["predict", str(tmp_path / "w.pkl"), "x.jpg"], ["eval", str(tmp_path / "w.pkl"), "--data", "x"]):
        assert main(line) == 2
        assert capsys.readouterr().err == f"focaldet: {text}\n"
    assert not trace.exists()
    # The corpus is dangerous indeed: an unrestricted reader does run it.
    with (tmp_path / "w.pkl").open("rb") as file:
        for _ in range(1 + (kind == "behind the end")):
            try:
                pickle.load(file)
            except (TypeError, AttributeError, ValueError, pickle.UnpicklingError):
                assert trace.exists(), "it failed after the call"
    assert trace.exists()


@pytest.mark.parametrize("old_format", [False, True])
def test_nothing_runs_in_a_file_of_torch(tmp_path: Path, old_format: bool) -> None:
    for number, call in enumerate((Calls(os.mkdir, str(tmp_path / "t")), wait_for(["mkdir", str(tmp_path / "t")]))):
        path = tmp_path / f"{number}.pth"
        content = {"model": {"a": torch.zeros(2)}, "extra": call}
        torch.save(content, path, _use_new_zipfile_serialization=not old_format)
        assert "it holds code (" in refusal(read_tensors, path)
        assert main(["predict", str(path), "x.jpg"]) == 2
    assert not (tmp_path / "t").exists()
    torch.load(tmp_path / "0.pth", weights_only=False)
    assert (tmp_path / "t").exists()


def test_training_from_code_is_one_line(tmp_path: Path, demo_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pkl").write_bytes(DANGEROUS["os.system"](tmp_path / "trace"))
    out = tmp_path / "run"
    line = ["train", "--data", str(demo_data), "--model", "retinanet_r18_fpn", "--out", str(out), "--device", "cpu"]
    assert main([*line, "--weights", str(tmp_path / "w.pkl")]) == 2
    text = capsys.readouterr().err
    reason = "it holds code (posix.system), which is never run; plain arrays by name are allowed"
    assert text.splitlines()[-1].endswith(f"w.pkl: refused: {reason}")
    assert "Traceback" not in text
    assert not (tmp_path / "trace").exists()


# --- what asks for more than arrays, or for more than there is


def array(shape: bytes = b"K\x02\x85", kind: str = "f4", raw: bytes = b"C\x08" + bytes(8), order: str = "<") -> bytes:
    """The opcodes of an array of two zeros, or of a false one."""
    named = b"cnumpy\ndtype\n" + text(kind) + b"K\x00K\x01\x87R(K\x03" + text(order) + b"NNN"
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
    return start + shape + named + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + raw + b"tb"


def bomb(levels: int) -> bytes:
    """A list of ten lists of ten lists …, of a few bytes each."""
    level = b"0](" + b"".join(b"h%c" % 0 for _ in range(10)) + b"eq\x00"
    return b"\x80\x03]q\x00" + level * levels + b"."


START = b"\x80\x03"
DTYPE = START + b"cnumpy\ndtype\n"
ENCODE = START + b"c_codecs\nencode\n"
CODE, STATE = r"it holds code \(", "it sets the state of something other than an array of numbers"
OTHERWISE = "with other arguments than an array's"
REFUSED: dict[str, tuple[bytes, str]] = {
    "object dtype": (START + array(kind="O8") + b".", "an array of type 'O8'; numbers are allowed"),
    "objects in a list": (START + array(raw=b"]") + b".", "an array whose content is not bytes"),
    "text dtype": (START + array(kind="U2") + b".", "an array of type 'U2'"),
    "structured dtype": (pickle.dumps(numpy.zeros(2, "f4,i4"), 2), "an array of type 'V8'"),
    "complex dtype": (pickle.dumps(numpy.zeros(2, "c8"), 2), "an array of type 'c8'"),
    "dates": (pickle.dumps(numpy.zeros(2, "M8[s]"), 2), "an array of type 'M8'"),
    "dtype of a class": (DTYPE + b"cnumpy\nndarray\nK\x00K\x01\x87R.", f"dtype {OTHERWISE}"),
    "dtype of fields": (DTYPE + b"}K\x00K\x01\x87R.", f"dtype {OTHERWISE}"),
    "dtype with metadata": (
        DTYPE + text("f4") + b"K\x00K\x01\x87R(K\x04" + text("<") + b"NNNK\x00K\x00K\x00}tb.", STATE
    ),
    "unknown byte order": (START + array(order="?") + b".", STATE),
    "type alone": (DTYPE + text("f4") + b"K\x00K\x01\x87R.", "a name or type that belongs to no array"),
    "name alone": (START + b"cnumpy\nndarray\n.", "a name or type that belongs to no array"),
    "array without content": (pickle.dumps(FLOATS, 2)[:-2] + b"0.", "an array without content"),
    "subclass of arrays": (pickle.dumps(numpy.ma.array([1.0]), 2), CODE),
    "codec of another name": (ENCODE + text("x") + text("rot13") + b"\x86R.", f"encode {OTHERWISE}"),
    "codec with an error handler": (ENCODE + text("x") + text("latin1") + text("h") + b"\x87R.", f"encode {OTHERWISE}"),
    "codec of no text": (ENCODE + b"C\x01x" + text("latin1") + b"\x86R.", f"encode {OTHERWISE}"),
    "not latin-1": (ENCODE + text("\u20ac") + text("latin1") + b"\x86R.", "damaged"),
    "many bytes": (START + b"c__builtin__\nbytes\n\x8a\x05" + bytes(4) + b"\x7f\x85R.", f"bytes {OTHERWISE}"),
    "arguments of OrderedDict": (START + b"ccollections\nOrderedDict\n}\x85R.", f"OrderedDict {OTHERWISE}"),
    "other classes of collections": (START + b"ccollections\ndefaultdict\n)R.", CODE + "collections.defaultdict"),
    "method of a known class": (b"\x80\x04" + text("numpy") + text("ndarray.dump") + b"\x93.", CODE + "numpy.ndarray"),
    "newline in a name": (b"\x80\x04" + text("a\nb") + text("c\x1b[2J") + b"\x93.", CODE + r"a\?b\.c\?\?2J\)"),
    "name that is no text": (b"\x80\x04K\x01K\x02\x93.", "it names something by what is not text"),
    "name that is a bomb": (bomb(40)[:-1] + text("x") + b"\x93.", "it names something by what is not text"),
    "call of a value": (START + text("x") + b")R.", "it calls something that is not a name"),
    "call without a tuple": (START + b"cnumpy\ndtype\n]R.", "it calls something that is not a name"),
    "NEWOBJ": (START + b"ccollections\nOrderedDict\n)\x81.", "it makes objects of a class"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "it makes objects of a class"),
    "BUILD of a dictionary": (START + b"}}b.", STATE),
    "BUILD of a name": (START + b"cnumpy\nndarray\nN}" + text("__setstate__") + text("x") + b"s\x86b.", STATE),
    "BUILD of an OrderedDict": (START + b"ccollections\nOrderedDict\n)R}b.", STATE),
    "BUILD again": (START + array() + array()[array().index(b"(K\x01") :] + b".", STATE),
    "array of a known name that is no array": (
        START + array().replace(b"cnumpy\nndarray", b"cnumpy\ndtype") + b".", f"_reconstruct {OTHERWISE}"
    ),
    "fields in the state of a dtype": (START + array().replace(b"NNN", b"N)}") + b".", STATE),
    "persistent id": (START + text("storage") + b"Q.", "it refers to objects outside the file"),
    "persistent id in text": (b"Pstorage\n.", "it refers to objects outside the file"),
    "buffer outside": (b"\x80\x05\x97.", "it refers to memory outside the file"),
    "unregistered extension": (b"\x80\x02\x82\x07.", "it asks for registered extensions"),
    "set": (pickle.dumps({1}, 4), "it holds a set"),
    "huge array": (START + array(shape=b"\x8a\x05" + b"\xff" * 4 + b"\x7f\x85") + b".", "shape asks for more or less"),
    "product of sides beyond 64 bits": (
        START + array(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x86") + b".",
        "shape asks for more or less",
    ),
    "negative side": (START + array(shape=b"J\xff\xff\xff\xff\x85") + b".", "shape is not a list of sides"),
    "side that is no number": (START + array(shape=b"\x88\x85") + b".", "shape is not a list of sides"),
    "many axes": (START + array(shape=b"(" + b"K\x01" * 40 + b"K\x02t") + b".", "shape is not a list of sides"),
    "array too long": (START + array(raw=b"C\x0c" + bytes(12)) + b".", "more or less than its 12 bytes"),
    "array too short": (START + array(raw=b"C\x07" + bytes(7)) + b".", "more or less than its 7 bytes"),
    "the same bytes again and again": (
        START + b"(B" + struct.pack("<I", 800) + bytes(800) + b"q\x09"
        + array(shape=b"K\xc8\x85", raw=b"h\x09") * 40 + b"l.", "claim more bytes than the file has"
    ),
    "the same text again and again": (
        ENCODE + b"q\x01" + text("x" * 800) + b"q\x02" + text("latin1") + b"q\x03" + b"h\x01h\x02h\x03\x86R" * 9 + b".",
        "claim more bytes than the file has",
    ),
    "billion laughs": (bomb(9), "values, the same ones again and again"),
    "deep lists": (START + b"(" * 5000 + b"l" * 5000 + b".", "more than 32 levels of nesting"),
    "deep tuples": (START + b")" + b"\x85" * 10_000 + b".", "more than 32 levels of nesting"),
    "deep by sharing": (START + b"](Nq\x00" + b"h\x00\x85q\x00" * 40 + b"e.", "more than 32 levels of nesting"),
    "list that holds itself": (START + b"]q\x00h\x00a.", "a value that holds itself"),
    "tuple as a key": (START + b"}))s.", "a dictionary whose keys are neither names nor numbers"),
    "key that cannot be one": (START + b"}])s.", "a dictionary whose keys are neither names nor numbers"),
    "huge number": (START + b"\x8b" + struct.pack("<i", 9) + b"\x7f" * 9 + b".", "a number of more than 64 bits"),
    "append to a tuple": (START + b")Na.", "it appends to something other than a list"),
    "item of a list": (START + b"]NNs.", "it sets items of something other than a dictionary"),
    "odd items": (START + b"}(Nu.", "damaged"),
    "two values": (START + b"NN.", "damaged"),
    "no value": (START + b".", "damaged"),
    "mark as a value": (START + b"(\x85.", "damaged: an operand is missing"),
    "mark as the result": (START + b"(.", "a name or type that belongs to no array"),
    "missing memo": (START + b"h\x05.", "damaged"),
    "more bytes than there are": (START + b"\x8e" + struct.pack("<Q", 1 << 60) + b"xx.", "damaged"),
    "negative length": (START + b"T\xff\xff\xff\xff.", "damaged"),
    "unknown opcode": (START + b"\xfe.", "damaged"),
    "empty": (b"", "damaged"),
    "no pickle": (b"<!doctype html>", "damaged"),
    "truncated": (pickle.dumps(ARRAYS, 2)[:-40], "damaged"),
    "no end": (pickle.dumps(ARRAYS, 2)[:-1], "damaged"),
    "trailing bytes": (pickle.dumps(ARRAYS, 2) + b"\n", "it goes on after its end"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_more_than_arrays_is_refused(tmp_path: Path, kind: str) -> None:
    content, reason = REFUSED[kind]
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"w\.pkl: refused: .*{reason}.*; plain arrays by name are allowed"):
        read_pickle(tmp_path / "w.pkl")
    refusal(read_tensors, tmp_path / "w.pkl")


def test_the_hand_written_array_is_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(START + array() + b".")
    assert numpy.array_equal(read_pickle(tmp_path / "w.pkl"), numpy.zeros(2, "f4"))
    assert numpy.array_equal(pickle.loads((tmp_path / "w.pkl").read_bytes()), numpy.zeros(2, "f4"))
    (tmp_path / "w.pkl").write_bytes(START + array(kind="b1", order="|", raw=b"C\x02\x07\x00") + b".")
    assert read_pickle(tmp_path / "w.pkl").view("u1").tolist() == [1, 0], "a truth value is 0 or 1"


def test_the_number_of_opcodes_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPCODES", 300)
    assert read_pickle(dump([None] * 99, tmp_path / "w.pkl")) == [None] * 99
    assert "more than 300 parts" in refusal(read_pickle, dump([None] * 999, tmp_path / "w.pkl"))


def test_a_list_does_not_become_many_dictionaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPCODES", 300)
    pairs = START + b"ccollections\nOrderedDict\nq\x000K\x01K\x02\x86q\x010](" + b"h\x01" * 60 + b"eq\x020"
    times = {count: pairs + b"h\x00h\x02\x85R0" * count + b"N." for count in (5, 6)}
    (tmp_path / "w.pkl").write_bytes(times[5])
    assert read_pickle(tmp_path / "w.pkl") is None
    (tmp_path / "w.pkl").write_bytes(times[6])
    with pytest.raises(CheckpointError, match="more than 300 values, the same ones again and again"):
        read_pickle(tmp_path / "w.pkl")


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read: "):
            read_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_random_damage_is_refused_or_read_as_plain_values(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps({"model": {"a": FLOATS, "b": numpy.array([True])}, "n": [1, (2.5, b"\x01")]}, protocol)
    chance = random.Random(protocol)
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        (tmp_path / "w.pkl").write_bytes(content)
        try:
            read_pickle(tmp_path / "w.pkl")
        except CheckpointError as error:
            assert "\n" not in str(error)
