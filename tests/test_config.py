"""Configs: checked and converted where they are written, once; old names of settings are read with a warning."""

import copy
import errno
import json
import math
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pydantic
import pytest
from pydantic import PositiveInt

from focaldet import config as configs
from focaldet.config import Fraction, validate_fields
from focaldet.data.augment.config import AugmentConfig
from focaldet.errors import ConfigError
from focaldet.models.retinanet import LossConfig, RetinaNetConfig
from focaldet.text import printable
from focaldet.training.config import RunConfig


@validate_fields
@dataclass(frozen=True, slots=True)
class Inner:
    renamed_keys: ClassVar[Mapping[str, str]] = {"breadth": "width"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"color": {"grey": "gray"}}

    width: PositiveInt = 3
    color: str = "gray"
    rates: tuple[Fraction, ...] = (0.5,)


@validate_fields
@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    second: Inner | None = None
    path: Path = Path("here")
    factor: float = 1.0


class TestConstruction:
    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: RunConfig(epochs=-3), r"RunConfig: epochs: .*greater than 0, got -3"),
            (lambda: RunConfig(precision="fp8"), r"RunConfig: precision: .*'fp32'.*, got 'fp8'"),
            (lambda: RunConfig(augment={"hue": 2.0}), r"augment.hue: .*less than or equal to 1, got 2.0"),
            (lambda: RetinaNetConfig(width=-1), r"RetinaNetConfig: width: .*greater than 0, got -1"),
            (lambda: RetinaNetConfig(num_classes=2.5), "num_classes: .*integer.*, got 2.5"),
            (lambda: RetinaNetConfig(loss=LossConfig(gamma=math.nan)), "LossConfig: gamma: .*, got nan"),
            (lambda: LossConfig(box_weight=math.inf), "box_weight: .*finite number, got inf"),
            (lambda: replace(RunConfig(), batch_size=0), "RunConfig: batch_size: .*, got 0"),
            (lambda: replace(AugmentConfig(), scale_jitter="much"), "AugmentConfig: scale_jitter: .*list such as"),
            (lambda: Inner(-1), "Inner: width: .*, got -1"),
            (lambda: Inner(rates=(0.5, 1.5)), "Inner: rates.1: .*less than or equal to 1, got 1.5"),
            (lambda: Outer(second=3), "Outer: second: .*, got 3"),
        ],
    )
    def test_refuses_nonsense_where_it_is_written(self, build, message):
        with pytest.raises(ConfigError, match=message):
            build()

    def test_a_wrong_call_stays_a_type_error(self):
        with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
            RunConfig(epoch=3)
        with pytest.raises(TypeError, match="positional arguments"):
            Inner(1, "red", (), 3)

    def test_converts_what_a_file_would_hold(self):
        outer = Outer(Inner(rates=[0, 1]), path="there", factor=2)
        assert outer == Outer(Inner(rates=(0.0, 1.0)), path=Path("there"), factor=2.0)
        assert isinstance(outer.inner.rates[0], float) and isinstance(outer.factor, float)

    def test_stays_a_dataclass(self):
        outer = Outer(Inner(width=4))
        assert replace(outer, path="there") == Outer(Inner(width=4), path=Path("there"))
        assert hash(outer) == hash(copy.deepcopy(outer))
        assert pickle.loads(pickle.dumps(outer)) == outer
        assert (RunConfig.epochs, Outer.factor) == (24, 1.0)
        assert repr(Inner()) == "Inner(width=3, color='gray', rates=(0.5,))"


class Validations:
    """Counts how often pydantic checks each field."""

    def __init__(self):
        self.counts = {}

    def of(self, name):
        return pydantic.BeforeValidator(lambda value: self.counts.update({name: self.counts.get(name, 0) + 1}) or value)


def test_each_config_is_validated_once():
    from typing import Annotated

    seen = Validations()
    part = validate_fields(
        dataclass(frozen=True)(type("Part", (), {"__annotations__": {"x": Annotated[int, seen.of("x")]}}))
    )
    whole = validate_fields(
        dataclass(frozen=True)(
            type("Whole", (), {"__annotations__": {"part": part, "y": Annotated[int, seen.of("y")]}})
        )
    )
    built = whole(part=part(x=1), y=2)
    assert seen.counts == {"x": 1, "y": 1}
    assert configs.from_dict(whole, {"part": {"x": 1}, "y": 2}) == built
    assert seen.counts == {"x": 2, "y": 2}
    assert replace(built, y=3).part is built.part
    assert seen.counts == {"x": 2, "y": 3}


