"""Hostile files, small ones: a writer makes one in a folder and returns its path; by kind, with what must be said."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

Writer = Callable[[Path], Path]

PROTO, STOP = b"\x80\x02", b"."
HUGE = 8_000_000_000


def settings(architecture: str = "RetinaNetConfig", *, preprocessing: Any = None, **config: Any) -> Writer:
    """A weights file of focaldet's whose metadata have these settings, and one small tensor."""

    def write(folder: Path) -> Path:
        described = {
            "architecture": architecture,
            "config": {"num_classes": 1, **config},
            "class_names": ["a"],
            "category_ids": [1],
            "preprocessing": preprocessing or {},
            "version": 2,
        }
        return put(folder / "w.safetensors", save({"x": torch.zeros(1)}, metadata={"focaldet": json.dumps(described)}))

    return write


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def name(text: str) -> bytes:
    """The opcode that refers to a name."""
    module, _, last = text.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + b"(" + b"".join(arguments) + b"tR"


def storage(numbers: int) -> bytes:
    return b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + number(numbers) + b"tQ"


def tensor(numbers: int, *, size: int, stride: int = 1, offset: int = 0) -> bytes:
    arguments = number(offset), number(size) + b"\x85", number(stride) + b"\x85", b"\x89"
    return call("torch._utils._rebuild_tensor_v2", storage(numbers), *arguments, call("collections.OrderedDict"))


def mapping(value: bytes) -> bytes:
    return PROTO + b"}" + text("w") + value + b"s" + STOP


def torch_file(value: bytes, *, numbers: int = 4, compression: int = zipfile.ZIP_STORED) -> Writer:
    """A file as `torch.save` writes it, with this pickle and one storage of so many numbers."""

    def write(folder: Path) -> Path:
        path = folder / "w.pth"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", value)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/data/0", bytes(4 * numbers))
        return path

    return write


def old_torch_file(value: bytes, *, behind: bytes = b"") -> Writer:
    """The old form: five pickles, and the numbers behind them."""

    def write(folder: Path) -> Path:
        head = (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
        )
        return put(folder / "w.pth", head + value + pickle.dumps(["0"], 2) + behind)

    return write


def copies(folder: Path) -> Path:
    """One list, of which a call makes a mapping again and again: the square of the file."""
    pairs = b"](" + (number(1) + number(2) + b"\x86") * 5_000 + b"eq\x00"
    again = (name("collections.OrderedDict") + b"h\x00\x85R") * 5_000
    return torch_file(PROTO + pairs + b"(" + again + b"l" + STOP)(folder)


def bomb(entry: str, factor: int = 1000) -> Writer:
    """A compressed archive that unpacks to so many times a megabyte."""

    def write(folder: Path) -> Path:
        path = folder / ("w.npz" if entry.endswith(".npy") else "w.pth")
        archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        with archive, archive.open(entry, "w", force_zip64=True) as file:
            header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({factor << 20},), }}".ljust(117) + "\n"
            file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode())
            for _ in range(factor):
                file.write(bytes(1 << 20))
        return path

    return write


def npz_that_claims(shape: str) -> Writer:
    def write(folder: Path) -> Path:
        path = folder / "w.npz"
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode() + bytes(16))
        return path

    return write


def polyglot(folder: Path) -> Path:
    """To torch an old file, to who looks for the end of an archive a harmless one."""
    harmless = torch_file(mapping(tensor(4, size=4)))(folder).read_bytes()
    return old_torch_file(mapping(call("builtins.bytearray", number(HUGE))), behind=harmless)(folder)


def fifo(suffix: str) -> Writer:
    def write(folder: Path) -> Path:
        path = folder / f"pipe{suffix}"
        os.mkfifo(path)
        return path

    return write


def device(_: Path) -> Path:
    return Path("/dev/zero")


def directory(suffix: str) -> Writer:
    def write(folder: Path) -> Path:
        path = folder / f"folder{suffix}"
        path.mkdir()
        return path

    return write


