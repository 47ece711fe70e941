"""The project's own weights file: safetensors that carry all it takes to rebuild the detector and read its answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import save

from focaldet import config as configs
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import DETECTORS, Detector, from_config
from focaldet.types import Preprocessing
from focaldet.weights.formats.files import open_safetensors, write_atomically
from focaldet.weights.tensor_names import require_fit, shapes_of, without_memory

KEY = "focaldet"
"""Where the description stands in the metadata of a safetensors file."""
VERSION = 1
NO_LICENSE = "not stated by whoever trained these weights"


@runtime_checkable
class ClassTable(Protocol):
    """The classes of a data set: their names by label, and the ids its files use for them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by label."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category ids by label."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a weights file says about itself.

    `architecture` names the class of `config`; `model` is the entry of the table of detectors it was built from, if it
    still equals one. `class_names` and `category_ids` are by label; either may be empty. `extra` is free text by name.
    """

    architecture: str
    config: dict[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocessing: Preprocessing
    model: str | None = None
    license: str = NO_LICENSE
    version: int = VERSION
    extra: dict[str, str] = field(default_factory=dict)


def save_detector(
    path: Path,
    detector: Detector,
    *,
    classes: ClassTable | None = None,
    license: str | None = None,  # noqa: A002  as in the file
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write `detector` to `path`, at once whole or not at all; `load_detector` (in `weights.load`) gives an equal one.

    Raises:
        CheckpointError: the file cannot be written (what was there before is intact).
    """
    described = Metadata(
        architecture=type(detector.config).__name__,
        config=configs.to_dict(detector.config),
        class_names=classes.names if classes is not None else detector.class_names,
        category_ids=classes.category_ids if classes is not None else (),
        preprocessing=detector.preprocessing,
        model=_table_name(detector.config),
        license=license or NO_LICENSE,
        extra=dict(extra or {}),
    )
    tensors = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    write_atomically(path, save(tensors, metadata={KEY: configs.to_json(described)}))


def read_checkpoint(path: Path) -> tuple[Detector, Metadata]:
    """The detector of a file by `save_detector`, bit for bit, and what the file says about itself.

    Names, shapes and types of the tensors are compared with what the config describes before any memory is taken.

    Raises:
        CheckpointError: missing, damaged, of another program, or contradicting itself; names the tensor.
    """
    with open_safetensors(path) as content:
        described = _described(content.metadata(), path)
        config = detector_config(described, path)
        sketch = _sketch(config, path)
        found = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
        require_fit(shapes_of(sketch), found, source=str(path))
        state = {name: content.get_tensor(name) for name in found}
    _require_types(sketch, state, path)
    # The random weights that the file's replace must not cost the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        detector = from_config(config, class_names=described.class_names, preprocessing=described.preprocessing)
    detector.load_state_dict(state)
    return detector, described


def read_metadata(path: Path) -> Metadata:
    """What a weights file by `save_detector` says about itself; reads its header alone.

    Raises:
        CheckpointError: missing, damaged, or written by another program.
    """
    with open_safetensors(path) as content:
        return _described(content.metadata(), path)


def is_own(path: Path) -> bool:
    """True for a file that `save_detector` wrote."""
    try:
        with open_safetensors(path) as content:
            return KEY in (content.metadata() or {})
    except CheckpointError:
        return False


def detector_config(described: Metadata, path: Path) -> Any:
    """The config in a file's metadata as an instance of its class.

    Raises:
        CheckpointError: the architecture is unknown, or a setting is.
    """
    classes = {type(config).__name__: type(config) for config in DETECTORS.values()}
    if described.architecture not in classes:
        known = configs.nearest(described.architecture, classes)
        raise CheckpointError(f"{path}: architecture {described.architecture!r} is unknown{known}")
    try:
        config = configs.from_dict(classes[described.architecture], described.config, source=f"{path}: config")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    named = (("class_names", described.class_names), ("category_ids", described.category_ids))
    for key, values in named:
        if values and len(values) != config.num_classes:
            raise CheckpointError(f"{path}: {key}: {len(values)} entries for {config.num_classes} classes")
    return config


def _described(statements: Mapping[str, str] | None, path: Path) -> Metadata:
    if KEY not in (statements or {}):
        raise CheckpointError(f"{path}: was not written by focaldet: its metadata lack {KEY!r}")
    try:
        values = json.loads((statements or {})[KEY])
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: metadata: must be a mapping, found {type(values).__name__}")
        if isinstance(version := values.get("version"), int) and version > VERSION:
            raise CheckpointError(
                f"{path}: version {version} is newer than this program's ({VERSION}): update focaldet"
            )
        values |= {"license": values.pop("licence")} if "licence" in values else {}  # its name in version 0.1
        return configs.from_dict(Metadata, values, source=f"{path}: metadata")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata: no valid JSON: {error}") from None
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _sketch(config: Any, path: Path) -> Detector:
    """Names and shapes of what `config` describes; a config that describes no network is the file's fault."""
    try:
        return without_memory(config)
    except (ConfigError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: config: describes no network: {error}") from None


def _require_types(sketch: Detector, state: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, expected in sketch.state_dict().items():
        if state[name].dtype != expected.dtype:
            raise CheckpointError(f"{path}: {name}: is {state[name].dtype}, must be {expected.dtype}")


def _table_name(config: Any) -> str | None:
    """The entry of the table of detectors that `config` equals but for the number of classes."""
    entries = DETECTORS.items()
    return next((name for name, known in entries if replace(known, num_classes=config.num_classes) == config), None)