class TestFromDict:
    def test_inverts_to_dict(self):
        outer = Outer(Inner(4, "red", (0.25,)), second=Inner(), path=Path("p"))
        values = json.loads(configs.to_json(outer))
        assert values["inner"] == {"width": 4, "color": "red", "rates": [0.25]}
        assert configs.from_dict(Outer, values) == outer

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"inner": {"width": 0}}, r"recipe: inner.width: .*greater than 0, got 0"),
            ({"second": {"width": 0}}, r"recipe: second.*width: .*greater than 0, got 0"),
            ({"factor": math.nan}, "recipe: factor: .*finite number, got nan"),
            ({"inner": {"widht": 1}}, r"""recipe: unknown setting 'inner.widht' \(did you mean "width"\?\)"""),
            ({"inner": {"width": 1, "breadth": 2}}, "recipe: inner.breadth: is the old name of width; give only one"),
        ],
    )
    def test_names_source_and_setting(self, values, message):
        with pytest.raises(ConfigError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            configs.from_dict(Outer, values, source="recipe")

    def test_reads_old_names_with_a_warning(self):
        with pytest.warns(FutureWarning, match="recipe: second.breadth is now called width"):
            assert configs.from_dict(Outer, {"second": {"breadth": 5}}, source="recipe").second == Inner(5)
        with pytest.warns(FutureWarning, match="recipe: inner.color: grey is now called gray"):
            assert configs.from_dict(Outer, {"inner": {"color": "grey"}}, source="recipe") == Outer()

    def test_reads_old_files_silently(self):
        old = {"inner": {"breadth": 5, "color": "grey"}}
        assert configs.from_dict(Outer, old, warn_renamed=False) == Outer(Inner(5))


def test_flatten_names_nested_settings_by_dots():
    nested = {"a": {"b": 1, "c": {}}, "phases": [{"x": 1}, {"x": 2}], "list": [1, 2], "none": []}
    flat = {"a.b": 1, "a.c": {}, "phases.1.x": 1, "phases.2.x": 2, "list": [1, 2], "none": []}
    assert configs.flatten(nested) == flat


def test_merge_lays_changes_over_nested_settings():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert configs.merge(base, {"a": {"b": 5}, "d": {"e": 1}}) == {"a": {"b": 5, "c": 2}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


class TestMakeFolder:
    def test_it_is_made_with_its_parents_or_taken(self, tmp_path):
        wanted = tmp_path / "a" / "b"
        for _ in range(2):
            assert configs.make_folder(wanted) == wanted
            assert wanted.is_dir()

    @pytest.mark.parametrize("name", ["file", "file/sub/run", "loose", "x" * 300, "a\0b"])
    def test_what_is_in_the_way_names_setting_and_path(self, tmp_path, name):
        (tmp_path / "file").touch()
        (tmp_path / "loose").symlink_to("nowhere")
        with pytest.raises(ConfigError, match=r"^cache: .*: no folder can be made there: \w+") as raised:
            configs.make_folder(tmp_path / name, setting="cache")
        assert printable(tmp_path / name, most=2000) in str(raised.value)

    def test_no_permission(self, tmp_path, monkeypatch):
        """Simulated, because nothing is forbidden to root."""
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
        with pytest.raises(ConfigError, match=r"out: .*: no permission to write"):
            configs.make_folder(tmp_path)

    def test_a_full_disk_is_not_a_mistake_of_the_setting(self, tmp_path, monkeypatch):
        def full(path, **named):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "mkdir", full)
        with pytest.raises(OSError, match="No space left"):
            configs.make_folder(tmp_path / "new")


def test_the_constructor_takes_the_old_name_of_a_setting_with_a_warning():
    from focaldet.models.retinanet import LossConfig

    with pytest.warns(FutureWarning, match="LossConfig: normaliser is now called normalizer"):
        assert LossConfig(normaliser="image") == LossConfig(normalizer="image")


def test_json_is_read_as_json_and_as_yaml_where_it_was_written_by_hand(tmp_path):
    values = {"learning_rate": 5e-05, "weight_decay": 1e-05, "text": "1e-05", "next line": "\x85"}
    configs.write_json(tmp_path / "values.json", values)
    assert configs.read_mapping(tmp_path / "values.json") == values
    (tmp_path / "hand.json").write_text('{"epochs": 3, # few\n "seed": 1,}')
    assert configs.read_mapping(tmp_path / "hand.json") == {"epochs": 3, "seed": 1}
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep\.json"):
        configs.read_mapping(tmp_path / "deep.json")