NAMES: dict[str, tuple[Writer, str]] = {
    backbone[:40]: (settings(backbone=backbone), message)
    for backbone, message in {
        "timm:hf_hub:owner/name": "not a hub or folder",
        "timm:hf-hub:owner/name": "not a hub or folder",
        "timm:hf_hub:owner/name@main": "not a hub or folder",
        "timm:local-dir:/etc": "not a hub or folder",
        "timm:local_dir:/etc": "not a hub or folder",
        "timm:file:///etc/passwd": "not a hub or folder",
        "timm:https://example.org/w": "not a hub or folder",
        "timm:../../etc": "not a hub or folder",
        "timm:resnet18.tag.more": "not a hub or folder",
        "timm:resnet18\nhf_hub:a/b": "not a hub or folder",
        "timm:": "not a hub or folder",
        "timm:no_such_network": "no_such_network",
        "x" * 400_000: "at most 200 characters",
    }.items()
}
"""What a weights file may not name as its backbone."""

JUDGED: dict[str, tuple[Writer, str]] = {
    "bytearray": (torch_file(mapping(call("builtins.bytearray", number(HUGE)))), "other than plain tensors"),
    "bytearray of Python 2": (torch_file(mapping(call("__builtin__.bytearray", number(HUGE)))), "other than plain"),
    "bytearray, old file": (old_torch_file(mapping(call("builtins.bytearray", number(HUGE)))), "other than plain"),
    "torch.Tensor(n)": (torch_file(mapping(call("torch.Tensor", number(HUGE)))), "other than plain tensors"),
    "repeated number": (torch_file(mapping(tensor(4, size=10**9, stride=0))), "only 4 are in the file"),
    "storage that grows": (torch_file(mapping(tensor(4, size=10**9))), "only 4 are in the file"),
    "offset beyond": (torch_file(mapping(tensor(4, size=2, offset=10**9))), "only 4 are in the file"),
    "negative side": (torch_file(mapping(tensor(4, size=-1))), "not a list of sides"),
    "storage that is not there": (torch_file(mapping(tensor(10**9, size=10**9))), "not in the file"),
    "storage, old file": (old_torch_file(mapping(tensor(10**9, size=10**9))), "not in the file"),
    "old file that ends as an archive": (polyglot, "other than plain tensors"),
    "copies of a copy": (copies, "the same ones again and again"),
    "bomb of an array": (bomb("a.npy", 200), "claim to unpack"),
    "bomb of a pickle": (bomb("archive/data.pkl", 200), "claim to unpack"),
    "array that claims": (npz_that_claims("(1000000000000,)"), "claims 4,000,000,000,000 bytes"),
    "array below zero": (npz_that_claims("(-1, -4)"), "refused"),
    "code": (torch_file(mapping(call("os.system", text("true")))), r"code \(os.system\)"),
}
"""What a weights file may not make the reader do."""

RANGES: dict[str, tuple[Writer, str]] = {
    "head_depth": (settings(head_depth=100_000), "head_depth"),
    "head_depth, whole": (settings(head_depth=10**18), "head_depth"),
    "width": (settings(width=2**70), "width"),
    "base_scale": (settings(anchors={"base_scale": 1e300}), "base_scale"),
    "scales": (settings(anchors={"scales": [1.0] * 10_000}), "scales"),
    "num_classes": (settings(num_classes=10**9), "num_classes"),
    "size_divisor 0": (settings(preprocessing={"size_divisor": 0}), "size_divisor"),
    "size_divisor": (settings(preprocessing={"size_divisor": 100_000}), "size_divisor"),
    "size 0": (settings(preprocessing={"resize": {"size": 0}}), "size"),
    "size -5": (settings(preprocessing={"resize": {"size": -5}}), "size"),
    "size": (settings(preprocessing={"resize": {"size": 10**9}}), "size"),
    "size 20000": (settings(preprocessing={"resize": {"size": 20_000}}), "at most 16384 px"),
    "std 0": (settings(preprocessing={"std": [0, 1, 1]}), "std"),
    "std NaN": (settings(preprocessing={"std": [float("nan"), 1, 1]}), "std"),
    "mean Inf": (settings(preprocessing={"mean": [float("inf"), 1, 1]}), "mean"),
    "percents": (
        settings("SSDConfig", priors={"percents": list(range(1, 40_000)), "starts_px": [1] * 39_998}),
        "percents",
    ),
    "extra_width": (settings("SSDConfig", extra_width=4 * 10**9), "extra_width"),
    "pooling": (settings("FasterRCNNConfig", pooling={"size": 10**6}), "size"),
}
"""Settings out of range."""

