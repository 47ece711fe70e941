"""Files by save_detector: a round trip is exact, and what does not fit is named before memory is taken."""

import copy
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from focaldet.data.dataset import Classes
from focaldet.errors import CheckpointError
from focaldet.models import Detector, Preset, build, presets, register
from focaldet.models.retinanet import RetinaNetConfig
from focaldet.types import Preprocessing, Resize
from focaldet.weights import load_detector, read_metadata, save_detector
from tests.batches import full_sizes

SMALL: dict[str, Any] = {"width": 32, "head_depth": 1}


CLASSES = Classes(("혈소판", "RBC", 'quoted "name"'), (1, 7, 90))
PREPROCESSING = Preprocessing(channels="BGR", mean=(1.0, 2.0, 0.1), std=(1.0, 3.0, 7.0), resize=Resize("long", 96))


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(5)
    made = build("retinanet_r18_fpn", class_names=CLASSES.names, preprocessing=PREPROCESSING, architecture=SMALL)
    for name, tensor in made.state_dict().items():
        tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("running_var") else torch.randn_like(tensor) / 10)
    return made


@pytest.fixture
def path(tmp_path: Path, detector: Detector) -> Path:
    save_detector(tmp_path / "w.safetensors", detector, classes=CLASSES, license="CC0", extra={"epoch": "3"})
    return tmp_path / "w.safetensors"


def test_round_trip_is_bit_identical(path: Path, detector: Detector) -> None:
    loaded = load_detector(path).detector
    assert states_equal(loaded, detector)
    assert (loaded.config, loaded.class_names, loaded.preprocessing) == (detector.config, CLASSES.names, PREPROCESSING)
    assert type(loaded.config) is type(detector.config)
    images = torch.randint(0, 256, (1, 3, 96, 64), dtype=torch.uint8)
    sizes = full_sizes(images)
    assert torch.equal(loaded.eval()(images, sizes).logits, detector.eval()(images, sizes).logits)


def test_the_same_detector_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    save_detector(
        tmp_path / "again", load_detector(path).detector, classes=CLASSES, license="CC0", extra={"epoch": "3"}
    )
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_metadata_state_classes_model_and_license(path: Path) -> None:
    metadata = read_metadata(path)
    assert (metadata.class_names, metadata.category_ids) == (CLASSES.names, CLASSES.category_ids)
    assert (metadata.architecture, metadata.version, metadata.license) == ("RetinaNetConfig", 2, "CC0")
    assert metadata.preprocessing == PREPROCESSING
    assert metadata.extra == {"epoch": "3"}
    assert metadata.model is None, "its width is no longer that of the preset"


def test_the_preset_is_kept_whatever_the_number_of_classes(tmp_path: Path) -> None:
    save_detector(tmp_path / "w", build("retinanet_r18_fpn", num_classes=2))
    metadata = read_metadata(tmp_path / "w")
    assert (metadata.model, metadata.class_names, metadata.category_ids) == ("retinanet_r18_fpn", (), ())
    assert "not stated" in metadata.license


def test_metadata_need_no_tensors(path: Path) -> None:
    with path.open("rb") as file:
        header_bytes = struct.unpack("<Q", file.read(8))[0]
    # A sparse file of the same length: the header is there, the tensors are holes.
    header, length = path.read_bytes()[: 8 + header_bytes], path.stat().st_size
    with path.open("wb") as file:
        file.write(header)
        file.truncate(length)
    assert read_metadata(path).class_names == CLASSES.names


