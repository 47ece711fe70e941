"""The runtimes of exported files: how each opens a file, reads what it says about itself, and computes.

Axes: B images, H W pixels, D detections of an image.
"""

import importlib
import io
import json
import re
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from focaldet.cores import usable_cores
from focaldet.errors import CheckpointError, ConfigError
from focaldet.files import require_plain
from focaldet.ops.padded import PaddedDetections
from focaldet.ranges import MOST_DIVISOR, MOST_FILE_SIDE_PX
from focaldet.types import ImageSize

STATEMENT = "focaldet"
"""The key of the description of a detector in an exported file."""
GRAPH_INPUTS = ("images", "sizes")
GRAPH_OUTPUTS = ("boxes", "scores", "labels", "count")
LEAST_PROGRAM_PX = 64  # the shortest open side of a program of torch.export; the other kinds take 32 px, too
TELEMETRY = "openvino_telemetry"
SIZE_TEXT = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
PLAIN_MEMBER = re.compile(
    r"data/(weights/weight_\d+|constants/tensor_\d+|(weights|constants)/model_\w+_config\.json|sample_inputs/model\.pt)"
    r"|models/model\.json|extra/\w+|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
"""The parts of a `.pt2` file that hold no pickle of any kind."""


@runtime_checkable
class Graph(Protocol):
    """An exported file that is ready to compute; several threads may call `run` at the same time."""

    statement: str | None
    """What it says about itself, in JSON; None of a file that focaldet did not write."""
    least_px: int
    """The shortest side of an image, where the size is open."""
    runs_in_turn: bool
    """Whether the library computes batches that are given to it at the same time one after the other."""

    def run(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int64[Tensor, "B 2"]) -> PaddedDetections:
        """The detections of RGB images; `sizes` are (height, width) without padding."""


def import_library(name: str, *, extra: str) -> Any:
    """The library `name`, which the optional part `extra` brings; none of them sends anything from here on.

    openvino and nncf report their use where the package openvino_telemetry is, and do without where it is not: for
    this process it is not there. onnxruntime is set to report nothing, as its Windows packages would.

    Raises:
        ConfigError: it is not installed.
    """
    if TELEMETRY not in sys.modules:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is needed and not installed: pip install 'focaldet[{extra}]' ({error})") from None
    if name == "onnxruntime":
        library.disable_telemetry_events()
    return library


def count_graph_threads() -> int:
    """How many threads a library computes with: as many as torch, and no more than the container may use."""
    return min(torch.get_num_threads(), usable_cores())


class OnnxGraph:
    """A `.onnx` file in onnxruntime."""

    least_px, runs_in_turn = 1, False

    def __init__(self, path: Path) -> None:
        runtime = import_library("onnxruntime", extra="onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = count_graph_threads()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the cores meanwhile
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            self.statement = self._session.get_modelmeta().custom_metadata_map.get(STATEMENT)
        except Exception as error:  # its own classes have nothing else in common
            raise CheckpointError(f"{path}: onnxruntime cannot open it: {summarize_error(error)}") from None

    def run(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int64[Tensor, "B 2"]) -> PaddedDetections:
        """The detections of RGB images; `sizes` are (height, width) without padding."""
        values = self._session.run(list(GRAPH_OUTPUTS), {"images": images.numpy(), "sizes": sizes.numpy()})
        return PaddedDetections(*map(torch.from_numpy, values))


class OpenVinoGraph:
    """A `.xml` file with its `.bin` in OpenVINO on the CPU, computed in the precision that the file has.

    Left to itself OpenVINO computes in bf16 where the processor has it.
    """

    least_px, runs_in_turn = 1, True

    def __init__(self, path: Path) -> None:
        openvino = import_library("openvino", extra="openvino")
        try:
            core = openvino.Core()
            model = core.read_model(path)
            hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": count_graph_threads()}
            self._compiled = core.compile_model(model, "CPU", hints | {"PERFORMANCE_HINT": "LATENCY"})
        except Exception as error:  # RuntimeError and its own
            raise CheckpointError(f"{path}: openvino cannot open it: {summarize_error(error)}") from None
        self._requests = threading.local()  # one for each thread: a request computes one batch at a time
        try:
            self.statement = model.get_rt_info([STATEMENT]).astype(str) if model.has_rt_info([STATEMENT]) else None
        except UnicodeDecodeError:
            raise CheckpointError(f"{path}: what it says about itself is not text") from None

    def run(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int64[Tensor, "B 2"]) -> PaddedDetections:
        """The detections of RGB images; `sizes` are (height, width) without padding."""
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        values = request.infer({"images": images.numpy(), "sizes": sizes.numpy()})
        # The arrays are the memory of the request, which the next images overwrite.
        return PaddedDetections(*(torch.from_numpy(values[name].copy()) for name in GRAPH_OUTPUTS))


class ProgramGraph:
    """A `.pt2` file of `torch.export`, on the CPU.

    It is a program: open only files of people whose programs you would run.
    """

    least_px, runs_in_turn = LEAST_PROGRAM_PX, False

    def __init__(self, path: Path) -> None:
        extra = {STATEMENT: ""}
        try:
            _refuse_pickles(path)
            program = torch.export.load(path, extra_files=extra)
            # Of a map of a single cell torch supposes that it could mean another program; it does not.
            self._module = program.module(check_guards=False)
        except CheckpointError:
            raise
        except Exception as error:  # of zipfile, json and torch
            raise CheckpointError(f"{path}: torch.export cannot open it: {summarize_error(error)}") from None
        self.statement = extra[STATEMENT] or None

    def run(self, images: UInt8[Tensor, "B 3 H W"], sizes: Int64[Tensor, "B 2"]) -> PaddedDetections:
        """The detections of RGB images; `sizes` are (height, width) without padding."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return PaddedDetections(*self._module(images, sizes))


GRAPHS: dict[str, type[OnnxGraph] | type[OpenVinoGraph] | type[ProgramGraph]] = {
    ".onnx": OnnxGraph,
    ".xml": OpenVinoGraph,
    ".pt2": ProgramGraph,
}
"""The suffixes of exported files."""


def is_exported(path: Path) -> bool:
    """Whether a file is one of an exported detector, by its name."""
    return path.suffix.lower() in GRAPHS and path.is_file()


def open_graph(path: Path) -> Graph:
    """The file, ready to compute.

    Raises:
        CheckpointError: it is damaged or of another kind.
        ConfigError: the library that it needs is not installed.
    """
    try:
        require_plain(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    return GRAPHS[path.suffix.lower()](path)


def parse_size(text: str) -> ImageSize | None:
    """The size in a text such as "320x480" (height, width); None in an empty one.

    Raises:
        ValueError: another text, or a side that no file may state.
    """
    if not text:
        return None
    sides = match.groups() if (match := SIZE_TEXT.fullmatch(text)) else ()
    if not sides or max(map(int, sides)) > MOST_FILE_SIDE_PX + MOST_DIVISOR:
        raise ValueError(f"input_size: must be height and width such as 320x480, got {text!r}")
    return ImageSize(*map(int, sides))


def _refuse_pickles(path: Path) -> None:
    """Refuse an archive of `torch.export` in which torch would read a pickle, which may run anything.

    Raises:
        CheckpointError: it has one.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
        configs = [archive.read(name) for name in archive.namelist() if name.endswith("_config.json")]
        inputs = [archive.read(name) for name in archive.namelist() if name.endswith(".pt")]
    if len({*names}) != len(names) or not all(map(PLAIN_MEMBER.fullmatch, names)):
        raise CheckpointError(f"{path}: has parts that `focaldet export` does not write, such as a pickle")
    if any(payload["use_pickle"] for text in configs for payload in json.loads(text)["config"].values()):
        raise CheckpointError(f"{path}: has a tensor as a pickle, which may run anything, and is not opened")
    for content in inputs:  # torch would try again without the restriction
        torch.load(io.BytesIO(content), weights_only=True)


def summarize_error(error: Exception) -> str:
    """The first line of its message that is not about a position in a source file."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), type(error).__name__)
