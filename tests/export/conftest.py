"""A small run in all formats, made once for all tests."""

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch

from focaldet.data.demo.dataset import CLASSES
from focaldet.export import export
from focaldet.models import build
from focaldet.types import Resize
from focaldet.weights import save_detector
from tests import tiny_backbones  # noqa: F401  their names are used here


@contextmanager
def unchecked_shapes() -> Iterator[None]:
    """In a trace sizes are symbols, which the checks of shapes that the tests put around functions would fix."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def small_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `tiny_run` with a network that is traced in seconds, and that detects much. Read only."""
    folder = tmp_path_factory.mktemp("small") / "run"
    (folder / "weights").mkdir(parents=True)
    for name in ("config.yaml", "environment.json"):
        shutil.copy(tiny_run / name, folder / name)
    architecture = {"backbone": "resnet_tiny", "width": 16, "head_depth": 1, "head_norm": True}
    architecture |= {"detect": {"score_threshold": 0.0}}
    torch.manual_seed(0)
    detector = build("retinanet_r18_fpn", class_names=CLASSES.names, architecture=architecture)
    for parameter in detector.class_subnet.predict.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    resize = Resize(mode="long", size=64, max_size=None)
    detector.preprocessing = replace(detector.preprocessing, resize=resize)
    save_detector(folder / "weights" / "best.safetensors", detector, classes=CLASSES, license="mine")
    return folder


@pytest.fixture(scope="session")
def traced_once() -> Iterator[None]:
    """One trace and one conversion for all exports of the small run, which take most of their time.

    Until the session ends, so other detectors pass through here, too: each has its own.
    """
    trace, convert = export.trace, export.convert_onnx
    programs, models = {}, {}

    def trace_once(detector):
        divisor, is_square = detector.preprocessing.size_divisor, detector.preprocessing.resize.is_square
        key = str(detector.config), detector.class_names, divisor, is_square
        if key not in programs:
            with unchecked_shapes():
                programs[key] = trace(detector)
        return programs[key]

    def convert_once(program):
        if id(program) not in models:
            models[id(program)] = convert(program)
        return models[id(program)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace", trace_once)
        patch.setattr(export, "convert_onnx", convert_once)
        yield


class Exported:
    """Results of exporting a run, each made when it is first asked for."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.make, self.folder = functools.partial(export.export_detector, run), folder

    @functools.cached_property
    def onnx(self) -> export.ExportResult:
        return self.make(self.folder / "model.onnx")

    @functools.cached_property
    def openvino(self) -> export.ExportResult:
        return self.make(self.folder / "model.xml", format="openvino")

    @functools.cached_property
    def torch(self) -> export.ExportResult:
        return self.make(self.folder / "model.pt2", format="torch")


@pytest.fixture(scope="session")
def exported(traced_once: None, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The small run in all formats."""
    return Exported(small_run, tmp_path_factory.mktemp("exported"))