def test_loading_leaves_the_random_state_alone(path: Path) -> None:
    state = torch.get_rng_state()
    load_detector(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_last_weights_are_saved_alike(detector: Detector, tmp_path: Path, path: Path) -> None:
    other = load_detector(path).detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_detector(tmp_path / "other", other, classes=CLASSES, license="CC0", extra={"epoch": "3"})
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(detector: Detector, tmp_path: Path, dtype: torch.dtype) -> None:
    half = copy.deepcopy(detector).to(dtype)
    save_detector(tmp_path / "half", half)
    assert states_equal(load_detector(tmp_path / "half").detector, half.float())


Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def rewrite(path: Path, change: Change) -> Path:
    """The file with its tensors and its description changed."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["focaldet"])
    change(tensors, description)
    save_file(tensors, path, metadata={"focaldet": json.dumps(description)})
    return path


BIAS = "class_subnet.predict.bias"
CASES: dict[str, tuple[Change, str]] = {
    "missing tensor": (lambda tensors, _: tensors.pop(BIAS), rf"made for another network: missing {BIAS}"),
    "unknown tensor": (lambda tensors, _: tensors.update(odd=torch.zeros(1)), "left over odd"),
    "shape": (
        lambda tensors, _: tensors.update({BIAS: torch.zeros(9)}),
        rf"{BIAS} has shape \(9,\) in the file, \(27,\) in the network",
    ),
    "type": (
        lambda tensors, _: tensors.update({BIAS: tensors[BIAS].to(torch.int32)}),
        rf"{BIAS}: is torch.int32, must be torch.float32",
    ),
    "a billion classes": (
        lambda _, description: (
            description["config"].update(num_classes=10**9),
            description.update(class_names=[], category_ids=[]),
        ),
        r"config: num_classes: Input should be less than or equal to 100000, got 1000000000",
    ),
    "names of other classes": (
        lambda _, description: description.update(class_names=["one"]),
        "class_names: 1 entries for 3 classes",
    ),
    "ids": (lambda _, description: description.update(category_ids=[1]), "category_ids: 1 entries for 3 classes"),
    "unknown architecture": (
        lambda _, description: description.update(architecture="RetinaConfig"),
        'did you mean "RetinaNetConfig"',
    ),
    "unknown setting": (lambda _, description: description["config"].update(widht=1), 'did you mean "width"'),
    "wrong type of setting": (lambda _, description: description["config"].update(width="wide"), "config: width: "),
    "no such backbone": (
        lambda _, description: description["config"].update(backbone="config: .*resnet51"),
        "config: .*resnet51",
    ),
    "impossible width": (lambda _, description: description["config"].update(width=-32), "config: .*-32"),
    "bad preprocessing": (lambda _, description: description.update(preprocessing=3), "preprocessing"),
    "newer version": (lambda _, description: description.update(version=3), "version 3 is newer .* update focaldet"),
    "missing config": (lambda _, description: description.pop("config"), "metadata: config"),
}


@pytest.mark.parametrize("case", CASES)
def test_contradictions_are_named_in_one_line(path: Path, case: str) -> None:
    change, message = CASES[case]
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_detector(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 50_000, '{"config": NaN}', '{"version": 1}'])
def test_damaged_descriptions(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w", metadata={"focaldet": text})
    for reader in (read_metadata, load_detector):
        with pytest.raises(CheckpointError, match=r"w: metadata: "):
            reader(tmp_path / "w")


def test_files_of_other_programs(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="was not written by focaldet"):
        read_metadata(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other: .*not a detector that focaldet knows"):
        load_detector(tmp_path / "other")
    (tmp_path / "text").write_text("hello, this is not a weights file")
    for read in (read_metadata, load_detector):
        with pytest.raises(CheckpointError, match="text: damaged, or no weights file"):
            read(tmp_path / "text")
    with pytest.raises(CheckpointError, match="No such file"):
        read_metadata(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no file or run folder"):
        load_detector(tmp_path / "absent")


@dataclass(frozen=True)
class OwnConfig(RetinaNetConfig):
    """A detector that a user wrote."""

    own: int = 1


def test_a_detector_of_your_own_loads_once_it_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OwnConfig(backbone="resnet18", num_classes=2, width=32, head_depth=1, own=3)
    detector = config.build(class_names=("cat", "dog"), preprocessing=PREPROCESSING)
    save_detector(tmp_path / "w", detector)
    with pytest.raises(CheckpointError, match=r"w: architecture 'OwnConfig' is unknown .*focaldet\.register"):
        load_detector(tmp_path / "w")
    monkeypatch.setitem(presets.PRESETS, "own", Preset(OwnConfig()))  # so that it is gone again after the test
    register("own", Preset(OwnConfig(backbone="resnet18", width=32, head_depth=1, own=3)), replace=True)
    loaded = load_detector(tmp_path / "w").detector
    assert loaded.config == config and loaded.class_names == ("cat", "dog")
    assert states_equal(loaded, detector)
    save_detector(tmp_path / "again", loaded)
    assert read_metadata(tmp_path / "again").model == "own"


def states_equal(left: Detector, right: Detector) -> bool:
    first, second = left.state_dict(), right.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_truncation_anywhere_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for kept in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"w\.safetensors: .*damaged"):
            load_detector(path)


def test_defaults_of_a_later_config_read_old_files(path: Path, detector: Detector) -> None:
    rewrite(path, lambda _, description: description["config"].pop("prior"))
    assert load_detector(path).detector.config == replace(detector.config, prior=0.01)
