"""focaldet's own weights file: safetensors with all it takes to rebuild the detector and to read its detections."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save

from focaldet import config as configs
from focaldet.data.dataset import Classes
from focaldet.errors import CheckpointError, ConfigError
from focaldet.models import PRESETS, Detector, DetectorConfig, from_config
from focaldet.ranges import MOST_FILE_SIDE_PX
from focaldet.text import printable
from focaldet.types import Preprocessing
from focaldet.weights.formats.files import TensorFile, open_safetensors, write_atomically
from focaldet.weights.tensor_names import (
    build_on_meta,
    require_fit,
    require_room,
    shapes_of,
    tensor_shapes,
)

KEY = "focaldet"
"""The key of the description in the metadata of a safetensors file."""
VERSION = 2  # 1: tensors, settings and metadata have the names of version 0.1
TIMM, PLAIN_TIMM = "timm:", re.compile(r"timm:\w{1,80}(\.\w{1,80})?", re.ASCII)
"""What a file may name as a backbone of timm: an architecture, with a tag or without; nothing is fetched for it."""
NO_LICENSE = "not stated by whoever trained these weights"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a weights file says about itself.

    `architecture` names the class of `config`; `model` is the preset that it equals, if there is one. `class_names` and
    `category_ids` are by label; either may be empty. `extra` is free text by name.
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

    renamed_keys: ClassVar[Mapping[str, str]] = {"licence": "license"}


def save_detector(
    path: Path,
    detector: Detector,
    *,
    classes: Classes | None = None,
    license: str | None = None,  # noqa: A002  as in the file
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write `detector` to `path`, at once whole or not at all; `load_detector` (in `weights.load`) gives an equal one.

    Raises:
        CheckpointError: the file cannot be written (what was there before is intact).
    """
    metadata = describe_detector(detector, classes=classes, license=license, extra=extra)
    tensors = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    write_atomically(path, save(tensors, metadata={KEY: configs.to_json(metadata)}))


def describe_detector(
    detector: Detector,
    *,
    classes: Classes | None = None,
    license: str | None = None,  # noqa: A002  as in the file
    extra: Mapping[str, str] | None = None,
) -> Metadata:
    """What a file of this detector says about itself."""
    return Metadata(
        architecture=type(detector.config).__name__,
        config=configs.to_dict(detector.config),
        class_names=classes.names if classes is not None else detector.class_names,
        category_ids=classes.category_ids if classes is not None else (),
        preprocessing=detector.preprocessing,
        model=_preset_name(detector.config),
        license=license or NO_LICENSE,
        extra=dict(extra or {}),
    )


def is_checkpoint(file: TensorFile) -> bool:
    """True for a file that `save_detector` wrote."""
    return KEY in file.statements


def build_saved(file: TensorFile, path: Path) -> tuple[Detector, Metadata]:
    """The detector of a file by `save_detector`, bit for bit, and what the file says about itself.

    Names, shapes and types of the tensors are compared with what the config describes before the detector is built.
    Weights that were saved in half precision become float32.

    Raises:
        CheckpointError: written by another program, or contradicting itself; names the tensor.
    """
    metadata = parse_metadata(file.statements, path)
    config = saved_config(metadata, path)
    try:
        sketch = build_on_meta(config)
    except (ConfigError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: config: describes no network: {error}") from None
    tensors = sketch.current_tensor_names(file.tensors)
    require_fit(shapes_of(sketch), tensor_shapes(tensors), source=str(path))
    for name, expected in sketch.state_dict().items():
        actual = tensors[name].dtype
        if actual != expected.dtype and not (actual.is_floating_point and expected.is_floating_point()):
            raise CheckpointError(f"{path}: {name}: is {actual}, must be {expected.dtype}")
    require_room(sketch, source=str(path))
    # The random weights that the file's replace must not cost the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        detector = from_config(config, class_names=metadata.class_names, preprocessing=metadata.preprocessing)
    detector.load_state_dict(tensors)
    return detector, metadata


def read_metadata(path: Path) -> Metadata:
    """Read what a file by `save_detector` says about itself, from its header alone.

    Raises:
        CheckpointError: missing, damaged, or written by another program.
    """
    with open_safetensors(path) as content:
        return parse_metadata(content.metadata() or {}, path)


def saved_config(metadata: Metadata, path: Path) -> DetectorConfig:
    """The config in a file's metadata as an instance of its class.

    Raises:
        CheckpointError: the architecture is unknown, or a setting is.
    """
    classes = {type(preset.config).__name__: type(preset.config) for preset in PRESETS.values()}
    if metadata.architecture not in classes:
        hint = f"{configs.nearest(metadata.architecture, classes)}; focaldet.register one of your own first"
        raise CheckpointError(f"{path}: architecture {metadata.architecture!r} is unknown{hint}")
    try:
        config = configs.from_dict(
            classes[metadata.architecture], metadata.config, source=f"{path}: config", warn_renamed=False
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if (config.backbone or "").startswith(TIMM) and not PLAIN_TIMM.fullmatch(config.backbone or ""):
        raise CheckpointError(
            f"{path}: config: backbone {printable(config.backbone)}: a weights file may name an architecture of timm, "
            "not a hub or folder: build that detector yourself, then fill it with focaldet.load_into"
        )
    require_plausible(metadata, path, num_classes=config.num_classes)
    return config


def require_plausible(metadata: Metadata, path: Path, *, num_classes: int) -> None:
    """Refuse a description that contradicts itself, or asks for images that no file may ask for.

    Raises:
        CheckpointError: the input size is too large, or there are names or ids for another number of classes.
    """
    if (side := metadata.preprocessing.resize.size) > MOST_FILE_SIDE_PX:
        raise CheckpointError(f"{path}: preprocessing.resize.size: must be at most {MOST_FILE_SIDE_PX} px, got {side}")
    for key in ("class_names", "category_ids"):
        if (values := getattr(metadata, key)) and len(values) != num_classes:
            raise CheckpointError(f"{path}: {key}: {len(values)} entries for {num_classes} classes")


def parse_metadata(statements: Mapping[str, str], path: Path) -> Metadata:
    """The description of a detector among a file's statements.

    Raises:
        CheckpointError: it is missing, damaged or newer than this program.
    """
    if KEY not in statements:
        raise CheckpointError(f"{path}: was not written by focaldet: its metadata lack {KEY!r}")
    try:
        values = json.loads(statements[KEY])
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: metadata: must be a mapping, got {type(values).__name__}")
        if isinstance(version := values.get("version"), int) and version > VERSION:
            raise CheckpointError(
                f"{path}: version {version} is newer than this program's ({VERSION}): update focaldet"
            )
        return configs.from_dict(Metadata, values, source=f"{path}: metadata", warn_renamed=False)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata: not valid JSON: {error}") from None
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _preset_name(config: DetectorConfig) -> str | None:
    """The preset that `config` equals but for the number of classes."""
    classes = config.num_classes
    return next((name for name, known in PRESETS.items() if known.config.replace(num_classes=classes) == config), None)
