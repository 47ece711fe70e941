"""What a zip archive of weights claims, judged before anything in it is unpacked.

`torch.save` and `numpy.savez` write such archives. A few bytes of a compressed entry can stand for any number, and
entries may share their bytes: what all of them claim together is compared with the size of the file.
"""

import math
import zipfile
from pathlib import Path

import numpy
import torch
from numpy.lib import format as npy
from torch import Tensor

from focaldet.errors import CheckpointError

ZIP_START = b"PK\x03\x04"
CEILING = 4
"""So many times its size is what a file may take while it is read; weights cannot be compressed by a factor of 2."""
SLACK_BYTES = 1 << 20
MOST_ENTRIES = 100_000


def allowed_bytes(path: Path) -> int:
    """The most bytes that what is in a file may take together."""
    return CEILING * path.stat().st_size + SLACK_BYTES


def judge_entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries of an archive by name, once they claim no more than they may.

    Raises:
        CheckpointError: too many entries, two of one name, or more bytes than `allowed_bytes`.
    """
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES or len({entry.filename.casefold() for entry in entries}) < len(entries):
        raise CheckpointError(f"{path}: refused: more than {MOST_ENTRIES:,} entries, or two of one name")
    claimed, allowed = sum(entry.file_size for entry in entries), allowed_bytes(path)
    if claimed > allowed:
        raise CheckpointError(
            f"{path}: refused: {path.stat().st_size:,} bytes that claim to unpack to {claimed:,}; allowed is {CEILING} "
            "times the size of the file"
        )
    return {entry.filename: entry for entry in entries}


def is_npz(path: Path) -> bool:
    """True for a zip archive of arrays alone; what `torch.save` writes has a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # zipfile raises whatever the bytes of a strange file lead it to.
    except Exception:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by `numpy.savez`; pickled ones are refused, they could run anything.

    Raises:
        CheckpointError: damaged, or an entry that is larger than its bytes; names the array.
    """
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        for name, entry in judge_entries(archive, path).items():
            try:
                array = _read_array(archive, entry)
                tensors[name.removesuffix(".npy")] = torch.from_numpy(
                    array.astype(array.dtype.newbyteorder("="), copy=False)
                )
            # zipfile, zlib and numpy raise whatever the bytes of a strange file lead them to.
            except Exception as error:
                is_object = "allow_pickle" in str(error)
                reason = "it holds pickled objects, which are never read" if is_object else f"damaged: {error}"
                raise CheckpointError(f"{path}: {name}: refused: {reason}; plain numbers are allowed") from None
    return tensors


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> numpy.ndarray:
    """The array of an entry, whose header is compared with its length before memory is asked for."""
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(file)
        claimed, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if not dtype.hasobject and (claimed != there or min(shape, default=0) < 0):
        raise ValueError(f"its header claims {claimed:,} bytes, there are {there:,}")
    with archive.open(entry) as file:
        array: numpy.ndarray = npy.read_array(file, allow_pickle=False)
    return array