STRANGE_WEIGHTS: dict[str, tuple[Writer, str]] = {
    "pipe": (fifo(".pth"), "is a pipe, not a file"),
    "pipe of safetensors": (fifo(".safetensors"), "is a pipe, not a file"),
    "pipe of darknet": (fifo(".weights"), "is a pipe, not a file"),
    "pipe of a pickle": (fifo(".pkl"), "is a pipe, not a file"),
    "device": (device, "is a device, not a file"),
    "folder": (directory(".pth"), "not a run folder"),
}
"""What is not a file."""


def jpeg_of_scans(scans: int, side: int = 256) -> Writer:
    """A progressive JPEG whose last scan is there again and again."""

    def write(folder: Path) -> Path:
        buffer = io.BytesIO()
        Image.new("RGB", (side, side), "gray").save(buffer, "JPEG", progressive=True)
        whole = buffer.getvalue()
        last = whole[whole.rindex(b"\xff\xda") : -2]
        return put(folder / "scans.jpg", whole[:-2] + last * scans + whole[-2:])

    return write


def image_that_claims(suffix: str, width: int, height: int) -> Writer:
    """A small image whose header says that it is so large."""
    stated = {".png": ">II", ".bmp": "<II", ".gif": "<HH", ".tif": "<H", ".webp": "<HH", ".jpg": ">HH"}

    def write(folder: Path) -> Path:
        buffer, side = io.BytesIO(), (251, 241)
        Image.new("RGB", side, "gray").save(buffer, Image.registered_extensions()[suffix])
        content, claim = buffer.getvalue(), (width, height)
        if suffix == ".ppm":
            content = content.replace(b"251 241", b"%d %d" % claim)
        elif suffix == ".tif":
            for old, new in zip(side, claim, strict=True):
                content = content.replace(struct.pack("<H", old), struct.pack("<H", new))
        else:
            turn = slice(None, None, -1 if suffix == ".jpg" else 1)  # JPEG has the height first
            form = stated[suffix]
            content = content.replace(struct.pack(form, *side[turn]), struct.pack(form, *claim[turn]))
        if suffix == ".png":
            content = content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
        return put(folder / f"a{suffix}", content)

    return write


def png_of_text(megabytes: int) -> Writer:
    """A small PNG with a compressed text that is so long."""

    def write(folder: Path) -> Path:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), "gray").save(buffer, "PNG")
        content = buffer.getvalue()
        data = b"zTXtx\0\0" + zlib.compress(bytes(megabytes * 1_000_000))
        chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
        return put(folder / "a.png", content[:33] + chunk + content[33:])

    return write


def gif_of_frames(frames: int) -> Writer:
    """An animation of so many frames of one color."""

    def write(folder: Path) -> Path:
        buffer = io.BytesIO()
        Image.new("P", (64, 64)).save(buffer, "GIF")
        content = buffer.getvalue()
        start = content.index(b",", 13)
        return put(folder / "a.gif", content[:start] + content[start:-1] * frames + b";")

    return write


YAML: dict[str, tuple[str, str]] = {
    "aliases": (
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "aliases counted",
    ),
    "merges": (
        "a0: &a0 {"
        + ", ".join(f"k{n}: 1" for n in range(10))
        + "}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], x{n}: 1}}\n" for n in range(1, 9)),
        "aliases counted",
    ),
    "deep": ("a: " + "[" * 5_000 + "]" * 5_000, "levels deep"),
    "itself": (
        "a: &a [x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, *a]\n",
        "aliases",
    ),
    "long": ("a: [" + "1," * 600_000 + "]", "values"),
    "large": ("a: '" + "x" * 4_100_000 + "'", "bytes, allowed"),
}
"""Settings in YAML that stand for more than they are."""
